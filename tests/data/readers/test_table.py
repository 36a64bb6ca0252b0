import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fusionkit.data.images import CorruptImage, decode
from fusionkit.data.readers.row_pictures import Row, _group
from fusionkit.data.readers.rows import Stored
from fusionkit.data.readers.table import Table
from fusionkit.data.readers.table_data import TableData, told
from fusionkit.data.source import Source, Splits
from fusionkit.data.stores import stored_bytes
from fusionkit.data.tables.describe import describe
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.depends import noting
from tests.data.worlds import write_json, write_photo

NONE = {"val": 0, "test": 0}  # no split is drawn


def photos(folder: Path, names: list[str], size: tuple[int, int] = (32, 24)) -> Path:
    for number, name in enumerate(names):
        write_photo(folder / name, number, size)
    return folder


def write_csv(path: Path, rows: list[list[Any]], separator: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def read(folder: Path, name: str | None = None, split: str = "train", **options: Any) -> list[Any]:
    """The samples of a split; without other shares every image trains."""
    return Table(name, str(folder), **{"split_by": NONE, **options}).read(split)


def texts(samples: list[Any], kind: str) -> list[list[str]]:
    return [[text.text for text in sample.texts.get(kind, ())] for sample in samples]


A_JPG = [f"{letter}.jpg" for letter in "abcdefgh"]


def test_captions_of_a_csv_are_joined_by_image_and_stay_as_written(tmp_path):
    photos(tmp_path / "images", ["a.jpg", "007.jpg"])
    write_csv(
        tmp_path / "t.csv",
        [["image", "caption"], ["a.jpg", 'a "dog", small'], ["007.jpg", "1.50"], ["a.jpg", "line\nbreak"]],
    )
    samples = read(tmp_path, "t.csv")
    assert {s.image_id: [t.text for t in s.texts["captions"]] for s in samples} == {
        "a.jpg": ['a "dog", small', "line\nbreak"],
        "007.jpg": ["1.50"],
    }
    assert {s.image for s in samples} == {tmp_path / "images/a.jpg", tmp_path / "images/007.jpg"}
    assert all(sample.upright and sample.size is None for sample in samples)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_any_separator_is_found_in_the_header(separator, tmp_path):
    photos(tmp_path, ["a.jpg"])
    rows = [["Image Path", " Caption "], ["a.jpg", "one, two"]]
    write_csv(tmp_path / "t.csv", rows, separator)
    assert texts(read(tmp_path, "t.csv"), "captions") == [["one, two"]]


def test_flickr30ks_tokens_have_no_header(tmp_path):
    photos(tmp_path, ["1000.jpg"])
    (tmp_path / "results.token").write_text('1000.jpg#0\ta "big dog\n1000.jpg#1\tsecond\n')
    (sample,) = read(tmp_path, "results.token", images=".")
    assert texts([sample], "captions") == [['a "big dog', "second"]]


def test_several_columns_and_lists_of_captions(tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_json(
        tmp_path / "t.json", [{"image": "a.jpg", "caption_1": "one", "caption_2": ["two", "three"], "caption_3": None}]
    )
    assert texts(read(tmp_path, "t.json"), "captions") == [["one", "two", "three"]]
    write_csv(tmp_path / "t.csv", [["image", "captions"], ["a.jpg", "['it''s', \"two\"]"]])
    assert texts(read(tmp_path, "t.csv"), "captions") == [["its", "two"]]
    given = {"caption": "caption_2", "image": "image"}
    assert texts(read(tmp_path, "t.json", columns=given), "captions") == [["two", "three"]]


def test_questions_have_answers_of_any_kind(tmp_path):
    photos(tmp_path, ["a.jpg"])
    rows = [
        {"image": "a.jpg", "question": "how many?", "answer": 2, "question_id": 7},
        {"image": "a.jpg", "question": "is it?", "answer": True, "question_id": 8},
        {
            "image": "a.jpg",
            "question": "what?",
            "answer": ["cat", "cat", "dog"],
            "question_id": 9,
            "answer_type": "other",
        },
        {
            "image": "a.jpg",
            "question": "who?",
            "answer": [{"answer": "he", "answer_confidence": "yes"}],
            "question_id": 10,
        },
        {"image": "a.jpg", "question": "unanswered?", "question_id": 11},
        {"image": "a.jpg", "question": "weighted?", "answer": ["red", "blue"], "weight": [0.3, 0.6], "question_id": 12},
    ]
    write_json(tmp_path / "t.json", rows)
    (sample,) = read(tmp_path, "t.json")
    found = {text.id: text.facts for text in sample.texts["questions"]}
    assert {key: facts.get("answers") for key, facts in found.items()} == {
        7: ["2"],
        8: ["yes"],
        9: ["cat", "cat", "dog"],
        10: ["he"],
        11: None,
        12: ["red"] * 3 + ["blue"] * 6,
    }
    assert found[9] == {"answers": ["cat", "cat", "dog"], "multiple_choice_answer": "cat", "answer_type": "other"}
    assert found[11] == {}


def test_ids_that_come_twice_give_way_to_the_rows(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    rows = [{"image": name, "question": "what?", "answer": "x", "id": 5} for name in ("a.jpg", "b.jpg")]
    write_json(tmp_path / "t.json", rows)
    assert [text.id for sample in read(tmp_path, "t.json") for text in sample.texts["questions"]] == [0, 1]


def test_rows_without_names_are_known_by_what_is_in_them(tmp_path):
    for split in ("train", "test"):
        photos(tmp_path / split / "images", ["0.png", "1.png"])
        write_json(
            tmp_path / split / "questions.json",
            [["what is it?", "a star", 0], ["is it red?", "no", 0], ["and?", "no", 1]],
        )
    table = Table(
        {"train": "train/questions.json", "test": "test/questions.json"}, str(tmp_path), split_by={"val": 0.4}
    )
    samples = table.read("test")
    assert [(s.image_id, s.image) for s in samples] == [(n, tmp_path / f"test/images/{n}.png") for n in (0, 1)]
    assert texts(samples, "questions") == [["what is it?", "is it red?"], ["and?"]]
    assert samples[0].texts["questions"][0].facts["answers"] == ["a star"]
    by_number = Table("test/questions.json", str(tmp_path), columns={"question": 1, "answer": 0, "image_id": 2})
    assert by_number.opened.mapped["question"] == ("column1",)


def test_an_image_id_finds_cocos_file_by_any_of_its_names(tmp_path):
    photos(tmp_path / "images", ["COCO_val2014_000000000042.jpg", "000000000043.jpg"])
    write_csv(
        tmp_path / "t.csv",
        [["", "question", "answer", "img_id", "type"], [0, "màu gì", "đỏ", 42, 2], [1, "màu gì", "xanh", 43, 2]],
    )
    samples = read(tmp_path, "t.csv")
    assert [(s.image_id, s.image.name) for s in samples] == [
        (42, "COCO_val2014_000000000042.jpg"),
        (43, "000000000043.jpg"),
    ]
    assert samples[0].texts["questions"][0].facts["question_type"] == "2"


def test_openvivqa_names_its_images_beside_the_annotations(tmp_path):
    photos(tmp_path, ["0025.jpg"])
    annotations = {"10": {"image_id": 25, "question": "đây là gì?", "answer": "quán cà phê"}}
    write_json(tmp_path / "t.json", {"images": {"25": "0025.jpg"}, "annotations": annotations})
    (sample,) = read(tmp_path, "t.json")
    assert (sample.image_id, sample.image.name) == (25, "0025.jpg")
    assert [text.id for text in sample.texts["questions"]] == ["10"]


def test_gqa_textvqa_and_vizwiz_are_read_as_they_are(tmp_path):
    photos(tmp_path / "images", ["2375429.jpg", "abc0f.jpg", "VizWiz_train_00000001.jpg"])
    write_json(
        tmp_path / "gqa.json",
        {"0293": {"imageId": "2375429", "question": "Is it?", "answer": "no", "types": {"a": "b"}}},
    )
    (gqa,) = read(tmp_path, "gqa.json")
    assert (gqa.image.name, gqa.texts["questions"][0].id, gqa.texts["questions"][0].facts["answers"]) == (
        "2375429.jpg",
        "0293",
        ["no"],
    )
    row = {"question": "what?", "image_id": "abc0f", "answers": ["a", "a"], "question_id": 34602, "set_name": "train"}
    write_json(tmp_path / "textvqa.json", {"dataset_type": "train", "data": [row]})
    (textvqa,) = read(tmp_path, "textvqa.json", columns={"split": None})
    assert (textvqa.image.name, textvqa.texts["questions"][0].id) == ("abc0f.jpg", 34602)
    row = {
        "image": "VizWiz_train_00000001.jpg",
        "question": "?!",
        "answers": [{"answer": "soup"}] * 2,
        "answer_type": "other",
    }
    write_json(tmp_path / "vizwiz.json", [row])
    (vizwiz,) = read(tmp_path, "vizwiz.json")
    assert vizwiz.texts["questions"][0].facts["answers"] == ["soup", "soup"]


def test_albefs_entailment_and_nlvr2_are_known_by_their_labels(tmp_path):
    photos(tmp_path / "images", ["12.jpg", "p-img0.png", "p-img1.png"])
    write_json(
        tmp_path / "ve.json",
        [
            {"image": "12", "sentence": "a man", "label": "entailment"},
            {"image": 12, "sentence": "b", "label": "neutral"},
        ],
    )
    (sample,) = read(tmp_path, "ve.json")
    assert [text.facts["gold_label"] for text in sample.texts["hypotheses"]] == ["entailment", "neutral"]
    assert sample.texts["hypotheses"][0].facts["entailment"] == 1.0
    assert sample.texts["hypotheses"][1].facts["entailment"] == 0.0
    rows = [
        {"images": ["p-img0.png", "p-img1.png"], "sentence": "two dogs", "label": said} for said in ("True", "False")
    ]
    write_json(tmp_path / "nlvr.json", rows)
    (pair,) = read(tmp_path, "nlvr.json")
    assert [path.name for path in (pair.image, *pair.others)] == ["p-img0.png", "p-img1.png"]
    assert [text.facts["label"] for text in pair.texts["statements"]] == [1, 0]


def test_labels_are_answers(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    write_csv(tmp_path / "t.csv", [["file", "class"], ["a.jpg", "cat"], ["b.jpg", "dog"]])
    samples = read(tmp_path, "t.csv", label_question="which?")
    assert texts(samples, "questions") == [["which?"], ["which?"]]
    assert [s.texts["questions"][0].facts["multiple_choice_answer"] for s in samples] == ["cat", "dog"]
    write_csv(tmp_path / "u.csv", [["image", "text", "label"], ["a.jpg", "so funny", 1], ["b.jpg", "ha", 0]])
    assert texts(read(tmp_path, "u.csv"), "questions") == [["so funny"], ["ha"]]


def test_llavas_conversations_are_read_and_those_without_a_picture_are_told(tmp_path):
    photos(tmp_path, ["a.jpg"])
    said = [("human", "<image>\nwhat?"), ("gpt", "A dog."), ("human", "where?"), ("gpt", "There.")]
    turns = [{"from": who, "value": words} for who, words in said]
    rows = [{"id": "1", "image": "a.jpg", "conversations": turns}, {"id": "2", "conversations": turns}]
    rows += [{"id": "3", "image": "a.jpg", "conversations": [{"from": "gpt", "value": "hm"}]}]
    write_json(tmp_path / "t.json", rows)
    with pytest.warns(UserWarning, match=r"t.json: 1 rows have no picture, and are left out$"):
        (sample,) = read(tmp_path, "t.json")
    (text,) = sample.texts["conversations"]
    assert (text.id, text.facts["roles"]) == ("1", ["user", "assistant"] * 2)
    assert text.facts["turns"] == ["what?", "A dog.", "where?", "There."]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
def test_messages_are_conversations_in_every_file(tmp_path, ending):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
    answer = [{"type": "text", "text": "A dog."}]
    rows = [
        {"image": name, "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}
        for name in ("a.jpg", "b.jpg")
    ]
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "csv":
        write_csv(path, [["image", "messages"], *([row["image"], json.dumps(row["messages"])] for row in rows)])
    elif ending == "json":
        write_json(path, rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    samples = read(tmp_path, path.name)
    assert [sample.texts["conversations"][0].facts["turns"] for sample in samples] == [["what?", "A dog."]] * 2


def test_a_conversation_holds_its_pictures_where_they_are_shown(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    turns = [{"from": "human", "value": "<image>\n<image> which?"}, {"from": "gpt", "value": "The first."}]
    later = [*turns[1:], *[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hi"}], *turns[:1]]
    rows = [
        {"images": ["a.jpg", "b.jpg"], "conversations": turns},
        {"images": ["b.jpg", "a.jpg"], "conversations": later},
    ]
    rows += [{"images": ["a.jpg"], "conversations": [{"from": "human", "value": "<image> what?"}]}]
    write_json(tmp_path / "t.json", rows)
    found = {sample.image.name + str(len(sample.others)): sample for sample in read(tmp_path, "t.json")}
    told = {name: sample.texts["conversations"][0].facts["turns"] for name, sample in found.items()}
    assert told == {
        "a.jpg1": ["<image> <image> which?", "The first."],
        "b.jpg1": ["hi", "hi", "<image> <image> which?"],
        "a.jpg0": ["what?"],
    }
    assert [path.name for path in found["a.jpg1"].others] == ["b.jpg"]


@pytest.mark.parametrize(
    ("said", "pictures", "told"),
    [
        ("which?", ["a.jpg", "b.jpg"], "has no <image>, or only one, in what the user says, but 2 pictures"),
        (
            "<image> <image> which?",
            ["a.jpg"],
            "has 2 <image> in what the user says, but 1 picture; write <image> once where",
        ),
        ("<image> <image> which?", ["a.jpg", "b.jpg", "a.jpg"], "has 2 <image> in what the user says, but 3 pictures"),
    ],
)
def test_a_conversation_shows_each_of_its_pictures(said, pictures, told, tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    turns = [{"from": "human", "value": said}, {"from": "gpt", "value": "The first."}]
    write_json(tmp_path / "t.json", [{"images": pictures, "conversations": turns}])
    with pytest.raises(DataError, match=f"row 1 of .*t.json {told}"):
        read(tmp_path, "t.json")


@pytest.mark.parametrize(
    ("said", "kind", "most"),
    [
        ({"caption": "two dogs"}, "captions", 1),
        ({"question": "which?", "answer": "a"}, "questions", 1),
        ({"class": "cat"}, "questions", 1),
        ({"phrase": "it", "bbox": [4, 6, 20, 12]}, "expressions", 1),
        ({"text": "a dog", "ner_tags": [0, 1]}, "tagged", 1),
        ({"sentence": "a man", "label": "entailment"}, "hypotheses", 1),
    ],
)
@pytest.mark.parametrize("is_listed", [True, False])
def test_a_text_of_one_picture_is_not_read_of_the_first_of_several(said, kind, most, is_listed, tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    several = {"images": ["a.jpg", "b.jpg"]} if is_listed else {"image_1": "a.jpg", "image_2": "b.jpg"}
    single = {"images": ["a.jpg"]} if is_listed else {"image_1": "a.jpg"}
    write_json(tmp_path / "t.json", [{**single, **said}, {**several, **said}])
    told = f"row 2 of .*t.json has 2 pictures, but {kind} are about {most}; give each picture a row, "
    remedy = r"read them as one stream \(data=frames\), or write a conversation with <image> where each is seen"
    with pytest.raises(DataError, match=f"{told}{remedy}$"):
        read(tmp_path, "t.json")


def test_a_statement_is_about_two_pictures_at_most(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    rows = [{"images": ["a.jpg", "b.jpg"], "sentence": "two dogs", "label": "True"}]
    write_json(tmp_path / "t.json", [*rows, {**rows[0], "images": ["a.jpg", "b.jpg", "c.jpg"]}])
    with pytest.raises(DataError, match=r"row 2 of .*t.json has 3 pictures, but statements are about 2; "):
        read(tmp_path, "t.json")


def test_what_is_said_beside_conversations_about_several_pictures_may_be_left_unread(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    turns = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "The first."}]
    write_json(tmp_path / "t.json", [{"images": ["a.jpg", "b.jpg"], "title": "dogs", "conversations": turns}])
    with pytest.raises(
        DataError, match=r"has 2 pictures, .*seen, or leave the captions unread with data.columns.caption=\[\]$"
    ):
        read(tmp_path, "t.json")
    (sample,) = read(tmp_path, "t.json", columns={"caption": []})
    assert list(sample.texts) == ["conversations"]


@pytest.mark.parametrize(
    ("said", "kind", "role"),
    [
        ({"question": "which?"}, "questions", "question"),
        ({"question": "which?", "label": "a"}, "questions", "question"),
        ({"sentence": "a man", "label": "glad"}, "questions", "caption"),
        ({"title": [], "class": "cat"}, "questions", "label"),
        ({"phrase": "it", "caption": [], "bbox": [4, 6, 20, 12]}, "expressions", "expression"),
        ({"caption": "it", "bbox": [4, 6, 20, 12]}, "expressions", "caption"),
        ({"class": "it", "bbox": [4, 6, 20, 12]}, "expressions", "label"),
        ({"text": "a dog", "ner_tags": [0, 1]}, "tagged", "word_labels"),
        ({"sentence": "a man", "label": "entailment"}, "hypotheses", "caption"),
        ({"sentence": "two men", "label": "true"}, "statements", "caption"),
    ],
)
def test_the_column_that_may_be_left_unread_is_called_as_it_is_configured(said, kind, role, tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    turns = [{"from": "human", "value": "<image> <image> <image> which?"}, {"from": "gpt", "value": "The first."}]
    rows = [{"images": ["a.jpg", "b.jpg", "c.jpg"], "conversations": turns, **said}]
    if kind == "statements":
        rows = [{**rows[0], "images": ["a.jpg", "b.jpg"]}, *rows]
        rows[0].pop("conversations")
    write_json(tmp_path / "t.json", rows)
    with pytest.raises(DataError, match=rf"or leave the {kind} unread with data\.columns\.{role}=\[\]$"):
        read(tmp_path, "t.json")


@pytest.mark.parametrize("role", ["label", "question", "conversation", "id"])
def test_any_column_may_be_left_unread(role, tmp_path):
    photos(tmp_path, ["a.jpg"])
    row = {"image": "a.jpg", "caption": "a dog", "id": 7, "label": "x", "question": "which?", "conversations": []}
    write_json(tmp_path / "t.json", [row])
    (sample,) = read(tmp_path, "t.json", columns={"label": [], "conversation": [], role: []})
    assert texts([sample], "captions") == [["a dog"]]
    assert [text.id for text in sample.texts.get("questions", ())] == {"question": [], "id": [0]}.get(role, [7])


def test_pictures_in_shards_that_share_an_id_and_the_first_are_told_apart_by_the_others():
    def group(*digests):
        keys = [Stored(Path("s.tar/1.jpg"), digest=digest) for digest in digests]
        return _group(Row(Path("s.tar"), 1, 0, {"image_id": 5}), keys, (), {"image_id": ("image_id",)})

    assert group(b"a", b"b") == group(b"a", b"b")
    assert len({group(b"a"), group(b"a", b"b"), group(b"a", b"c"), group(b"b", b"b")}) == 4


BOX = (4, 6, 20, 12)  # xywh on 32 x 24 pixels
WRITTEN = {
    "xywh": [4, 6, 20, 12],
    "xyxy": [4, 6, 24, 18],
    "cxcywh": [14, 12, 20, 12],
    "xyxy_relative": [0.125, 0.25, 0.75, 0.75],
    "cxcywh_relative": [0.4375, 0.5, 0.625, 0.5],
    "xyxy_1000": [125, 250, 750, 750],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_boxes_of_every_convention_are_pixels(name, tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_json(tmp_path / "t.json", [{"image": "a.jpg", "phrase": "it", "bbox": WRITTEN[name]}])
    (sample,) = read(tmp_path, "t.json", boxes=name)
    assert sample.texts["expressions"][0].facts["box"] == pytest.approx(BOX)
    assert sample.size == (32, 24)


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([[20, 14, 10, 8], [4, 6, 20, 12]], "xywh"),
        ([[4, 6, 24, 18], [20, 10, 30, 20]], "xyxy"),
        ([[0.1, 0.1, 0.6, 0.9], [0.6, 0.6, 0.9, 0.8]], "xyxy_relative"),
        ([[0.1, 0.1, 0.2, 0.2], [0.9, 0.9, 0.2, 0.2]], "cxcywh_relative"),
    ],
)
def test_a_convention_is_recognised_by_what_fits(rows, name, tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    content = [
        {"image": image, "phrase": "it", "box": box} for image, box in zip(("a.jpg", "b.jpg"), rows, strict=True)
    ]
    write_json(tmp_path / "t.json", content)
    assert Table({"train": "t.json"}, str(tmp_path)).opened.convention == name


def test_the_names_of_columns_tell_a_convention(tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_csv(tmp_path / "t.csv", [["image", "phrase", "x1", "y1", "x2", "y2"], ["a.jpg", "it", 4, 6, 24, 18]])
    (sample,) = read(tmp_path, "t.csv")
    assert sample.texts["expressions"][0].facts["box"] == pytest.approx(BOX)


@pytest.mark.parametrize(
    ("box", "name"),
    [
        ({"height": 12, "width": 20, "x": 4, "y": 6}, "xywh"),
        ({"x1": 4, "x2": 24, "y1": 6, "y2": 18}, "xyxy"),
        ({"yMax": 0.75, "yMin": 0.25, "xMax": 0.75, "xMin": 0.125, "score": 1}, "xyxy_relative"),
        ({"h": 12, "w": 20, "cy": 12, "cx": 14}, "cxcywh"),
    ],
)
def test_a_box_that_is_an_object_is_read_by_its_names(box, name, tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_json(tmp_path / "t.json", [{"image": "a.jpg", "phrase": "it", "box": box}])
    table = Table("t.json", str(tmp_path), split_by=NONE)
    (sample,) = table.read("train")
    assert sample.texts["expressions"][0].facts["box"] == pytest.approx(BOX)
    assert table.opened.convention == name
    write_json(
        tmp_path / "t.json", [{"image": "a.jpg", "phrase": "it", "box": {"x": 4, "y": 6, "right": 24, "low": 18}}]
    )
    with pytest.raises(
        DataError, match=r"the box of .* is an object of x, y, right, low; known: x, y, w, h, or x, y, width"
    ):
        read(tmp_path, "t.json")


def test_boxes_that_fit_several_conventions_or_none_are_asked_about(tmp_path):
    photos(tmp_path, ["a.jpg"])
    for box, words in (([4, 6, 8, 12], "fit xywh and xyxy"), ([400, 6, 800, 12], "fit no convention")):
        write_json(tmp_path / "t.json", [{"image": "a.jpg", "phrase": "it", "box": box}])
        with pytest.raises(DataError, match=rf"{words}; state it as data.boxes=NAME, known: cxcywh, "):
            read(tmp_path, "t.json")
    with pytest.raises(ConfigError, match=r"data.boxes is 'xxyy'; did you mean 'xyxy'"):
        Table("t.json", str(tmp_path), boxes="xxyy")


def test_small_numbers_on_large_images_may_be_thousandths(tmp_path):
    photos(tmp_path, ["a.jpg"], (1600, 1200))
    for box, words in (([100, 500, 990, 995], "xyxy and xyxy_1000"), ([300, 400, 100, 100], "xywh and xywh_1000")):
        write_json(tmp_path / "t.json", [{"image": "a.jpg", "phrase": "it", "box": box}])
        with pytest.raises(DataError, match=rf"on 1600 x 1200 pixels, fit {words}; state it as data.boxes=NAME"):
            read(tmp_path, "t.json")
    write_json(tmp_path / "t.json", [{"image": "a.jpg", "phrase": "it", "box": [100, 500, 1010, 995]}])
    (sample,) = read(tmp_path, "t.json")
    assert sample.texts["expressions"][0].facts["box"] == (100, 500, 910, 495)


def test_width_and_height_beside_a_corner_are_those_of_a_box(tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_csv(tmp_path / "t.csv", [["image", "phrase", "x", "y", "width", "height"], ["a.jpg", "it", 4, 6, 20, 12]])
    (sample,) = read(tmp_path, "t.csv")
    assert (sample.texts["expressions"][0].facts["box"], sample.size) == (BOX, (32, 24))
    row = {"image": "a.jpg", "phrase": "it", "bbox": [8, 12, 40, 24], "x": 1, "y": 1, "width": 64, "height": 48}
    write_json(tmp_path / "t.json", [row])
    (sample,) = read(tmp_path, "t.json", boxes="xywh")
    assert (sample.texts["expressions"][0].facts["box"], sample.size) == ((8, 12, 40, 24), (64, 48))


def test_some_wrong_boxes_are_left_out_and_told(tmp_path):
    photos(tmp_path, ["a.jpg"])
    boxes = [[20, 14, 10, 8], [4, 6, 20, 12], [500, 500, 5, 5]]
    write_json(
        tmp_path / "t.json", [{"image": "a.jpg", "phrase": f"thing {n}", "box": box} for n, box in enumerate(boxes)]
    )
    with pytest.warns(UserWarning, match="1 of 3 boxes are left out; the first: the box"):
        (sample,) = read(tmp_path, "t.json", boxes="xywh")
    assert texts([sample], "expressions") == [["thing 0", "thing 1"]]


def test_a_split_of_a_column_has_any_spelling(tmp_path):
    photos(tmp_path, A_JPG)
    said = ["train", "Training", "validation", "dev", "test", "TEST", "testA", "train "]
    write_csv(
        tmp_path / "t.csv",
        [["image", "caption", "split"], *([name, "c", split] for name, split in zip(A_JPG, said, strict=True))],
    )
    table = Table("t.csv", str(tmp_path))
    assert table.opened.splits == ["train", "val", "test", "testA"]
    assert [s.image_id for s in table.read("train")] == ["a.jpg", "b.jpg", "h.jpg"]
    assert [s.image_id for s in table.read("validation")] == ["c.jpg", "d.jpg"]
    assert table.opened.hashed == {}
    with pytest.raises(DataError, match=r"no entries of split 'testb'; did you mean 'test'"):
        table.read("testb")
    with pytest.raises(ConfigError, match=r"data.split_by.val: .* has a split 'val' already"):
        Table("t.csv", str(tmp_path), split_by={"val": 0.1}).read("train")


def test_files_are_splits_by_mapping_template_pattern_and_folder(tmp_path):
    photos(tmp_path / "d/images", A_JPG)
    for name, images in {"train": A_JPG[:5], "validation": A_JPG[5:6], "test": A_JPG[6:]}.items():
        write_csv(tmp_path / f"d/c_{name}.csv", [["image", "caption"], *([image, "c"] for image in images)])
    for files in (
        {"train": "d/c_train.csv", "dev": "d/c_validation.csv", "test": ["d/c_test.csv"]},
        "d/c_{split}.csv",
        "d/*.csv",
        "d",
    ):
        table = Table(files, str(tmp_path))
        assert set(table.opened.splits) == {"train", "val", "test"}, files
        assert [len(table.read(split)) for split in ("train", "val", "test")] == [5, 1, 2]
        assert table.opened.hashed == {}
    images = Table({"validation": "d/c_validation.csv"}, str(tmp_path), images="d/{split}")
    with pytest.raises(DataError, match=r"the image folder .*d/validation of .* does not exist"):
        images.read("val")


def test_the_splits_of_a_template_have_one_order_on_every_disk(tmp_path, monkeypatch):
    for word in ("zoo", "bar", "car"):
        write_csv(tmp_path / f"c_{word}.csv", [["image", "caption"], ["a.jpg", "x"]])
    names = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(names[::-1]))
    assert Table("c_{split}.csv", str(tmp_path)).opened.splits == ["bar", "car", "zoo"]


def test_a_hash_puts_one_picture_into_one_split_whatever_its_name(tmp_path):
    names = [f"{number}.png" for number in range(60)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number // 2, 0, 0)).save(tmp_path / name)  # two names for each picture
    write_csv(tmp_path / "t.csv", [["image", "caption"], *([name, f"caption {name}"] for name in names)])
    table = Table("t.csv", str(tmp_path), split_by={"val": 0.25, "test": 0.25})
    found = {sample.image_id: split for split in ("train", "val", "test") for sample in table.read(split)}
    assert found.keys() == set(names)
    assert all(found[f"{2 * n}.png"] == found[f"{2 * n + 1}.png"] for n in range(30))
    assert 8 <= sum(split == "train" for split in found.values()) <= 48
    again = Table("t.csv", str(tmp_path), split_by={"val": 0.25, "test": 0.25})
    assert [s.image_id for s in again.read("val")] == [s.image_id for s in table.read("val")]


def test_shares_are_parts(tmp_path):
    for shares, words in (
        ({"val": 1}, "val is 1, but"),
        ({"val": -0.1}, "val is -0.1, but"),
        ({"val": 0.5, "test": 0.5}, "adds? up to 1"),
        ({"val": True}, "True"),
    ):
        with pytest.raises(ConfigError, match=words):
            Table("t.csv", str(tmp_path), split_by=shares)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (10 + number, 8), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def test_pictures_in_a_parquet_are_read_from_their_cells(tmp_path):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    values = [{"bytes": png(number), "path": f"COCO_val2014_{number:012d}.jpg"} for number in range(7)]
    plain = pyarrow.table(
        {
            "image": pyarrow.array(values, kind),
            "caption": [f"c{n}" for n in range(7)],
            "label": [n % 2 for n in range(7)],
        }
    )
    about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    parquet.write_table(
        plain.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "t.parquet", row_group_size=3
    )
    samples = read(tmp_path, "t.parquet")
    assert [decode(sample.image, 1).size for sample in samples] == [(10 + number, 8) for number in range(7)]
    assert [sample.photo for sample in samples] == [f"coco/{number}" for number in range(7)]
    assert [s.texts["questions"][0].facts["answers"] for s in samples[:3]] == [["cat"], ["dog"], ["cat"]]
    assert samples[6].image == tmp_path / "t.parquet/image/row6"
    parquet.write_table(
        pyarrow.table({"image": [png(n) for n in range(3)], "caption": ["x", "y", "z"]}), tmp_path / "b.parquet"
    )
    plain_bytes = read(tmp_path, "b.parquet")
    assert [(s.image_id, decode(s.image, 1).size) for s in plain_bytes] == [(f"row {n}", (10 + n, 8)) for n in range(3)]


def test_pictures_in_a_table_whose_ids_are_empty_are_not_one(tmp_path):
    rows = {"image": [png(n) for n in (0, 1, 0, 3, 4)], "image_id": [7, None, 7, None, None], "caption": list("abcde")}
    parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    samples = read(tmp_path, "t.parquet")
    assert texts(samples, "captions") == [["a", "c"], ["b"], ["d"], ["e"]]
    assert [decode(sample.image, 1).size[0] for sample in samples] == [10, 11, 13, 14]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_pictures_in_a_table_that_share_an_id_are_told_apart(form, tmp_path):
    rows = {"image": [png(n) for n in (0, 1, 0, 2, 1)], "image_id": [7, 7, 7, 8, 7], "caption": list("abcde")}
    table = pyarrow.table(rows)
    if form == "parquet":
        parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    else:
        with pyarrow.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as writer:
            writer.write_table(table)
    with pytest.warns(UserWarning, match=rf"t.{form}: 1 image ids are of several pictures, such as 7; these are told"):
        samples = read(tmp_path, f"t.{form}")
    assert texts(samples, "captions") == [["a", "c"], ["b", "e"], ["d"]]
    assert [decode(sample.image, 1).size[0] for sample in samples] == [10, 11, 12]


def test_numbers_of_classes_have_the_names_of_their_own_table(tmp_path):
    photos(tmp_path, A_JPG[:6])
    for name, images, names in (("fit", A_JPG[:2], ["cat", "dog"]), ("held", A_JPG[2:4], ["dog", "cat"])):
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        rows = pyarrow.table({"image": images, "label": [0, 1]})
        parquet.write_table(
            rows.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / f"{name}.parquet"
        )
    write_json(tmp_path / "new.json", [{"image": name, "label": n} for n, name in enumerate(A_JPG[4:6])])
    table = Table({"train": "fit.parquet", "test": "held.parquet", "new": "new.json"}, str(tmp_path), split_by=NONE)
    for split, wanted in {"train": ["cat", "dog"], "test": ["dog", "cat"], "new": ["cat", "dog"]}.items():
        assert [s.texts["questions"][0].facts["multiple_choice_answer"] for s in table.read(split)] == wanted


def test_a_picture_of_another_size_under_an_old_name_has_its_boxes_placed_anew(tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_json(tmp_path / "t.json", [{"image": "a.jpg", "phrase": "it", "box": [2, 4, 6, 8]}])

    def size():
        reader = Table("t.json", str(tmp_path), boxes="xywh", split_by=NONE)
        (sample,) = Splits({"x": Source(reader, {"train": ["train"]}, 2, {"expressions": 1})}).samples("x", "train")
        return sample.size

    assert (size(), size()) == ((32, 24), (32, 24))
    write_photo(tmp_path / "a.jpg", size=(64, 48))
    assert size() == (64, 48)


def test_a_damaged_picture_with_a_box_is_told_or_left_out(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    rows = [{"image": name, "phrase": "it", "box": [20, 14, 10, 8]} for name in ("a.jpg", "b.jpg")]
    write_json(tmp_path / "t.json", rows)
    for boxes in ("xywh", None):
        with pytest.raises(DataError, match=r"a.jpg cannot be decoded .*; replace it, or leave its boxes out"):
            read(tmp_path, "t.json", boxes=boxes)
        with pytest.warns(UserWarning, match=r"a.jpg cannot be decoded .*; its boxes are left out"):
            (sample,) = read(tmp_path, "t.json", boxes=boxes, missing="skip")
        assert (sample.image_id, sample.size) == ("b.jpg", (32, 24))
    write_json(tmp_path / "t.json", rows[:1])
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match=r"the split 'train' of .* is empty"),
    ):
        read(tmp_path, "t.json", boxes="xywh", missing="skip")


@pytest.mark.parametrize("weight", [None, "much", [1], "nan"])
def test_a_weight_that_is_no_number_is_told(weight, tmp_path):
    photos(tmp_path, ["a.jpg"])
    row = {"image": "a.jpg", "question": "what?", "answer": ["red", "blue"], "weight": [1.0, weight]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"row 1 of .*t.jsonl has the weight .*, but a weight is a number"):
        read(tmp_path, "t.jsonl")


def test_a_data_set_that_was_saved_to_disk(tmp_path):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        folder = tmp_path / split
        folder.mkdir()
        values = [{"bytes": png(number), "path": None} for number in numbers]
        content = pyarrow.table({"image": pyarrow.array(values, kind), "text": [f"c{n}" for n in numbers]})
        with (
            pyarrow.OSFile(str(folder / "data-0.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, content.schema) as out,
        ):
            out.write_table(content, max_chunksize=2)
        write_json(folder / "state.json", {"_data_files": [{"filename": "data-0.arrow"}]})
        write_json(folder / "dataset_info.json", {"features": {}})
    write_json(tmp_path / "dataset_dict.json", {"splits": ["train", "test"]})
    samples = Table(root=str(tmp_path)).read("test")
    assert [decode(sample.image, 1).size[0] for sample in samples] == [14, 15]
    assert texts(samples, "captions") == [["c4"], ["c5"]]
    write_json(tmp_path / "train/state.json", {"_data_files": [{"filename": "../test/data-0.arrow"}]})
    with pytest.raises(DataError, match="names no files of its folder"):
        Table(root=str(tmp_path)).read("test")


def test_folders_of_pictures(tmp_path):
    for split in ("train", "test"):
        for name in ("red_star", "blue"):
            photos(tmp_path / "classes" / split / name, ["a.jpg", "b.JPG"])
    table = Table(root=str(tmp_path / "classes"), split_by={"val": 0.3})
    assert set(table.opened.splits) == {"train", "test", "val"}
    found = table.read("test")
    assert [s.texts["questions"][0].facts["answers"][0] for s in found] == ["blue", "blue", "red star", "red star"]
    photos(tmp_path / "classes/train", ["stray.jpg"])
    with pytest.raises(
        DataError, match=r"1 of the pictures in .*classes are in no folder of a class, such as stray.jpg"
    ):
        Table(root=str(tmp_path / "classes")).read("train")
    photos(tmp_path / "sidecars/0", ["a.jpg", "b.jpg"])
    (tmp_path / "sidecars/0/a.txt").write_text("one\n\ntwo\n")
    write_json(tmp_path / "sidecars/0/b.json", {"caption": "three", "url": "https://x"})
    (tmp_path / "sidecars/0/b.txt").write_text("not read")
    write_json(tmp_path / "sidecars/0_stats.json", {"count": 2})
    samples = read(tmp_path / "sidecars")
    assert sorted(texts(samples, "captions")) == [["one", "two"], ["three"]]
    photos(tmp_path / "meta", ["a.jpg"])
    (tmp_path / "meta/metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "hello"}\n')
    assert texts(read(tmp_path / "meta"), "captions") == [["hello"]]
    photos(tmp_path / "bare", ["a.jpg"])
    with pytest.raises(DataError, match=r"the 1 pictures in .*bare have no texts; put each class into a folder"):
        Table(root=str(tmp_path / "bare")).read("train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"PAR1....", r"is a parquet table"),
        ("t.csv", b"image,caption\n\xff\xfe\xfa,x\n", "is no csv or tsv in UTF-8"),
        ("t.csv", b"image\na.jpg\n", "has one column only"),
        ("t.csv", b"image,image\na,b\n", "two columns 'image'"),
        ("t.csv", b"image,caption\n", "has columns and no rows"),
        ("t.csv", b"image,caption\na.jpg,b,c\n", "row 2 of .* has 3 cells, but there are 2 columns"),
        (
            "t.csv",
            b"colour,caption\nred,c\n",
            r"no column of images \(it has colour, caption\); say which it is with data.columns.image",
        ),
        ("t.csv", b"image,size\na.jpg,3\n", r"no column of texts or labels \(it has image, size\)"),
        ("t.jsonl", b'{"image": "a.jpg", "caption": "x"}\nnope\n', "line 2 of .* is no JSON"),
        ("t.jsonl", b'["a.jpg"]\n', "row 1 of .* has to be an object"),
        ("t.json", b'{"info": 1}', "has no list of rows"),
        ("t.parquet", b"image,caption\n", "cannot be read as a parquet table"),
        ("t.arrow", b"ARROW1..", "cannot be read as an arrow table"),
        ("t.xlsx", b"PK", "ends in '.xlsx', which is no table; known: .csv"),
        ("t.jsonl", b'{"image": "https://x.org/a.jpg", "caption": "x"}\n', "names its picture by an address"),
        (
            "t.jsonl",
            b'{"image": "b.jpg", "caption": "x"}\n',
            "1 of 1 pictures of .* are not under .*first missing: b.jpg",
        ),
        ("t.jsonl", b'{"image": "../b.jpg", "caption": "x"}\n', "lies outside of its folder"),
        ("t.jsonl", b'{"image": [1.5], "caption": "x"}\n', "neither a path nor the picture itself"),
        ("t.csv", b"image,caption\na.jpg," + b"x" * 200_000, "row 2 of .*t.csv: .* a text of 200,000 characters"),
    ],
)
def test_what_is_not_a_table_is_one_sentence(name, content, words, tmp_path):
    photos(tmp_path, ["a.jpg"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", ["none", "snappy"])
def test_a_page_of_a_parquet_that_is_damaged_is_one_sentence(compressed, tmp_path):
    names, path = [f"{n}.jpg" for n in range(3000)], tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"image": names, "caption": names}), path, compression=compressed)
    content = path.read_bytes()
    place = len(content) // 3
    path.write_bytes(content[:place] + bytes(16) + content[place:])
    with pytest.raises(
        DataError, match=r"t.parquet cannot be read as a parquet table \(.*\); write it again"
    ) as caught:
        read(tmp_path, "t.parquet")
    assert "\n" not in str(caught.value)


def test_a_page_of_pictures_that_is_damaged_is_one_sentence(tmp_path):
    path = tmp_path / "t.parquet"
    pictures = [png(n) * 20 for n in range(4)]
    parquet.write_table(pyarrow.table({"image": pictures, "caption": list("abcd")}), path, use_dictionary=False)
    (first, *_) = Table("t.parquet", str(tmp_path), split_by=NONE).read("train")
    content = path.read_bytes()
    path.write_bytes(b"PAR1" + b"\xff" * 60 + content[64:])
    with pytest.raises(DataError, match=r"t.parquet cannot be read as a parquet table"):
        stored_bytes(first.image)
    with pytest.raises(CorruptImage, match=r"t.parquet cannot be read as a parquet table"):
        decode(first.image, 1)


ODD = {"image": "a.jpg", "question": "what?", "answer": ["red"], "weight": ["much"]}


@pytest.mark.parametrize(
    ("name", "content", "number"),
    [
        ("t.jsonl", f"\n{json.dumps(ODD | {'weight': [1]})}\n\n{json.dumps(ODD)}\n", 2),
        ("t.jsonl", f"\n{json.dumps(ODD)}\n\n7\n", 2),
        ("t.json", json.dumps([ODD | {"weight": [1]}, ODD]), 2),
        ("t.json", json.dumps([ODD, 7]), 2),
        ("t.csv", "image,question,sample_weight\na.jpg,what?,1\n\na.jpg,what?,much\n", 3),
        ("t.csv", "image,question\na.jpg,what?\n\na.jpg,what?,much\n", 3),
        ("t.token", "a.jpg#0\tone\nhttp://a.jpg#1\ttwo\n", 2),
        ("t.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": "http://a.jpg", "caption": "x"}\n', 2),
    ],
)
def test_rows_are_counted_from_1_and_with_the_header(name, content, number, tmp_path):
    photos(tmp_path, ["a.jpg"])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"row {number} of .*{name}"):
        read(tmp_path, name)


@pytest.mark.parametrize("box", [[1, True, 20, 10], {"x": 1, "y": True, "w": 20, "h": 10}, [1, 10**400, 20, 10]])
def test_a_truth_value_in_a_box_is_no_number(box, tmp_path):
    photos(tmp_path, ["a.jpg"])
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.jpg", "phrase": "it", "box": box}))
    for boxes in ("xywh", None):
        with pytest.raises(DataError, match=r"the box of expression .*t.jsonl is .*, but has to be four numbers"):
            read(tmp_path, "t.jsonl", boxes=boxes)


def test_numbers_that_are_none_are_no_texts(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    values = {"image": ["a.jpg", "b.jpg", "c.jpg"], "caption": [float("nan"), float("inf"), 2.5]}
    parquet.write_table(pyarrow.table(values), tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match="2 pictures have no text"):
        assert texts(read(tmp_path, "t.parquet"), "captions") == [["2.5"]]


def test_names_that_are_not_there_name_the_nearest(tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_csv(tmp_path / "captions.csv", [["image", "caption"], ["a.jpg", "x"]])
    with pytest.raises(DataError, match=r"caption.csv does not exist; did you mean 'captions.csv'"):
        Table("caption.csv", str(tmp_path)).read("train")
    with pytest.raises(ConfigError, match=r"data.columns names 'captoin'; did you mean 'caption'"):
        Table("captions.csv", str(tmp_path), columns={"captoin": "caption"}).read("train")
    with pytest.raises(ConfigError, match=r"data.columns.caption is 'text', which .* has not; known: caption, image"):
        Table("captions.csv", str(tmp_path), columns={"caption": "text"}).read("train")
    with pytest.raises(ConfigError, match=r"data.missing is 'ignore'"):
        Table("captions.csv", missing="ignore")
    with pytest.raises(ConfigError, match=r"data.files is 3"):
        Table(3)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"the split 'test' of .* is empty; give it a larger part of the pictures, data.split_by.test"
    ):
        Table("captions.csv", str(tmp_path), split_by={"test": 0.0001}).read("test")


def test_mixed_ids_are_told(tmp_path):
    photos(tmp_path, ["a.jpg", "b.jpg"])
    rows = [{"image": "a.jpg", "image_id": 1, "caption": "x"}, {"image": "b.jpg", "image_id": "two", "caption": "y"}]
    write_json(tmp_path / "t.json", rows)
    with pytest.raises(
        DataError, match=r"the column 'image_id' of .* holds whole numbers, such as 1, and texts, such as 'two'"
    ):
        read(tmp_path, "t.json")


def test_missing_pictures_may_be_skipped(tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_csv(tmp_path / "t.csv", [["image", "caption"], ["a.jpg", "x"], ["b.jpg", "y"], ["b.jpg", "z"]])
    table = Table({"train": "t.csv"}, str(tmp_path), missing="skip", split_by=NONE)
    assert texts(table.read("train"), "captions") == [["x"]]
    assert table.opened.skipped == {"train": 2}


@pytest.mark.parametrize("shares", [NONE, None], ids=["named", "drawn"])
def test_a_split_whose_pictures_are_all_missing_says_so(shares, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write_csv(tmp_path / "t.csv", [["image", "caption"], ["a.jpg", "x"], ["b.jpg", "y"]])
    with pytest.raises(
        DataError,
        match=r"the split 'train' of .*t.csv is empty: the pictures of its 2 rows are not there; .*data.images=",
    ):
        read(tmp_path, "t.csv", missing="skip", images="elsewhere", split_by=shares)


def test_the_folder_is_found_though_the_first_rows_have_no_pictures(tmp_path):
    photos(tmp_path / "photos", ["late.jpg"])
    names = [*(f"{number}.jpg" for number in range(30)), "late.jpg"]
    write_csv(tmp_path / "t.csv", [["image", "caption"], *([name, "x"] for name in names)])
    (sample,) = read(tmp_path, "t.csv", missing="skip")
    assert sample.image == tmp_path / "photos/late.jpg"


def test_damaged_pictures_of_a_table_may_be_skipped(tmp_path):
    photos(tmp_path, A_JPG)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    write_csv(tmp_path / "t.csv", [["image", "caption"], *([name, "x"] for name in A_JPG)])
    for missing in ("skip", "error"):
        table = Table("t.csv", str(tmp_path), missing=missing, split_by=NONE)
        sources = {"mine": Source(table, {"train": ["train"]}, 2, {"captions": 1})}
        data = TableData(missing=missing, root=str(tmp_path), sources=sources, max_missing=0.5)
        if missing == "skip":
            data.require_images([("mine", "train")])
        else:
            with pytest.raises(DataError, match=r"a\.jpg"):
                data.require_images([("mine", "train")])


def test_what_was_understood_is_told_once(tmp_path, capsys):
    photos(tmp_path, A_JPG)
    rows = [[name, "it", 4, 6, 24, 18, "q"] for name in A_JPG]
    write_csv(tmp_path / "t.csv", [["image", "phrase", "x1", "y1", "x2", "y2", "note"], *rows])
    table = Table("t.csv", str(tmp_path))
    said = told(table.opened)
    assert "image=image, expression=phrase, box=[x1,y1,x2,y2]" in said[0]
    assert said[0].endswith("not read: note")
    assert said[1:] == [
        "texts: expressions",
        "splits: train, val, test; val 0.1 and test 0.1 of the training pictures, by a hash of each (data.split_by)",
        "boxes: xyxy (recognised, data.boxes=NAME says otherwise)",
    ]
    data = TableData(root=str(tmp_path), sources={"mine": Source(table, {"train": ["train"]}, 2, {"expressions": 1})})
    data.setup()
    data.setup()
    assert capsys.readouterr().out.count("mine: texts: expressions") == 1
    with pytest.raises(ConfigError, match="data has no key 'image_sise'; did you mean 'image_size'"):
        TableData(root=".", sources={}, image_sise=3)


def test_what_is_read_is_noted_so_that_a_change_is_seen(tmp_path):
    """What is made of the files is kept: a row that is corrected, or a picture that is added, has to be read again."""
    photos(tmp_path / "csv/images", ["a.jpg"])
    table = write_csv(tmp_path / "csv/t.csv", [["image", "caption"], ["a.jpg", "x"]])
    photos(tmp_path / "folder/one", ["a.jpg"])
    photos(tmp_path / "folder/two", ["b.jpg"])
    (tmp_path / "folder/one/a.txt").write_text("said")
    for place, wanted in (
        ("csv/t.csv", {table, tmp_path / "csv/images"}),
        ("folder", {tmp_path / "folder/two", tmp_path / "folder/one/a.txt"}),
    ):
        with noting() as files:
            read(tmp_path, place)
        assert {str(path) for path in wanted} <= files.seen.keys()


def test_a_table_that_is_edited_is_read_anew_though_it_was_opened_before_its_splits(tmp_path):
    photos(tmp_path / "images", A_JPG)
    both = [tmp_path / "fit.csv", tmp_path / "held.csv"]
    splits = {"train": ["train"], "test": ["test"]}

    def captions(word: str) -> list[list[list[str]]]:
        for path, names in zip(both, (A_JPG[:5], A_JPG[5:]), strict=True):
            write_csv(path, [["image", "caption"], *([name, word] for name in names)])
        table = Table({"train": both[0].name, "test": both[1].name}, str(tmp_path), split_by=NONE)
        data = TableData(root=str(tmp_path), sources={"mine": Source(table, splits, 2, {"captions": 1})})
        data.setup()
        found = [texts([*data.samples("mine", role)], "captions") for role in splits]
        for split in splits:  # each depends on both tables, by which columns and splits are known
            with noting() as files:
                table.read(split)
            assert {str(path) for path in (*both, tmp_path / "images")} <= files.seen.keys()
        return found

    for word in ("dog", "cat", "dog"):
        assert captions(word) == [[[word]] * 5, [[word]] * 3]


def test_what_was_understood_is_no_part_of_the_arguments(tmp_path):
    photos(tmp_path, ["a.jpg"])
    write_csv(tmp_path / "t.csv", [["image", "caption"], ["a.jpg", "x"]])
    table = Table("t.csv", str(tmp_path), split_by=NONE)
    before = describe(table)
    assert table.read("train")
    assert describe(table) == before
    assert table.opened is table.opened
