"""Metrics of a whole corpus as formulas of summed counts, for many weightings of its images at once: BLEU, METEOR, shares.

And CIDEr-D, which is a mean over images, by the frequencies of another corpus than the one that is scored.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ORDERS = (1, 2, 3, 4)
SMALL, TINY = 1e-9, 1e-15  # as in pycocoevalcap, whose numbers these are
LONGEST, WIDTH = (
    4,
    6.0,
)  # n-grams up to this length, and the width of the penalty of another length, as in pycocoevalcap
CHOICES = 4  # of a rater: the one, the other, a tie, both bad
NGram = tuple[str, ...]

# METEOR 1.5's parameters for ranking English (Denkowski and Lavie 2014)
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def bleu(sums: Floats) -> dict[str, Floats]:
    """BLEU-1 to BLEU-4 (R,) in percent from sums (R, 10): candidate and reference length, 4 totals, 4 matches.

    Papineni et al. 2002 with the constants of pycocoevalcap's ``bleu_scorer.py``.
    """
    length, wanted, totals, matches = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    precision = ((matches + TINY) / (totals + SMALL)).cumprod(axis=1)  # (R, 4)
    ratio = (length + TINY) / (wanted + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return {f"bleu_{order}": 100 * brevity * precision[:, order - 1] ** (1 / order) for order in ORDERS}


def without_whole(counts: Floats) -> Floats:
    """What METEOR 1.5 says of each sentence (N, 23), less the chunk of one that is its reference (``MeteorStats.addStats``).

    In its order: length of candidate and reference, function words of both; for each of four stages the matched content
    words of both and function words of both; chunks, matched words of both.
    """
    matched = counts[:, 4:20].reshape(-1, 8, 2).sum(axis=1)  # (N, 2): candidate, reference
    is_whole = (matched == counts[:, 0:2]).all(axis=1) & (counts[:, 20] == 1)
    return np.column_stack([counts[:, :20], np.where(is_whole, 0.0, counts[:, 20]), counts[:, 21:]])


def meteor(sums: Floats) -> dict[str, Floats]:
    """METEOR (R,) in percent from sums (R, 23) of ``without_whole`` (``MeteorScorer.computeMetrics``)."""
    lengths, functions = sums[:, 0:2], sums[:, 2:4]  # (R, 2): candidate, reference
    stages = sums[:, 4:20].reshape(-1, 4, 2, 2)  # (R, stage, content or function, candidate or reference)
    chunks, words = sums[:, 20], sums[:, 21:23]
    matches = np.tensordot(DELTA * stages[:, :, 0] + (1 - DELTA) * stages[:, :, 1], STAGE_WEIGHTS, axes=([1], [0]))
    weighted = DELTA * (lengths - functions) + (1 - DELTA) * functions
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = np.nan_to_num(matches / weighted).T
        mean = np.nan_to_num(1 / ((1 - ALPHA) / precision + ALPHA / recall))
        fragments = np.nan_to_num(chunks / (words.sum(axis=1) / 2))
    return {"meteor": 100 * mean * (1 - GAMMA * fragments**BETA)}


def caption_bleu(sums: Floats) -> dict[str, Floats]:
    """BLEU-4 and BLEU-1 alone, under the names that they have while training."""
    scores = bleu(sums)
    return {f"caption_bleu{order}": scores[f"bleu_{order}"] for order in (4, 1)}


def chat_bleu(sums: Floats) -> dict[str, Floats]:
    """BLEU-4 alone, under the name that it has of replies."""
    return {"chat_bleu_4": bleu(sums)["bleu_4"]}


def kappa(sums: Floats) -> dict[str, Floats]:
    """Cohen's kappa (R,), -1 to 1, from sums (R, 16): how often one rater chose i and the other j of 4 (Cohen 1960)."""
    counts = sums.reshape(-1, CHOICES, CHOICES)
    total = counts.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed = np.trace(counts, axis1=1, axis2=2) / total
        expected = (counts.sum(axis=1) * counts.sum(axis=2)).sum(axis=1) / total**2
        return {"kappa": (agreed - expected) / (1 - expected)}


def alpha(sums: Floats) -> dict[str, Floats]:
    """Krippendorff's alpha (R,) of names, up to 1, from sums (R, 16) of the coincidences of 4 choices (Krippendorff 2011).

    A sample with m ratings adds 1 / (m - 1) for each ordered pair of them.
    """
    counts = sums.reshape(-1, CHOICES, CHOICES)
    each = counts.sum(axis=2)  # (R, 4)
    total = each.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        differ = total - np.trace(counts, axis1=1, axis2=2)
        expected = (total**2 - (each**2).sum(axis=1)) / (total - 1)
        return {"alpha": 1 - differ / expected}


