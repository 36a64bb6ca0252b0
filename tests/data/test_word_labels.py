"""Labels of words: at which tokens they stand, and how a table has them."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from fusionkit.assembly.table_choices import choices_for
from fusionkit.data.cleaning import Clean
from fusionkit.data.collate import Collate
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
    table = Table(str(tmp_path / "posts.jsonl"), columns={"caption": "tokens"})
    sample = table.read("train")[1]
    assert {kind: texts for kind, texts in sample.texts.items() if texts} == {
        "tagged": (Text(2, "Ann's dog", {LABELS: ["B-PER's", "O"]}),)
    }
    chosen = choices_for(table.opened)
    assert "task=[token_classification]" in chosen
    assert r"task.token_classification.labels=['B-PER\'s','O']" in chosen
    assert "data.sources.table.texts_per_image.tagged=1" in chosen
