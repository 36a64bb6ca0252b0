import json

import pytest

from fusionkit.data.readers.snli_ve import SnliVE
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import write_photo


def pair(number, image, gold="entailment", votes=("entailment",) * 3 + ("neutral",) * 2, **more):
    row = {"pairID": f"{image}.jpg#0r{number}", "sentence1": "a premise", "sentence2": f"sentence {number}"}
    return row | {"Flikr30kID": str(image), "gold_label": gold, "annotator_labels": list(votes)} | more


def make_reader(root, *rows, **options) -> SnliVE:
    (root / "snli_ve_dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (11, 12):
        write_photo(root / f"images/{number}.jpg")
    return SnliVE(str(root / "snli_ve_{split}.jsonl"), str(root / "images"), **options)


def test_hypotheses_are_grouped_by_photo(tmp_path):
    rows = [pair(1, 11), pair(2, 12, "neutral"), pair(3, 11, "contradiction"), pair(4, 12, "-", Flikr30kID="12.jpg")]
    samples = make_reader(tmp_path, *rows).read("dev")
    assert [(sample.image_id, sample.image.name) for sample in samples] == [(11, "11.jpg"), (12, "12.jpg")]
    assert [text.text for text in samples[0].texts["hypotheses"]] == ["sentence 1", "sentence 3"]
    assert [len(sample.texts["hypotheses"]) for sample in samples] == [2, 1]  # the undecided one is left out
    facts = samples[0].texts["hypotheses"][1].facts
    assert facts == {"gold_label": "contradiction", "contradiction": 1.0, "neutral": 0.0, "entailment": 0.0}


def test_soft_labels_are_the_annotators_shares(tmp_path):
    rows = [pair(1, 11, votes=("entailment",) * 3 + ("neutral", "")), pair(2, 11, votes=("",))]
    voted, silent = make_reader(tmp_path, *rows, labels="soft").read("dev")[0].texts["hypotheses"]
    assert voted.facts == {"gold_label": "entailment", "contradiction": 0.0, "neutral": 0.25, "entailment": 0.75}
    assert silent.facts == {"gold_label": "entailment", "contradiction": 0.0, "neutral": 0.0, "entailment": 1.0}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([pair(1, 11, "entails")], "gold_label 'entails'; did you mean 'entailment'"),
        ([pair(1, 11), pair(1, 11)], "has the pair 11.jpg#0r1 twice"),
        ([{"pairID": 1, "gold_label": "neutral"}], "has no 'Flickr30kID'; expected the SNLI-VE jsonl"),
        ([pair(1, 13)], "1 of 1 images of .* are not under"),
        ([], "is empty"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path, rows, sentence):
    with pytest.raises(DataError, match=sentence):
        make_reader(tmp_path, *rows).read("dev")
    with pytest.raises(ConfigError, match="did you mean 'soft'"):
        SnliVE("a", "b", labels="softly")
