"""What a guesser scores that never looks at the image: ``<metric>_baseline`` reads the text, ``<metric>_chance`` not.

Each function takes the training samples, the samples to score, the model's records for them (which may say what was
asked, e.g. the masked places), the tokenizer's ``tokenize``, and the scorer of the model, which scores the guesses too.
Without training samples it returns what needs none.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import comb
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.frames import framed
from fusionkit.data.images import decode
from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.classification import Truth, entailment_label, labelled, nlvr2_label
from fusionkit.scoring.grounding import boxed_expressions
from fusionkit.scoring.ranked_retrieval import CUTS
from fusionkit.scoring.records import Record
from fusionkit.scoring.text_only_models import Majority, ridge
from fusionkit.scoring.vqa import annotated_questions

Tokenize = Callable[[str], list[str]]
Score = Callable[[Sequence[Record], Sequence[Sample]], dict[str, float]]
QUESTION_PREFIXES = (3, 2, 1, 0)  # words


class Baseline(Protocol):
    """The scores of the two guessers, by metric name and suffix."""

    def __call__(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Score,
    ) -> dict[str, float]: ...


def vqa_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """The commonest training answer to the same question, backing off to its first 3, 2, 1 words; and to any."""
    known = annotated_questions(train)
    majority = Majority((context, _answer(each)) for each in known for context in _question_contexts(each))
    if not majority.counts:
        return {}
    asked = list(annotated_questions(samples))
    by_text = [{"question_id": each.id, "answer": majority(_question_contexts(each))} for each in asked]
    commonest = majority([()])
    by_chance = [{"question_id": each.id, "answer": commonest} for each in asked]
    return _named("baseline", score(by_text, samples)) | _named("chance", score(by_chance, samples))


def grounding_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """Ridge regression from the words of an expression to its box, relative to the image; and the mean training box."""
    known = list(boxed_expressions(train))
    if not known:
        return {}
    boxes = np.array([_relative_box(*each) for each in known])
    regress = ridge([text.text for _, text in known], boxes)
    asked = list(boxed_expressions(samples))
    by_text = [_box_record(sample, text, regress(text.text)) for sample, text in asked]
    by_chance = [_box_record(sample, text, boxes.mean(axis=0)) for sample, text in asked]
    return _named("baseline", score(by_text, samples)) | _named("chance", score(by_chance, samples))


def matching_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """Balanced accuracy of any answer that does not compare the caption with the image."""
    return {"itm_accuracy_baseline": 50.0, "itm_accuracy_chance": 50.0}


def masked_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """The commonest training token between the same neighbours, backing off to the left, the right one; and of all.

    A neighbour that is masked itself is not known.
    """
    asked = list(_masked_contexts(samples, records, tokenize))
    wanted = {context for contexts in asked for context in contexts} | {(None, None)}
    majority = Majority(
        (context, token)
        for caption in _captions(train)
        for left, token, right in _trigrams(tokenize(caption.text))
        for context in _neighbour_contexts(left, right)
        if context in wanted
    )
    if not majority.counts:
        return {}
    commonest = majority([(None, None)])
    by_text = [{**record, "token": majority(contexts)} for record, contexts in zip(records, asked, strict=True)]
    by_chance = [{**record, "token": commonest} for record in records]
    return _named("baseline", score(by_text, samples)) | _named("chance", score(by_chance, samples))


def hidden_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """What the score calls 0: guessing the mean of the image's other tokens."""
    return {"mrm_explained_baseline": 0.0, "mrm_explained_chance": 0.0}


def caption_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """The commonest training caption, said of every image; there is no text to read, so the two guessers are one."""
    counts = Counter(caption.text for caption in _captions(train))
    if not counts:
        return {}
    commonest = min(counts, key=lambda text: (-counts[text], text))
    told = [{"image_id": sample.image_id, "caption": commonest} for sample in samples if sample.texts.get("captions")]
    scores = score(told, samples)
    return _named("baseline", scores) | _named("chance", scores)


def entailment_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """The label that the words of the hypothesis alone suggest (ridge regression); and the commonest one."""
    return _label_baselines(train, samples, "hypotheses", "pair_id", entailment_label, score)


