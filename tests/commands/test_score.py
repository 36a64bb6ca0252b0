"""Files of predictions from the command line: scores, sentences, submissions; every benchmark of the configuration."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from fusionkit.assembly.config_checks import check_arguments
from fusionkit.cli.main import run
from fusionkit.config import register_resolvers
from fusionkit.scoring.benchmark import Published
from tests.data.test_boxes import entities
from tests.toys import CONF, choices

CASES = json.loads((CONF.parent / "tests/scoring/data/vqa_official_cases.json").read_text())
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    """The official cases as VQA v2 files, and the predictions for them."""
    annotations = [
        {
            "question_id": at,
            "image_id": at // 2,
            "answer_type": "yes/no" if at % 3 else "number",
            "question_type": "is this a",
            "multiple_choice_answer": case["answers"][0],
            "answers": [{"answer_id": n, "answer": text} for n, text in enumerate(case["answers"], start=1)],
        }
        for at, case in enumerate(CASES)
    ]
    questions = [{key: row[key] for key in ("question_id", "image_id")} | {"question": "?"} for row in annotations]
    write(tmp_path / "a.json", {"annotations": annotations})
    write(tmp_path / "q.json", {"questions": questions, "data_subtype": "test-dev2015"})
    write(tmp_path / "p.json", [{"question_id": at, "answer": case["pred"]} for at, case in enumerate(CASES)])
    return tmp_path


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def score(folder: Path, *overrides: str, benchmark: str = "vqav2", predictions: str = "p.json") -> int:
    files = [f"predictions={folder}/{predictions}", f"output={folder}/out", "resamples=20"]
    return run(["score", f"benchmark={benchmark}", *files, *overrides])


def error_of(capsys: Capture) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_vqa_is_scored_as_by_the_official_script(vqa: Path, capsys: Capture) -> None:
    assert score(vqa, f"annotations={vqa}/a.json", f"questions={vqa}/q.json") == 0
    samples = [json.loads(line) for line in (vqa / "out/samples.jsonl").read_text().splitlines()]
    official = {at: case["official"] for at, case in enumerate(CASES)}
    assert {row["id"]: row["score"] for row in samples} == pytest.approx(official)
    metrics = json.loads((vqa / "out/metrics.json").read_text())
    mean = sum(official.values()) / len(official)
    number = [value for at, value in official.items() if at % 3 == 0]
    assert metrics["vqav2/accuracy"] == metrics["vqav2/accuracy/question_type/is_this_a"] == pytest.approx(mean)
    assert metrics["vqav2/accuracy/number"] == pytest.approx(sum(number) / len(number))
    details = json.loads((vqa / "out/details.json").read_text())["vqav2"]
    low, high = details["intervals"]["accuracy"]
    assert low < mean < high
    assert (details["notes"]["rule"], details["samples"], details["images"]) == ("official", 30, 15)
    assert "rule: official" in capsys.readouterr().out


def test_the_other_rule_has_another_name(vqa: Path) -> None:
    assert score(vqa, f"annotations={vqa}/a.json", "benchmark.vqav2.scorers.vqa.rule=evalai") == 0
    assert "vqav2/evalai_accuracy" in json.loads((vqa / "out/metrics.json").read_text())


def test_what_is_missing_may_count_as_wrong(vqa: Path) -> None:
    write(vqa / "few.json", [{"question_id": 2, "answer": CASES[2]["pred"]}])
    assert score(vqa, f"annotations={vqa}/a.json", "allow_missing=true", predictions="few.json") == 0
    expected = CASES[2]["official"] / len(CASES)
    assert json.loads((vqa / "out/metrics.json").read_text())["vqav2/accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], "has no record for 1 of 30 question_ids, first 0; add them"),
        (lambda rows: [*rows, rows[3]], "two records for question_id 3"),
        (
            lambda rows: [*rows[:-1], {"question_id": "29", "answer": "a"}],
            'question_id "29" (a text) has to be a whole number',
        ),
        (lambda rows: [{"question_id": 0, "answer": 3}, *rows[1:]], "answer for question_id 0 is 3"),
        (lambda rows: [{"question_id": 99, "answer": "a"}], "which the annotations do not ask about (0 of 1 records"),
    ],
)
def test_a_wrong_file_is_one_sentence(change, words: str, vqa: Path, capsys: Capture) -> None:
    write(vqa / "p.json", change(json.loads((vqa / "p.json").read_text())))
    assert score(vqa, f"annotations={vqa}/a.json") == 1
    assert words in error_of(capsys)
    assert not (vqa / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["annotations=nowhere.json"], 1, "nowhere.json does not exist"),
        (
            ["annotations={folder}/a.json", "instances=x"],
            2,
            "instances: vqav2 has no such file; known: annotations, questions",
        ),
        (["annotations={folder}/a.json", "splitt=val"], 2, "did you mean 'split'?"),
        (["annotations={folder}/a.json", "resamples=0"], 2, "resamples is 0"),
        (["annotations={folder}/a.json", "seed=-1"], 2, "seed is -1"),
        (["annotations={folder}/a.json", "output={folder}/a.json/x"], 1, "a.json/x cannot be written to"),
        ([], 2, "'annotations' has no value yet"),
        (["annotations={folder}/a.json", "benchmark.vqav2.scorers.vqa.rule=offical"], 2, "no VQA rule 'offical'"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    overrides: list[str], code: int, words: str, vqa: Path, capsys: Capture
) -> None:
    assert score(vqa, *(text.format(folder=vqa) for text in overrides)) == code
    assert words in error_of(capsys)
    assert not (vqa / "out").exists()


def test_boxes_are_scored_with_the_published_file_names(tmp_path: Path) -> None:
    refs = [
        {"ref_id": n, "ann_id": n, "image_id": n, "split": split, "sentences": [{"sent_id": n, "sent": "it"}]}
        for n, split in enumerate(["val", "testA", "testA"])
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs))
    boxes = [{"id": n, "image_id": n, "bbox": [0, 0, 10, 10]} for n in range(3)]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 20, "height": 20} for n in range(3)]
    write(tmp_path / "instances.json", {"annotations": boxes, "images": images})
    write(tmp_path / "p.json", [{"sent_id": 1, "bbox": [0, 0, 10, 5]}, {"sent_id": 2, "bbox": [0, 0, 10, 9]}])
    assert score(tmp_path, f"annotations={tmp_path}/refs(unc).p", "split=testA", benchmark="refcoco+") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics == pytest.approx({"refcoco+/acc50": 100, "refcoco+/acc75": 50, "refcoco+/mean_iou": 70})
    details = json.loads((tmp_path / "out/details.json").read_text())["refcoco+"]
    assert (details["notes"]["boxes"], details["split"]) == ("regressed", "testA")


def test_scoring_imports_no_torch(vqa: Path) -> None:
    line = ["score", "benchmark=vqav2", f"predictions={vqa}/p.json", f"annotations={vqa}/a.json", f"output={vqa}/out"]
    code = f"import sys\nfrom fusionkit.cli.main import run\nassert run({line}) == 0\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=CONF.parent).returncode == 0


def test_a_submission_has_every_id_once(vqa: Path, capsys: Capture) -> None:
    rows = json.loads((vqa / "p.json").read_text())
    write(vqa / "p.json", [row | {"score": 0.5} for row in rows[::-1]])
    line = ["submit", "benchmark=vqav2", f"predictions={vqa}/p.json", f"questions={vqa}/q.json", f"output={vqa}/sub"]
    assert run(line) == 0
    (path,) = (vqa / "sub").iterdir()
    assert path.name == "vqa_OpenEnded_mscoco_test-dev2015_fusionkit_results.json"
    assert json.loads(path.read_text()) == rows
    write(vqa / "p.json", rows[1:])
    capsys.readouterr()
    assert run([*line[:-1], f"output={vqa}/other"]) == 1
    assert "no record for 1 of 30 question_ids, first 0; the server wants every one" in error_of(capsys)
    assert not (vqa / "other").exists()


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["method=a/b"], 2, "method is 'a/b', but is a part of the file's name"),
        (["split=../x"], 2, "split is '../x'"),
        (["questions={folder}/twice.json"], 1, "twice.json has the question_id 0 twice"),
        (["benchmark=[vqav2,coco_caption]"], 2, "one benchmark, not 2"),
        (["output={folder}/p.json"], 1, "p.json cannot be written to"),
    ],
)
def test_a_wrong_submission_is_one_sentence(overrides, code, words: str, vqa: Path, capsys: Capture) -> None:
    row = json.loads((vqa / "q.json").read_text())["questions"][0]
    write(vqa / "twice.json", {"questions": [row, row], "data_subtype": "test2015"})
    line = ["benchmark=vqav2", f"predictions={vqa}/p.json", f"questions={vqa}/q.json", f"output={vqa}/sub"]
    keys = [text.partition("=")[0] for text in overrides]
    kept = [text for text in line if text.partition("=")[0] not in keys]
    assert run(["submit", *kept, *(text.format(folder=vqa) for text in overrides)]) == code
    assert words in error_of(capsys)
    assert not (vqa / "sub").exists()


def test_captions_are_submitted_for_the_images_of_a_split(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "image_info.json", {"images": [{"id": 7}, {"id": 3}]})
    write(tmp_path / "p.json", [{"image_id": 3, "caption": "a"}, {"image_id": 7, "caption": "b"}])
    files = [f"predictions={tmp_path}/p.json", f"questions={tmp_path}/image_info.json", f"output={tmp_path}"]
    assert run(["submit", "benchmark=coco_caption", *files]) == 2
    assert "give its name as split=NAME" in error_of(capsys)
    assert run(["submit", "benchmark=coco_caption", *files, "split=test2014", "method=mine"]) == 0
    written = json.loads((tmp_path / "captions_test2014_mine_results.json").read_text())
    assert written == [{"image_id": 7, "caption": "b"}, {"image_id": 3, "caption": "a"}]
    assert run(["submit", "benchmark=nlvr2", *files]) == 2


@pytest.mark.parametrize("name", choices("benchmark"))
def test_every_benchmark_is_built(name: str) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [f"benchmark=[{name}]", "root=/data"])
    check_arguments(config)
    (block,) = config.benchmark.values()
    benchmark = instantiate(block, _convert_="all")
    assert isinstance(benchmark, Published)
    assert benchmark.name == name
    assert benchmark.splits
    assert benchmark.protocol
    assert "annotations" in benchmark.files
    assert all(benchmark.scorer(name).schema for name in benchmark.scorers)
    assert set(benchmark.scorers) <= {*choices("task"), "linear_probe"}
    assert benchmark.scorer(benchmark.answered_by([])).rows([], []).rows == []


def test_wrong_boxes_of_published_annotations_are_told_in_one_line(tmp_path: Path) -> None:
    entities(tmp_path, (1, 4, 4, 24, 24), (2, 4, 4, 4, 30))
    write(tmp_path / "p.json", [{"sent_id": "100/0/0", "bbox": [4, 4, 20, 20]}])
    files = [f"predictions={tmp_path}/p.json", f"annotations={tmp_path}", f"output={tmp_path}/out", "resamples=20"]
    done = subprocess.run(
        [sys.executable, "-m", "fusionkit", "score", "benchmark=flickr30k_entities", *files],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "warning: 1 of 2 boxes are left out; the first: the box [4.0, 4.0, 0.0, 26.0] of entity 2 of"
    )
