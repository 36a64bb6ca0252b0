"""``fusionkit COMMAND --help``: the groups with their choices, the keys, the options, examples."""

import re
import textwrap
from typing import TYPE_CHECKING

from fusionkit.cli.main import DATA_VERBS
from fusionkit.config import conf_dir, group_choices, primary_groups

if TYPE_CHECKING:
    from fusionkit.cli.main import Command

WIDTH, COLUMN = 130, 32  # of a line, and of where the sentences begin
OPTIONS = """\
options
  -m, --multirun    run every combination of comma-separated values: fusion=a,b seed=1,2
  --config-dir DIR  also look for configuration files in DIR
  --cfg job         print the composed configuration and stop (--resolve fills in the interpolations)"""

USAGES = {  # of the commands that compose no configuration before they know more
    "data": "VERB NAME [key=value ...], or look FILE [key=value ...]",
    "import": "FAMILY=PATH [key=value ...]",
    "check": "FOLDER",
    "completion": "SHELL",
}


def command_help(name: str, command: "Command") -> str:
    """The help page of one command."""
    operands = f" {command.operands.upper()}..." if command.operands else ""
    usage = USAGES.get(name, f"[options]{operands} [key=value ...]")
    parts = [f"usage: fusionkit {name} {usage}", command.summary]
    if name == "data":
        parts.append("\n".join(f"{verb}: {', '.join(group_choices(verb))}" for verb in DATA_VERBS))
        parts.append("fusionkit data VERB NAME --cfg job prints the keys")
    if name == "import":
        parts.append(
            f"families: {', '.join(group_choices('import'))} (fusionkit import FAMILY=PATH --cfg job prints its keys)"
        )
    if command.config_name:
        parts += [_groups(command.config_name), _keys(command.config_name), OPTIONS]
    parts.append("\n".join(["examples", *(f"  fusionkit {name} {example}" for example in command.examples)]))
    return "\n\n".join(part for part in parts if part)


def _groups(config_name: str) -> str:
    rows = []
    for group, default in primary_groups(config_name).items():
        chosen = default if isinstance(default, list) else [default]
        names = [f"*{choice}" if choice in chosen else choice for choice in group_choices(group)]
        rows.append(f"  {group:<14}{'  '.join(names)}")
    return "\n".join(["groups: group=name chooses, group.key=value changes (* is the default)", *rows]) if rows else ""


def _keys(config_name: str) -> str:
    rows = []
    for key, value, sentence in keys_of(config_name):
        first, *others = textwrap.wrap(sentence, WIDTH - COLUMN) or [""]
        rows.append(f"  {key}={value}".ljust(COLUMN - 2) + f"  {first}")
        rows += [" " * COLUMN + line for line in others]
    return "\n".join(["keys: key=value changes", *map(str.rstrip, rows)])


def keys_of(config_name: str) -> list[tuple[str, str, str]]:
    """The keys of a command's own file, each with its value and the sentence beside it, which may go on in the lines below."""
    rows: list[tuple[str, str, str]] = []
    for line in (conf_dir() / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and rows:
            key, value, sentence = rows.pop()
            rows.append((key, value, f"{sentence} {line[2:]}".strip()))
        elif (other := re.match(r"  - (\w+)$", line)) and other[1] != "_self_":
            rows += keys_of(other[1])
        elif found := re.match(r"(\w+):(?: ([^#]*?))? *(?:# (.*))?$", line):
            key, value, sentence = found.groups("")
            rows.append((key, "" if value in ("null", "???") else value, sentence))
    return [row for row in rows if row[0] != "defaults"]
