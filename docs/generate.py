"""The reference pages that are made of code: the commands with their configuration, and the recipes with their scores.

A hook of mkdocs; ``python docs/generate.py`` writes them too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionkit.cli.help import command_help
from fusionkit.cli.main import COMMANDS
from fusionkit.config import conf_dir, group_choices, primary_groups

REFERENCE = Path(__file__).parent / "reference"


def on_pre_build(config: Any) -> None:
    """What mkdocs calls before it reads the pages."""
    for name, text in (("cli.md", cli_page()), ("recipes.md", recipes_page())):
        path = REFERENCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # a server watches the folder
            path.write_text(text, encoding="utf-8")


def cli_page() -> str:
    """Each command as its ``--help`` tells it, then every choice of every group with what its file says of it."""
    parts = ["# Commands\n"]
    for name, command in COMMANDS.items():
        parts.append(f"## fusionkit {name}\n\n```text\n{command_help(name, command)}\n```\n")
    parts.append("# Choices\n")
    names = (command.config_name for command in COMMANDS.values() if command.config_name)
    for group in sorted({group for name in names for group in primary_groups(name)}):
        if rows := [_row(conf_dir() / group / f"{choice}.yaml") for choice in group_choices(group)]:
            parts.append("\n".join([f"## {group}\n", *rows, ""]))
    return "\n".join(parts)


def recipes_page() -> str:
    """Each experiment with what its file says: the published score, and where it differs on purpose."""
    rows = [_row(conf_dir() / "experiment" / f"{name}.yaml") for name in group_choices("experiment")]
    return "\n".join(["# Recipes\n", "`fusionkit train experiment=NAME data.root=FOLDER`\n", *rows, ""])


def _row(path: Path) -> str:
    """A choice, and the lines of its file's comment as they stand: a command among them ends where its line does."""
    return "\n  ".join([f"- `{path.stem}`: ", *comment(path)]).replace(": \n  ", ": ", 1)


def comment(path: Path) -> Iterator[str]:
    """The lines of a file's first comment, without what is Hydra's."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        if not line.startswith("# @package"):
            yield line.removeprefix("#").strip()


if __name__ == "__main__":
    on_pre_build(None)