def ratios(sums: Floats) -> Floats:
    """The mean of ratios (R,) in percent from sums (R, 2N): a share of the whole, then the whole, N times."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = 100 * (sums[:, ::2] / sums[:, 1::2]).mean(axis=1)
    return means


def lowest(sums: Floats) -> Floats:
    """The lowest of ratios (R,) in percent from sums (R, 2N), as ``ratios``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        least: Floats = 100 * (sums[:, ::2] / sums[:, 1::2]).min(axis=1)
    return least


FORMULAS: dict[str, Callable[[Floats], dict[str, Floats]]] = {
    "bleu": bleu,
    "caption_bleu": caption_bleu,
    "chat_bleu": chat_bleu,
    "meteor": meteor,
    "kappa": kappa,
    "alpha": alpha,
}
RATIOS, LOWEST = (
    "ratios:",
    "lowest:",
)  # and the name of a metric: what begins so is computed by ``ratios`` or ``lowest``
SHARES = {RATIOS: ratios, LOWEST: lowest}
WIDTHS = {
    "bleu": 10,
    "caption_bleu": 10,
    "chat_bleu": 10,
    "meteor": 23,
    "kappa": CHOICES**2,
    "alpha": CHOICES**2,
}  # of what is summed
ADDENDS: dict[str, Callable[[Floats], Floats]] = {"meteor": without_whole}
"""What is summed of the counts of each sample, where it is not the counts."""


def computed(key: str, sums: Floats) -> dict[str, Floats]:
    """The metrics (R,) of summed numbers (R, N), by the formula that their key names."""
    metric, how = metric_of(key), key[: len(RATIOS)]
    return FORMULAS[key](sums) if metric is None else {metric: SHARES[how](sums)}


def fits(key: str, count: int) -> bool:
    """Whether a formula is known and takes so many numbers."""
    return WIDTHS.get(key) == count if metric_of(key) is None else (count > 0 and count % 2 == 0)


def is_of(metric: str, key: str) -> bool:
    """Whether a metric is computed by the formula."""
    own = metric_of(key)
    return metric.startswith(key) if own is None else metric == own


def metric_of(key: str) -> str | None:
    """The metric that a key of shares names; None for a formula with names of its own."""
    found = next((start for start in SHARES if key.startswith(start)), None)
    return None if found is None else key.removeprefix(found)


class CiderD:
    """CIDEr-D (Vedantam et al. 2015) as pycocoevalcap 1.2 computes it; 1.0 is what our scorers call 100%.

    ``documents`` are the tokenized captions of each image of a corpus, which say how much an n-gram counts: the logarithm of
    the number of images over the number of those that have it. pycocoevalcap knows no other corpus than the one it scores.
    """

    def __init__(self, documents: Iterable[Sequence[str]]) -> None:
        self.images = 0
        self.frequencies: Counter[NGram] = Counter()
        for captions in documents:
            self.images += 1
            self.frequencies.update({ngram for caption in captions for ngram in counts_of(caption)})

    def __call__(self, said: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[float]:
        """The score of each tokenized caption against its own references; 0 where it has none."""
        known: dict[str, _Vector] = {}

        def vector(caption: str) -> _Vector:
            if caption not in known:
                known[caption] = _Vector(self, caption)
            return known[caption]

        return [
            10 * sum(vector(caption).likeness(vector(text)) for text in references) / max(len(references), 1)
            for caption, references in zip(said, wanted, strict=True)
        ]

    def weight(self, ngram: NGram) -> float:
        """How much one more of an n-gram counts."""
        return math.log(self.images) - math.log(max(1, self.frequencies[ngram]))


class _Vector:
    """The n-grams of a caption, weighted, by their length."""

    def __init__(self, cider: CiderD, caption: str) -> None:
        self.weights: list[dict[NGram, float]] = [{} for _ in range(LONGEST)]
        self.length = 0  # in pairs of words
        for ngram, count in counts_of(caption).items():
            self.weights[len(ngram) - 1][ngram] = count * cider.weight(ngram)
            self.length += count if len(ngram) == 2 else 0
        self.norms = [math.sqrt(sum(weight**2 for weight in weights.values())) for weights in self.weights]

    def likeness(self, reference: "_Vector") -> float:
        """The mean over lengths of the clipped cosine, less for another length."""
        cosines = []
        for own, other, norm, other_norm in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            shared = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other)
            cosines.append(shared / (norm * other_norm) if norm and other_norm else shared)
        return math.exp(-((self.length - reference.length) ** 2) / (2 * WIDTH**2)) * sum(cosines) / LONGEST


def counts_of(caption: str) -> Counter[NGram]:
    """How often each n-gram of up to four words is in a tokenized caption."""
    words = caption.split()
    return Counter(
        tuple(words[start : start + size]) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1)
    )
