"""Probes from the command line: a tiny checkpoint with each way of scoring, the files it leaves, and what reads these."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusionkit.cli.main import run
from fusionkit.errors import ConfigError
from fusionkit.inference.benchmarks import tasks_for
from fusionkit.inference.own_pairs import OwnPairs
from fusionkit.reporting.comparison import HEADLINES
from fusionkit.scoring.benchmark import Published
from fusionkit.scoring.probes.foils import Foils
from fusionkit.scoring.records import read_records
from tests.probe_worlds import KINDS, PIECES, probe_world
from tests.toys import toy_batch, toy_dims, toy_model, toy_task

PROBES = (
    *("sugarcrepe", "pope", "valse", "winoground", "aro_relation", "aro_attribution"),
    *("coco_counting", "coco_left_right", "zero_shot", "textvqa", "docvqa", "mmmu"),
)
OPTIONS = (
    "experiment=quickstart trainer=cpu trainer.precision=32-true trainer.max_epochs=-1 trainer.max_steps=1 callbacks=last "
    "trainer.limit_val_batches=0 evaluation.checkpoint=last evaluation.roles=[] logger=none data.answers.min_count=1 "
    "text_encoder.config.hidden_size=32 fusion.num_layers=2 model.embed_size=16 data.spell_answers=true data.num_workers=0 "
    "task=[itc,itm,likelihood,vqa] objectives=none +objectives.shapes.itc=1 +objectives.shapes.itm=1 "
    "+objectives.shapes.likelihood=1 +objectives.shapes.vqa=1"
)
LINE = OPTIONS.split()
VALUES = {"itm": "log_odds", "itc": "cosine", "likelihood": "log_likelihood"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all four tasks, the published files, and what evaluating the one on the others leaves."""
    root = tmp_path_factory.mktemp("probes")
    assert run(["data", "make", "shapes", f"root={root}/shapes", "scenes=20"]) == 0
    assert run(["train", *LINE, f"data.root={root}/shapes", f"output_dir={root}/run"]) == 0
    probe_world(root / "world")
    where = [f"checkpoint={root}/run/checkpoints/last.ckpt", f"root={root}/world", "resamples=20"]
    assert run(["evaluate", *where, f"benchmark=[{','.join(PROBES)}]", f"output_dir={root}/out"]) == 0
    return root


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


MEASURED = {
    "sugarcrepe": [f"accuracy/{kind}" for kind in (*KINDS, "add", "replace", "swap", "average")],
    "valse": [f"acc_r/{piece.replace('-', '_')}" for piece in (*PIECES, "average")],
    "winoground": ["text_score", "image_score", "group_score", "text_score/object"],
    "aro_relation": ["accuracy/macro", "accuracy/relation/left_of"],
    "aro_attribution": ["accuracy/macro", "accuracy/attributes/red_blue"],
    "coco_counting": ["accuracy/one", "accuracy/two", "accuracy/average"],
    "coco_left_right": ["accuracy/left", "accuracy/right"],
    "zero_shot": ["top1", "mean_per_class", "top1/class/circle"],
    "mmmu": ["accuracy", "accuracy/art_and_design", "accuracy/subject/art"],
}
MATCHED = ["acc", "p_c", "p_f", "min_p_c_p_f", "auroc", "acc/subset/existence"]


def test_every_task_that_can_answers_each_probe(root: Path) -> None:
    metrics, details = content(root / "out/metrics.json"), content(root / "out/details.json")
    expected = {f"{probe}/{task}": names for probe, names in MEASURED.items() for task in VALUES}
    expected["valse/itm"] = expected["valse/itm"] + MATCHED
    for setting in ("random", "popular", "adversarial"):
        names = ["accuracy", "recall", "f1", "yes_ratio"]
        expected |= {f"pope/{setting}/{task}": names for task in ("vqa", *VALUES)}
    expected |= {
        "mmmu/vqa": MEASURED["mmmu"],
        "textvqa": ["textvqa_accuracy", "agreement"],
        "docvqa": ["anls", "accuracy"],
    }
    assert set(details) == set(expected)
    for label, name in ((label, name) for label, names in expected.items() for name in names):
        assert 0 <= metrics[f"{label}/{name}"] <= 100
        assert {f"{label}/{name}_chance", f"{label}/{name}_baseline"} <= metrics.keys()
        low, high = details[label]["intervals"][name]
        assert low - 1e-6 <= metrics[f"{label}/{name}"] <= high + 1e-6
    assert metrics["winoground/itm/group_score_chance"] == pytest.approx(100 / 6)
    assert not [name for name in metrics if name.startswith("valse/itc/acc/")]
    assert details["valse/itm"]["samples"] == len(PIECES) * 2  # half of the drawn entries are valid
    assert "cosine" in details["sugarcrepe/itc"]["notes"]["scored by"]
    assert details["aro_relation/itc"]["images"] == 2
    for label in expected:
        assert (root / f"out/samples/{label.replace('/', '_')}.jsonl").is_file()
    shown = {path.stem for path in (root / "out/gallery").iterdir()}
    assert {"sugarcrepe_val2017_itm", "pope_random_vqa", "winoground_test_itc", "aro_relation_test_likelihood"} <= shown


