import math
import os

import pytest

from fusionkit.errors import DataError
from fusionkit.scoring.records import (
    check_records,
    identity,
    index_records,
    merge_metrics,
    merge_records,
    read_records,
    require_writable,
    write_metrics,
    write_records,
)


def test_written_records_are_read_back(tmp_path):
    records = [{"question_id": 1, "answer": "é\u2028\n"}, {"image_id": "a", "scores": [0.1, 2]}]
    write_records(tmp_path / "new" / "x.jsonl", records)
    assert read_records(tmp_path / "new" / "x.jsonl") == records


def test_shards_merge_by_identity():
    padded = [{"caption_id": 1, "position": 2, "token": "a"}, {"caption_id": 1, "position": 3, "token": "a"}]
    other = [{"caption_id": 1, "position": 2, "token": "a"}, {"caption_id": 2, "position": 2, "token": "a"}]
    assert merge_records([padded, other]) == [*padded, other[1]]
    pairs = [{"caption_id": 1, "image_id": 1}, {"caption_id": 1, "image_id": 2}, {"image_id": 1}]
    assert merge_records([pairs, pairs]) == pairs


def test_metrics_are_flat(tmp_path):
    metrics = merge_metrics({"shapes": {"vqa_accuracy": 50}, "shapes_compositional": {"vqa_accuracy": 25.0}})
    assert metrics == {"shapes/vqa_accuracy": 50.0, "shapes_compositional/vqa_accuracy": 25.0}
    write_metrics(tmp_path / "metrics.json", metrics)
    assert (tmp_path / "metrics.json").read_text().splitlines()[1] == ' "shapes/vqa_accuracy": 50.0,'


def test_nan_is_told_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="diverged"):
        write_records(tmp_path / "x.jsonl", [{"sent_id": 1, "bbox": [math.nan]}])


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_bad_lines(tmp_path, line):
    (tmp_path / "x.jsonl").write_text('{"question_id": 1}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2 is not"):
        read_records(tmp_path / "x.jsonl")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no predictions at"):
        read_records(tmp_path / "x.jsonl")


def test_a_name_that_is_no_utf8_is_written_and_read_back(tmp_path):
    record = {"image": os.fsdecode(b"caf\xe9.jpg"), "answer": "größer"}
    write_records(tmp_path / "replies.jsonl", [record])
    assert read_records(tmp_path / "replies.jsonl") == [record]


def test_an_identity_is_all_that_is_named_id_and_the_place_of_a_token():
    record = {"position": 3, "image_id": 1, "caption_id": 2, "answer": "a", "id_of": 4}
    assert identity(record) == (("caption_id", 2), ("image_id", 1), ("position", 3))


def test_what_a_checked_record_has_to_have():
    check_records([{"a": 1, "b": 1}, {"a": 1, "b": 2}], ("a", "b"), {1})
    for records, words in (
        ([{}], "a prediction record lacks 'a': it has no keys"),
        ([{"x": 1, "a": 1}], "lacks 'b': it has x, a"),
        ([{"a": 1, "b": 2}] * 2, "two predictions for a 1, b 2: keep one record for each"),
        ([{"a": 2, "b": 2}], "prediction for the unknown a 2: score it against"),
    ):
        with pytest.raises(DataError, match=words):
            check_records(records, ("a", "b"), {1})
    assert index_records([{"a": 1}, {"a": "1"}], "a", {1, "1"}) == {1: {"a": 1}, "1": {"a": "1"}}


def test_metrics_are_sorted_and_finite(tmp_path):
    write_metrics(tmp_path / "m.json", {"b": 1.0, "é": 2, "a": 3})
    assert (tmp_path / "m.json").read_text() == '{\n "a": 3,\n "b": 1.0,\n "é": 2\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_metrics(tmp_path / "m.json", {"a": math.inf})


def test_a_folder_to_write_to_is_made_with_those_above_it(tmp_path):
    for _ in range(2):
        require_writable(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"out=.*file cannot be written to \(File exists\); choose another out=FOLDER"):
        require_writable(tmp_path / "file", "out")
    with pytest.raises(DataError, match=r"output_dir=.*choose another output_dir=FOLDER"):
        require_writable(tmp_path / "file")


def test_lines_are_counted_from_one_and_empty_ones_are_none(tmp_path):
    (tmp_path / "x.jsonl").write_text('\ufeff{"a": 1}\n\n{"a": 2}\n')
    assert read_records(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]
    (tmp_path / "x.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"x.jsonl line 1 is not JSON"):
        read_records(tmp_path / "x.jsonl")
    write_records(tmp_path / "y.jsonl", [{"a": "é"}])
    assert (tmp_path / "y.jsonl").read_text() == '{"a": "é"}\n'
