"""Kills training runs by kill -9 at moments drawn by chance, goes on with them, and compares them with the ones nobody killed.

    python -m benchmarks.kills [--kinds 'one;teacher, queue'] [--seed 0] [--folder FOLDER]
    python -m benchmarks.kills --signals

40 kills of 1, 2 and 4 processes on the CPU, of some twenty kinds of run (accumulation, workers, a teacher, queues, balancers,
stages, web shards, adapters); a third of them while a checkpoint is written. A run is the same where weights, optimiser,
schedule, metrics and samples of each batch of each rank are, bit for bit. Prints a line a kill; exit code 1 where one differs.
Runs are forked from a process that has imported everything, which saves the seconds of that; their ranks are started as ever.

With --signals 20 runs are stopped by signals of every kind, sent to the process that the user started; none of their processes
is to be left after ten seconds, and they go on as above.
"""

import argparse
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fusionkit.commands.train  # noqa: F401  (before the forks)
from fusionkit.cli.main import run

BASE = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=-1",
    "trainer.max_steps=20",
    "trainer.check_val_every_n_epoch=null",
    "trainer.val_check_interval=5",
    "trainer.limit_val_batches=2",
    "trainer.num_sanity_val_steps=0",
    "scheduler.warmup_steps=4",
    "logger=csv",
    "image_encoder=patches",
    "text_encoder.config.hidden_size=32",
    "text_encoder.config.num_hidden_layers=1",
    "fusion.num_layers=1",
    "fusion.num_heads=4",
    "fusion.dropout=0.1",
    "model.embed_size=16",
    "evaluation.roles=[val]",
    "evaluation.options.gallery=false",
    "callbacks.image_gain=null",
    "callbacks.answer_tables=null",
]
SHAPES = ["data.sources.shapes.batch_size=8"]
TABLE = ["data=table", "data.sources.table.batch_size=8"]
TWO = ["trainer=ddp_cpu", "trainer.precision=32-true", "data.sources.shapes.batch_size=4"]
FOUR = [*TWO[:2], "trainer.devices=4", "data.sources.shapes.batch_size=2"]
ACCUMULATED = ["trainer.accumulate_grad_batches=3", "trainer.max_steps=8"]  # a checkpoint falls between two steps
TEACHER = ["teacher=momentum", "teacher.ramp_steps=12", "task.itc.queue_size=64"]
ADAPTED = ["adapters=lora", "+text_encoder.frozen=true"]


class Kind(NamedTuple):
    overrides: Sequence[str]
    kills: int
    while_saving: int = 0  # so many of the kills
    signals: Sequence[int] = ()  # in the place of kills


KINDS = {
    "one": Kind(SHAPES, 3, 2),
    "accumulation": Kind([*SHAPES, *ACCUMULATED], 2, 1),
    "workers": Kind([*SHAPES, "data.num_workers=2"], 2, 1),
    "accumulation, workers": Kind([*SHAPES, *ACCUMULATED, "data.num_workers=2"], 2, 1),
    "teacher, queue": Kind([*SHAPES, *TEACHER], 3, 1),
    "gradnorm": Kind([*SHAPES, "balance=gradnorm"], 2, 1),
    "gradnorm, accumulation": Kind([*SHAPES, *ACCUMULATED, "balance=gradnorm"], 2),
    "dwa": Kind([*SHAPES, "balance=dwa", "balance.window=5"], 1),
    "pcgrad": Kind([*SHAPES, "balance=pcgrad"], 1),
    "stages": Kind([*SHAPES, "stages=heads_first", "stages.heads.steps=12"], 3, 1),
    "adapters": Kind([*SHAPES, *ADAPTED], 3, 1),
    "adapters, teacher": Kind([*SHAPES, *ADAPTED, "teacher=momentum"], 1),
    "shards": Kind(TABLE, 2, 1),
    "shards, workers, a window": Kind([*TABLE, "data.num_workers=2", "data.sources.table.shuffle_window=24"], 2),
    "batch norm, muon": Kind([*SHAPES, "image_encoder=resnet_small", "optimizer=muon"], 1),
    "average of the weights": Kind([*SHAPES, "ema.decay=0.9"], 1),
    "two processes": Kind(TWO, 2, 1),
    "two processes, accumulation, workers": Kind([*TWO, *ACCUMULATED, "data.num_workers=2"], 1),
    "two processes, teacher, queue": Kind([*TWO, *TEACHER], 1),
    "two processes, gradnorm, stages": Kind(
        [*TWO, "balance=gradnorm", "stages=heads_first", "stages.heads.steps=12"], 1
    ),
    "two processes, adapters": Kind([*TWO, *ADAPTED], 1),
    "two processes, split weights": Kind([*TWO, "trainer=fsdp_cpu"], 1),
    "four processes": Kind(FOUR, 1),
    "four processes, accumulation": Kind([*FOUR, *ACCUMULATED], 1),
}

