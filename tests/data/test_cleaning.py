"""What stands around a text: it is never cut away, the text within is."""

import pytest
import torch

from fusionkit.data.cleaning import Clean, check_templates, filled
from fusionkit.data.collate import Collate
from fusionkit.data.dataset import Item
from fusionkit.data.sample import Sample, Text
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.errors import ConfigError

TOKENIZER = word_tokenizer(["question : is it a red cat or dog ? answer :"])
TEMPLATE = "Question: {text} Answer:"


def test_a_text_within_its_template_is_cut_before_what_stands_behind_it():
    whole = "Question: is it a red cat or dog? Answer:"
    for longest, text, cut in (
        (15, whole, 0),
        (14, whole, 0),  # question : is it a red cat or dog ? answer : and the two ends
        (13, "Question: is it a red cat or dog Answer:", 1),
        (9, "Question: is it a Answer:", 1),
        (7, "Question: is Answer:", 1),
        (6, "Question:  Answer:", 1),
        (4, "Question:  Answer:", 1),
    ):
        found = filled(TEMPLATE, ["is it", "is it a red cat or dog?"], TOKENIZER, longest)
        assert found[0][1] == text
        assert found[1] == cut + (longest < 8)
        assert max(7, longest) >= len(TOKENIZER(found[0][1])["input_ids"]) or longest < 6


def test_a_batch_reads_the_texts_of_a_kind_in_its_template():
    texts = {
        "captions": (Text(1, "a red cat"),),
        "questions": (Text(2, "is it red"), Text(3, "is it a red cat or dog")),
    }
    sample = Sample(7, "a", texts)
    make = Collate("toy", [sample], ["captions", "questions"], TOKENIZER, 9, None, templates={"questions": TEMPLATE})
    batch = make([Item(sample, torch.zeros(3, 4, 4), texts, (4, 4), {})])
    said = [TOKENIZER.decode(row, skip_special_tokens=True) for row in batch["questions"]["input_ids"]]
    assert said == ["question : is it red answer :", "question : is it a answer :"]
    assert TOKENIZER.decode(batch["captions"]["input_ids"][0], skip_special_tokens=True) == "a red cat"
    assert make.counts.sum(0).tolist() == [3, 1, 0]  # read, cut, left out


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_tokens_of_a_text_are_those_of_a_batch_at_their_places(template):
    """Cleaned, within the template and cut; what begins and ends it is no token of it, whatever a text says is."""
    texts = {"captions": (Text(1, "A RED-cat, or dog?!"), Text(2, "a cat"))}
    sample, templates = Sample(7, "a", texts), {} if template is None else {"captions": template}
    make = Collate("toy", [sample], ["captions"], TOKENIZER, 8, None, Clean(), templates=templates)
    batch = make([Item(sample, torch.zeros(3, 4, 4), texts, (4, 4), {})])
    for text, row in zip(texts["captions"], batch["captions"]["input_ids"], strict=True):
        tokens = make.tokens(text.text, "captions")
        names = TOKENIZER.convert_ids_to_tokens(row[: len(tokens)])
        assert [token or name for token, name in zip(tokens, names, strict=True)] == names
        assert [place for place, token in enumerate(tokens) if token == ""] == [0, len(tokens) - 1]
    wanted = ["a", "red", "cat", "or", "dog"] if template is None else ["question", ":", "a", "red", "answer", ":"]
    assert make.tokens("A RED-cat, or dog?!", "captions") == ["", *wanted, ""]


def test_templates_that_cannot_be_are_refused():
    check_templates(None, ["questions"], "x")
    check_templates({"questions": TEMPLATE}, ["captions", "questions"], "x")
    for given, told in (
        ("Q: {text}", r"x is 'Q: \{text\}', but has to be a section"),
        ({"question": TEMPLATE}, "x names 'question', of which the source reads no texts; .*questions"),
        ({"questions": "Question: Answer:"}, r"x\.questions is 'Question: Answer:', but has to have \{text\} once"),
        ({"questions": "{text} {text}"}, "once, where the text goes"),
        ({"questions": 3}, "once, where the text goes"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_templates(given, ["questions"], "x")
