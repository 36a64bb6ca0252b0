"""A run that is stopped and goes on sees the batches that it would have seen, wherever its checkpoint was saved."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint

from fusionkit.data.datamodule import DataModule
from fusionkit.data.readers.table import Table
from fusionkit.data.sampler import StreamBatches
from fusionkit.data.source import Source
from tests.data.worlds import Listed, make_samples, pair, write_shard, write_shards


class Recorder(LightningModule):
    """Remembers what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(tuple((part["image_ids"], part["captions"]["ids"]) for part in batch.values()))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        assert (
            self.trainer.estimated_stepping_batches > 0
        )  # as a schedule asks: loaders are made before a run is restored
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Fail(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 8:
            raise RuntimeError("power cut")


def fit(folder, callbacks, checkpoint=None, num_workers=0, shards=None, **options) -> list[tuple]:
    def source(train, batch_size):
        reader = Listed(train=make_samples(folder, train), val=make_samples(folder, range(30, 33)))
        return Source(reader, {"train": ["train"], "val": ["val"]}, batch_size, {"captions": 2})

    module = Recorder()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
        **options,
    )  # fmt: skip
    sources = {"a": source(range(23), 4), "b": source(range(7), 3)}
    if shards is not None:
        sources["b"] = Source(
            Table(shards, split_by={"test": 0}), {"train": ["train"], "val": ["val"]}, 3, {"captions": 1}
        )
    data = DataModule(
        str(folder),
        sources,
        image_size=8,
        num_workers=num_workers,
        missing="skip" if shards else "error",
        max_missing=0.5,
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "when"),
    [
        ({}, {"every_n_train_steps": 1}),
        ({}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),
        ({"val_check_interval": 2}, {"save_on_train_epoch_end": False}),
        ({"accumulate_grad_batches": 4}, {"every_n_train_steps": 1}),
        ({"limit_train_batches": 4, "limit_val_batches": 0}, {"every_n_train_steps": 3}),
    ],
)
def test_every_checkpoint_continues_with_the_next_batch(tmp_path, options, when):
    saver = [ModelCheckpoint(tmp_path / "saved", save_top_k=-1, **when)]
    whole = fit(tmp_path, saver, **options)
    assert len(whole) == 2 * options.get("limit_train_batches", 6)
    checkpoints = sorted((tmp_path / "saved").iterdir())
    assert len(checkpoints) >= 2
    for number, path in enumerate(checkpoints):
        done = torch.load(path, weights_only=True)["DataModule"]["batches"]
        saver = [ModelCheckpoint(tmp_path / str(number))]
        assert fit(tmp_path, saver, str(path), **options) == whole[done:], path.name


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_died_in_a_batch_does_it_again(tmp_path):
    whole = fit(tmp_path, [])
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, [Fail(), OnExceptionCheckpoint(tmp_path / "saved", "died")])
    assert fit(tmp_path, [], str(tmp_path / "saved/died.ckpt")) == whole[8:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 3])
def test_shards_beside_a_list_go_on_to_the_sample(tmp_path, num_workers):
    """Though one shard is missing, one is cut short, and one has a picture that is none."""
    web = write_shards(tmp_path / "web", count=4, samples=8)
    (web / "00000.tar").unlink()
    content = (web / "00001.tar").read_bytes()
    (web / "00001.tar").write_bytes(content[: content.index(b"000010007.txt")])
    write_shard(web / "00002.tar", *(pair(f"b{n}", n) | ({"b3.jpg": b"none"} if n == 3 else {}) for n in range(9)))
    held_out = write_shard(tmp_path / "val.tar", pair("v0", 100), pair("v1", 101))
    shards = {"train": str(tmp_path / "web/{00000..00003}.tar"), "val": str(held_out)}
    saver = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_train_steps=1)
    whole = fit(tmp_path, [saver], num_workers=num_workers, shards=shards, limit_val_batches=0)
    assert len(whole) == 16
    ids = {image for _, (images, _) in whole for image in images}
    there = [*(f"00001000{n}.jpg" for n in range(7)), *(f"b{n}.jpg" for n in range(9) if n != 3)]
    assert ids == {*there, *(f"00003000{n}.jpg" for n in range(8))}
    saved = sorted((tmp_path / "saved").iterdir())
    assert len(saved) == 16
    for path in saved[3 :: 5 if num_workers == 0 else 20]:
        done = torch.load(path, weights_only=True)["DataModule"]["batches"]
        assert fit(tmp_path, [], str(path), num_workers, shards, limit_val_batches=0) == whole[done:], path.name


@pytest.mark.filterwarnings("ignore")
def test_overfitting_repeats_the_first_batches(tmp_path):
    seen = fit(tmp_path, [], overfit_batches=2)
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


@pytest.mark.filterwarnings("ignore")
def test_workers_prepare_no_batch_that_is_not_trained_on(tmp_path, monkeypatch):
    asked, batch = [], StreamBatches.batch
    monkeypatch.setattr(StreamBatches, "batch", lambda self, number: (asked.append(number), batch(self, number))[1])
    saver = [ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_train_steps=3)]
    seen = fit(tmp_path, saver, num_workers=1, limit_train_batches=4, limit_val_batches=0)
    assert sorted(asked) == sorted([*range(8)] * 2)
    asked.clear()
    (path,) = (tmp_path / "saved").glob("*step=3.ckpt")
    assert fit(tmp_path, [], str(path), num_workers=1, limit_train_batches=4, limit_val_batches=0) == seen[3:]
    assert sorted(asked) == sorted([*range(3, 8)] * 2)