EVERY = [getattr(signal, f"SIG{name}") for name in ("TERM", "USR1", "INT", "HUP", "QUIT", "KILL")]
SIGNALLED = {
    "one": Kind(SHAPES, 0, signals=EVERY[:4]),
    "workers": Kind([*SHAPES, "data.num_workers=2"], 0, signals=EVERY[:5]),
    "two processes": Kind(TWO, 0, signals=EVERY),
    "two processes, accumulation, workers": Kind([*TWO, *ACCUMULATED, "data.num_workers=2"], 0, signals=EVERY[:3]),
    "four processes": Kind(FOUR, 0, signals=EVERY[:2]),
}


class Started:
    """A process that was forked, as subprocess has them."""

    def __init__(self, job: Callable[[], int], log: Path | None = None) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setsid()
            torch.set_num_threads(
                1
            )  # torch makes its pool anew after a fork, and two threads must not be at it at once
            if log:
                target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(target, 1)
                os.dup2(target, 2)
            code = job()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if process else None
        return self.code

    def wait(self, timeout: float = 900.0) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} goes on after {timeout:.0f} seconds")
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def train(overrides: Sequence[str], folder: Path) -> Started:
    """Start a run, or go on with it."""
    log = ["+callbacks.samples._target_=benchmarks.kill_log.SampleLog", "+callbacks.samples.pause=0.02"]
    options = [*BASE, *overrides, *log, f"+callbacks.samples.folder={folder}", f"output_dir={folder}", "resume=auto"]
    return Started(lambda: run(["train", *options]), folder.with_suffix(".log"))


def samples(folder: Path) -> dict[str, dict[int, Any]]:
    """By rank and batch what was in it, as it was last made; a line that a kill has cut is none."""
    found = {}
    for path in sorted(folder.glob("samples_*.jsonl")):
        lines = [line for line in path.read_text().splitlines() if line.endswith("}]")]
        found[path.name] = dict(json.loads(line) for line in lines)
    return found


def count(folder: Path) -> int:
    """How many batches the first rank has begun."""
    return len(samples(folder).get("samples_0.jsonl", ()))


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    place = folder / "checkpoints"
    return place.is_dir() and any(path.suffix != ".ckpt" or path.name.startswith(".") for path in place.iterdir())


