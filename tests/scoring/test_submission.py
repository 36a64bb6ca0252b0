"""The file of a server: its name, its order, and what is refused before it is written."""

import json

import pytest

from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.submission import Submission

FORM = RecordSchema("questions", "question_id", "answer", "a text", is_text)
VQA = Submission("questions", "question_id", "vqa_{split}_{method}.json")
RECORDS = [{"question_id": 3, "answer": "b", "score": 1}, {"question_id": 7, "answer": "a"}]


def write(folder, content, records=RECORDS, split=None, method="mine"):
    asked = folder / "asked.json"
    asked.write_text(json.dumps(content))
    return VQA.write(records, FORM, folder / "p.json", asked, folder / "out", split, method)


def test_the_records_stand_in_the_order_of_what_is_asked(tmp_path):
    content = {"questions": [{"question_id": 7}, {"question_id": 3}], "data_subtype": "test2015"}
    path = write(tmp_path, content)
    assert path == tmp_path / "out" / "vqa_test2015_mine.json"
    assert path.read_text() == '[{"question_id": 7, "answer": "a"}, {"question_id": 3, "answer": "b"}]\n'
    assert write(tmp_path, content, split="dev").name == "vqa_dev_mine.json"  # the one that is given
    content.pop("data_subtype")
    assert write(tmp_path, content, split="dev").name == "vqa_dev_mine.json"


@pytest.mark.parametrize(
    ("change", "more", "error", "words"),
    [
        ({}, {}, ConfigError, r"asked.json does not say which split it is; give its name as split=NAME"),
        ({}, {"split": "a/b"}, ConfigError, "split is 'a/b', but is a part of the file's name: leave out its slashes"),
        ({"data_subtype": "../x"}, {}, ConfigError, "split is '../x'"),
        ({}, {"split": "a", "method": "/b"}, ConfigError, "method is '/b'"),
        ({"questions": [{"question_id": 7}] * 2}, {"split": "a"}, DataError, "has the question_id 7 twice"),
        ({"questions": [{"id": 7}]}, {"split": "a"}, DataError, "asked.json"),
        ({"images": [], "questions": {}}, {"split": "a"}, DataError, "asked.json"),
        (
            {},
            {"split": "a", "records": RECORDS[:1]},
            DataError,
            "no record for 1 of 2 question_ids, first 7; the server",
        ),
        ({}, {"split": "a", "records": RECORDS + RECORDS[:1]}, DataError, "p.json has two records for question_id 3"),
    ],
)
def test_what_a_server_would_refuse_is_not_written(tmp_path, change, more, error, words):
    content = {"questions": [{"question_id": 7}, {"question_id": 3}]} | change
    with pytest.raises(error, match=words):
        write(tmp_path, content, **more)
    assert not (tmp_path / "out").exists()
