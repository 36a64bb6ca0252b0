"""Published benchmarks as splits: who answers, who ranks again, and what is written."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fusionkit.errors import ConfigError, DataError
from fusionkit.inference.all_pairs import AllPairs
from fusionkit.inference.benchmarks import published_splits, read_all, tasks_for
from fusionkit.inference.evaluate import evaluate
from fusionkit.scoring.benchmark import Published
from fusionkit.scoring.records import read_records
from fusionkit.scoring.results import Draws
from fusionkit.scoring.retrieval import Retrieval
from fusionkit.scoring.vqa import VQA
from tests.inference.test_evaluate import CPU, NUM_IMAGES, QUIET, Contrast, FakeData, FakeModel, Matching, all_tasks


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images").mkdir()
    return FakeData(tmp_path / "images")


def benchmark(splits=("test", "odd"), **scorers):
    scorers = scorers or {"find": Retrieval(), "vqa": VQA()}
    return Published("toy", "how", None, splits, scorers, instead={"find": ["mine", "contrast", "match"]})


def splits_for(made, tasks):
    return published_splits(made, tasks_for(made, tasks), tasks, list)


def test_the_first_task_that_can_answers_under_the_name_of_the_benchmark():
    tasks = {"contrast": Contrast(), "match": Matching(), "other": Matching()}
    found = tasks_for(benchmark(), tasks)
    assert found == {"find": tasks["contrast"]}
    ranking = tasks_for(benchmark(), {"match": tasks["match"]})["find"]
    assert isinstance(ranking, AllPairs)
    assert ranking.matcher is tasks["match"]
    with pytest.raises(
        ConfigError, match="benchmark toy is answered by the task 'find' or 'vqa', which the checkpoint"
    ):
        tasks_for(benchmark(), {"other": tasks["other"]})


def test_where_a_task_ranks_the_first_that_matches_ranks_again():
    tasks = {"contrast": Contrast(), "match": Matching(), "other": Matching()}
    first, second = splits_for(benchmark(), tasks)
    assert (first.source, first.role, second.role) == ("toy", "test", "odd")
    assert first.helpers == {"match": tasks["match"]}
    assert splits_for(benchmark(), {"match": tasks["match"]})[0].helpers == {}
    assert splits_for(benchmark(vqa=VQA()), all_tasks())[0].helpers == {}


def test_a_benchmark_writes_scores_intervals_directions_and_rows(data, tmp_path):
    tasks = {"contrast": Contrast(), "match": Matching(), "vqa": all_tasks()["vqa"]}
    splits = [replace(each, notes=lambda: {"length": "cut"}) for each in splits_for(benchmark(), tasks)]
    seen = []
    _, details = evaluate(
        FakeModel(), splits, data, tmp_path, CPU, QUIET, Draws(20), lambda *each: seen.append(each[0])
    )
    labels = [f"toy/{split}/{task}" for split in ("test", "odd") for task in ("find", "vqa")]
    assert list(details) == labels
    assert seen == [label.replace("/", "_") for label in labels]
    assert json.loads((tmp_path / "details.json").read_text()) == details
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["toy/test/find/text_to_image_r1"] == 100  # ranked again: contrast alone has none
    assert metrics["toy/test/vqa/accuracy/yes_no"] == 100
    assert metrics["toy/odd/vqa/accuracy"] == 0
    assert metrics["toy/test/find/text_to_image_r1_chance"] == pytest.approx(100 / NUM_IMAGES)
    assert details["toy/test/vqa"]["intervals"]["accuracy"] == [100, 100]
    assert details["toy/test/vqa"]["notes"]["length"] == "cut"
    assert "prefix" not in details["toy/test/vqa"]
    directions = json.loads((tmp_path / "directions.json").read_text())
    assert directions["toy/test/find/text_to_image_median_rank"] is False
    assert directions["toy/odd/vqa/accuracy/yes_no"] is True
    assert set(directions) == {name for name in metrics if not name.endswith(("_chance", "_baseline"))}
    for folder in ("predictions", "samples"):
        assert {path.stem for path in (tmp_path / folder).iterdir()} == set(seen)
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == {
        f"toy_{split}_{task}.png" for split in ("test", "odd") for task in ("find", "vqa")
    }
    assert not (tmp_path / "curves").exists()


def test_every_process_asks_for_the_notes_which_are_of_all(data, tmp_path, monkeypatch):
    asked = []
    splits = splits_for(benchmark(("test",), vqa=VQA()), all_tasks())
    splits = [replace(each, notes=lambda: asked.append(1) or {}) for each in splits]
    monkeypatch.setattr("fusionkit.inference.evaluate.rank", lambda: 1)
    assert evaluate(FakeModel(), splits, data, tmp_path / "out", CPU, QUIET) == ([], {})
    assert asked == [1]
    assert not (tmp_path / "out").exists()


def test_a_single_score_has_one_file_of_rows(data, tmp_path):
    splits = splits_for(benchmark(("test",), vqa=VQA()), all_tasks())
    evaluate(FakeModel(), splits, data, tmp_path, CPU, QUIET, Draws(20))
    assert len(read_records(tmp_path / "samples.jsonl")) == NUM_IMAGES // 2
    assert json.loads((tmp_path / "metrics.json").read_text())["toy/accuracy"] == 100
    assert (tmp_path / "predictions/toy.jsonl").exists()


def test_annotations_that_say_nothing_are_told(data, tmp_path, monkeypatch):
    samples = data.samples
    nothing = [replace(each, texts={"captions": each.texts["captions"]}) for each in samples("toy", "test")]
    splits = splits_for(benchmark(("test",), vqa=VQA()), all_tasks())
    monkeypatch.setattr(data, "samples", lambda source, role: nothing)
    with pytest.raises(DataError, match="the annotations of toy, split 'test', hold no answers to score against"):
        evaluate(FakeModel(), splits, data, tmp_path, CPU, QUIET)


def test_missing_files_and_images_of_the_other_kind_are_told_before_anything_is_predicted(data):
    made = {"place": benchmark(("test",), vqa=VQA())}
    read_all(data, made, "pixel_values")
    with pytest.raises(
        DataError, match=r"reads region features .* name the folder .* benchmark\.place\.files\.images=FOLDER"
    ):
        read_all(data, made, "regions")

    def fail(source, role):
        raise DataError("no a.json")

    with pytest.raises(DataError, match=r"benchmark toy: no a\.json; its files lie below root=FOLDER"):
        read_all(SimpleNamespace(samples=fail), made, "pixel_values")
