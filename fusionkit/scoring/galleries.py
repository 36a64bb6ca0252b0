"""What a gallery shows of a benchmark, worst mistakes first; among equals, one text of every image before its next."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.scoring.grounding import boxed_expressions, expression_overlaps
from fusionkit.scoring.ranked_retrieval import list_rank
from fusionkit.scoring.records import Record
from fusionkit.scoring.sheet import GREEN, GREY, RED, Mark, Note, Panel, Picture, Sheet
from fusionkit.scoring.vqa import agreement, question_accuracies

TOP = 5  # images shown for a caption
SHOWN_ANSWERS = 3


def vqa_sheet(records: Sequence[Record], samples: Sequence[Sample]) -> Sheet:
    """Question, image, the given answer and the human ones."""
    accuracies = question_accuracies(records, samples, agreement)
    given = {record["question_id"]: record["answer"] for record in records}
    ordered: list[tuple[float, int, Panel]] = []
    for sample in samples:
        for turn, question in enumerate(q for q in sample.texts.get("questions", ()) if q.id in accuracies):
            score = accuracies[question.id]
            counts = Counter(question.facts["answers"]).most_common(SHOWN_ANSWERS)
            humans = ", ".join(f"{answer} ({count})" if len(counts) > 1 else answer for answer, count in counts)
            said = Note(f"given: {given.get(question.id, '(nothing)')}", GREEN if score >= 0.5 else RED)
            notes = (said, Note(f"true: {humans}"))
            picture = Picture(sample.image, sample.size, notes=notes, upright=sample.upright)
            ordered.append((score, turn, Panel(question.text, (picture,))))
    legend = "the answer given (green: at least half right), and the human answers"
    return Sheet(legend, _sorted(ordered))


def grounding_sheet(records: Sequence[Record], samples: Sequence[Sample]) -> Sheet:
    """Phrase, and the image with the given box (red, dashed) and the true one (green)."""
    overlaps = expression_overlaps(records, samples)
    given = {record["sent_id"]: record["bbox"] for record in records}
    turns: Counter[Any] = Counter()
    ordered: list[tuple[float, int, Panel]] = []
    for sample, text in boxed_expressions(samples):
        overlap = overlaps[text.id]
        marks = [Mark(text.facts["box"], GREEN)] + ([Mark(given[text.id], RED, True)] if text.id in given else [])
        note = Note(f"IoU {overlap:.2f}", GREEN if overlap >= 0.5 else RED)
        picture = Picture(sample.image, sample.size, tuple(marks), notes=(note,), upright=sample.upright)
        ordered.append((overlap, turns[sample.image_id], Panel(text.text, (picture,))))
        turns[sample.image_id] += 1
    return Sheet("true box: green; given box: red, dashed; right from IoU 0.50 on", _sorted(ordered))


def retrieval_sheet(records: Sequence[Record], samples: Sequence[Sample]) -> Sheet:
    """The worst ranked caption of each image, the five best images for it, the right one framed.

    Where the right one is not among them, it stands at the end.
    """
    by_id = {sample.image_id: sample for sample in samples}
    ranked = {record["caption_id"]: record for record in records if "caption_id" in record}
    with_captions = sum(bool(sample.texts.get("captions")) for sample in samples)
    ordered: list[tuple[float, int, Panel]] = []
    for sample in samples:
        captions = [caption for caption in sample.texts.get("captions", ()) if caption.id in ranked]
        ranks = [list_rank(ranked[each.id], "image_ids", {sample.image_id}, with_captions) for each in captions]
        if captions:
            worst = ranks.index(max(ranks))
            pictures = _candidates(ranked[captions[worst].id], ranks[worst], sample, by_id)
            ordered.append((-ranks[worst], 0, Panel(captions[worst].text, pictures)))
    legend = (
        f"text to image: the worst caption of each image, and the best {TOP} of {with_captions} images for it; "
        "the right one is framed"
    )
    return Sheet(legend, _sorted(ordered))


def _candidates(record: Record, rank: int, right: Sample, by_id: Mapping[Any, Sample]) -> tuple[Picture, ...]:
    """The first images of one caption's record, and the right one if it is not among them."""
    pictures = []
    listed = record["image_ids"]
    for place, (image_id, score) in enumerate(zip(listed[:TOP], record["scores"], strict=False), start=1):
        is_right = image_id == right.image_id
        note = Note(f"{place}.   score {score:z.2f}", GREEN if is_right else GREY)
        pictures.append(_shown(by_id[image_id], GREEN if is_right else None, note))
    if right.image_id not in listed[:TOP]:
        place_text = f"rank {rank + 1}" if right.image_id in listed else f"beyond rank {len(listed)}"
        pictures.append(_shown(right, GREEN, Note(f"the right one, {place_text}", RED)))
    return tuple(pictures)


def _shown(sample: Sample, frame: str | None, note: Note) -> Picture:
    return Picture(sample.image, sample.size, frame=frame, notes=(note,), upright=sample.upright)


def _sorted(ordered: list[tuple[float, int, Panel]]) -> list[Panel]:
    return [panel for _, _, panel in sorted(ordered, key=lambda entry: entry[:2])]
