"""``trainer=slurm``: submits a training as a job of SLURM, which goes back into the queue when it is asked to stop."""

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from fusionkit.commands.run_folder import replaced
from fusionkit.commands.worker import save
from fusionkit.errors import ConfigError, UserError
from fusionkit.files.atomic import write_text
from fusionkit.scoring.records import require_writable
from fusionkit.signals import MISTAKE, PARENT, REQUEUE, STOPPED

JOB = "job"  # the file with the number of the last job, in the folder slurm of a run
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
OURS = ("array", "chdir", "error", "ntasks", "no-requeue", "open-mode", "output", "parsable", "requeue", "test-only", "wrap")
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of whoever has started this process
SCRIPT = """\
cd {folder} || exit 1
{setup}
export {stopped_name}={slurm}/"$SLURM_JOB_ID".stopped  # there where the processes were asked to stop, and have
rm -f "${stopped_name}"
code=0
srun {srun} \\
  {python} -m fusionkit.commands.worker fusionkit.commands.train:train {config} || code=$?
if [ "$code" -eq 0 ] && [ -e "${stopped_name}" ]; then
  rm -f "${stopped_name}"
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
        if self.time is not None and not isinstance(self.time, str):
            raise ConfigError(
                f"trainer.slurm.time is {self.time!r}; give days-hours:minutes:seconds, or hours:minutes:seconds, and in quotes in "
                "a file, where yaml makes a number of 1:00:00"
            )
        if not 1 <= self.signal_seconds <= 65535:
            raise ConfigError(f"trainer.slurm.signal_seconds is {self.signal_seconds}; give seconds from 1 to 65535")
        for name, value in self.options.items():
            option = _option(name)
            if option in SAID or option in OURS or not re.fullmatch("[a-z][a-z0-9-]*", option):
                there = f"give {SAID[option]}" if option in SAID else "leave it out"
                raise ConfigError(f"trainer.slurm.options.{name} is no option that a job of a training can have; {there}")
            if not isinstance(value, str | int | float | bool | None):
                raise ConfigError(f"trainer.slurm.options.{name} is {value!r}; give a text, a number, or true for a flag")


def submit(config: DictConfig) -> None:
    """Submit a run, whose folder is checked, and say where to look; nothing of an earlier run is lost where that fails.

    Raises ConfigError where there is no sbatch, or it refuses, and where an earlier job of the folder is in the queue.
    """
    if config.trainer.fast_dev_run:
        raise ConfigError(
            "trainer.fast_dev_run tries a few steps and keeps nothing, so no job is submitted for it; add trainer=gpu or "
            "trainer=cpu to try them here"
        )
    slurm = instantiate(config.trainer.slurm, _convert_="all")
    if not isinstance(slurm, Slurm):
        raise ConfigError("trainer.slurm is a section of trainer=slurm; choose that, or leave trainer.slurm out")
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "trainer=slurm submits a job by sbatch, which is not found; start it on a machine of the cluster that has it, or "
            "use trainer=ddp to train here"
        )
    folder = Path(config.output_dir).absolute() / "slurm"
    options = options_of(config, slurm, folder)
    _require_none_queued(folder)
    require_writable(folder)
    job = copy.deepcopy(config)
    with open_dict(job.trainer):
        del job.trainer["slurm"]  # so that no job submits another
    job.resume, job.overwrite = config.resume or "auto", False
    save(job, folder / "config.yaml")
    script = folder / "job.sh"
    write_text(script, script_of(options, slurm, folder))
    with _put_aside(config, folder / "replaced"):
        number = _sbatch(options, script)
    write_text(folder / JOB, number)
    shown = Path(config.output_dir) / "slurm"
    print(f"submitted job {number}: {shown / script.name}, with the configuration in {shown / 'config.yaml'}")
    print(f"  its log     {shown / f'{number}.log'}")
    print(f"  its state   squeue -j {number}")
    print(f"  to end it   scancel {number}", flush=True)


def options_of(config: DictConfig, slurm: Slurm, folder: Path) -> list[str]:
    """The options of sbatch."""
    trainer = config.trainer
    for key in ("devices", "num_nodes"):
        if type(value := trainer.get(key)) is not int or value < 1:
            raise ConfigError(f"trainer.{key} is {value!r}, but a job is asked for a number of them; give a whole number from 1")
    name = re.sub(r"[^\w.+-]+", "_", str(config.name))
    found = {
        "job-name": f"fusionkit_{name}" if name in ("bash", "interactive") else name,  # by which Lightning knows a shell
        "nodes": trainer.num_nodes,
        "ntasks-per-node": trainer.devices,
        "gpus-per-node": None if trainer.accelerator == "cpu" else trainer.devices,
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
        raise ConfigError(f"output_dir={config.output_dir} has a backslash, by which sbatch spoils the name of a log; give another")
    for option, value in found.items():
        if not str(value).isprintable():
            key = SAID.get(option, "output_dir" if option == "output" else f"trainer.slurm.options.{option}")
            raise ConfigError(f"{key}: {value!r} holds a line break or the like, which no option of sbatch can; give another")
    told = {option: value for option, value in found.items() if value is not None and value is not False}
    return [f"--{option}" if value is True else f"--{option}={value}" for option, value in told.items()]


def script_of(options: Sequence[str], slurm: Slurm, folder: Path) -> str:
    """The script of the job, which ``sbatch job.sh`` by hand submits too.

    The processes that were asked to stop end with 0 and leave a file: at the first that ends with another code, srun has the others
    end, rank 0 among them, which may still be writing; and then its own code tells of that, not of why.
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


