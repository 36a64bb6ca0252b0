"""``trainer=slurm``: submits a training as a job of SLURM, which goes back into the queue when it is asked to stop."""

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from fusionkit.commands.run_folder import replaced
from fusionkit.commands.worker import save
from fusionkit.errors import ConfigError, UserError
from fusionkit.files.atomic import write_text
from fusionkit.scoring.records import require_writable
from fusionkit.signals import MISTAKE, PARENT, STOPPED
from fusionkit.training.processes.slurm_job import Slurm, options_of, script_of

JOB = "job"  # the file with the number of the last job, in the folder slurm of a run
# what a starter of ranks tells, of this process
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
    options = options_of(str(config.name), config.trainer, slurm, folder)
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


def _sbatch(options: Sequence[str], script: Path) -> str:
    """Submit a script; gives the job's number. What it says is said again here, where nothing in the environment overrules it."""
    own = {name: value for name, value in os.environ.items() if not _is_of_this_process(name)}
    command = ["sbatch", "--parsable", *options, str(script)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        told = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise ConfigError(
            f"sbatch did not take the job: {told} (it was asked for what stands in {script}; see trainer.slurm)"
        )
    if not (found := re.findall(r"^(\d+)(?:;.*)?$", done.stdout, re.MULTILINE)):
        raise UserError(
            f"sbatch told no number of a job, but '{' '.join(done.stdout.split())}'; see whether squeue lists one"
        )
    return str(found[-1])


def _is_of_this_process(name: str) -> bool:
    """Whether a variable tells of the job or the run within which a job is submitted, and is not for that one."""
    is_slurm = name.startswith("SLURM_") and name not in ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
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
        print(
            f"warning: job {number} was submitted for this folder before, and may be in the queue ({told})", flush=True
        )


@contextmanager
def _put_aside(config: DictConfig, aside: Path) -> Iterator[None]:
    """Within, what a new run replaces in its folder is in another: it is removed after that, and comes back where that fails.

    The job itself replaces nothing, so that it does not after it was in the queue again.
    """
    aside.mkdir(exist_ok=True)
    if any(aside.iterdir()):  # of a submission that was killed
        raise ConfigError(
            f"{aside} holds what an earlier submission, which was killed, had put aside to replace it; move it back into "
            f"{config.output_dir}, or remove it"
        )
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
