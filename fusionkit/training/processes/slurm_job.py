"""The job of SLURM in which a training runs: what is asked of sbatch, and the script."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.errors import ConfigError
from fusionkit.signals import REQUEUE, STOPPED

SAID = {  # options of sbatch that keys of the configuration say
    "job-name": "name",
    "nodes": "trainer.num_nodes",
    "ntasks-per-node": "trainer.devices",
    "time": "trainer.slurm.time",
    "partition": "trainer.slurm.partition",
    "account": "trainer.slurm.account",
    "qos": "trainer.slurm.qos",
    "cpus-per-task": "trainer.slurm.cpus_per_task",
    "mem": "trainer.slurm.memory",
    "signal": "trainer.slurm.signal_seconds",
}
OURS = (
    "array",
    "chdir",
    "error",
    "ntasks",
    "no-requeue",
    "open-mode",
    "output",
    "parsable",
    "requeue",
    "test-only",
    "wrap",
)
SCRIPT = """\
cd {folder} || exit 1
{setup}
export {stopped_name}={slurm}/"$SLURM_JOB_ID".stopped  # there where the processes were asked to stop, and have
rm -f "${stopped_name}"
code=0
srun {srun} \\
  {python} -m fusionkit.commands.worker fusionkit.commands.train:train {config} || code=$?
if [ "$code" -eq 0 ] && [ -e "${stopped_name}" ]; then
  echo "job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || echo "it could not be put back; the same command with resume=auto submits it again" >&2
  exit {requeue}
fi
exit "$code"
"""


@dataclass(frozen=True)
class Slurm:
    """What a job asks for, ``trainer.slurm``; raises ConfigError for what sbatch would take for something else."""

    time: Any = None
    partition: str | None = None
    account: str | int | None = None
    qos: str | None = None
    cpus_per_task: int | None = None
    memory: str | int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    setup: Sequence[str] = ()
    signal_seconds: int = 300
    python: str | None = None

    def __post_init__(self) -> None:
        seconds = 0 if self.time in (None, "UNLIMITED", "INFINITE") else seconds_of(self.time)
        if seconds is None:
            raise ConfigError(
                f"trainer.slurm.time is {self.time!r}; give days-hours:minutes:seconds or hours:minutes:seconds, in a file in "
                "quotes, without which yaml makes a number of 1:00:00"
            )
        if not 1 <= self.signal_seconds <= 65535:
            raise ConfigError(f"trainer.slurm.signal_seconds is {self.signal_seconds}; give seconds from 1 to 65535")
        if 0 < seconds <= self.signal_seconds:  # the job would be asked to stop as it starts, again and again
            raise ConfigError(
                f"trainer.slurm.time={self.time} leaves no time before the run is asked to stop, "
                f"trainer.slurm.signal_seconds={self.signal_seconds} before its end; give more time, or fewer of these"
            )
        for name, value in self.options.items():
            option = _option(name)
            if option in SAID or option in OURS or not re.fullmatch("[a-z][a-z0-9-]*", option):
                there = f"give {SAID[option]}" if option in SAID else "leave it out"
                raise ConfigError(
                    f"trainer.slurm.options.{name} is no option that a job of a training can have; {there}"
                )
            if not isinstance(value, str | int | float | bool | None):
                raise ConfigError(
                    f"trainer.slurm.options.{name} is {value!r}; give a text, a number, or true for a flag"
                )


def seconds_of(time: Any) -> int | None:
    """A time as sbatch reads it: minutes, minutes:seconds, hours:minutes:seconds, or days- and one to three from hours on."""
    if not isinstance(time, str) or not (found := re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", time)):
        return None
    numbers = [int(number) for number in found[2].split(":")]
    if found[1] is None and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(found[1] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def options_of(name: str, trainer: Mapping[str, Any], slurm: Slurm, folder: Path) -> list[str]:
    """The options of sbatch for a run of that name, by the options of its trainer; ``folder`` takes what belongs to the job."""
    for key in ("devices", "num_nodes"):
        if type(value := trainer.get(key)) is not int or value < 1:
            raise ConfigError(
                f"trainer.{key} is {value!r}, but a job is asked for a number of them; give a whole number from 1"
            )
    name = re.sub(r"[^\w.+-]+", "_", name)
    if name in ("bash", "interactive"):  # by which Lightning knows a shell
        name = f"fusionkit_{name}"
    found = {
        "job-name": name,
        "nodes": trainer["num_nodes"],
        "ntasks-per-node": trainer["devices"],
        "gpus-per-node": None if trainer["accelerator"] == "cpu" else trainer["devices"],
        "cpus-per-task": slurm.cpus_per_task,
        "mem": slurm.memory,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "signal": f"TERM@{slurm.signal_seconds}",  # to the processes, and not to the script
        "requeue": True,
        "open-mode": "append",
        "output": f"{folder}/".replace("%", "%%") + "%j.log",
        **{_option(name): value for name, value in slurm.options.items()},
    }
    if "\\" in str(folder):
        raise ConfigError(
            f"output_dir={folder.parent} has a backslash, which no log of sbatch can have; give another one"
        )
    for option, value in found.items():
        if not str(value).isprintable():
            key = SAID.get(option, "output_dir" if option == "output" else f"trainer.slurm.options.{option}")
            raise ConfigError(
                f"{key}: {value!r} holds a line break or the like, which no option of sbatch can; give another"
            )
    told = {option: value for option, value in found.items() if value is not None and value is not False}
    return [f"--{option}" if value is True else f"--{option}={value}" for option, value in told.items()]


def script_of(options: Sequence[str], slurm: Slurm, folder: Path) -> str:
    """The script of the job, which ``sbatch job.sh`` by hand submits too.

    Processes that were asked to stop end with 0, and leave a file. At the first that ended with another code srun would end the
    others, rank 0 among them, which may still have to write, and its own code would tell of that, not of why.
    """
    srun = ["--kill-on-bad-exit=1", "--wait=0"]  # no end of those that are left while rank 0 evaluates
    if slurm.cpus_per_task is not None:  # SLURM 22.05 and later take it from no batch script
        srun.append(f"--cpus-per-task={slurm.cpus_per_task}")
    asked = [f"#SBATCH {_quoted(option)}" for option in options]
    rest = SCRIPT.format(
        folder=shlex.quote(os.getcwd()),
        setup="\n".join(slurm.setup),
        stopped_name=STOPPED,
        slurm=shlex.quote(str(folder)),
        srun=shlex.join(srun),
        python=shlex.quote(slurm.python or sys.executable),
        config=shlex.quote(str(folder / "config.yaml")),
        requeue=REQUEUE,
    )
    return "\n".join(["#!/bin/bash", *asked, rest])


def _option(name: str) -> str:
    return str(name).replace("_", "-")


def _quoted(option: str) -> str:
    """An option as sbatch reads it in a script: unlike a shell it takes a backslash for one within single quotes too."""
    if re.fullmatch(r"[\w@%+=:,./-]+", option):
        return option
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'