def _sbatch(options: Sequence[str], script: Path) -> str:
    """Submit a script; gives the job's number. What it says is said again here, where nothing in the environment overrules it."""
    own = {name: value for name, value in os.environ.items() if not _is_of_this_process(name)}
    command = ["sbatch", "--parsable", *options, str(script)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        told = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise ConfigError(f"sbatch did not take the job: {told} (it was asked for what stands in {script}; see trainer.slurm)")
    if not (found := re.findall(r"^(\d+)(?:;.*)?$", done.stdout, re.MULTILINE)):
        raise UserError(f"sbatch told no number of a job, but '{' '.join(done.stdout.split())}'; see whether squeue lists one")
    return str(found[-1])


def _is_of_this_process(name: str) -> bool:
    """Whether a variable tells of the job or the run within which a job is submitted, and is not for that one."""
    is_slurm = name.startswith("SLURM_") and name not in ("SLURM_CONF", "SLURM_CLUSTERS")
    return is_slurm or name in (*RANKS, PARENT, MISTAKE, STOPPED)


def _require_none_queued(folder: Path) -> None:
    """Raise ConfigError where the last job of this folder is still in the queue; where that cannot be known, tell of it."""
    if not (folder / JOB).is_file():
        return
    number = (folder / JOB).read_text(encoding="utf-8").strip()
    try:
        command = ["squeue", "--noheader", f"--jobs={number}", "--format=%T"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        state, told = done.stdout.strip(), "" if not done.returncode else " ".join(done.stderr.split())
    except OSError:
        state, told = "", "there is no squeue"
    if state:
        raise ConfigError(
            f"job {number} of {folder.parent} is in the queue ({state}), and goes on by itself; wait for its end, end it by "
            f"scancel {number}, or give another output_dir=FOLDER"
        )
    if told and "Invalid job id" not in told:  # which an old one's is
        print(f"warning: job {number} was submitted for this folder before, and may be in the queue ({told})", flush=True)


@contextmanager
def _put_aside(config: DictConfig, aside: Path) -> Iterator[None]:
    """Within, what a new run replaces in its folder is in another: it is removed after that, and comes back where that fails.

    The job itself replaces nothing, so that it does not after it was in the queue again.
    """
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    moved = [(path, aside / path.name) for path in replaced(config) if path.exists()]
    for path, place in moved:
        path.rename(place)
    try:
        yield
    except BaseException:
        for path, place in moved:
            place.rename(path)
        aside.rmdir()
        raise
    if config.overwrite and moved:
        print(f"replacing the earlier run in {config.output_dir}", flush=True)
    shutil.rmtree(aside)
