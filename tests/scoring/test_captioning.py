import json
import os
import shutil
import stat
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pycocoevalcap.tokenizer.ptbtokenizer as ptb
import pytest
from torchmetrics.functional.text import bleu_score

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring import captioning
from fusionkit.scoring.captioning import Captions
from fusionkit.scoring.ptb_tokenizer import tokenize
from fusionkit.scoring.sample_scores import scores_of
from fusionkit.scoring.scorers import CAPTIONING

CAPTIONS = {
    1: ("A man rides a brown horse.", "The man's horse is running on the beach"),
    2: ("Two dogs play in the snow.", "Dogs in snow"),
    3: ("A red bus on a street.", "A red bus drives down the busy street"),
}
SAID = {1: "a man rides a horse on the beach", 2: "two dogs in the snow", 3: "a red red bus"}
RECORDS = [{"image_id": image, "caption": caption} for image, caption in SAID.items()]
KEYS = ("caption_bleu4", "caption_bleu1")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")


def samples_of(captions):
    return [
        Sample(image, Path("x.jpg"), {"captions": tuple(Text(f"{image}/{k}", text) for k, text in enumerate(texts))})
        for image, texts in captions.items()
    ]


def samples():
    return samples_of(CAPTIONS)


def test_bleu_is_torchmetrics():
    scores = CAPTIONING(RECORDS, samples())
    for order in (1, 4):
        theirs = bleu_score(
            tokenize(list(SAID.values())), [tokenize(texts) for texts in CAPTIONS.values()], n_gram=order
        )
        assert scores[f"caption_bleu{order}"] == pytest.approx(100 * theirs.item(), abs=1e-4)


def test_scores_are_over_all_images():
    scores = CAPTIONING(RECORDS, samples())
    assert 0 < scores["caption_bleu4"] < scores["caption_bleu1"] < 100
    assert CAPTIONING(RECORDS[:2], samples())["caption_bleu1"] < scores["caption_bleu1"]
    perfect = [{"image_id": image, "caption": texts[0]} for image, texts in CAPTIONS.items()]
    assert CAPTIONING(perfect, samples()) == pytest.approx({"caption_bleu4": 100.0, "caption_bleu1": 100.0})
    with pytest.raises(DataError, match="unknown image_id 9"):
        CAPTIONING([{"image_id": 9, "caption": "a"}], samples())


def test_the_guesser_says_one_caption_of_all():
    train = [*samples(), Sample(4, Path("x.jpg"), {"captions": (Text(50, "Dogs in snow"),)})]
    scores = CAPTIONING.baselines(train, samples(), [], str.split, CAPTIONING)
    told = [{"image_id": image, "caption": "Dogs in snow"} for image in CAPTIONS]
    assert scores["caption_bleu1_baseline"] == scores["caption_bleu1_chance"]
    assert scores["caption_bleu1_baseline"] == CAPTIONING(told, samples())["caption_bleu1"]


def test_without_java_meteor_is_missing_and_says_why(monkeypatch):
    monkeypatch.setenv("PATH", "")
    judged = Captions().rows(RECORDS, samples())
    scores = scores_of(judged.rows)
    assert scores.keys() == {"rouge_l", "cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4"}
    assert judged.notes["meteor"] == "missing: METEOR is a Java program (no java on the PATH)"
    assert judged.notes["spice"] == "missing: SPICE is a Java program"
    assert [row["id"] for row in judged.rows] == [1, 2, 3]
    assert all(0 <= row["score"] <= 100 for row in judged.rows)
    with pytest.raises(DataError, match="java=true, but there is no java on the PATH"):
        Captions(java=True).rows(RECORDS, samples())


def test_references_without_a_word_score_nothing():
    judged = Captions(java=False).rows([{"image_id": 1, "caption": "a"}], samples_of({1: ("", "...")}))
    assert list(scores_of(judged.rows).values()) == pytest.approx([0.0] * 6, abs=1e-4)


