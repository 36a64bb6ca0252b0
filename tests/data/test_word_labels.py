"""Labels of words: at which tokens they stand, and how a table has them."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from fusionkit.assembly.table_choices import choices_for
from fusionkit.data.cleaning import Clean
from fusionkit.data.collate import Collate
from fusionkit.data.readers.row_texts import _word_label
from fusionkit.data.readers.table import Table
from fusionkit.data.sample import Sample, Text
from fusionkit.data.source import Source
from fusionkit.data.texts.word_labels import LABELS, _firsts, label_rows, spans_of
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.errors import ConfigError, DataError
from tests.data.test_collate import item

TOKENIZER = word_tokenizer(["Ann's dog, in St. Ives"])
POST = Text(3, "Ann's  dog, in", {LABELS: ["B-PER", "O", "O"]})


def test_a_label_stands_at_the_first_token_of_its_word():
    rows = label_rows([POST, Text(4, "in Ives", {LABELS: ["O", "B-LOC"]})], TOKENIZER, 20, str)
    assert rows[LABELS] == [["B-PER", "O", "O"], ["O", "B-LOC"]]
    assert rows["word_spans"] == [[(0, 5), (7, 11), (12, 14)], [(0, 2), (3, 7)]]
    assert [POST.text[a:b] for a, b in rows["word_spans"][0]] == ["Ann's", "dog,", "in"]
    # [CLS] ann ' s dog , in [SEP]
    assert rows["label_words"].tolist() == [[-1, 0, -1, -1, 1, -1, 2, -1], [-1, 0, 1, -1, -1, -1, -1, -1]]


def test_words_that_are_cut_or_have_no_token_have_no_label():
    assert label_rows([POST], TOKENIZER, 6, str)["label_words"].tolist() == [[-1, 0, -1, -1, 1, -1]]
    text = Text(1, "\u0001 dog in", {LABELS: ["O", "O", "B-LOC"]})  # of which BERT's normaliser leaves nothing
    assert len(spans_of(text.text)) == 3
    assert label_rows([text], TOKENIZER, 9, str)["label_words"].tolist() == [[-1, 1, 2, -1]]


def test_a_token_may_begin_with_the_space_before_its_word():
    assert _firsts([(0, 0), (1, 5), (5, 7), (7, 9)], [(0, 1), (2, 7), (8, 9)]) == [-1, 1, -1, 2]


def test_words_and_labels_are_as_many():
    with pytest.raises(DataError, match=r"text 3 has 3 words \(3 as they are read\) and 2 labels; give each word"):
        label_rows([Text(3, POST.text, {LABELS: ["O", "O"]})], TOKENIZER, 9, str)
    with pytest.raises(DataError, match=r"text 3 has 3 words \(4 as they are read\) and 3 labels"):
        label_rows([POST], TOKENIZER, 9, lambda text: text.replace("'", " "))


def test_a_word_that_goes_does_not_make_up_for_one_that_becomes_two():
    text = Text(3, "two-legged , in", {LABELS: ["O", "O", "B-LOC"]})
    assert len(Clean()(text.text).split()) == 3  # two legged in
    with pytest.raises(DataError, match=r"text 3 has 3 words \(3 as they are read\) and 3 labels; give each word"):
        label_rows([text], TOKENIZER, 9, Clean())
    assert label_rows([Text(4, "Two, in", {LABELS: ["O", "O"]})], TOKENIZER, 9, Clean())[LABELS] == [["O", "O"]]


def test_a_template_around_words_with_labels_is_refused():
    source = Source(None, {"train": ["a"]}, 1, {"tagged": 1, "captions": 1}, template={"captions": "of {text}"})
    source.check("data.sources.a")
    with pytest.raises(ConfigError, match=r"^data\.sources\.a\.template\.tagged: words have labels, and those of a"):
        replace(source, template={"tagged": "of {text}"}).check("data.sources.a")


def test_a_batch_has_them_and_one_without_texts_too():
    samples = [Sample(7, "a", {"tagged": (POST,)}), Sample(8, "b", {"tagged": ()})]
    make = Collate("toy", samples, ("tagged",), TOKENIZER, 20, None)
    rows = make([item(sample) for sample in samples])["tagged"]
    assert rows["label_words"].shape == rows["input_ids"].shape == (1, 8)
    nothing = make([item(samples[1])])["tagged"]
    assert (nothing[LABELS], nothing["word_spans"], nothing["label_words"].shape) == ([], [], (0, 1))
    wrong = make([item(Sample(9, "c", {"tagged": (Text(5, "dog"),)}))])
    assert "text 5 of kind 'tagged' has no 'word_labels'" in str(wrong)


def opened(folder, *rows, **columns):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = [json.dumps({"image": "a.png", **row}) + "\n" for row in rows]
    (folder / "t.jsonl").write_text("".join(lines))
    return Table(str(folder / "t.jsonl"), columns=columns, split_by={"val": 0, "test": 0}).opened


def meant(folder, *rows, **columns):
    return opened(folder, *rows, **columns).meaning.columns


ASKED = {"question": "which?", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "columns", "kinds"),
    [
        ({"caption": "a red dog", "tags": ["dog", "red", "big"]}, {}, {"captions": ("caption",)}),
        ({"caption": "a red dog", "ner_tags": ["dog"]}, {}, {"captions": ("caption",)}),
        (
            {"caption": "a red dog", "ner_tags": ["O"] * 3, **ASKED},
            {},
            {"questions": ("question",), "tagged": ("ner_tags",)},
        ),
        ({"caption": "a red dog", "tags": ["O"]}, {"word_labels": "tags"}, {"tagged": ("tags",)}),
        ({"caption": "a red dog", "pos_tags": ["O"] * 3}, {"word_labels": []}, {"captions": ("caption",)}),
        ({"caption": "a red dog", "pos_tags": ["O"] * 3, "ner_tags": ["O"] * 3}, {}, {"tagged": ("ner_tags",)}),
        ({"tokens": ["a", "dog"], "ner_tags": ["O", "O"], **ASKED}, {"word_labels": []}, {"questions": ("question",)}),
    ],
)
def test_columns_that_are_labels_of_words(row, columns, kinds, tmp_path):
    assert meant(tmp_path, row, **columns) == kinds


def test_most_of_the_first_rows_tell_whether_labels_are_of_words(tmp_path):
    good, wrong, bare = (
        {"text": text, "ner_tags": tags} for text, tags in (("a dog", [0, 1]), ("dog", [0, 1]), ("", []))
    )
    assert "tagged" in meant(tmp_path, good, good, wrong)
    assert "captions" in meant(tmp_path, good, wrong, bare)
    assert "captions" in meant(tmp_path, {"text": "a dog", "ner_tags": None})


@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        ({"tokens": ["a", "dog"]}, {}, "tokens"),
        ({"words": ["a", "dog"], "text": "a dog"}, {}, "words"),
        ({"tokens": ["a", "-", "dog"], "text": "a dog"}, {}, "text"),
        ({"tokens": ["a", "dog"], "text": "a dog"}, {"caption": "text"}, "text"),
        ({"tokens": ["a", "-", "dog"]}, {"word_labels": "ner_tags"}, "tokens"),
    ],
)
def test_where_words_are_that_have_labels(row, columns, words, tmp_path):
    assert opened(tmp_path, {**row, "ner_tags": ["O", "O"]}, **columns).mapped["caption"] == (words,)


def test_labels_that_are_named_need_words(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^data\.columns\.word_labels is 'x', but no column has the words; say which with data"
    ):
        meant(tmp_path, {"question": "which?", "x": ["O"]}, word_labels="x")


GOOD = {"tokens": ["a", "dog"], "ner_tags": ["O", "B"]}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"ner_tags": ["O", None]}, "has the label None of a word; give each word a label, "),
        ({"ner_tags": ["O", -100]}, "has the label -100 of a word; give each word a label, "),
        ({"ner_tags": ["O"]}, "has 2 words and 1 labels of words; give each word one label, "),
        ({"ner_tags": None}, "has 2 words and 0 labels of words; give each word one label, "),
        ({"tokens": []}, "has 0 words and 2 labels of words; give each word one label, "),
        ({"tokens": ["", "New York"]}, "has the word '', but a word is a text without spaces; correct it, "),
        ({"tokens": ["in", "New York"]}, "has the word 'New York', but a word is a text without spaces; correct it, "),
        ({"tokens": ["in", ["New", "York"]]}, "has the word ['New', 'York'], but a word is a text without spaces; "),
    ],
)
def test_a_row_whose_words_or_labels_are_none_is_told(row, told, tmp_path):
    table = opened(tmp_path, GOOD, GOOD, GOOD | row)
    with pytest.raises(DataError) as error:
        table.read("train")
    assert f"row 3 of {tmp_path / 't.jsonl'} {told}" in str(error.value)
    assert str(error.value).endswith("or leave all of them unread with data.columns.word_labels=[]")


def test_words_may_be_numbers_and_labels_those_of_classes(tmp_path):
    rows = {"tokens": ["in", 2016], "ner_tags": [0, 1]}, {"tokens": [], "ner_tags": []}
    (sample,) = opened(tmp_path, *rows).read("train")
    assert [(text.text, text.facts[LABELS]) for text in sample.texts["tagged"]] == [("in 2016", ["0", "1"])]
    assert [_word_label(value, ["O", "B"]) for value in (0, 1, 2, -1, "B")] == ["O", "B", None, None, "B"]


@pytest.mark.parametrize("is_list", [True, False])
def test_a_table_of_them(is_list, tmp_path):
    lines = []
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        words, tags = ["Ann's", "dog"], ["B-PER's", "O"]
        row = {"image": f"{number}.png", "id": number, "split": ("train", "val")[number % 2]}
        lines.append(
            row
            | ({"tokens": words, "ner_tags": tags} if is_list else {"tokens": "Ann's dog", "ner_tags": " ".join(tags)})
        )
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Table(str(tmp_path / "posts.jsonl"), columns={} if is_list else {"caption": "tokens"})
    sample = table.read("train")[1]
    assert {kind: texts for kind, texts in sample.texts.items() if texts} == {
        "tagged": (Text(2, "Ann's dog", {LABELS: ["B-PER's", "O"]}),)
    }
    chosen = choices_for(table.opened)
    assert "task=[token_classification]" in chosen
    assert r"task.token_classification.labels=['B-PER\'s','O']" in chosen
    assert "data.sources.table.texts_per_image.tagged=1" in chosen
