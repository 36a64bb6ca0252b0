import math
import os

import pytest

from fusionkit.errors import DataError
from fusionkit.evaluation.records import (
    merge_metrics,
    merge_records,
    read_records,
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
