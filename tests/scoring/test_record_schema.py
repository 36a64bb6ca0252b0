"""Files of predictions: what is wrong with one is a sentence."""

import codecs
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring.grounding import Grounding
from fusionkit.scoring.record_schema import (
    RecordSchema,
    check_predictions,
    is_box,
    is_list,
    is_number,
    is_text,
    one_of,
    read_predictions,
)
from fusionkit.scoring.retrieval import Retrieval
from fusionkit.scoring.vqa import VQA

GOOD = [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": ""}]
VQA = VQA().schema


def check(records, forms=VQA, wanted=(1, 2), hint="add them"):
    check_predictions(records, forms, {form.key: wanted for form in forms}, Path("p.json"), hint)


def test_good_records_pass():
    check(GOOD)
    check(GOOD[:1], hint=None)
    check([{"sent_id": "a", "bbox": [0, 1.5, -2, 3]}], Grounding().schema, ["a"])


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (GOOD[:1], "p.json has no record for 1 of 2 question_ids, first 2; add them"),
        ([*GOOD, GOOD[0]], "two records for question_id 1"),
        ([{"question_id": "1", "answer": "a"}], 'the question_id "1" (a text) has to be a whole number'),
        ([{"question_id": True, "answer": "a"}], "the question_id true (a truth value) has to be a whole number"),
        ([{"question_id": 1.0, "answer": "a"}], "the question_id 1.0 (a number) has to be a whole number"),
        ([{"question_id": [1], "answer": "a"}], "the question_id [1] (a list) has to be a whole number"),
        ([{"question_id": 1, "answer": 2}], "the answer for question_id 1 is 2 (a whole number), but has to be a text"),
        ([{"question_id": 1, "answer": None}], "is null (null), but has to be a text"),
        ([{"question_id": 1}], "the record for question_id 1 has no 'answer'"),
        ([{"id": 1, "answer": "a"}], "p.json record 0 has no 'question_id' (it has id, answer)"),
        ([["a"]], "p.json record 0 is a list, but has to be an object"),
        ([GOOD[0], {"question_id": 7, "answer": "a"}], "question_id 7, which the annotations do not ask about (1 of 2"),
    ],
)
def test_bad_records_are_told(records, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        check(records)


@pytest.mark.parametrize(
    "box", [[0, 0, 1], [0, 0, 1, "2"], [0, 0, 1, float("nan")], [0, 0, 1, 10**400], [0, 0, 1, True], "0 0 1 1", None]
)
def test_bad_boxes_are_told(box):
    with pytest.raises(DataError, match="but has to be four numbers"):
        check([{"sent_id": 1, "bbox": box}], Grounding().schema)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_ids": ["1"]}, 'image_ids for caption_id 1 name "1" (a text), which is no image_id of the annotations'),
        ({"image_ids": [2]}, "name 2 (a whole number), which is no image_id"),
        ({"image_ids": [1, 1]}, "name an id twice"),
        ({"image_ids": [True]}, "but has to be a list of image ids"),
        ({"scores": [1.0, 2.0]}, "have other scores than a list of 1 finite numbers"),
        ({"scores": [float("nan")]}, "have other scores"),
        ({"scores": [float("inf")]}, "have other scores"),
        ({"scores": ["1"]}, "have other scores"),
        ({"scores": 1}, "have other scores"),
    ],
)
def test_bad_ranked_lists_are_told(change, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        check(
            [{"caption_id": 1, "image_ids": [1]} | change, {"image_id": 1, "caption_ids": [1]}], Retrieval().schema, [1]
        )


def test_the_two_kinds_of_ranked_lists_are_told_apart():
    lists = [{"caption_id": 1, "image_ids": [1]}, {"image_id": 1, "caption_ids": [1]}]
    check(lists, Retrieval().schema, [1])
    with pytest.raises(DataError, match="no record for 1 of 1 image_ids"):
        check(lists[:1], Retrieval().schema, [1])


def test_a_list_and_lines_are_read_alike(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(GOOD))
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, GOOD)))
    assert read_predictions(tmp_path / "p.json") == read_predictions(tmp_path / "p.jsonl") == GOOD


