"""The blind rating sheet: what is on it, what is not, and what two and three raters' files say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fusionkit.cli.main import run
from fusionkit.reporting.statistics import sign_test
from tests.reporting.test_comparison_page import EVIL, Reader
from tests.reporting.worlds import QUESTIONS, write_evaluation, write_questions

SIDES = ("left", "right")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations of two questions an image, which say the same where both are right, and a sheet of their answers."""
    folder = tmp_path_factory.mktemp("rating")
    write_questions(folder / "data", EVIL)
    write_evaluation(
        folder / "alpha_run", [at % 2 == 0 for at in range(QUESTIONS)], "/runs/alpha_run/best.ckpt", answer=EVIL
    )
    write_evaluation(
        folder / "omega_run", [at % 4 == 0 for at in range(QUESTIONS)], "/runs/omega_run/best.ckpt", answer="perhaps"
    )
    assert make(folder, folder / "sheet") == 0
    return folder


def make(folder: Path, sheet: Path, *words: str) -> int:
    return run(["compare", f"{folder}/alpha_run", f"{folder}/omega_run", f"rating={sheet}", *words])


def key_of(sheet: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sheet / "key.json").read_text())
    return found


def fill(world: Path, path: Path, choices: list[str], rater: str, /, **changes: Any) -> Path:
    """A rater's file: ``first`` and ``second`` are said of the runs, and become sides."""
    key = key_of(world / "sheet")
    said = {}
    for number, (pair, choice) in enumerate(zip(key["pairs"], choices, strict=False), start=1):
        if choice in ("first", "second"):
            said[str(number)] = SIDES[pair["left" if choice == "first" else "right"]]
        elif choice:
            said[str(number)] = choice
    path.write_text(json.dumps({"sheet": key["sheet"], "rater": rater, "choices": said} | changes))
    return path


def read(world: Path, *paths: Path) -> int:
    return run(["compare", f"rating={world}/sheet", f"rating_results=[{','.join(map(str, paths))}]", "resamples=200"])


def test_the_page_is_blind_whole_and_asks_for_nothing(world: Path) -> None:
    page = (world / "sheet/rating.html").read_text(encoding="utf-8")
    reader = Reader(page)  # well-formed
    assert "alpha_run" not in page
    assert "omega_run" not in page
    assert str(world) not in page
    assert not re.search(r"best\.ckpt|true:", page)
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert reader.text.count("<script>alert('é')</script>") >= 40  # questions and answers, all as text
    assert [tag for tag, _ in reader.tags].count("script") == 1
    pictures = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(pictures) == 30
    assert all(str(each["src"]).startswith("data:image/png") and each["alt"] for each in pictures)