def test_spice_runs_where_its_models_are(monkeypatch):
    said = []
    monkeypatch.setattr(captioning, "_lack_of_spice", lambda java: None)
    monkeypatch.setattr(captioning, "spice", lambda captions, wanted: said.append(captions) or [10.0, 20.0, 30.0])
    assert scores_of(Captions(java=False).rows(RECORDS, samples()).rows)["spice"] == 20.0
    assert len(said) == 1


AWKWARD = [
    "a\rb",
    "a\vb",
    "\f",
    "\u2028",
    "",
    "\U0001f600",
    "((",
    " ".join(f"w{n}" for n in range(1000)),
    "|||",
    "a ||| b",
    "...",
]


@pytest.mark.parametrize("java", [False, pytest.param(True, marks=[needs_java, pytest.mark.slow])])
def test_awkward_captions_shift_nothing(java):
    plain = {100 + n: ("a cat sits on the mat", "a cat on a mat") for n in range(len(AWKWARD))}
    odd = {n: (text, "a dog") for n, text in enumerate(AWKWARD)}
    asked = samples_of({key: texts for n in odd for key, texts in ((n, odd[n]), (100 + n, plain[100 + n]))})
    records = [{"image_id": n, "caption": texts[0]} for n, texts in (odd | plain).items()]
    rows = {row["id"]: row for row in Captions(java).rows(records, asked).rows}
    for n in plain:
        assert rows[n]["score"] == 100
        assert rows[n]["sums"]["bleu"] == rows[100]["sums"]["bleu"]
        if java:
            assert scores_of([rows[n]])["meteor"] == pytest.approx(100)


@needs_java
@pytest.mark.slow
def test_a_read_only_install_works(tmp_path, monkeypatch):
    """With the package's folders not writable, as far as this user can be stopped from writing, and then unchanged."""
    package = Path(ptb.__file__).parents[1]
    copy = tmp_path / "pycocoevalcap"
    copy.mkdir()
    for part in ("tokenizer", "meteor", "bleu", "cider", "rouge"):
        shutil.copytree(package / part, copy / part, copy_function=os.link)
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = {folder: folder.stat().st_mtime_ns for folder in folders}
    try:
        scores = scores_of(Captions(java=True).rows(RECORDS, samples()).rows)
        assert sys.modules["pycocoevalcap.meteor.meteor"].__file__.startswith(str(copy))
        assert scores["meteor"] > 0
        assert {folder: folder.stat().st_mtime_ns for folder in folders} == before
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


@pytest.mark.reference
@pytest.mark.parametrize("java", [False, pytest.param(True, marks=[needs_java, pytest.mark.slow])])
def test_the_golden_file(java, reference):
    golden = json.loads((reference / "data" / "golden" / "caption_metrics_golden.json").read_text())
    images = golden["images"]
    program = shutil.which("java") if java else None
    assert tokenize([image["candidate"] for image in images], program) == [image["candidate_tok"] for image in images]
    flat = [text for image in images for text in image["references"]]
    assert tokenize(flat, program) == [text for image in images for text in image["references_tok"]]
    records = [{"image_id": image["image_id"], "caption": image["candidate"]} for image in images]
    asked = samples_of({image["image_id"]: image["references"] for image in images})
    scores = scores_of(Captions(java).rows(records, asked).rows)
    expected = {name.lower(): 100 * value for name, value in golden["scores"].items() if java or name != "METEOR"}
    assert scores == pytest.approx(expected, abs=1e-4)


VIETNAMESE = {1: ("một con bò màu đỏ",), 2: ("hai con chó",)}
SPANISH = {1: ("un perro corre por la playa", "el perro corre"), 2: ("dos hombres juegan al futbol",)}


@pytest.mark.parametrize("captions", [VIETNAMESE, SPANISH, {1: ("红色的圆",), 2: ("สีแดง",)}])
def test_other_languages_than_english_are_told(captions):
    said = [{"image_id": image, "caption": texts[0]} for image, texts in captions.items()]
    judged = Captions(java=False).rows(said, samples_of(captions))
    assert judged.notes["language"].startswith("the references do not read as English (")
    assert scores_of(judged.rows)["bleu_1"] == pytest.approx(100)
    assert CAPTIONING.notes(samples_of(captions)) == {"language": judged.notes["language"]}


