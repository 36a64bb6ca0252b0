"""What W&B wrote offline is read back, whole or cut."""

import shutil
from pathlib import Path

import pytest
import wandb

from fusionkit.errors import DataError
from fusionkit.reporting.offline import BLOCK, read_offline

LOSSES = [float(1000 - step) for step in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An offline run whose log is longer than a block, so that records lie across its border."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(place))
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        options = {"name": "one", "group": "late", "job_type": "train", "tags": ["vqa"]}
        config = {"name": "one", "model.size": 3, "model.rules": [["a", None]], "empty": {}}
        run = wandb.init(project="p", mode="offline", dir=place, settings=settings, config=config, **options)
        run.define_metric("val/x", summary="max")
        for step, loss in enumerate(LOSSES):
            run.log({"train/loss": loss, "val/x": float(step % 7), "long": "x" * 300})
        run.log({"answers": wandb.Table(["id", "answer"], [[1, "red"]])})
        run.log({"answers": wandb.Table(["id", "answer"], [[1, "red"], [2, "é"]])})
        run.config.update({"later": True})
        run.summary["test/x"] = 2.5
        run.finish()
        wandb.teardown()  # without it the last records may reach the disk a moment later
    return next((place / "wandb").glob("offline-run-*"))


def test_everything_is_read_back(folder):
    run = read_offline(folder)
    assert next(folder.glob("*.wandb")).stat().st_size > BLOCK
    assert (run.name, run.group, run.job_type, run.tags) == ("one", "late", "train", ["vqa"])
    assert run.config == {"name": "one", "model": {"size": 3, "rules": [["a", None]]}, "empty": {}, "later": True}
    assert [row["train/loss"] for row in run.history if "train/loss" in row] == LOSSES
    assert [row["_step"] for row in run.history] == list(range(len(LOSSES) + 2))
    assert [run.summary[name] for name in ("train/loss", "val/x.max", "test/x")] == [LOSSES[-1], 6, 2.5]
    assert "answers" not in run.summary
    assert (run.tables["answers"].columns, run.tables["answers"].rows) == (["id", "answer"], [[1, "red"], [2, "é"]])


def test_a_killed_run_is_read_to_its_last_whole_record(folder, tmp_path):
    log = next(folder.glob("*.wandb"))
    whole = log.read_bytes()
    counts = []
    for size in (8, 100, BLOCK - 3, BLOCK, BLOCK + 1, BLOCK + 9, len(whole) - 1):
        (tmp_path / "run-cut.wandb").write_bytes(whole[:size])
        losses = [row["train/loss"] for row in read_offline(tmp_path).history if "train/loss" in row]
        assert losses == LOSSES[: len(losses)]
        counts.append(len(losses))
    assert counts == sorted(counts)
    assert 0 == counts[0] < counts[2] < counts[-1]


def test_a_table_whose_file_is_gone_is_left_out(folder, tmp_path):
    shutil.copy(next(folder.glob("*.wandb")), tmp_path)
    assert read_offline(tmp_path).tables == {}


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(DataError, match="holds no W&B run"):
        read_offline(tmp_path)
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    with pytest.raises(DataError, match="is no W&B log"):
        read_offline(tmp_path / "run-x.wandb")
