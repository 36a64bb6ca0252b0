"""Which records are of one run, and what each is called: beside its W&B copy, its other checkpoints and other runs."""

import json
from pathlib import Path

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from fusionkit.cli.main import run
from fusionkit.errors import DataError
from fusionkit.reporting.reading import read_runs
from tests.reporting.test_wandb_offline import log_of
from tests.reporting.worlds import write, write_evaluation, write_run


def write_wandb(folder: Path, name: str, **summary: float) -> Path:
    """What W&B keeps of a run that was logged under ``name``, with its loss at step 5."""
    began, logged, ended = Record(), Record(), Record()
    began.run.display_name = name
    began.run.config.update.add(key="seed", value_json="7")
    for key, value in {"_step": 5, "train/loss": 1.5, "parameters": 9.0}.items():
        logged.history.item.add(key=key, value_json=json.dumps(value))
    for key, value in summary.items():
        ended.summary.update.add(key=key, value_json=json.dumps(value))
    folder.mkdir(parents=True)
    log_of(folder / "run-id.wandb", *(record.SerializeToString() for record in (began, logged, ended)))
    return folder


@pytest.mark.parametrize("is_copy_first", [False, True])
def test_a_run_is_itself_beside_its_wandb_copy(is_copy_first: bool, tmp_path: Path) -> None:
    home = write_run(tmp_path / "outputs/x", {"s/vqa_accuracy": 50.0})
    write(home / "checkpoints/best.ckpt", "")
    copies = home / "logs/wandb"
    for number in (1, 2):  # it was resumed
        write_wandb(copies / f"offline-run-{number}", "x", **{"val/s/vqa_accuracy": 70.0, "test/s/itm_accuracy": 1.0})
    other = write_run(tmp_path / "outputs/y", {"s/vqa_accuracy": 40.0})
    words = [str(home), f"{copies}/offline-run-*", str(other)]
    found = read_runs(words[1::-1] + words[2:] if is_copy_first else words)
    assert [record.name for record in found] == ["x", "y"]
    assert found[0].metrics == {"s/vqa_accuracy": 50.0}  # the run's own word, not W&B's of its validation
    assert found[0].config["name"] == "x"
    assert len(found[0].history) == 3  # of its csv
    assert found[0].parameters == 9  # which the csv does not tell
    assert [path.name for path in found[0].paths] == ["x", "offline-run-1", "offline-run-2"]


def test_an_unfinished_run_has_what_wandb_kept(tmp_path: Path) -> None:
    home = write_run(tmp_path / "x", {})
    write_wandb(home / "logs/wandb/offline-run-1", "x", **{"val/s/vqa_accuracy.max": 70.0})
    (found,) = read_runs([str(home), str(home / "logs/wandb")])
    assert (found.name, found.metrics) == ("x", {"s/vqa_accuracy": 70.0})


def test_copies_alone_are_called_by_their_run_and_told_apart_by_their_folders(tmp_path: Path) -> None:
    for number in (1, 2):
        write_wandb(tmp_path / f"outputs/x/logs/wandb/offline-run-{number}", "study", **{"test/s/vqa_accuracy": 1.0})
    write_wandb(tmp_path / "outputs/y/logs/wandb/offline-run-1", "study", **{"test/s/vqa_accuracy": 1.0})
    found = read_runs([f"{tmp_path}/outputs/*/logs/wandb/offline-run-*"])
    assert [record.name for record in found] == ["x/offline-run-1", "x/offline-run-2", "y"]


def test_copies_that_lie_elsewhere_are_called_as_they_were_logged(tmp_path: Path) -> None:
    for number, name in enumerate(["late/1", "late/2", "gated", "gated"]):
        write_wandb(tmp_path / f"wandb/offline-run-{number}", name, **{"test/s/vqa_accuracy": 1.0})
    found = read_runs([str(tmp_path)])
    names = ["late/1", "late/2", "gated/offline-run-2", "gated/offline-run-3"]
    assert [record.name for record in found] == names


