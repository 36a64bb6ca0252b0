"""The Java programs that come with pycocoevalcap: lines go in, and a line comes out for each. No file is written."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fusionkit.errors import DataError

START, A_LINE = 120.0, 0.2  # seconds that a program may take, many times what it does: then it hangs


def answer_lines(command: Sequence[str], folder: Path, lines: Sequence[str]) -> list[str]:
    """What the program says of each of the lines, run in the folder of its jar.

    Raises DataError where it fails, hangs, or does not answer each.
    """
    if not lines:
        return []
    limit = START + A_LINE * len(lines)
    sent = "".join(f"{line}\n" for line in lines).encode()
    try:
        done = subprocess.run(command, cwd=folder, input=sent, capture_output=True, check=False, timeout=limit)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failure(command, str(error)) from error
    answers = done.stdout.decode(errors="replace").split("\n")[:-1]  # what follows the last line's end is no line
    if done.returncode or len(answers) != len(lines):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _failure(command, said[-1] if said else f"exit code {done.returncode}, {len(answers):,} answers")
    return answers


def _failure(command: Sequence[str], reason: str) -> DataError:
    return DataError(
        f"{command[0]} cannot run pycocoevalcap's programs for captions ({reason}); install Java 8 or newer, or score "
        "without METEOR: benchmark.NAME.scorers.captioning.java=false"
    )