def differences(one: Any, two: Any, place: str = "") -> Iterator[str]:
    """Where two checkpoints differ."""
    if torch.is_tensor(one):
        if not (torch.is_tensor(two) and one.dtype == two.dtype and torch.equal(one, two)):
            yield place
    elif isinstance(one, dict):
        if not isinstance(two, dict) or one.keys() != two.keys():
            yield f"{place} (keys)"
        else:
            for key, value in one.items():
                yield from differences(value, two[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(two):
            yield f"{place} (length)"
        for number, (a, b) in enumerate(zip(one, two, strict=False)):
            yield from differences(a, b, f"{place}.{number}")
    elif one != two and one == one:
        yield f"{place}: {one!r}, {two!r}"


def unlike(expected: Path, folder: Path) -> list[str]:
    """What differs between a run that nobody killed and another."""
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    one, two = (torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (expected, folder))
    found = [name for key in kept for name in differences(one[key], two[key], key)]
    if samples(expected) != samples(folder):
        found.append("samples")
    scores = [json.loads((path / "metrics.json").read_text()) for path in (expected, folder)]
    return found + [f"metric {name}" for name in scores[0] if scores[0][name] != scores[1].get(name)]


def stop(process: Started, number: int) -> float:
    """Send a run a signal; gives the seconds until it and the processes that it started, which end by themselves, are gone."""
    begin = time.monotonic()
    process.send_signal(number)
    while time.monotonic() < begin + 10:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return time.monotonic() - begin
        time.sleep(0.05)
    raise SystemExit(f"after ten seconds processes of {process.pid} live on")


def stopped(
    overrides: Sequence[str], folder: Path, while_saving: bool, total: int, drawn: random.Random, number: int
) -> str:
    """Begin a run and send it a signal; gives in words when."""
    process = train(overrides, folder)
    goal, wait = drawn.randint(2, total - (7 if while_saving else 2)), 0.1 * drawn.random()
    while process.poll() is None and count(folder) < goal:
        time.sleep(0.01)
    while while_saving and process.poll() is None and not is_writing(folder):
        time.sleep(0.0005)
    time.sleep(0 if while_saving else wait)
    if process.poll() is not None:
        raise SystemExit(f"ended before it was killed: {folder.with_suffix('.log').read_text()[-500:]}")
    seconds = stop(process, number)
    told = f"at batch {count(folder)} of {total}{', while saving' if while_saving and is_writing(folder) else ''}"
    return f"{signal.Signals(number).name} {told}, all gone after {seconds:.1f} s"


def one_kind(name: str, kind: Kind, folder: Path, drawn: random.Random) -> int:
    """Kill a kind of run as often as it says; gives how often it went on to something else."""
    folder.mkdir(parents=True)
    expected, wrong = folder / "whole", 0
    if train(kind.overrides, expected).wait():
        raise SystemExit(f"{name}: {expected.with_suffix('.log').read_text()[-800:]}")
    total = count(expected)
    for number, sent in enumerate(kind.signals or [signal.SIGKILL] * kind.kills):
        place = folder / str(number)
        when = stopped(kind.overrides, place, number < kind.while_saving, total, drawn, sent)
        code = train(kind.overrides, place).wait()
        found = [f"exit code {code}", place.with_suffix(".log").read_text()[-300:]] if code else unlike(expected, place)
        wrong += bool(found)
        print(f"{name:40} {when:62} {'; '.join(found[:4]) or 'equal'}", flush=True)
    return wrong


def shards(root: Path, source: Path) -> None:
    """Web shards of the pictures and captions of a drawn data set."""
    root.mkdir()
    captions = json.loads((source / "annotations/captions_train.json").read_text())
    texts = {row["image_id"]: row["caption"] for row in captions["annotations"]}
    pairs = [(source / "images" / image["file_name"], texts[image["id"]]) for image in captions["images"]]
    for number in range(4):
        with tarfile.open(root / f"{number:05}.tar", "w") as tar:
            for place, (picture, text) in enumerate(pairs[number::4]):
                side = root / "text"
                side.write_text(text)
                tar.add(picture, f"{number}_{place:04}{picture.suffix}")
                tar.add(side, f"{number}_{place:04}.txt")
                side.unlink()


def main() -> int:
    """Kill, go on, compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", help="only these, by ;")
    parser.add_argument("--signals", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": os.getcwd()}
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background and nohup ignore these
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    made = ["data", "make", "shapes", f"root={folder}/shapes", "scenes=64"]
    if Started(lambda: run(made)).wait():
        return 1
    shards(folder / "web", folder / "shapes")
    known = SIGNALLED if given.signals else KINDS
    chosen = given.kinds.split(";") if given.kinds else list(known)
    wrong = done = 0
    for name in chosen:
        kind, drawn = known[name], random.Random(f"{given.seed} {name}")
        is_table = kind.overrides[0] == "data=table"
        root = [f"data.files={folder}/web"] if is_table else [f"data.root={folder}/shapes"]
        wrong += one_kind(
            name, kind._replace(overrides=[*kind.overrides, *root]), folder / name.replace(", ", "_"), drawn
        )
        done += len(kind.signals) or kind.kills
    print(f"{done - wrong} of {done} went on bit for bit")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