@pytest.mark.parametrize(("task", "value"), VALUES.items())
def test_the_records_are_scored_again_without_the_model(task: str, value: str, root: Path, tmp_path: Path) -> None:
    """Also: a file of scores says by its key how it was scored."""
    predictions = root / f"out/predictions/sugarcrepe_{task}.jsonl"
    records = read_records(predictions)
    assert [set(record) for record in records] == [{"caption_id", value}] * 28
    line = [
        "benchmark=sugarcrepe",
        f"predictions={predictions}",
        f"annotations={root}/world/sugarcrepe",
        "resamples=20",
    ]
    assert run(["score", *line, f"output={tmp_path}"]) == 0
    details = content(tmp_path / "details.json")
    assert set(details) == {f"sugarcrepe/{task}"}
    told = content(root / "out/details.json")[f"sugarcrepe/{task}"]
    for part in ("scores", "intervals", "notes", "images"):
        assert details[f"sugarcrepe/{task}"][part] == told[part]


def test_answers_to_pope_are_scored_again_without_the_model(root: Path, tmp_path: Path) -> None:
    line = [
        f"predictions={root}/out/predictions/pope_random_vqa.jsonl",
        f"annotations={root}/world/coco_pope_random.json",
    ]
    assert run(["score", "benchmark=pope", "split=random", *line, "resamples=20", f"output={tmp_path}"]) == 0
    (found,) = content(tmp_path / "details.json").values()
    assert found["scores"] == content(root / "out/details.json")["pope/random/vqa"]["scores"]


@pytest.mark.parametrize(
    ("benchmark", "key", "file"),
    [
        ("textvqa", "question_id", "TextVQA_0.5.1_val.json"),
        ("docvqa", "questionId", "val_v1.0_withQT.json"),
        ("mmmu", None, ""),  # {question: answer}
    ],
)
def test_answers_about_texts_are_scored_again_as_their_servers_take_them(
    benchmark: str, key: str | None, file: str, root: Path, tmp_path: Path
) -> None:
    label = benchmark if key else f"{benchmark}/vqa"
    records = read_records(root / f"out/predictions/{label.replace('/', '_')}.jsonl")
    said = {record["question_id"]: record["answer"] for record in records}
    given = [{key: name, "answer": answer} for name, answer in said.items()] if key else said
    (tmp_path / "p.json").write_text(json.dumps(given))
    line = [f"benchmark={benchmark}", f"predictions={tmp_path}/p.json", f"annotations={root}/world/{file}"]
    assert run(["score", *line, "resamples=20", f"output={tmp_path}/out"]) == 0
    (found,) = content(tmp_path / "out/details.json").values()
    told = content(root / "out/details.json")[label]
    assert found["scores"] == {name: value for name, value in told["scores"].items() if name in found["scores"]}
    assert found["samples"] == told["samples"] == 2


def test_runs_are_compared_with_intervals_and_examples(root: Path, tmp_path: Path, capsys: Capture) -> None:
    line = [f"checkpoint={root}/run/checkpoints/last.ckpt", f"root={root}/world", "resamples=20", "benchmark=[valse]"]
    assert run(["evaluate", *line, f"output_dir={tmp_path}/b", "evaluation.options.gallery=false"]) == 0
    both = [
        f"{root}/out",
        f"{tmp_path}/b",
        f"output_dir={tmp_path}/both",
        "resamples=50",
        "metrics=['valse/*/acc_r/average']",
    ]
    assert run(["compare", *both]) == 0, capsys.readouterr().err
    table = (tmp_path / "both/table.md").read_text()
    assert "valse/itm/acc_r/average" in table
    assert " to " in table
    assert {
        "average",
        "macro",
        "acc",
        "text_score",
        "image_score",
        "group_score",
        "f1",
        "top1",
    } <= HEADLINES  # shown unasked
    assert "There are two circles." in (tmp_path / "both/index.html").read_text()


def test_a_probe_that_no_task_can_answer_and_a_missing_file_are_one_sentence(root: Path, capsys: Capture) -> None:
    benchmark = Published("toy", "how", SimpleNamespace(read=list), ["test"], {"itm": Foils(), "itc": Foils("cosine")})
    with pytest.raises(
        ConfigError, match="toy is answered by the task 'itm' or 'itc', which the checkpoint has not learnt"
    ):
        tasks_for(benchmark, {"vqa": toy_task("vqa", toy_dims(toy_model()))})
    capsys.readouterr()
    line = [f"checkpoint={root}/run/checkpoints/last.ckpt", "benchmark=valse", f"root={root}/nowhere"]
    assert run(["evaluate", *line, f"output_dir={root}/gone"]) == 1
    assert "benchmark valse: the annotation file" in capsys.readouterr().err


def scores_of(name: str) -> tuple[list[Mapping[str, Any]], Any, Any, Any]:
    torch.manual_seed(0)
    model, batch = toy_model().eval(), toy_batch()
    task = toy_task(name, toy_dims(model)).eval()
    with torch.inference_mode():
        encoded = model.encode(batch, ["captions"])
        records = OwnPairs(task, VALUES[name]).predict(model, batch, encoded)
        replies = task.reply(model, batch, encoded, 1)
    return records, replies, batch["captions"]["ids"], task


@pytest.mark.parametrize(
    ("name", "reply", "as_reply"),
    [
        ("itm", "match", lambda score: 1 / (1 + torch.tensor(-score).exp().item())),
        ("itc", "cosine", float),
        ("likelihood", "match", lambda score: 1 / (1 + torch.tensor(-score).exp().item())),
    ],
)
def test_a_score_is_what_the_task_itself_says_of_the_pair(name: str, reply: str, as_reply: Any) -> None:
    records, replies, ids, _ = scores_of(name)
    assert [record["caption_id"] for record in records] == list(ids)
    told = [as_reply(record[VALUES[name]]) for record in records]
    assert told == pytest.approx([each[reply] for each in replies], abs=1e-5)
    assert len(set(told)) > 1