@pytest.mark.parametrize("captions", [CAPTIONS, {1: ("two green triangles",), 2: ("A café in the street.",)}, {}])
def test_english_references_have_no_note(captions):
    assert CAPTIONING.notes(samples_of(captions)) == {}


def test_the_share_of_common_words_counts_from_ten_words_on():
    nine, ten = {1: ("red bus parked near station tall tree grows here",)}, {1: ("dos " * 9 + "in",)}
    assert CAPTIONING.notes(samples_of(nine)) == {}
    assert CAPTIONING.notes(samples_of({1: ("dos " * 10,)})).keys() == {"language"}
    assert CAPTIONING.notes(samples_of(ten)) == {}  # one of ten is common
    assert CAPTIONING.notes(samples_of({1: ("cafés rouges",)})).keys() == {"language"}  # fewer, but with other letters
    assert CAPTIONING.notes(samples_of({1: ("red cars",)})) == {}


def test_the_cider_of_one_image_is_explained():
    judged = Captions(java=False).rows(RECORDS[:1], samples()[:1])
    assert scores_of(judged.rows)["cider"] == 0
    assert judged.notes["cider"].startswith("0 by its formula")
    assert "cider" not in Captions(java=False).rows(RECORDS, samples()).notes


def test_marks_are_written_in_one_way_on_both_sides():
    said = [{"image_id": 1, "caption": unicodedata.normalize("NFD", VIETNAMESE[1][0])}]
    assert CAPTIONING(said, samples_of({1: VIETNAMESE[1]})) == pytest.approx(dict.fromkeys(KEYS, 100.0))
    decomposed = samples_of({1: (unicodedata.normalize("NFD", VIETNAMESE[1][0]),)})
    assert CAPTIONING([{"image_id": 1, "caption": VIETNAMESE[1][0]}], decomposed) == pytest.approx(
        dict.fromkeys(KEYS, 100.0)
    )


def test_what_bleu_counts():
    """Lengths of a caption and of the nearest reference, of two as near the shorter; its n-grams; those that are right."""
    counts = captioning.bleu_counts(["a b c d", "a a"], [["a b", "a b c d e f", "x"], ["a b c"]])
    assert counts == [[4, 2, 4, 3, 2, 1, 4, 3, 2, 1], [2, 3, 2, 1, 0, 0, 1, 0, 0, 0]]


def test_rouge_and_cider_are_in_percent():
    from pycocoevalcap.cider.cider import Cider

    said, wanted = ["a b c", "d e"], [["a b c"], ["d f", "x"]]
    longest = 0.5  # of two words each, precision and recall alike
    assert captioning.rouge(said, wanted) == pytest.approx([100, 100 * longest])
    theirs = Cider().compute_score({0: wanted[0], 1: wanted[1]}, {0: [said[0]], 1: [said[1]]})[1]
    assert captioning.cider(said, wanted) == pytest.approx(100 * theirs)
    assert captioning.cider(said, wanted)[0] > 100
    assert captioning.cider(["a", "b"], [[""], [""]]) == [0, 0]


@pytest.mark.parametrize("scorer", [captioning.bleu_counts, captioning.rouge])
def test_each_caption_has_its_references(scorer):
    with pytest.raises(ValueError, match="shorter"):
        scorer(["a", "b"], [["a"]])


def test_meteor_is_asked_line_by_line(monkeypatch):
    asked = []
    monkeypatch.setattr(captioning, "answer_lines", lambda *each: asked.append(each) or ["1 2.5"])
    assert captioning.meteor_counts(["a ||| b"], [["x", "y"]], "java") == [[1, 2.5]]
    ((command, folder, lines),) = asked
    assert command[:3] == ["java", "-Xmx2G", "-jar"]
    assert command[4:] == ["-", "-", "-stdio", "-l", "en", "-norm"]
    assert (folder / command[3]).is_file()
    assert lines == ["SCORE ||| x ||| y ||| a  b"]
    with pytest.raises(ValueError, match="shorter"):
        captioning.meteor_counts(["a", "b"], [["x"]], "java")


