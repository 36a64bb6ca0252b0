"""``trainer=slurm`` submits a run once, as it was composed, and the job goes on where it was asked to stop (slurm_fakes.py)."""

import json
import os
import shlex
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

import fusionkit as fk
from fusionkit.assembly.composition import training_config
from fusionkit.cli.main import run
from fusionkit.commands import worker
from fusionkit.commands.train import train_here
from fusionkit.errors import ConfigError
from fusionkit.signals import MISTAKE, PARENT, STOPPED, Stopped
from fusionkit.training.processes.slurm_job import seconds_of
from tests.commands import slurm_fakes
from tests.commands.test_stopping import TINY, assert_same, sending

ROOT = Path(__file__).parents[2]
EVIL = "it's $(touch spoilt) `touch spoilt` 100%j #1;\ttouch spoilt"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Jobs are not started, unless ``hold`` is removed from this folder."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "hold").touch()
    slurm_fakes.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which a trainer changes
    monkeypatch.chdir(tmp_path)
    return folder


def train(*overrides: str) -> int:
    return run(["train", "experiment=quickstart", "logger=csv", "trainer=slurm", "trainer.accelerator=cpu", *overrides])


def told(cluster: Path, number: int = 4711) -> dict[str, Any]:
    """What sbatch was told."""
    found: dict[str, Any] = json.loads((cluster / str(number) / "told.json").read_text())
    return found


def number_of_jobs(cluster: Path) -> int:
    return len(list(cluster.glob("4*")))


def codes_of(cluster: Path, number: int = 4711, seconds: float = 20) -> list[int]:
    """The exit codes of the script of a job, when it has ended."""
    ended, end = cluster / str(number) / "ended", time.monotonic() + seconds
    while not ended.exists() and time.monotonic() < end:
        time.sleep(0.1)
    found: list[int] = json.loads(ended.read_text())
    return found


def earlier_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/last.ckpt", "metrics.json", "config.yaml", "notes.txt"):
        (folder / name).write_text("{}")


