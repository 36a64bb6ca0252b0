"""Captions: how much of a generated one stands in those that people wrote? Corpus BLEU, without Java.

The words are the lower-cased letters and digits between everything else. The official script splits them by the Penn
Treebank's rules, so that its numbers differ a little; it is the one to report.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from fusionkit.data.sample import Sample
from fusionkit.evaluation.records import Record, index_records

ORDERS = (1, 2, 3, 4)
_WORD = re.compile(r"\w+(?:'\w+)?")


def words_of(caption: str) -> list[str]:
    """The words of a caption, without punctuation."""
    return _WORD.findall(caption.lower())


def score_captions(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """BLEU-4 and BLEU-1 in percent over all images with captions, from ``{"image_id", "caption"}`` records.

    An image without a record counts as an empty caption.
    """
    given = index_records(records, "image_id", {sample.image_id for sample in samples})
    told = [sample for sample in samples if sample.texts.get("captions")]
    if not told:
        return {}
    candidates = [words_of(given[sample.image_id]["caption"]) if sample.image_id in given else [] for sample in told]
    references = [[words_of(text.text) for text in sample.texts["captions"]] for sample in told]
    scores = bleu(candidates, references)
    return {"caption_bleu4": 100 * scores[3], "caption_bleu1": 100 * scores[0]}


def bleu(candidates: Sequence[list[str]], references: Sequence[list[list[str]]]) -> list[float]:
    """BLEU-1 to BLEU-4 in 0..1 of a corpus (Papineni et al. 2002): clipped n-gram precision with a brevity penalty.

    The reference length of a candidate is that of its reference of nearest length, the shorter one of two.
    """
    matches, totals = Counter[int](), Counter[int]()
    for candidate, others in zip(candidates, references, strict=True):
        for order in ORDERS:
            counts = ngrams(candidate, order)
            highest: Counter[tuple[str, ...]] = Counter()
            for other in others:
                highest |= ngrams(other, order)
            matches[order] += (counts & highest).total()
            totals[order] += counts.total()
    length = sum(map(len, candidates))
    wanted = sum(
        min((abs(len(other) - len(candidate)), len(other)) for other in others)[1]
        for candidate, others in zip(candidates, references, strict=True)
    )
    brevity = min(1.0, math.exp(1 - wanted / length)) if length else 0.0
    precisions = [matches[order] / totals[order] if totals[order] else 0.0 for order in ORDERS]
    return [brevity * math.prod(precisions[:order]) ** (1 / order) for order in ORDERS]


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))
