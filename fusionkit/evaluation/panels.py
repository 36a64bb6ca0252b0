"""What a gallery shows of a benchmark, worst mistakes first; among equals, one text of every image before its next."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.evaluation.gallery import GREEN, GREY, RED, Mark, Note, Panel, Picture, Sheet
from fusionkit.evaluation.grounding import boxed_expressions, expression_overlaps
from fusionkit.evaluation.records import Record
from fusionkit.evaluation.retrieval import list_rank
from fusionkit.evaluation.vqa import question_accuracies

TOP = 5  # images shown for a caption
SHOWN_ANSWERS = 3


def vqa_sheet(records: Sequence[Record], samples: Sequence[Sample]) -> Sheet:
    """Question, image, the given answer and the human ones."""
    accuracies = question_accuracies(records, samples)
    given = {record["question_id"]: record["answer"] for record in records}
    ordered: list[tuple[float, int, Panel]] = []
    for sample in samples:
        for turn, question in enumerate(q for q in sample.texts.get("questions", ()) if q.id in accuracies):
            score = accuracies[question.id]
            counts = Counter(question.facts["answers"]).most_common(SHOWN_ANSWERS)
            humans = ", ".join(f"{answer} ({count})" if len(counts) > 1 else answer for answer, count in counts)
            said = Note(f"given: {given.get(question.id, '(nothing)')}", GREEN if score >= 0.5 else RED)
            notes = (said, Note(f"true: {humans}"))
            ordered.append((score, turn, Panel(question.text, (Picture(sample.image, notes=notes),))))
    legend = "the answer given (green: at least half right by the official rule), and the human answers"
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
        picture = Picture(sample.image, sample.size, tuple(marks), notes=(note,))
        ordered.append((overlap, turns[sample.image_id], Panel(text.text, (picture,))))
        turns[sample.image_id] += 1
    return Sheet("true box: green; given box: red, dashed; right from IoU 0.50 on", _sorted(ordered))


def retrieval_sheet(records: Sequence[Record], samples: Sequence[Sample]) -> Sheet:
    """Caption, the five best images, the right one framed; where it is not among them, it stands at the end."""
    by_id = {sample.image_id: sample for sample in samples}
    ranked = {record["caption_id"]: record for record in records if "caption_id" in record}
    with_captions = sum(bool(sample.texts.get("captions")) for sample in samples)
    ordered: list[tuple[float, int, Panel]] = []
    for sample in samples:
        for turn, caption in enumerate(text for text in sample.texts.get("captions", ()) if text.id in ranked):
            record = ranked[caption.id]
            rank = list_rank(record, "image_ids", {sample.image_id}, with_captions)
            best = zip(record["image_ids"][:TOP], record["scores"], strict=False)
            pictures = [_candidate(by_id[item], place + 1, score, sample) for place, (item, score) in enumerate(best)]
            if sample.image_id not in record["image_ids"][:TOP]:
                is_listed = sample.image_id in record["image_ids"]
                place = f"rank {rank + 1}" if is_listed else f"beyond rank {len(record['image_ids'])}"
                note = Note(f"the right one, {place}", RED)
                pictures.append(Picture(sample.image, frame=GREEN, notes=(note,)))
            ordered.append((-rank, turn, Panel(caption.text, tuple(pictures))))
    legend = f"text to image: the best {TOP} of {with_captions} images for each caption; the right one is framed"
    return Sheet(legend, _sorted(ordered))


def _candidate(sample: Sample, place: int, score: float, right: Sample) -> Picture:
    is_right = sample.image_id == right.image_id
    return Picture(
        sample.image,
        frame=GREEN if is_right else None,
        notes=(Note(f"{place}.   score {score:.2f}", GREEN if is_right else GREY),),
    )


def _sorted(ordered: list[tuple[float, int, Panel]]) -> list[Panel]:
    return [panel for _, _, panel in sorted(ordered, key=lambda entry: entry[:2])]
