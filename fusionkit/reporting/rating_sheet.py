"""A blind rating sheet: what two runs said to the same samples as one page, without their names, and the key to it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np

from fusionkit.errors import ConfigError
from fusionkit.reporting.comparison_page import POLICY
from fusionkit.reporting.example_cards import picture
from fusionkit.reporting.html import document, element
from fusionkit.reporting.record import RunRecord
from fusionkit.reporting.side_by_side import Example, Load, said_by_all

MOST = 640  # pixels a side of a picture, which is to be looked at
CHOICES = {"left": "left is better", "right": "right is better", "tie": "equally good", "both_bad": "both bad"}


@dataclass(frozen=True)
class Pair:
    """A sample on the sheet; ``left`` is the number (0 or 1) of the run that stands on the left."""

    id: str
    image_id: Any
    example: Example
    left: int


@dataclass(frozen=True)
class Sheet:
    """What is rated: ``of`` which file of rows, by which two runs; ``same`` samples are left out, as both said the same."""

    of: str
    runs: tuple[str, str]
    pairs: Sequence[Pair]
    same: int
    seed: int


def make_sheet(runs: Sequence[RunRecord], load: Load, of: str | None, count: int, seed: int) -> Sheet:
    """Draw ``count`` pairs of what both runs said in words, their order and their sides, each run as often on the left.

    Raises ConfigError for other than two runs, or where nothing, or more than one file, could be rated.
    """
    if len(runs) != 2:
        raise ConfigError(
            f"rating: a sheet shows two runs, but {len(runs)} are named; give fusionkit compare RUN_A RUN_B"
        )
    by_name = {run.name: run for run in runs}
    said = {label: found for label in _labels(runs, of) if (found := said_by_all(label, by_name, load))}
    if not said:
        what = f"rating_of={of} is" if of else "there is"
        raise ConfigError(
            f"rating: {what} nothing that both {runs[0].name} and {runs[1].name} answered in words and whose samples are still "
            "there; evaluate both with evaluation.options.predictions, on the same data"
        )
    if len(said) > 1:
        raise ConfigError(
            f"rating_of: the runs answered {', '.join(said)}; say which is rated, as rating_of={next(iter(said))}"
        )
    label, found = next(iter(said.items()))
    differ = {key: item for key, item in found.items() if len({_plain(each.text) for each in item[1].answers}) > 1}
    if not differ:
        raise ConfigError(
            f"rating: both runs said the same to all {len(found)} samples of {label}; there is nothing to choose"
        )
    rng = np.random.default_rng(seed)
    keys = [list(differ)[at] for at in rng.permutation(len(differ))[:count]]
    sides = rng.permutation(np.arange(len(keys)) % 2)
    pairs = [Pair(key, *differ[key], int(side)) for key, side in zip(keys, sides, strict=True)]
    return Sheet(label, (runs[0].name, runs[1].name), pairs, len(found) - len(differ), seed)


def _labels(runs: Sequence[RunRecord], of: str | None) -> list[str]:
    shared = [label for label in runs[0].samples if label in runs[1].samples]
    if of is not None and of not in shared:
        raise ConfigError(f"rating_of: both runs have no samples of {of}; they share {', '.join(shared) or 'none'}")
    return shared if of is None else [of]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def rating_page(sheet: Sheet) -> tuple[str, str]:
    """Return the page, and the hash of what it shows, by which results tell which sheet they are of."""
    sections = [_section(pair, number, len(sheet.pairs)) for number, pair in enumerate(sheet.pairs, start=1)]
    shown = "".join(tostring(section, encoding="unicode", method="html") for section in sections)
    digest = hashlib.sha256(shown.encode()).hexdigest()
    here = Path(__file__).parent
    head = [
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{len(sections)} pairs to rate"),
        *(element("style", (here / name).read_text(encoding="utf-8")) for name in ("page.css", "rating.css")),
    ]
    how = (
        "Two answers to the same picture: choose the better one. "
        "On a keyboard the digits choose, N and P move. "
        "What you chose is kept in this browser; when you are done, download it and send it back."
    )
    name = element("label", "Your name ", element("input", id="rater", type="text", autocomplete="off", maxlength=80))
    header = element(
        "header", element("h1", "Which answer is better?"), element("p", how, class_="soft"), element("p", name)
    )
    choices = [
        element(
            *("button", element("kbd", str(key)), f" {words}"),
            type="button",
            data_choice=choice,
            aria_pressed="false",
            aria_keyshortcuts=key,
        )
        for key, (choice, words) in enumerate(CHOICES.items(), start=1)
    ]
    moves = [
        element("button", key and element("kbd", key), f" {words}" if key else words, type="button", id=name)
        for name, key, words in (
            ("previous", "P", "previous"),
            ("next", "N", "next"),
            ("download", None, "download the result"),
            ("anew", None, "start anew"),
        )
    ]
    body = [
        header,
        element("noscript", element("p", "This page needs its script to be run.")),
        element("main", *sections, data_sheet=digest, data_pairs=len(sections)),
        element("div", *choices, role="group", aria_label="your choice", class_="choices"),
        element("p", role="status", id="state"),
        element("div", *moves, role="group", aria_label="moves", class_="moves"),
        element("script", (here / "rating.js").read_text(encoding="utf-8")),
    ]
    return document(head, body), digest


def _section(pair: Pair, number: int, count: int) -> Element:
    example = replace(pair.example, truth="", box=None)
    answers = [pair.example.answers[at].text for at in (pair.left, 1 - pair.left)]
    sides = [
        element("div", element("h3", side), element("p", text, dir="auto", class_="said"), class_="side")
        for side, text in zip(("Left", "Right"), answers, strict=True)
    ]
    asked = element("p", example.asked, dir="auto", class_="asked") if example.asked else None
    frame = element("div", picture(example, {}, MOST), class_="frame")
    return element(
        "section",
        element("h2", f"Pair {number} of {count}", tabindex=-1),
        frame,
        asked,
        element("div", *sides, class_="sides"),
        data_pair=number,
        hidden=True,
    )


def key_of(sheet: Sheet, digest: str) -> Mapping[str, Any]:
    """What ``key.json`` says: which run stood on which side."""
    pairs = [
        {"id": pair.id, "image_id": pair.image_id, "left": pair.left, "right": 1 - pair.left} for pair in sheet.pairs
    ]
    return {
        "sheet": digest,
        "of": sheet.of,
        "runs": list(sheet.runs),
        "same": sheet.same,
        "seed": sheet.seed,
        "pairs": pairs,
    }
