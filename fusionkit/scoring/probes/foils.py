"""Captions beside foils: does a model score what is true of an image above what is not? SugarCREPE, VALSE, ARO."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, suggest
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.corpus_metrics import LOWEST, RATIOS
from fusionkit.scoring.examples import Example, evenly
from fusionkit.scoring.probes.pairs import (
    HOW,
    LOG_ODDS,
    TEXT_ONLY,
    Foiled,
    given_scores,
    guessed_scores,
    pair_schema,
    pairs_of,
    records_of,
    subset_words,
)
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import guesses

TOLD = ("acc", "p_c", "p_f")  # of a model that tells matches from mismatches (VALSE, section 5.2)
LEAST, AREA = "min_p_c_p_f", "auroc"
WITHIN = "subset/"  # before the name of a subset in those metrics of it that a table has no room for
FAR = 1e99  # a score that is missing: a caption's is below, a foil's above all others


class Foils(BaseScorer):
    """Percentage of pairs whose caption scores strictly higher than its foil, overall and by subset; equal scores are wrong.

    So SugarCREPE's `main_eval.py`, VALSE's acc_r and ARO's `evaluate_scores` count. A pair that lacks a score is wrong.

    ``value``      what records say of a text: "log_odds" of a match, the "cosine", or the "log_likelihood" (``pairs.HOW``).
    ``metric``     what the percentage is called; that of a subset is ``<metric>/<within><subset>``.
    ``averages``   further metrics ``<metric>/<name>``: each the mean over these subsets, over all of them where it names none.
    ``left_out``   subsets that the averages leave out, as they do those of less than ``min_count`` pairs.
    ``threshold``  above which a text is said to match: adds the percentage of captions said to match (``p_c``), of foils said not
                   to (``p_f``), of both (``acc``), the lower of the two (``min_p_c_p_f``) and the area under the ROC curve
                   (``auroc``), VALSE's measures of a matching head; those of a subset are ``acc/subset/<subset>``; None: none.
    """

    def __init__(
        self,
        value: str = LOG_ODDS,
        metric: str = "accuracy",
        averages: Mapping[str, Sequence[str] | None] | None = None,
        threshold: float | None = None,
        left_out: Iterable[str] = (),
        min_count: int = 1,
        within: str = "",
    ) -> None:
        if value not in HOW:
            raise ConfigError(f"value of a scorer of foils is '{value}'; {suggest(value, HOW)}")
        self.value, self.metric, self.threshold, self.within = value, metric, threshold, within
        self.averages = {name: None if of is None else tuple(of) for name, of in (averages or {}).items()}
        self.left_out, self.min_count = frozenset(left_out), min_count
        told = () if threshold is None else (*TOLD, LEAST, AREA)
        self.schema = (pair_schema(value),)
        self.metrics = MappingProxyType(dict.fromkeys((metric, *told), True))
        self.headlines = tuple([name for name, of in self.averages.items() if of is None] or [metric]) + told[:1]

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a pair, called as its caption."""
        pairs, given = pairs_of(samples), given_scores(records, samples, self.value)
        words, averages = subset_words(pairs), self._averaged(pairs)
        rows = [
            self._row(pair, given.get(pair.caption.id, -FAR), given.get(pair.foil.id, FAR), words, averages)
            for pair in pairs
        ]
        return SampleScores(rows, self._told(pairs, given) if rows else {})

    def _told(self, pairs: Sequence[Foiled], given: Mapping[Any, float]) -> dict[str, str]:
        """How it was scored, and how many scores do not tell a caption from its foil."""
        told = {"scored by": HOW[self.value], "text only": TEXT_ONLY}
        scores = [(given.get(pair.caption.id), given.get(pair.foil.id)) for pair in pairs]
        if ties := sum(caption is not None and caption == foil for caption, foil in scores):
            told["ties"] = (
                f"{ties:,} of {len(pairs):,} pairs have equal scores, which count as wrong; evaluation.options.precision=32-true "
                "tells apart what fewer digits make equal"
            )
        return told

    def _averaged(self, pairs: Sequence[Foiled]) -> dict[str, list[str]]:
        """The subsets, of those that there are, that each average is of; without averages of none."""
        counts = Counter(pair.subset for pair in pairs if pair.subset)
        known = [
            name for name, count in counts.items() if name not in self.left_out and count >= max(1, self.min_count)
        ]
        found = {name: [each for each in known if of is None or each in of] for name, of in self.averages.items()}
        return {name: subsets for name, subsets in found.items() if subsets}

    def _row(
        self,
        pair: Foiled,
        caption: float,
        foil: float,
        words: Mapping[str, str],
        averages: Mapping[str, Sequence[str]],
    ) -> Row:
        word = words.get(pair.subset)
        parts = {self.metric: 100.0 * (caption > foil)}
        row: Row = {"id": pair.caption.id, "score": parts[self.metric], "image_id": pair.photo}
        sums: dict[str, list[int]] = {}
        if self.threshold is not None:
            matched, rejected = int(caption > self.threshold), int(foil <= self.threshold)
            parts |= dict(zip(TOLD, (50.0 * (matched + rejected), 100.0 * matched, 100.0 * rejected), strict=True))
            sums |= {f"{LOWEST}{name}": [matched, 1, rejected, 1] for name in self._names(LEAST, word)}
            row["areas"] = {name: [caption, foil] for name in self._names(AREA, word)}
        own = {metric: self._names(metric, word) for metric in parts}
        row["values"] = parts | {name: parts[metric] for metric, names in own.items() for name in names[1:]}
        for average, subsets in averages.items():
            for metric, part in parts.items():
                counted = [(int(part), 100) if each == pair.subset else (0, 0) for each in subsets]
                sums[f"{RATIOS}{metric}/{average}"] = [count for both in counted for count in both]
        return {**row, "sums": sums} if sums else row

    def _names(self, metric: str, word: str | None) -> list[str]:
        """What a metric is called, and what it is of a subset: deeper, and so in the files alone, but where it is the first."""
        within = self.within if metric == self.metric else WITHIN
        return [metric] if word is None else [metric, f"{metric}/{within}{word}"]

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each pair, with the text that scored higher as what was given."""
        pairs, given = {pair.caption.id: pair for pair in pairs_of(samples)}, given_scores(records, samples, self.value)
        return [_example(pairs[row["id"]], given, row["score"]) for row in evenly(rows, limit)]

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """A guesser that learns from the texts of the other images which words foils have; and a coin for each text."""
        middle = self.threshold or 0.0
        guessed = {key: middle + far for key, far in guessed_scores(samples).items()}
        by_text = score(records_of(guessed, self.value), samples)
        return guesses(by_text, dict.fromkeys(by_text, 50.0))


def _example(pair: Foiled, given: Mapping[Any, float], score: float) -> Example:
    preferred = pair.caption.text if score else pair.foil.text
    said = [f"{given[text.id]:.3g}" if text.id in given else "nothing" for text in (pair.caption, pair.foil)]
    return Example(
        pair.caption.id,
        pair.sample.image_id,
        pair.sample.image if has_pixels(pair.sample.image) else None,
        f"{pair.subset}: caption {said[0]}, foil {said[1]}",
        preferred,
        pair.caption.text,
        score,
        pair.sample.size,
        upright=pair.sample.upright,
    )
