"""A run that goes on with another batch size, or number of processes, trains on the samples that are due."""

import json
import signal
from pathlib import Path

import pytest
import torch

from fusionkit.cli.main import run
from tests.commands.test_stopping import TINY, checkpoint, ranks, sending, world

pytestmark = pytest.mark.usefixtures("warm")

__all__ = ["ranks", "world"]  # fixtures

ALIKE = [
    "scheduler=constant",
    "image_encoder=patches",
    "text_encoder.config.hidden_dropout_prob=0",
    "text_encoder.config.attention_probs_dropout_prob=0",
]


def train(world: Path, name: str, batch_size: int, steps: int, *overrides: str, code: int = 0) -> None:
    callback = {"_target_": "tests.commands.stopping.WriteImages", "folder": f"{world}/{name}"}
    writes = [f"+callbacks.images.{key}={value}" for key, value in callback.items()]
    size = f"data.sources.shapes.batch_size={batch_size}"
    given = [size, f"trainer.max_steps={steps}", f"data.root={world}/shapes", f"output_dir={world}/{name}", *writes]
    assert run(["train", *TINY, *ALIKE, "trainer=cpu", *given, *overrides]) == code


def images(world: Path, name: str) -> list[int]:
    """Those that the ranks have trained on, in the order of the stream."""
    rows = [
        (step, number, image)
        for number, path in enumerate(sorted((world / name).glob("images_*.jsonl")))
        for step, batch in map(json.loads, path.read_text().splitlines())
        for image in batch
    ]
    return [image for *_, image in sorted(rows, key=lambda row: row[:2])]


def test_no_sample_comes_twice_and_none_is_left_out(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(world, "whole", 4, 8)
    train(world, "elastic", 4, 3)
    with pytest.warns(UserWarning, match="global batch size {'shapes': 4}, not {'shapes': 2}: .* samples that are due"):
        train(world, "elastic", 2, 9, "resume=true")  # into the second permutation
    with pytest.warns(UserWarning, match="global batch size {'shapes': 2}, not {'shapes': 4}"):
        train(world, "elastic", 4, 11, "resume=true")
    expected = images(world, "whole")
    assert len(expected) == len(images(world, "elastic")) == 32
    assert images(world, "elastic") == expected
    assert "data.sources.shapes.batch_size was 2 and is 4" in capsys.readouterr().out


def test_an_epoch_keeps_the_part_that_is_left(world: Path) -> None:
    epochs = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0"]
    train(world, "epochs", 4, -1, *epochs)
    train(world, "half", 4, -1, *epochs, *sending(signal.SIGTERM, 3), code=75)  # within the first
    train(world, "half", 2, -1, "resume=true", *epochs)
    assert checkpoint(world, "half")["epoch"] == checkpoint(world, "epochs")["epoch"]
    assert images(world, "half") == images(world, "epochs")


def test_an_epoch_of_one_batch_is_not_over_before_it_is_trained_on(world: Path) -> None:
    """A run whose epoch had not ended would be taken for finished; so would one of which an epoch's limit was lifted."""
    once = ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0"]
    train(world, "large", 4, -1, *once, *sending(signal.SIGTERM, 1), code=75)
    train(world, "large", 32, -1, "resume=true", *once)
    assert checkpoint(world, "large")["global_step"] == 2
    assert len(images(world, "large")) == 4 + 32
    train(world, "limit", 4, -1, *once, "trainer.limit_train_batches=3", *sending(signal.SIGTERM, 2), code=75)
    train(world, "limit", 4, -1, "resume=true", *once)
    assert checkpoint(world, "limit")["global_step"] == 6


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_have_begun(world: Path, ranks: None) -> None:
    train(world, "one", 4, 6)
    train(world, "two", 2, 3, "trainer=ddp_cpu", "trainer.precision=32-true")
    with pytest.warns(UserWarning, match="number of processes 2, not 1: samples come as they would have"):
        train(world, "two", 4, 6, "resume=true")
    assert images(world, "two") == images(world, "one")
    one, two = (checkpoint(world, name)["state_dict"] for name in ("one", "two"))
    for key, value in one.items():
        if not key.endswith("key.bias"):  # whose gradients are rounding errors
            torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-5, msg=key)
