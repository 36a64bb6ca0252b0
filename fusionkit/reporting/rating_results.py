"""What raters sent back: who is preferred, with an interval and a test, and how far the raters agree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean
from typing import Any

from fusionkit.errors import DataError, clean
from fusionkit.files.plain import read_json
from fusionkit.reporting.rating_sheet import CHOICES
from fusionkit.reporting.statistics import sign_test
from fusionkit.scoring.bootstrap import intervals
from fusionkit.scoring.sample_scores import Row, scores_of

NAMES = ("first", "second", "tie", "both bad")  # what was chosen, once it is known who stood where
NET, AGREEMENT, KAPPA, ALPHA = "net", "agreement", "kappa", "alpha"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Ratings:
    """``of`` what, by which two runs; how often each rater chose what of ``NAMES``, of how many ``pairs``.

    ``scores``    shares of the choices in %, "net" the first run's less the second's, "agreement" the share of pairs of
                  raters that chose alike; "kappa" of two raters, "alpha" of more. Those that are not defined are left out.
    ``intervals`` 95%, over images.
    ``signs``     samples that the raters together give to the first run and to the second; ``p`` of the sign test on them.
    """

    of: str
    runs: tuple[str, str]
    pairs: int
    same: int
    raters: Mapping[str, Mapping[str, int]]
    shared: int
    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    signs: tuple[int, int]
    p: float


def read_key(path: Path) -> dict[str, Any]:
    """The key of a sheet. DataError where it is not there or is none."""
    key = read_json(path, "make the sheet again, or give its folder as rating=FOLDER")
    pairs = key.get("pairs") if isinstance(key, dict) else None
    runs = key.get("runs") if isinstance(key, dict) else None
    is_key = (
        isinstance(pairs, list)
        and all(isinstance(pair, dict) and {"id", "image_id"} <= pair.keys() for pair in pairs)
        and all(pair.get("left") in (0, 1) and type(pair["image_id"]) in (int, str) for pair in pairs)
        and isinstance(runs, list)
        and len(runs) == 2
        and all(isinstance(text, str) for text in (*runs, key.get("sheet"), key.get("of")))
        and isinstance(key.get("same"), int)
    )
    if not is_key:
        raise DataError(
            f"{path} is no key of a rating sheet; make the sheet again, or give its folder as rating=FOLDER"
        )
    assert isinstance(key, dict)
    return key


def read_results(paths: Sequence[Path], key: Mapping[str, Any]) -> dict[str, dict[int, int]]:
    """By rater, the number in ``NAMES`` of what was chosen of each pair, by the pair's place in the key.

    DataError for a file of another sheet, one that is no result, and a second one of one rater.
    """
    found: dict[str, dict[int, int]] = {}
    for path in paths:
        result = read_json(path, "have it sent again")
        choices = result.get("choices") if isinstance(result, dict) else None
        if not isinstance(choices, dict):
            raise DataError(f"{path} is no result of a rating sheet; name the files that the page's button downloads")
        if result.get("sheet") != key["sheet"]:
            raise DataError(
                f"{path} is of another sheet than the key; give rating=FOLDER of the sheet that was rated there"
            )
        if not choices:
            raise DataError(f"{path} rates no pair; leave it out")
        rater = clean(str(result.get("rater") or "").strip())[:80] or path.stem
        if rater in found:
            raise DataError(
                f"{path} is a second result of the rater {rater}; give one file of each, with another name where there are two"
            )
        found[rater] = dict(_choice(pair, choice, key, path) for pair, choice in choices.items())
    return found


def _choice(pair: str, choice: Any, key: Mapping[str, Any], path: Path) -> tuple[int, int]:
    known = {str(number): number - 1 for number in range(1, len(key["pairs"]) + 1)}
    if pair not in known or not isinstance(choice, str) or choice not in CHOICES:
        raise DataError(
            f"{path}: {pair[:40]!r}: {repr(choice)[:40]} is no choice of a pair of the sheet; have it sent again"
        )
    at, place = known[pair], list(CHOICES).index(choice)
    is_side = place < 2
    return at, (place if key["pairs"][at]["left"] == 0 else 1 - place) if is_side else place


def rated(key: Mapping[str, Any], results: Mapping[str, Mapping[int, int]], resamples: int, seed: int) -> Ratings:
    """Count, and draw the intervals (the bootstrap over images)."""
    chosen = {at: [of.get(at) for of in results.values()] for at in range(len(key["pairs"]))}
    given = {at: [c for c in each if c is not None] for at, each in chosen.items()}
    rows = [_row(key["pairs"][at], chosen[at], len(results)) for at in chosen if given[at]]
    nets = [sum((c == 0) - (c == 1) for c in each) for each in given.values()]
    signs = sum(net > 0 for net in nets), sum(net < 0 for net in nets)
    scores = scores_of(rows)
    drawn = {name: found for name, found in intervals(rows, resamples, seed).items() if name in scores}
    raters = {
        rater: {name: Counter(of.values())[place] for place, name in enumerate(NAMES)} for rater, of in results.items()
    }
    shared = sum(len(each) > 1 for each in given.values())
    return Ratings(
        key["of"],
        (key["runs"][0], key["runs"][1]),
        len(key["pairs"]),
        key["same"],
        raters,
        shared,
        scores,
        drawn,
        signs,
        sign_test(*signs),
    )


def _row(pair: Mapping[str, Any], chosen: Sequence[int | None], raters: int) -> Row:
    """The row (``scoring.sample_scores``) of one pair of answers, whose raters count as one voice."""
    given = [c for c in chosen if c is not None]
    values = {name: 100 * fmean(c == place for c in given) for place, name in enumerate(NAMES)}
    values[NET] = values["first"] - values["second"]
    row: Row = {"id": pair["id"], "image_id": pair["image_id"], "score": values["first"], "values": values}
    if len(given) > 1:
        values[AGREEMENT] = 100 * fmean(a == b for a, b in combinations(given, 2))
        counts = [0.0] * len(NAMES) ** 2
        ordered = [(given[0], given[1])] if raters == 2 else permutations(given, 2)
        for a, b in ordered:
            counts[a * len(NAMES) + b] += 1 if raters == 2 else 1 / (len(given) - 1)
        row["sums"] = {KAPPA if raters == 2 else ALPHA: counts}
    return row


def summary_of(ratings: Ratings) -> dict[str, Any]:
    """What ``ratings.json`` says."""
    first, second = ratings.runs
    return {
        "of": ratings.of,
        "first": first,
        "second": second,
        "pairs": ratings.pairs,
        "same": ratings.same,
        "raters": {rater: dict(counts) for rater, counts in ratings.raters.items()},
        "rated_by_several": ratings.shared,
        "scores": dict(ratings.scores),
        "intervals": {name: list(ends) for name, ends in ratings.intervals.items()},
        "sign_test": {"first": ratings.signs[0], "second": ratings.signs[1], "p": ratings.p},
    }


def print_ratings(ratings: Ratings) -> None:
    """Say it in lines."""
    first, second = (clean(name) for name in ratings.runs)
    what = f"{ratings.pairs} pairs, {ratings.same} more samples had the same answer"
    print(f"{clean(ratings.of)}: first {first}, second {second}; {what}")
    for rater, counts in ratings.raters.items():
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"rater {rater}: {sum(counts.values())} of {ratings.pairs} pairs: {listed}")
    shares = ", ".join(f"{name} {_shown(ratings, name, '%')}" for name in NAMES)
    print(f"preferred: {shares}")
    wins, losses = ratings.signs
    signs = f"sign test p = {ratings.p:.3g} ({wins} samples against {losses})"
    print(f"first less second: {_shown(ratings, NET, ' points', '+')}; {signs}")
    if len(ratings.raters) < 2:
        print("agreement: needs a second rater")
    elif not ratings.shared:
        print("agreement: no pair was rated by two raters")
    else:
        name, word = (KAPPA, "Cohen's kappa") if len(ratings.raters) == 2 else (ALPHA, "Krippendorff's alpha")
        above = (
            f"{word} {_shown(ratings, name, '')}"
            if name in ratings.scores
            else f"{word} is not defined: all chose the same"
        )
        print(f"agreement: {_shown(ratings, AGREEMENT, '%')} on {ratings.shared} pairs that several rated; {above}")


def _shown(ratings: Ratings, name: str, unit: str, sign: str = "") -> str:
    value, ends = ratings.scores[name], ratings.intervals.get(name)
    form = f"{sign}.2f" if not unit else f"{sign}.1f"
    within = "" if ends is None else f" ({ends[0]:{form}} to {ends[1]:{form}})"
    return f"{value:{form}}{unit}{within}"