def nlvr2_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """The label that the words of the sentence alone suggest (ridge regression); and the commonest one."""
    return _label_baselines(train, samples, "statements", "statement_id", nlvr2_label, score)


def _label_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], kind: str, key: str, truth: Truth, score: Score
) -> dict[str, float]:
    known = labelled(train, kind, truth)
    counts = Counter(map(truth, known))
    if not counts:
        return {}
    labels = sorted(counts, key=str)
    shares = np.array([[float(truth(text) == label) for label in labels] for text in known])
    regress = ridge([text.text for text in known], shares)
    asked = labelled(samples, kind, truth)
    by_text = [{key: text.id, "label": labels[int(regress(text.text).argmax())]} for text in asked]
    by_chance = [{key: text.id, "label": counts.most_common(1)[0][0]} for text in asked]
    return _named("baseline", score(by_text, samples)) | _named("chance", score(by_chance, samples))


def retrieval_baselines(
    train: Sequence[Sample], samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize, score: Score
) -> dict[str, float]:
    """R@k of a random order, for both: k / I for a caption, 1 - C(T - c, k) / C(T, k) for an image with c captions."""
    owned = Counter(sample.image_id for sample in samples for _ in sample.texts.get("captions", ()))
    images, texts = len(owned), sum(owned.values())
    scores = {}
    for cut in CUTS if owned else ():
        scores[f"text_to_image_r{cut}"] = 100 * min(1.0, cut / images)
        missed = [comb(texts - count, cut) / comb(texts, cut) if cut <= texts else 0.0 for count in owned.values()]
        scores[f"image_to_text_r{cut}"] = 100 * (1 - sum(missed) / images)
    return _named("baseline", scores) | _named("chance", scores)


def _named(suffix: str, scores: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_{suffix}": value for name, value in scores.items()}


def _captions(samples: Sequence[Sample]) -> Iterator[Text]:
    for sample in samples:
        yield from sample.texts.get("captions", ())


def _answer(question: Text) -> str:
    given: str | None = question.facts.get("multiple_choice_answer")
    answers: list[str] = question.facts["answers"] if given is None else []
    return given if given is not None else Counter(answers).most_common(1)[0][0]


def _question_contexts(question: Text) -> list[tuple[str, ...]]:
    """The whole question (marked by its end), its first words, and nothing."""
    words = tuple(question.text.lower().rstrip(" ?").split())
    return [(*words, "?"), *(words[:count] for count in QUESTION_PREFIXES)]


def _masked_contexts(
    samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize
) -> Iterator[list[tuple[str | None, str | None]]]:
    """For each record what its token's neighbours tell. Position 0 of a caption is [CLS], as in ``input_ids``."""
    texts = {caption.id: caption.text for caption in _captions(samples)}
    masked = {(record["caption_id"], record["position"]) for record in records}
    tokens: dict[Any, list[str]] = {}
    for record in records:
        key, position = record["caption_id"], record["position"]
        if key not in tokens:
            tokens[key] = ["", *tokenize(texts[key]), ""]
        left, right = (
            None if (key, place) in masked else tokens[key][place]
            for place in (position - 1, min(position + 1, len(tokens[key]) - 1))
        )
        yield _neighbour_contexts(left, right)


def _neighbour_contexts(left: str | None, right: str | None) -> list[tuple[str | None, str | None]]:
    return list(dict.fromkeys([(left, right), (left, None), (None, right), (None, None)]))


def _trigrams(tokens: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    padded = ["", *tokens, ""]
    return zip(padded, tokens, padded[2:], strict=False)


def _size(sample: Sample) -> tuple[int, int]:
    if sample.size is not None:
        return sample.size
    return framed(decode(sample.image, 1), None, sample.upright).size


def _relative_box(sample: Sample, text: Text) -> list[float]:
    """(x, y, w, h) in 0..1 of the image."""
    width, height = _size(sample)
    return [value / side for value, side in zip(text.facts["box"], (width, height, width, height), strict=True)]


def _box_record(sample: Sample, text: Text, relative: NDArray[np.float64]) -> Record:
    width, height = _size(sample)
    return {"sent_id": text.id, "bbox": (relative * (width, height, width, height)).tolist()}