def test_spice_in_percent_of_each_image(monkeypatch):
    class Spice:
        def compute_score(self, wanted, said):
            assert (wanted, said) == ({0: ["x", "y"], 1: ["z"]}, {0: ["a"], 1: ["b"]})
            return 0.5, [{"All": {"f": 0.25}}, {"All": {"f": 0.75}}]

    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", SimpleNamespace(Spice=Spice))
    assert captioning.spice(["a", "b"], [["x", "y"], ["z"]]) == [25, 75]


def test_spice_is_missing_until_its_models_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(
        captioning, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    assert captioning._lack_of_spice(None) == "SPICE is a Java program"
    (tmp_path / "lib").mkdir()
    lack = f"its models stanford-corenlp-3.6.0.jar and -models.jar are not in {tmp_path / 'lib'}"
    assert captioning._lack_of_spice("java") == lack
    (tmp_path / "lib/stanford-corenlp-3.6.0.jar").touch()
    assert captioning._lack_of_spice("java") == lack
    (tmp_path / "lib/stanford-corenlp-3.6.0-models.jar").touch()
    assert captioning._lack_of_spice("java") is None
    monkeypatch.setattr(captioning, "find_spec", lambda name: None)
    assert captioning._lack_of_spice("java").endswith("are not in lib")


def test_with_java_meteor_stands_beside_the_others(monkeypatch):
    monkeypatch.setattr(captioning.shutil, "which", lambda name: "/bin/java" if name == "java" else None)
    monkeypatch.setattr(captioning, "tokenize", lambda captions, java: tokenize(captions) if java else fail())
    monkeypatch.setattr(captioning, "meteor_counts", lambda said, wanted, java: [[1.0] * 23 for _ in said])
    monkeypatch.setattr(captioning, "_lack_of_spice", lambda java: f"no models for {java}")
    for scorer in (Captions(), Captions(java=True)):
        judged = scorer.rows(RECORDS, samples())
        assert judged.notes == {
            "tokenizer": "Stanford's PTB tokenizer",
            "spice": "missing: no models for /bin/java",
        }
        assert [row["sums"].keys() for row in judged.rows] == [{"bleu", "meteor"}] * 3
        assert [row["score"] for row in judged.rows] == [row["values"]["rouge_l"] for row in judged.rows]
    monkeypatch.setattr(captioning, "tokenize", lambda captions, java: fail() if java else tokenize(captions))
    notes = Captions(java=False).rows(RECORDS, samples()).notes
    assert notes["tokenizer"] == "ours, which stands in for Stanford's (java=false)"
    assert notes["meteor"] == "missing: METEOR is a Java program (java=false)"
    assert notes["spice"] == "missing: no models for None"
    assert [form.wanted(samples()) for form in Captions().schema] == [[1, 2, 3]]


def fail():
    raise AssertionError


def test_an_image_without_a_caption_of_people_is_not_asked_and_one_without_a_record_is_empty():
    asked = [*samples(), Sample(4, Path("x.jpg"), {})]
    rows = Captions(java=False).rows(RECORDS[:2], asked).rows
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert rows[2]["values"] == {"rouge_l": 0, "cider": 0}
    assert rows[2]["sums"]["bleu"][0] == 0
    assert CAPTIONING([], [Sample(4, Path("x.jpg"), {})]) == {}


def test_with_java_meteor_is_counted_from_what_is_said_to_what_is_wanted(monkeypatch):
    seen = []
    monkeypatch.setattr(captioning.shutil, "which", lambda name: "/some/java")
    monkeypatch.setattr(captioning, "_words", lambda said, wanted, java=None: (said, wanted))
    monkeypatch.setattr(
        captioning, "meteor_counts", lambda *given: seen.append(given) or [[0.0] * 23 for _ in given[0]]
    )
    monkeypatch.setattr(captioning, "_lack_of_spice", lambda java: "no models")
    judged = Captions().rows([{"image_id": 1, "caption": "a dog"}], samples_of({1: ("one dog", "the dog")}))
    assert seen == [(["a dog"], [["one dog", "the dog"]], "/some/java")]
    assert judged.notes["tokenizer"] == "Stanford's PTB tokenizer"
    assert "meteor" not in judged.notes