def stub(path: Path, script: str) -> str:
    """An interpreter of Python that does something else."""
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_run_is_submitted_as_it_was_composed(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["trainer.num_nodes=2", "trainer.accelerator=gpu", "trainer.slurm.time=1:00:00", "trainer.slurm.memory=64G"]
    more += [
        "trainer.slurm.cpus_per_task=3",
        "+trainer.slurm.options={constraint: a100, mail_type: END, exclusive: true}",
    ]
    assert train(*more, "seed=7", "output_dir='runs/${now:%f}'") == 0, capsys.readouterr().err
    (folder,) = Path("runs").iterdir()
    assert told(cluster)["options"] == {
        "job-name": "quickstart",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "cpus-per-task": "3",
        "mem": "64G",
        "time": "1:00:00",
        "signal": "TERM@300",
        "requeue": "",
        "open-mode": "append",
        "output": f"{folder.absolute()}/slurm/%j.log",
        "constraint": "a100",
        "mail-type": "END",
        "exclusive": "",
    }
    script = (folder / "slurm/job.sh").read_text()
    assert told(cluster)["arguments"] == slurm_fakes.asked(script)
    assert "\nsrun --kill-on-bad-exit=1 --wait=0 --cpus-per-task=3 \\\n" in script
    kept = yaml.safe_load((folder / "slurm/config.yaml").read_text())
    assert (kept["seed"], kept["resume"], kept["overwrite"]) == (7, "auto", False)
    assert "slurm" not in kept["trainer"]
    now = yaml.safe_load((folder / "slurm/config.hydra.yaml").read_text())["now"]
    assert now["%f"] == folder.name  # the same folder in each process
    out = capsys.readouterr().out
    assert f"submitted job 4711: {folder}/slurm/job.sh" in out
    assert f"{folder}/slurm/4711.log" in out
    assert "scancel 4711" in out


def test_no_text_of_the_user_is_code(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quotes, spaces, line breaks and calls of a shell are parts of names, in the script and in what sbatch reads of it."""
    (cluster / "hold").unlink()
    home = tmp_path / EVIL.replace("/", "").replace("\t", " ")
    home.mkdir()
    os.chdir(home)
    python = stub(home / "py", 'printf "%s\\n" "$PWD" "$SLURM_PROCID" "$@" > seen.$SLURM_PROCID')
    run_of = home / "run"
    quoted = [
        "'" + text.replace("'", "\\'") + "'" for text in (str(run_of), f"a\n{EVIL}", python, EVIL.replace("\t", " "))
    ]
    overrides = ["output_dir", "name", "trainer.slurm.python", "trainer.slurm.partition"]
    given = [f"{key}={text}" for key, text in zip(overrides, quoted, strict=True)]
    assert train(*given, "trainer.devices=2", "trainer.slurm.setup=['echo set up']") == 0, capsys.readouterr().err
    assert codes_of(cluster) == [0], (run_of / "slurm/4711.log").read_text()
    for rank in "01":
        seen = (home / f"seen.{rank}").read_text().splitlines()
        job = ["-m", "fusionkit.commands.worker", "fusionkit.commands.train:train", f"{run_of}/slurm/config.yaml"]
        assert seen == [str(home), rank, *job]
    assert (run_of / "slurm/4711.log").read_text() == "set up\n"
    assert list(tmp_path.rglob("spoilt")) == []
    assert told(cluster)["arguments"] == slurm_fakes.asked((run_of / "slurm/job.sh").read_text())
    assert told(cluster)["options"]["partition"] == EVIL.replace("\t", " ")
    assert told(cluster)["options"]["job-name"] == "a_it_s_touch_spoilt_touch_spoilt_100_j_1_touch_spoilt"


STOPS = """
echo x >> "starts.$SLURM_PROCID"
[ "$(wc -l < "starts.$SLURM_PROCID")" -gt 1 ] && exit 0
sleep "0.$SLURM_PROCID"
touch "$FUSIONKIT_STOPPED"
"""
FAILS = """
trap 'touch "$FUSIONKIT_STOPPED"; echo heard; exit 0' TERM
[ "$SLURM_PROCID" -eq 1 ] && sleep 1 && exit 3
for _ in $(seq 100); do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("script", "processes", "expected", "told"),
    [
        (STOPS, 2, [-9, 0], "job 4711 goes back into the queue\n"),  # once, and no more when it is finished
        (FAILS, 2, [3], "heard\n"),  # of a signal that came of the failure
        ("exit 2", 1, [2], ""),
        ("kill -9 $$", 1, [137], ""),
    ],
)
def test_a_job_goes_back_into_the_queue_where_it_was_asked_to_stop(
    cluster: Path, tmp_path: Path, script: str, processes: int, expected: list[int], told: str
) -> None:
    (cluster / "hold").unlink()
    python = stub(tmp_path / "py", script)
    assert train("output_dir=run", f"trainer.slurm.python={python}", f"trainer.devices={processes}") == 0
    assert codes_of(cluster) == expected
    assert Path("run/slurm/4711.log").read_text() == told


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.devices=-1"], "trainer.devices is -1, but a job is asked for a number of them"),
        (["trainer.num_nodes=0"], "trainer.num_nodes is 0, but"),
        (["trainer.slurm.time=3600"], "trainer.slurm.time is 3600; give days-hours:minutes:seconds or"),
        (["trainer.slurm.time=5"], "trainer.slurm.time is 5; give"),
        (["trainer.slurm.time=1-x"], "trainer.slurm.time is '1-x'; give"),
        (["trainer.slurm.time=00:05:00"], "trainer.slurm.time=00:05:00 leaves no time before the run is asked to stop"),
        (
            ["+trainer.slurm.tim=1"],
            "trainer.slurm: fusionkit.training.processes.slurm_job.Slurm takes no 'tim'; did you",
        ),
        (["trainer.slurm.setup=ls"], "trainer.slurm.setup is 'ls', but has to be a list"),
        (["trainer.slurm.signal_seconds=0"], "trainer.slurm.signal_seconds is 0; give seconds from 1"),
        (
            ["+trainer.slurm.options.array=1-9"],
            "trainer.slurm.options.array is no option that a job of a training can have",
        ),
        (
            ["+trainer.slurm.options.mem=9"],
            "trainer.slurm.options.mem is no option that a job of a training can have; give ",
        ),
        (["+trainer.slurm.options.nice=[1]"], "trainer.slurm.options.nice is [1]; give a text"),
        (['+trainer.slurm.options.comment="a\nb"'], "trainer.slurm.options.comment: 'a\\nb' holds a line break"),
        (['trainer.slurm.qos="a\nb"'], "trainer.slurm.qos: 'a\\nb' holds a line break"),
        (["output_dir='ru\nn'"], "output_dir: "),
        (["output_dir='ru\\n'"], "has a backslash, which no log of sbatch can have"),
        (["trainer.fast_dev_run=1"], "trainer.fast_dev_run tries a few steps and keeps nothing"),
        (["resume=true"], "run/checkpoints holds no last.ckpt to resume from"),
        (["resume=true", "overwrite=true"], "resume=true and overwrite=true contradict each other"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_a_sentence(
    cluster: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str
) -> None:
    assert train("output_dir=run", *overrides) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not Path("run").exists()
    assert number_of_jobs(cluster) == 0


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *[("90", 5400), ("1:30", 90), ("2:0:5", 7205), ("1-2", 93600), ("1-0:3", 86580), ("1-0:0:4", 86404), ("0", 0)],
        *[("1:2:3:4", None), ("", None), ("1h", None), (60, None)],
    ],
)
def test_times_are_those_of_sbatch(time: Any, seconds: int | None) -> None:
    assert seconds_of(time) == seconds