@pytest.mark.parametrize(
    ("text", "words"), [("{}", "holds an object, but has to be a list"), ("[1,", "not complete JSON")]
)
def test_other_files_are_told(tmp_path, text, words):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_predictions(tmp_path / "p.json")
    with pytest.raises(DataError, match=r"missing\.json do not exist"):
        read_predictions(tmp_path / "missing.json")


@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"[]", mtime=0), "is compressed by gzip, where one JSON .* is read; unpack it first"),
        (b'[{"answer": "\xe9"}]', "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_other_bytes_are_told(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_predictions(tmp_path / name)


def test_a_byte_order_mark_is_no_matter(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(codecs.BOM_UTF8 + json.dumps(GOOD[0]).encode())
    assert read_predictions(tmp_path / "p.jsonl") == GOOD[:1]


def test_texts_of_predictions_are_read_as_those_of_annotations(tmp_path):
    records = [{"question_id": "e\u0301", "answer": "e\u0301t\ud83d\0", "extra": 1}, ["odd"]]
    (tmp_path / "p.json").write_text(json.dumps(records))
    (tmp_path / "p.jsonl").write_text(json.dumps(records[0]))
    read = {"question_id": "e\u0301", "answer": "ét\ufffd\ufffd", "extra": 1}  # an id stays what it is
    assert read_predictions(tmp_path / "p.json") == [read, ["odd"]]
    assert read_predictions(tmp_path / "p.jsonl") == [read]
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "caption": "a" * 10 * 2**20}]))
    with pytest.raises(DataError, match=r"p.json: a text of 10,485,760 characters is longer than the 100,000"):
        read_predictions(tmp_path / "p.json")


def test_long_values_are_cut_and_short_ones_are_not():
    for count, shown in ((58, "a" * 58 + '"'), (59, "a" * 59 + "...")):
        with pytest.raises(DataError, match=re.escape(f'the question_id "{shown} (a text) has to be a whole number')):
            check([{"question_id": "a" * count, "answer": "a"}])


def test_what_counts_as_a_value():
    assert [is_number(value) for value in (0, -1.5, 1e99, -1e99, 1e100, -1e100, True, "1", None)] == [True] * 4 + [
        False
    ] * 5
    assert [is_box(value) for value in ([0, 0, 1, 1], (0, 0, 1, 1), [0, 0, 1], [0] * 5, "abcd", None)] == [True] * 2 + [
        False
    ] * 4
    assert [is_list(value) for value in ([1, "a"], [], [1.0], (1,), "ab")] == [True, True, False, False, False]
    assert [one_of("a", "b")(value) for value in ("a", "b", "ab", 1, ["a"])] == [True, True, False, False, False]
    assert [is_text(value) for value in ("", 1)] == [True, False]


def test_what_a_form_asks_about():
    asked = [
        Sample(1, Path("x"), {"captions": (Text(5, "a"), Text(6, "b"))}),
        Sample(2, Path("x"), {"questions": (Text(7, "c"),)}),
    ]
    form = RecordSchema("captions", "caption_id", "value", "a text", is_text)
    assert form == RecordSchema("captions", "caption_id", "value", "a text", is_text, of_images=False, lists=None)
    assert form.wanted(asked) == [5, 6]
    assert replace(form, of_images=True).wanted(asked) == [1]


def test_a_list_may_leave_out_ids_and_scores_but_name_none_twice():
    lists = [{"caption_id": 1, "image_ids": [2], "scores": [0.5]}, {"image_id": 1, "caption_ids": []}]
    lists += [{"caption_id": 2, "image_ids": [2, 1]}, {"image_id": 2, "caption_ids": [1]}]
    check(lists, Retrieval().schema)
