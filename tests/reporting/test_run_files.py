"""A file of a run is read to what it has to be, or named in a sentence."""

import json

import pytest

from fusionkit.errors import DataError
from fusionkit.reporting.reading import read_run
from fusionkit.reporting.run_files import read_csv, read_details, read_json, read_rows, read_yaml
from tests.reporting.worlds import write_evaluation, write_run

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.json", "{", "is not complete JSON"),
        ("metrics.json", DEEP, "is not complete JSON"),
        ("metrics.json", "[1]", "is no map of metrics to numbers"),
        ("metrics.json", '{"v": 1.5, "w": true}', "w is True, but has to be a number"),
        ("metrics.json", f'{{"v": 1{"0" * 400}}}', "v is 10+, but has to be a number"),
        ("metrics.json", '{"v": "1.5"}', "v is '1.5', but has to be a number"),
        ("details.json", '{"v": 3}', "v is 3, but has to be a section"),
        ("details.json", '{"v": {"intervals": []}}', "intervals is .., but has to be a section"),
        ("details.json", '{"v": {"intervals": {"a": [1]}}}', "the interval of v/a is no pair of numbers"),
        ("details.json", '{"v": {"intervals": {"a": [1, "2"]}}}', "the interval of v/a is no pair of numbers"),
        ("details.json", '{"v": {"intervals": {"a": 3}}}', "the interval of v/a is no pair of numbers"),
        ("details.json", '{"v": {"split": 3}}', "split is 3, but has to be a text"),
        ("evaluation.yaml", "a: [", "is not valid yaml"),
        ("evaluation.yaml", DEEP, "is not valid yaml"),
        ("evaluation.yaml", "run: 3", "run is 3, but has to be a section"),
        ("evaluation.yaml", "checkpoint: 3", "checkpoint is 3, but has to be a text"),
        ("evaluation.yaml", "working_folder: [a]", "working_folder is .*, but has to be a text"),
        ("evaluation.yaml", "parameters: many", "parameters is 'many', but has to be a whole number"),
        ("evaluation.yaml", "benchmark: vqav2", "benchmark is 'vqav2', but has to be a section"),
        ("samples.jsonl", '{"id": 1}', "row 1: its image_id is no whole number or text"),
    ],
)
def test_a_file_of_an_evaluation_that_cannot_be_is_named(tmp_path, name, text, words):
    folder = write_evaluation(tmp_path / "e", [True, False], "run/checkpoints/best.ckpt")
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=f"e/{name}.* {words}"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.yaml", "evaluation: 3", "evaluation is 3, but has to be a section"),
        ("config.yaml", "output_dir: 3", "output_dir is 3, but has to be a text"),
        ("logs/csv/version_0/metrics.csv", "step,a\n1,\xff\n", "is no csv file of a logger"),
    ],
)
def test_a_file_of_a_run_that_cannot_be_is_named(tmp_path, name, text, words):
    folder = write_run(tmp_path / "a", {"coco/itm_accuracy": 50.0})
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=f"a/{name}.* {words}"):
        read_run(folder)


def test_what_is_missing_is_empty(tmp_path):
    assert read_json(tmp_path / "a") == read_yaml(tmp_path / "a") == read_details(tmp_path / "a") == {}
    (tmp_path / "a").write_text("")
    assert read_yaml(tmp_path / "a") == {}
    assert read_rows(tmp_path / "a") == read_csv(tmp_path / "a") == []
    (tmp_path / "details.json").write_text(json.dumps({"v": {"intervals": {"a": [1, 2.5]}, "split": "val"}, "w": None}))
    assert read_details(tmp_path / "details.json") == {"v": {"intervals": {"a": [1, 2.5]}, "split": "val"}}


def test_what_a_killed_process_left_is_not_read(tmp_path):
    folder = write_run(tmp_path / "a", {"coco/itm_accuracy": 50.0})
    (folder / "samples").mkdir()
    (folder / "samples" / ".coco_itm.jsonl").write_text("half")
    assert not read_run(folder).samples


@pytest.mark.parametrize(("split", "role"), [("test", "test"), (["val", "test"], "val"), ([], None), (3, None)])
def test_the_first_role_is_what_was_asked_for_first(tmp_path, split, role):
    folder = write_run(tmp_path / "a", {"coco/itm_accuracy": 50.0})
    (folder / "evaluation.yaml").write_text(json.dumps({"split": split}))
    (folder / "samples").mkdir()
    row = {"id": 1, "score": 1.0, "image_id": 1, "values": {"itm_accuracy": 50.0}}
    (folder / "samples" / "coco_itm.jsonl").write_text(json.dumps(row))
    assert read_run(folder).samples["coco_itm"].role == role