def test_pairs_differ_and_stand_as_often_on_either_side(world: Path) -> None:
    key = key_of(world / "sheet")
    ids = [pair["id"] for pair in key["pairs"]]
    assert key["runs"] == ["alpha_run", "omega_run"]
    assert sorted(map(int, ids)) == [at for at in range(QUESTIONS) if at % 4]  # at 0, 4, ... both say yes
    assert key["same"] == QUESTIONS // 4
    assert ids != sorted(ids, key=int)
    assert [pair["image_id"] for pair in key["pairs"]] == [int(each) // 2 for each in ids]
    assert sum(pair["left"] for pair in key["pairs"]) == 15
    sections = (world / "sheet/rating.html").read_text().split("<section")[1:]
    for pair, section in zip(key["pairs"], sections, strict=True):
        left, right = re.findall(r'class="said"[^>]*>(.*?)</p>', section, re.DOTALL)
        assert "perhaps" in (left, right)
        assert (right if pair["left"] == 0 else left) == "perhaps"  # the second run's


def test_the_key_of_a_sheet_that_was_sent_out_is_not_lost(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world / "sheet/key.json").read_bytes()
    assert make(world, world / "sheet") == 0  # the very same
    assert make(world, world / "sheet", "seed=1") == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"rating={world}/sheet has the key of another sheet" in sentence
    assert (world / "sheet/key.json").read_bytes() == before


def test_the_sheet_is_a_function_of_its_seed(world: Path, tmp_path: Path) -> None:
    for seed in (0, 0, 1):
        assert make(world, tmp_path / str(seed), f"seed={seed}") == 0
    assert key_of(tmp_path / "0") == key_of(world / "sheet")
    assert key_of(tmp_path / "1")["sheet"] != key_of(tmp_path / "0")["sheet"]
    assert make(world, tmp_path / "few", "rating_pairs=4") == 0
    assert len(key_of(tmp_path / "few")["pairs"]) == 4


def test_two_raters_agree_as_far_as_they_do(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 of 30 alike: Cohen's kappa by hand."""
    first = ["first"] * 15 + ["second"] * 10 + ["tie"] * 5
    second = ["first"] * 10 + ["second"] * 5 + ["second"] * 8 + ["first"] * 2 + ["tie"] * 2 + ["both_bad"] * 3
    paths = fill(world, tmp_path / "a.json", first, "Anna"), fill(world, tmp_path / "b.json", second, "Ben")
    assert read(world, *paths) == 0
    found = json.loads((world / "sheet/ratings.json").read_text())
    expected = (15 * 12 + 10 * 13 + 5 * 2) / 30**2
    assert found["scores"]["agreement"] == pytest.approx(100 * 20 / 30)
    assert found["scores"]["kappa"] == pytest.approx((20 / 30 - expected) / (1 - expected))
    assert found["scores"]["first"] == pytest.approx(100 * 27 / 60)
    assert found["scores"]["net"] == pytest.approx(100 * (27 - 23) / 60)
    assert found["raters"]["Ben"] == {"first": 12, "second": 13, "tie": 2, "both bad": 3}
    assert found["sign_test"] == {"first": 10, "second": 8, "p": pytest.approx(sign_test(10, 8))}
    for name in ("agreement", "kappa", "net"):
        low, high = found["intervals"][name]
        assert low < found["scores"][name] < high
    said = capsys.readouterr().out
    assert "rater Anna: 30 of 30 pairs: first 15, second 10, tie 5, both bad 0" in said
    assert re.search(
        r"agreement: 66\.7% \(\d+\.\d to \d+\.\d\) on 30 pairs that several rated; Cohen's kappa 0\.48 \(", said
    )


def test_three_raters_have_krippendorffs_alpha(world: Path, tmp_path: Path) -> None:
    """One left out a pair. By the definition: coincidences of pairs within a sample, of which there are (m - 1) each."""
    given = [
        ["first", "first", "second"],
        ["second", "second", "second"],
        ["tie", "tie", "tie"],
        ["first", "first", ""],
    ]
    given += [["both_bad", "", ""]]  # a pair of one rater says nothing of agreement
    paths = [fill(world, tmp_path / f"{at}.json", [each[at] for each in given], f"r{at}") for at in range(3)]
    assert read(world, *paths) == 0
    found = json.loads((world / "sheet/ratings.json").read_text())
    counts, total = {"first": 4, "second": 4, "tie": 3}, 11
    observed = 2 * 2 / 2 / total  # ordered pairs that differ / (m - 1)
    expected = 1 - sum(n * (n - 1) for n in counts.values()) / (total * (total - 1))
    assert found["scores"]["alpha"] == pytest.approx(1 - observed / expected)
    assert found["scores"]["agreement"] == pytest.approx(100 * (1 / 3 + 3) / 4)
    assert found["rated_by_several"] == 4
    assert "kappa" not in found["scores"]


def test_one_rater_and_raters_who_never_differ(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (fill(world, tmp_path / f"{name}.json", ["first"] * 6, "") for name in ("one", "two"))
    assert read(world, one) == 0
    assert "rater one: 6 of 30 pairs" in (said := capsys.readouterr().out)
    assert "agreement: needs a second rater" in said
    assert "sign test p = 0.0312 (6 samples against 0)" in said
    assert read(world, one, two) == 0
    assert (
        "agreement: 100.0% (100.0 to 100.0) on 6 pairs that several rated; Cohen's kappa is not defined"
        in capsys.readouterr().out
    )
    other = fill(world, tmp_path / "other.json", [""] * 6 + ["tie"], "other")
    assert read(world, one, other) == 0
    assert "agreement: no pair was rated by two raters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sheet": "0" * 64}, "is of another sheet than the key"),
        ({"choices": []}, "is no result of a rating sheet"),
        ({"choices": {}}, "rates no pair"),
        ({"choices": {"31": "left"}}, "'31': 'left' is no choice of a pair of the sheet"),
        ({"choices": {"0": "left"}}, "is no choice of a pair"),
        ({"choices": {"1": ["left"]}}, "is no choice of a pair"),
        ({"choices": {"1": "first"}}, "is no choice of a pair"),
        ({"rater": "Anna"}, "is a second result of the rater Anna"),
    ],
)
def test_what_is_no_result_is_refused(
    world: Path, tmp_path: Path, changes: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = fill(world, tmp_path / "good.json", ["first"], "Anna")
    bad = fill(world, tmp_path / "bad.json", ["first"], "Ben", **changes)
    assert read(world, good, bad) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "bad.json" in error


@pytest.mark.parametrize(
    "changes", [{"pairs": 3}, {"runs": ["a"]}, {"pairs": [{"id": 1, "image_id": 1, "left": 2}]}, {"sheet": None}]
)
def test_a_damaged_key_is_told(
    world: Path, tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key.json").write_text(json.dumps(key_of(world / "sheet") | changes))
    result = fill(world, tmp_path / "a.json", ["first"], "Anna")
    assert run(["compare", f"rating={tmp_path}", f"rating_results=[{result}]"]) == 1
    assert "is no key of a rating sheet" in capsys.readouterr().err


def test_mistakes_are_one_sentence(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [f"{world}/alpha_run", f"{world}/omega_run"]
    out = f"rating={tmp_path}/out"
    for words, sentence in (
        ([both[0], out], "a sheet shows two runs, but 1 are named"),
        ([*both, out, "rating_of=nope"], "both runs have no samples of nope; they share vqav2"),
        ([*both, out, "rating_pairs=0"], "rating_pairs is 0"),
        (["rating_results=[a.json]"], "give rating=FOLDER"),
    ):
        assert run(["compare", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_sign_test() -> None:
    """Values of the binomial distribution."""
    assert sign_test(9, 1) == pytest.approx(2 * 11 / 1024)
    assert sign_test(1, 9) == sign_test(9, 1)
    assert sign_test(5, 5) == 1
    assert sign_test(0, 0) == 1
    assert 0 < sign_test(4000, 3000) < 1e-6
