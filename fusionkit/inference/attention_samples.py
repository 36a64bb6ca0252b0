"""Where a run's own texts look: pictures and arrays of a few samples of each task, the same ones at each evaluation."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fusionkit.data.requests import TEXTS, Request
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.conversations import TURNS, Conversation
from fusionkit.inference.answering import Predictor
from fusionkit.inference.overlays import draw_reply
from fusionkit.scoring.records import write_records


def draw_attention(
    predictor: Predictor, source: str, names: Iterable[str], samples: Sequence[Sample], count: int, stem: Path
) -> None:
    """Write ``<stem>_<task>_<number>_<word>`` as .png and .npz, and what they show as ``<stem>_<task>.jsonl``.

    For each of the source's named tasks that answers in words and, of those that match texts, for those that GradCAM can
    explain. Of conversations those about one picture that is read first.
    """
    for name in names:
        task = predictor.tasks[name]
        word = task.replies_to
        if word not in TEXTS or (word == "text" and not hasattr(task, "evidence")):
            continue
        there = [sample for sample in samples if all(map(_shows_one, sample.texts.get(task.reads, ())))]
        if not any(sample.texts.get(task.reads) for sample in there):
            continue
        asked = replace(predictor, by=name, looks=True, sources={source: predictor.sources[source]})
        chosen, records = spread(there, task.reads, count), []
        requests = [
            Request(
                sample.image,
                {word: _asked(text)},
                facts={"image_id": sample.image_id, "text_id": text.id},
                size=sample.size,
                upright=sample.upright,
                conversation=Conversation.of(text).before_reply if TURNS in text.facts else None,
            )
            for sample, text in chosen
        ]
        is_middle = predictor.datamodule.finish.fit == "crop"
        for number, (reply, (_, text)) in enumerate(zip(asked.answer(requests), chosen, strict=True)):
            truth = text.facts.get("box")
            written = draw_reply(reply, stem.with_name(f"{stem.name}_{name}_{number}"), is_middle, truth)
            truths = {"true_bbox": list(truth)} if truth is not None else {}
            records.append({**reply.record, **truths, "files": [path.name for path in written]})
        write_records(stem.with_name(f"{stem.name}_{name}.jsonl"), records)


def _shows_one(text: Text) -> bool:
    """Whether a text is about one picture before all of it, of which alone there are maps."""
    return TURNS not in text.facts or not Conversation.of(text).places


def _asked(text: Text) -> str:
    """What a text says, or of a conversation what is replied to last."""
    return Conversation.of(text).before_reply.turns[-1] if TURNS in text.facts else text.text


def spread(samples: Sequence[Sample], kind: str, count: int) -> list[tuple[Sample, Text]]:
    """Texts of a kind, of images spread evenly over all that have some: of each image one, and not always its first."""
    there = [sample for sample in samples if sample.texts.get(kind)]
    places = [number * len(there) // count for number in range(count)] if count < len(there) else range(len(there))
    texts = [there[place].texts[kind] for place in places]
    return [
        (there[place], own[number % len(own)]) for number, (place, own) in enumerate(zip(places, texts, strict=True))
    ]
