"""What guessers learn from text alone: the commonest value in a context, and a regression from the words of a text."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.sample import Sample, Text

MAX_WORDS = 2000  # of the bag of words
RIDGE = 1.0


class Majority:
    """The most frequent value for each of several contexts, to be asked from the most to the least telling one."""

    def __init__(self, observations: Iterable[tuple[Hashable, Any]]) -> None:
        self.counts: dict[Hashable, Counter[Any]] = {}
        for context, value in observations:
            self.counts.setdefault(context, Counter()).update([value])

    def __call__(self, contexts: Iterable[Hashable]) -> Any:
        """The answer of the first context that was observed; None if none was."""
        known = next((context for context in contexts if context in self.counts), None)
        return self.counts[known].most_common(1)[0][0] if known is not None else None


def ridge(texts: Sequence[str], targets: NDArray[np.float64]) -> Callable[[str], NDArray[np.float64]]:
    """Regression from the set of a text's words to targets (N, K), by normal equations over the commonest words."""
    frequent = Counter(word for text in texts for word in set(text.lower().split())).most_common(MAX_WORDS)
    column = {word: at for at, (word, _) in enumerate(frequent)}
    mean, size = targets.mean(axis=0), len(column)

    def columns(text: str) -> list[int]:
        return sorted({column[word] for word in text.lower().split() if word in column})

    gram, moments = np.eye(size) * RIDGE, np.zeros((size, targets.shape[1]))
    for text, target in zip(texts, targets, strict=True):
        at = columns(text)
        gram[np.ix_(at, at)] += 1
        moments[at] += target - mean
    weights = np.linalg.solve(gram, moments)
    return lambda text: weights[columns(text)].sum(axis=0) + mean


def guesses(by_text: Mapping[str, float], by_chance: Mapping[str, float]) -> dict[str, float]:
    """The scores of the two guessers under the names that stand beside a model's."""
    named = {"baseline": by_text, "chance": by_chance}
    return {f"{name}_{suffix}": value for suffix, scores in named.items() for name, value in scores.items()}


def captions_of(samples: Sequence[Sample]) -> Iterator[Text]:
    """All captions."""
    for sample in samples:
        yield from sample.texts.get("captions", ())