def test_the_link_that_wandb_makes_to_its_own_log_is_no_fault(tmp_path: Path) -> None:
    home = write_run(tmp_path / "x", {"s/vqa_accuracy": 50.0})
    copy = write_wandb(home / "logs/wandb/offline-run-1", "x", **{"test/s/vqa_accuracy": 1.0})
    (copy / "logs").mkdir()
    (copy / "logs/debug-core.log").symlink_to("/where/the/run/was/core-debug.log")
    assert [record.name for record in read_runs([str(home), str(copy)])] == ["x"]
    (copy / "run-id.wandb").rename(tmp_path / "elsewhere.wandb")
    (copy / "run-id.wandb").symlink_to(tmp_path / "elsewhere.wandb")
    for folder in (home, copy):
        with pytest.raises(DataError, match=r"offline-run-1/run-id\.wandb leads out of the run's folder"):
            read_runs([str(folder)])


def test_checkpoints_of_a_run_are_called_by_it(tmp_path: Path) -> None:
    home = write_run(tmp_path / "x", {"s/vqa_accuracy": 50.0})
    for name in ("best", "last"):
        write_evaluation(tmp_path / f"e/{name}", [True, False], str(home / f"checkpoints/{name}.ckpt"))
    write_evaluation(tmp_path / "e/y", [True, False], str(tmp_path / "y/checkpoints/best.ckpt"))
    found = read_runs([str(tmp_path / "e"), str(home)])
    assert {record.name for record in found} == {"x", "x/best", "x/last", "y"}


def test_evaluations_of_a_checkpoint_under_other_settings_are_called_by_run_and_folder(tmp_path: Path) -> None:
    for k in (4, 16):
        write_evaluation(tmp_path / f"e/k{k}", [True, False], str(tmp_path / "x/checkpoints/best.ckpt"), k=k)
    assert [record.name for record in read_runs([str(tmp_path / "e")])] == ["x/k4", "x/k16"]


def test_an_evaluation_of_what_a_training_scored_is_told_from_it_by_its_folder(tmp_path: Path) -> None:
    home = write_run(tmp_path / "x", {"s/vqa_accuracy": 50.0})
    write(home / "checkpoints/best.ckpt", "")
    write_evaluation(tmp_path / "k16", [True, False], str(home / "checkpoints/best.ckpt"), k=16)
    assert [record.name for record in read_runs([str(home), str(tmp_path / "k16")])] == ["x", "x/k16"]


def test_no_two_are_called_the_same(tmp_path: Path) -> None:
    """A run in x/best beside the checkpoint best of another run x."""
    write_run(tmp_path / "a/x/best", {"s/vqa_accuracy": 50.0})
    write_run(tmp_path / "b/best", {"s/vqa_accuracy": 50.0})
    for name in ("best", "last"):
        write_evaluation(tmp_path / f"e/{name}", [True, False], str(tmp_path / f"c/x/checkpoints/{name}.ckpt"))
    names = [record.name for record in read_runs([str(tmp_path)])]
    assert len(set(names)) == 4


def test_the_page_has_one_row_of_a_run_and_its_copy(tmp_path: Path) -> None:
    home = write_run(tmp_path / "x", {"s/vqa_accuracy": 50.0})
    write_wandb(home / "logs/wandb/offline-run-1", "x", **{"test/s/vqa_accuracy": 50.0})
    out = tmp_path / "out"
    assert run(["compare", str(home), str(home / "logs/wandb/offline-run-1"), f"output_dir={out}"]) == 0
    assert "| `s/vqa_accuracy` | 50.0 |" in (out / "table.md").read_text()
    assert yaml.safe_load((home / "config.yaml").read_text())["name"] == "x"  # nothing of the run is changed


def test_rounded_weights_of_one_checkpoint_are_a_run_of_their_own(tmp_path: Path) -> None:
    """Also where they score the same."""
    checkpoint = str(tmp_path / "x/checkpoints/best.ckpt")
    for name in ("plain", "rounded"):
        write_evaluation(tmp_path / "x" / name, [True, False] * 4, checkpoint)
    assert len(read_runs([f"{tmp_path}/x/*"])) == 1
    command = tmp_path / "x/rounded/evaluation.yaml"
    kept = yaml.safe_load(command.read_text())
    kept["run"]["int8"] = True
    command.write_text(yaml.safe_dump(kept))
    assert [record.name for record in read_runs([f"{tmp_path}/x/*"])] == ["x/plain", "x/rounded"]
