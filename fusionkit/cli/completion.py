"""Shell completion of commands, configuration groups and keys; ``fusionkit completion SHELL`` prints a script for eval."""

import io
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from glob import escape, glob

from fusionkit.errors import ConfigError, suggest

SCRIPTS = {
    # bash breaks words at "=", so what stands before it must not be repeated
    "bash": """\
_fusionkit() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    local word="${line##* }"
    local kept="${word%"${word##*=}"}"
    COMPREPLY=($(fusionkit completion query "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
}
complete -o nospace -o default -F _fusionkit fusionkit""",
    "zsh": """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_fusionkit() {
    local -a found=("${(@f)$(fusionkit completion query "$LBUFFER" 2>/dev/null)}")
    compadd -Q -S '' -- $found
}
compdef _fusionkit fusionkit""",
    "fish": """\
function __fusionkit_complete
    fusionkit completion query (commandline -cp) 2>/dev/null
end
complete -c fusionkit -f -a '(__fusionkit_complete)'""",
}


def run(arguments: Sequence[str]) -> int:
    """Print a shell's script, or, for that script, the words that can follow a line."""
    shell = arguments[0] if arguments else ""
    if shell == "query":
        query(" ".join(arguments[1:]))
    elif shell in SCRIPTS:
        print(SCRIPTS[shell])
    else:
        raise ConfigError(f"fusionkit completion needs a shell, not '{shell}'; {suggest(shell, SCRIPTS)}")
    return 0


def query(line: str) -> None:
    """Print the candidates for the last word of a command line, one a line."""
    from fusionkit.cli.main import COMMANDS, DATA_VERBS, LOOK
    from fusionkit.config import group_choices

    words, options = _split(line.split()[1:] + ([""] if line.endswith(" ") else []))
    name, *rest = words or [""]
    verb = rest[0] if rest and rest[0] in DATA_VERBS else DATA_VERBS[0]
    known = {"completion": [list(SCRIPTS)], "data": [[*DATA_VERBS, LOOK], group_choices(verb)]}
    fixed = known.get(name, [])
    if not rest:
        _offer(name, COMMANDS)
    elif name not in COMMANDS:
        return
    elif name == "import" and len(rest) == 1:
        print("\n".join(f"{family}=" for family in group_choices("import") if family.startswith(rest[0])))
    elif name == "import":
        _hydra("import", [f"import={rest[0].partition('=')[0]}", *rest[1:]], options)
    elif len(rest) <= len(fixed):
        _offer(rest[-1], fixed[len(rest) - 1])
    elif config_name := f"data_{verb}" if name == "data" else COMMANDS[name].config_name:
        words = rest[len(fixed) :]
        if COMMANDS[name].operands:
            words = [word for word in words[:-1] if "=" in word] + words[-1:]
            for path in filter(os.path.isdir, sorted(glob(f"{escape(words[-1])}*"))):
                print(f"{path}/")
            if "/" in words[-1] and "=" not in words[-1]:  # Hydra would offer them, too
                return
        _hydra(config_name, words, options)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words but for options, and what of these says where configurations lie; the last word is being typed."""
    left, options = [], list[str]()
    following = iter(words)
    for word in following:
        name, equals, folder = word.partition("=")
        if name == "--config-dir" and (folder := folder if equals else next(following, "")):
            options = ["--config-dir", os.path.expanduser(folder)]
        elif word not in ("-m", "--multirun", "--resolve"):
            left.append(word)
    return left, options


def _offer(word: str, choices: Iterable[str]) -> None:
    print("\n".join(f"{choice} " for choice in choices if choice.startswith(word)))


def _hydra(config_name: str, words: Sequence[str], options: Sequence[str]) -> None:
    """Hydra's own completion, as its fish plugin prints it (one candidate a line), less what this command does not have."""
    import hydra

    from fusionkit.config import conf_dir, primary_groups, register_resolvers

    register_resolvers()
    os.environ["COMP_LINE"] = " ".join(["fusionkit", *words])
    sys.argv = ["fusionkit", *options, "--shell-completion", "query=fish"]
    found, conf = io.StringIO(), conf_dir().resolve()
    with redirect_stderr(io.StringIO()), redirect_stdout(found):
        hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(lambda _: None)()
    foreign = {path.name for path in conf.iterdir() if path.is_dir()} - primary_groups(config_name).keys()
    for word in found.getvalue().split():
        if not word.startswith("_") and word.strip("+~").partition("=")[0] not in foreign and word != "hydra.":
            print(word)