def test_where_there_is_no_sbatch_nothing_is_left(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train("output_dir=run") == 2
    assert "error: trainer=slurm submits a job by sbatch, which is not found;" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("is_refused", [True, False])
def test_an_earlier_run_is_replaced_once_by_a_job_that_sbatch_takes(
    cluster: Path, capsys: pytest.CaptureFixture[str], is_refused: bool
) -> None:
    folder = Path("run")
    earlier_run(folder)
    assert train("output_dir=run") == 2
    assert "run already holds a run (last.ckpt)" in capsys.readouterr().err
    if is_refused:
        (cluster / "refusal").write_text("sbatch: error: invalid partition specified: nope\n")
    assert train("output_dir=run", "overwrite=true") == (2 if is_refused else 0)
    said = capsys.readouterr()
    assert {path.name for path in folder.iterdir()} - {"slurm"} == (
        {"checkpoints", "metrics.json", "config.yaml", "notes.txt"} if is_refused else {"notes.txt"}
    )
    assert not (folder / "slurm/replaced").exists()
    if is_refused:
        assert (
            "error: sbatch did not take the job: sbatch: error: invalid partition specified: nope (it was" in said.err
        )
        assert (folder / "checkpoints/last.ckpt").read_text() == "{}"
    else:
        assert "replacing the earlier run in run\n" in said.out
        assert yaml.safe_load((folder / "slurm/config.yaml").read_text())["overwrite"] is False


def test_what_a_killed_submission_had_put_aside_is_not_lost(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier_run(Path("run/slurm/replaced"))
    assert train("output_dir=run") == 2
    assert (
        "run/slurm/replaced holds what an earlier submission, which was killed, had put aside"
        in capsys.readouterr().err
    )
    assert Path("run/slurm/replaced/checkpoints/last.ckpt").is_file()


def test_what_was_left_of_a_run_without_a_checkpoint_is_not_gone_on_with(cluster: Path) -> None:
    """Else the job would find it finished, or of another configuration."""
    earlier_run(Path("run"))
    Path("run/checkpoints/last.ckpt").unlink()
    assert train("output_dir=run") == 0
    assert not Path("run/metrics.json").exists()
    assert not Path("run/config.yaml").exists()


def test_a_run_is_resumed_as_the_command_says(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("output_dir=run", "resume=auto") == 0
    kept = yaml.safe_load(Path("run/slurm/config.yaml").read_text())
    Path("run/config.yaml").write_text(Path("run/slurm/config.yaml").read_text())  # as the job would
    (cluster / "4711/ended").write_text("[0]")
    assert train("output_dir=run", "resume=auto", "trainer.slurm.partition=other", "+trainer.slurm.options.nice=0") == 0
    assert "--partition=other" in told(cluster, 4712)["arguments"]
    assert "--nice=0" in told(cluster, 4712)["arguments"]
    (cluster / "4712/ended").write_text("[0]")
    assert train("output_dir=run", "resume=auto", "seed=9") == 2
    assert f"(seed was {kept['seed']}, is 9)" in capsys.readouterr().err
    Path("run/metrics.json").write_text("{}")
    assert train("output_dir=run", "resume=auto") == 0
    assert capsys.readouterr().out == "run is finished\n"
    assert number_of_jobs(cluster) == 2


def test_a_run_that_is_in_the_queue_is_not_submitted_again(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("output_dir=run") == 0
    assert train("output_dir=run", "resume=auto") == 2
    assert "run is in the queue (PENDING), and goes on by itself; wait for its end, end it by scancel 4711" in (
        capsys.readouterr().err
    )
    (tmp_path / "bin/squeue").unlink()
    assert train("output_dir=run") == 0
    assert "warning: job 4711 was submitted for this folder before, and may be in the queue (there is no" in (
        capsys.readouterr().out
    )
    slurm_fakes.install(tmp_path / "bin")
    (cluster / "4712/ended").write_text("[0]")
    assert train("output_dir=run") == 0
    assert "warning" not in capsys.readouterr().out


def test_a_sweep_submits_each_run_and_a_search_none(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "seed=1,2", "fusion=late,gated", "hydra.sweep.dir=all") == 0
    assert [told(cluster, 4711 + number)["options"]["output"] for number in range(4)] == [
        f"{Path.cwd()}/all/{number}/slurm/%j.log" for number in range(4)
    ]
    assert train("-m", "hydra/sweeper=search", "optimizer.lr=interval(1e-4,1e-2)") == 2
    assert "error: hydra/sweeper=search goes by the scores of earlier trials" in capsys.readouterr().err
    assert number_of_jobs(cluster) == 4


BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "x",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
}
TASK = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}


@pytest.mark.parametrize(
    ("environment", "is_submitted"),
    [
        ({"SLURM_CONF": "there", "SLURM_JWT": "x"}, True),
        (BATCH, True),
        (BATCH | {"SLURM_STEP_ID": "4294967291"}, True),  # of a batch script
        (TASK | {"SLURM_JOB_NAME": "bash"}, True),
        (TASK | {"SLURM_PTY_PORT": "9"}, True),
        ({PARENT: "1", MISTAKE: "there", STOPPED: "there", "MASTER_ADDR": "there"}, True),  # of a parallel sweep
        (TASK, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, False),
    ],
)
def test_a_process_of_a_job_trains_and_any_other_submits(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_submitted: bool
) -> None:
    def build(*_: object) -> None:
        raise ConfigError("trains")

    monkeypatch.setattr("fusionkit.commands.train.build", build)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = ["trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=2", "output_dir=run"]
    config = training_config("experiment=quickstart", *options)
    if not is_submitted:
        with pytest.raises(ConfigError, match=r"^trains$"):
            train_here(config)
        return
    assert train_here(config) is None
    assert set(told(cluster)["environment"]) & environment.keys() == environment.keys() & {"SLURM_CONF", "SLURM_JWT"}


def test_other_commands_and_python_submit_nothing(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "make", "shapes", "root=shapes", "scenes=24"]) == 0
    tiny = [*TINY, "data.root=shapes", "trainer=slurm", "trainer.accelerator=cpu"]
    assert run(["plan", *tiny]) == 0
    assert "(4 of them" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^train: trainer=slurm submits a job, of which there is no model to give"):
        fk.train(*tiny, "output_dir=run", processes=True)
    assert fk.train(*tiny, "output_dir=run").folder == Path("run")
    assert number_of_jobs(cluster) == 0


@pytest.mark.parametrize("rank", ["0", "1"])
def test_rank_0_of_a_job_alone_says_that_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(worker, "_main", stop)
    monkeypatch.setenv("SLURM_PROCID", rank)
    assert worker.main("job", "config.yaml") == 75  # under srun by hand
    monkeypatch.setenv(STOPPED, str(tmp_path / "stopped"))
    assert worker.main("job", "config.yaml") == 0
    assert (tmp_path / "stopped").exists()
    (tmp_path / "stopped").unlink()
    with monkeypatch.context() as child:  # a run of a parallel sweep, whose launcher looks at its code
        child.setenv(PARENT, "1")
        child.setattr(worker, "end_with_parent", lambda: None)
        assert worker.main("job", "config.yaml") == 75
    monkeypatch.setattr("fusionkit.cli.main.load", lambda target: stop)
    assert run(["train"]) == 0  # by a job script of one's own
    assert (tmp_path / "stopped").exists()
    assert capsys.readouterr().err.count("the same command with resume=auto goes on") == (4 if rank == "0" else 0)
    assert MISTAKE not in os.environ
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv(PARENT, "1")  # a process of ours has started this one as a rank
    monkeypatch.setenv(MISTAKE, "")
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    assert worker.main("job", "config.yaml") == 75
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_job_that_is_asked_to_stop_goes_on_bit_for_bit(
    cluster: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (cluster / "hold").unlink()
    assert run(["data", "make", "shapes", "root=shapes", "scenes=24"]) == 0
    tiny = [*TINY, "data.root=shapes", "data.sources.shapes.batch_size=2"]
    job = ["trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=2", "output_dir=job"]
    assert run(["train", *tiny, *job, *sending(signal.SIGTERM, 2, rank=1)]) == 0
    assert run(["train", *tiny, "trainer=ddp_cpu", "output_dir=whole"]) == 0
    assert codes_of(cluster, seconds=900) == [-9, 0], Path("job/slurm/4711.log").read_text()
    log = Path("job/slurm/4711.log").read_text()
    assert log.count("step 2 is kept in job/checkpoints/last.ckpt") == 1
    assert log.count("resume=auto goes on") == 1
    assert log.count("job 4711 goes back into the queue") == 1
    assert log.count("going on from job/checkpoints/last.ckpt after step 2") == 1
    assert_same(tmp_path, "job", "whole")
    assert "slurm" not in OmegaConf.load("job/config.yaml").trainer
    assert shlex.quote(str(tmp_path / "job/slurm/config.yaml")) in Path("job/slurm/job.sh").read_text()
