"""``fusionkit profile``: its table adds up, its remedies fit what was measured, and it keeps nothing."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fusionkit.assembly.composition import training_config
from fusionkit.cli.main import run
from fusionkit.commands.profile import Remedy, advice, remedies, rows
from fusionkit.commands.train import build
from fusionkit.training.step_clock import DATA, LOOP
from tests.commands.test_train import SMALL

Capture = pytest.CaptureFixture[str]
SHORT = ["profile.warmup=1", "profile.steps=3", "teacher=momentum"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    return folder


def profile(world: Path, *overrides: str) -> int:
    return run(["profile", *SMALL, f"data.root={world}/shapes", f"output_dir={world}/run", *SHORT, *overrides])


@pytest.mark.parametrize("more", [[], ["trainer.accumulate_grad_batches=2", "trainer=ddp_cpu"]])
def test_the_table_adds_up_and_nothing_is_kept(world: Path, capsys: Capture, more: list[str]) -> None:
    before = sorted(world.rglob("*"))
    assert profile(world, *more) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert sorted(world.rglob("*")) == before
    found = {name.strip(): float(ms.replace(",", "")) for name, ms in re.findall(r"^  (.+?) +([\d,.]+) ms", told, re.M)}
    whole = found.pop("a step")
    assert sum(found.values()) == pytest.approx(whole, abs=0.06 * len(found))
    assert {
        "image encoder",
        "text encoder",
        "fusion",
        "teacher",
        "backward pass",
        "optimizer",
        DATA,
        LOOP,
    } <= found.keys()
    assert {f"task {name}" for name in ("itc", "itm", "mlm", "vqa", "grounding")} <= found.keys()
    assert f"{16 if more else 8} images" in told
    assert ("one process of 2 alone" in told) == bool(more)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("profile.steps=0", "profile.steps is 0, but has to be a whole number from 1"),
        ("profile.warmup=true", "profile.warmup is True, but has to be a whole number from 1"),
        ("profile=null", "profile is None, but has to hold warmup and steps"),
        ("+profile.rounds=3", "but has to hold warmup and steps"),
        ("scheduler.max_minutes=0.00001", "the training ended before 4 steps"),
    ],
)
def test_mistakes_are_told(world: Path, override: str, sentence: str, capsys: Capture) -> None:
    assert profile(world, override) == 2
    assert sentence in capsys.readouterr().err


def test_a_remedy_is_what_the_configuration_lacks(world: Path) -> None:
    seconds = {
        DATA: 0.5,
        LOOP: 0.2,
        "image encoder": 1.0,
        "text encoder": 0.3,
        "fusion": 0.2,
        "callback Throughput": 0.4,
        "callback LastCheckpoint": 9.0,
    }

    def told(*overrides: str) -> dict[str, float | None]:
        config = training_config(*SMALL, f"data.root={world}/shapes", *overrides)
        _, module = build(config, None)
        found = remedies(seconds, config, module)
        named = {one.told.partition(":")[0].partition("=")[0]: one.seconds for one in found if one.seconds != 0}
        named.pop("trainer.precision", None)  # hangs on what the machine is measured to be fast at
        return named

    plain = told("data.num_workers=1", "trainer.log_every_n_steps=50")
    assert plain == {"data.num_workers": 0.5, "~callbacks.throughput": 0.4}
    more = told(
        "+image_encoder.frozen=true",
        "activation_checkpointing=true",
        "balance.gradients_every_n_steps=10",
        "trainer.log_every_n_steps=10",
    )
    assert more["image_tokens.folder"] == 1.5
    assert more["activation_checkpointing"] == 1.5
    assert "balance.gradients_every_n_steps" not in more  # which took no time
    assert more["trainer.log_every_n_steps"] == 0.1


def test_those_that_save_most_come_first_and_small_ones_not_at_all() -> None:
    seconds = {"backward pass": 0.9, LOOP: 0.1}
    found = [
        Remedy(0.019, "little"),
        Remedy(None, "unknown"),
        Remedy(0.1, "some"),
        Remedy(0.3, "most"),
        Remedy(0.2, "more"),
    ]
    assert list(advice(seconds, found)) == [
        "most (at most 300 ms, 30%)",
        "more (at most 200 ms, 20%)",
        "some (at most 100 ms, 10%)",
    ]
    assert list(advice(seconds, found[:1])) == [
        "no option that leaves the training as it is would save more than 2% of a step"
    ]
    *parts, whole = rows({"backward pass": 0.9, "a": 0.0001, "b": 0.0001}, images=9)
    assert [part.split()[0] for part in parts] == ["backward", "2"]
    assert whole.split()[-4:] == ["1.11", "steps/s,", "10.0", "images/s"]


def test_what_it_takes_is_what_a_training_takes() -> None:
    trained, timed = (OmegaConf.to_container(OmegaConf.load(f"conf/{name}.yaml")) for name in ("train", "profile"))
    assert timed["defaults"] == ["train", "_self_"]
    assert timed.keys() - trained.keys() == {"profile"}
