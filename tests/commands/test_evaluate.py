"""What ``fusionkit evaluate`` says before it evaluates anything."""

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from fusionkit.checkpoints.load import forget_files
from fusionkit.cli.main import run
from fusionkit.commands.evaluation_setup import check_files, chosen
from fusionkit.errors import ConfigError, DataError


def parts_of(files: dict[str, bool]) -> Any:
    """A run whose sources have their files, or lack them."""

    def samples(source: str, role: str) -> list[Any]:
        if not files[source]:
            raise DataError(f"{source}.json does not exist")
        return []

    sources = {name: SimpleNamespace(splits={"val": ["val"]}) for name in files}
    return SimpleNamespace(datamodule=SimpleNamespace(sources=sources, samples=samples))


def test_a_folder_that_lacks_one_source_says_how_to_evaluate_the_others() -> None:
    parts = parts_of({"coco": True, "vqa": False, "refcoco": True})
    with pytest.raises(DataError) as caught:
        check_files(parts, {"coco": ["itc"], "vqa": ["vqa"], "refcoco": ["grounding"]}, ["val"])
    assert str(caught.value).startswith("source vqa: vqa.json does not exist; ")
    assert str(caught.value).endswith("sources=[coco,refcoco]")
    check_files(parts, {"coco": ["itc"]}, ["val"])


def test_the_files_that_a_training_started_from_are_not_needed_again() -> None:
    queue = {"pool": {"_target_": "fusionkit.negatives.Queue"}}  # it has state, so it stays
    tasks = {"itm": {"negatives": {"file": "hard.json"}}, "other": {"negatives": queue}, "mlm": {}}
    image = {"_target_": "fusionkit.encoders.image.TimmEncoder", "pretrained": True}
    text = {"_target_": "fusionkit.encoders.text.HFTextEncoder", "pretrained": "bert"}
    towers = {"image_encoder": image, "text_encoder": text}
    config = OmegaConf.create({**towers, "task": tasks})
    forget_files(config, {"text_encoder": {"model_type": "bert"}}, lambda section, name: True)
    assert config.image_encoder.pretrained is False
    assert config.text_encoder.pretrained is None
    assert config.task == {"itm": {"negatives": None}, "other": {"negatives": queue}, "mlm": {}}


def test_the_only_source_cannot_be_left_out() -> None:
    with pytest.raises(DataError, match=r"^source vqa: vqa\.json does not exist$"):
        check_files(parts_of({"vqa": False}), {"vqa": ["vqa"]}, ["val"])


def test_a_run_that_evaluates_no_role_is_asked_for_one() -> None:
    parts = parts_of({"coco": True})
    parts.objectives, parts.tasks = {"coco": {"itc": 1.0}}, {"itc": None}
    parts.config = OmegaConf.create({"evaluation": {"roles": []}})
    with pytest.raises(ConfigError, match=r"^split: the run evaluates no role \(evaluation.roles=\[\]\); known: val$"):
        chosen(OmegaConf.create({"sources": None, "split": None}), parts)
    assert chosen(OmegaConf.create({"sources": None, "split": "val"}), parts)[1] == ["val"]


@pytest.mark.parametrize(("key", "value"), [("split", "val"), ("sources", "[coco]")])
def test_benchmarks_have_splits_of_their_own(key: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "checkpoint=gone.ckpt", "benchmark=vqav2", f"{key}={value}"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"{key} is about the run's own data, and benchmark about published data" in told
