"""Zero-shot classification: folders of classes, and scores against their definition, written anew here."""

import json

import numpy as np
import pytest

from fusionkit.data.readers.class_folders import ClassFolders
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.probes.zero_shot import ZeroShot
from fusionkit.scoring.sample_scores import scores_of
from tests.data.worlds import write_photo

CLASSES = ("cat", "dog", "red_fox", "owl", "ant", "bee")
COUNTS = (3, 2, 1, 1, 1, 2)


def folders(root, classes=CLASSES, counts=COUNTS):
    for name, count in zip(classes, counts, strict=True):
        for number in range(count):
            write_photo(root / f"val/{name}/{number}.png")
    return ClassFolders(f"{root}/{{split}}")


def records_of(scores, samples):
    return [
        {"caption_id": text.id, "cosine": float(score)}
        for sample, row in zip(samples, scores, strict=True)
        for text, score in zip(sample.texts["captions"], row, strict=True)
    ]


def test_each_picture_is_asked_about_every_class(tmp_path):
    samples = folders(tmp_path).read("val")
    assert len(samples) == sum(COUNTS)
    assert samples[0].image_id == "ant/0.png"
    said = [text.text for text in samples[-1].texts["captions"]]
    assert said == [f"a photo of a {name}." for name in ("ant", "bee", "cat", "dog", "owl", "red fox")]
    facts = [text.facts for text in samples[-1].texts["captions"]]
    assert facts[-1] == {"class": "red_fox", "label": "caption"}
    assert {each["label"] for each in facts[:-1]} == {"foil"}
    (tmp_path / "names.json").write_text(json.dumps({name: f"big {name}" for name in CLASSES}))
    named = ClassFolders(f"{tmp_path}/val", template="{}!", names=f"{tmp_path}/names.json").read("any")
    assert named[0].texts["captions"][0].text == "big ant!"


def test_own_photos_are_turned_as_their_owner_sees_them(tmp_path):
    samples = folders(tmp_path).read("val")
    records = records_of(np.zeros((len(samples), len(CLASSES))), samples)
    scorer = ZeroShot()
    shown = scorer.examples(records, samples, scorer.rows(records, samples).rows, 3)
    assert all(sample.upright for sample in samples)
    assert [example.upright for example in shown] == [True] * 3


def test_scores_are_their_definition(tmp_path):
    samples = folders(tmp_path).read("val")
    scores = np.random.default_rng(0).integers(0, 5, size=(len(samples), len(CLASSES)))  # with ties
    names = sorted(CLASSES)
    own = np.array([names.index(sample.image_id.split("/")[0]) for sample in samples])
    ranks = np.array([(np.delete(row, place) >= row[place]).sum() for row, place in zip(scores, own, strict=True)])
    found = scores_of(ZeroShot().rows(records_of(scores, samples), samples).rows)
    by_class = {name: 100 * (ranks[own == place] == 0).mean() for place, name in enumerate(names)}
    assert found == {
        "top1": pytest.approx(100 * (ranks == 0).mean()),
        "top5": pytest.approx(100 * (ranks < 5).mean()),
        "mean_per_class": pytest.approx(np.mean(list(by_class.values()))),
        **{f"top1/class/{name}": pytest.approx(value) for name, value in by_class.items()},
    }
    assert 0 < found["top1"] < found["top5"] < 100
    assert found["top1"] != found["mean_per_class"]


def test_what_lacks_a_score_is_wrong_and_few_classes_have_no_top5(tmp_path):
    samples = folders(tmp_path, CLASSES[:2], (1, 1)).read("val")
    right = records_of([[1, 0], [0, 1]], samples)
    assert scores_of(ZeroShot().rows(right, samples).rows)["top1"] == 100
    found = scores_of(ZeroShot().rows(right[1:], samples).rows)
    assert found["top1"] == 50
    assert "top5" not in found
    with pytest.raises(ConfigError, match="is 'cosin'; did you mean 'cosine'"):
        ZeroShot("cosin")


def test_guessers_know_how_common_classes_are_or_nothing(tmp_path):
    samples, scorer = folders(tmp_path).read("val"), ZeroShot()
    found = scorer.baselines([], samples, [], str.split, lambda r, s: scores_of(scorer.rows(r, s).rows))
    assert found["top1_baseline"] == pytest.approx(100 * max(COUNTS) / sum(COUNTS))
    assert found["mean_per_class_baseline"] == pytest.approx(100 / 6)
    assert found["top1_chance"] == pytest.approx(100 / 6)
    assert found["top5_chance"] == pytest.approx(500 / 6)


def test_a_gallery_shows_the_class_that_was_chosen(tmp_path):
    samples, scorer = folders(tmp_path, CLASSES[:2], (1, 1)).read("val"), ZeroShot()
    records = records_of([[1, 0], [1, 0]], samples)
    shown = scorer.examples(records, samples, scorer.rows(records, samples).rows, None)
    assert [(each.given, each.true, each.score) for each in shown] == [("cat", "cat", 100), ("cat", "dog", 0)]


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"the folder of classes .*val does not exist"):
        ClassFolders(f"{tmp_path}/{{split}}").read("val")
    reader = folders(tmp_path, CLASSES[:1], (2,))
    with pytest.raises(DataError, match="has pictures of 1 classes, but two are needed"):
        reader.read("val")
    write_photo(tmp_path / "val/dog/0.png")
    (tmp_path / "names.json").write_text(json.dumps({"cat": "cat", "dog": 3}))
    with pytest.raises(DataError, match=r"names\.json has no name for the class 'dog'"):
        ClassFolders(f"{tmp_path}/val", names=f"{tmp_path}/names.json").read("val")
    (tmp_path / "names.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"an entry of .*names\.json is malformed"):
        ClassFolders(f"{tmp_path}/val", names=f"{tmp_path}/names.json").read("val")
    write_photo(tmp_path / "val/stray.png")
    with pytest.raises(DataError, match=r"stray\.png is in no folder of a class"):
        reader.read("val")
    with pytest.raises(ConfigError, match=r"has to have one \{\}, where the class stands"):
        ClassFolders("a", template="a photo")
