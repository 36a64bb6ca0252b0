"""A checkpoint answers one's own requests: each image and its texts are encoded once, for all tasks that reply."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.data.datamodule import DataModule
from fusionkit.data.dataset import Item
from fusionkit.data.images import CorruptImage
from fusionkit.data.regions import UNKNOWN
from fusionkit.data.requests import ASKED, STREAMS, TEXTS, Request, by_image, own_data, require_image
from fusionkit.data.texts.conversations import CONVERSATIONS
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.inference.prediction import evaluating, moved
from fusionkit.inference.progress import Bar, show_progress
from fusionkit.model.model import VisionLanguageModel
from fusionkit.scoring.records import Record
from fusionkit.tasks.base import Task
from fusionkit.types import Batch, Encoded
from fusionkit.visual.attention_maps import AttentionWeights, Look, look, read_attention

Tasks = Mapping[str, Task[Any]]


@dataclass(frozen=True)
class Answer:
    """What is said to one request: all in one record, or its ``error`` alone."""

    request: Request
    record: Record
    looks: Mapping[str, Look] = field(default_factory=dict)  # by word of TEXTS
    attention: Mapping[str, AttentionWeights] = field(default_factory=dict)  # by word of TEXTS


@dataclass(frozen=True)
class Predictor:
    """A model and its tasks that can be asked.

    ``sources``  of the run that trained the tasks, each with the names of its tasks: texts are read as those of the source.
    ``by``       the task that replies where several can; else the first in the order of the run's configuration. A text is
                 answered by all that can: they say different things of it (matching, contrast, entailment).
    ``top``      how many answers to name.
    ``layer``    where ``looks`` are taken, from 0; None: the task's own, or the middle one.
    ``attention`` whether answers have the weights of all layers and heads.
    """

    model: VisionLanguageModel
    tasks: Tasks
    sources: Mapping[str, Iterable[str]]
    datamodule: DataModule
    device: torch.device
    options: EvaluationOptions
    by: str | None = None
    top: int = 5
    batch_size: int = 16
    looks: bool = False
    layer: int | None = None
    attention: bool = False

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """A reply to each request, in their order; ConfigError where no task can answer one."""
        asked = {word: self.repliers(word) for word in ASKED if any(word in request.asks for request in requests)}
        if self.by is not None and self.by not in {name for tasks in asked.values() for name in tasks}:
            raise ConfigError(
                f"by={self.by} is no task that answers what is asked; {suggest(self.by, self._able(asked))}"
            )
        is_stream = self.model.image_encoder.reads in STREAMS  # of which several files are one
        turns = [request for request in requests if request.conversation or (request.others and not is_stream)]
        if turns and not _is_chat(asked["question"]):
            what = "about several images" if turns[0].others else "a list of messages"
            raise ConfigError(
                f"the question is {what}, which a checkpoint answers that was trained with task=[chat]; ask in words about one "
                "image, or name its task as by=chat"
            )
        found: dict[int, Answer] = {}
        with (
            evaluating(self.model, self.tasks.values(), self.device, self.options),
            show_progress(self.options.quiet or len(requests) <= self.batch_size) as progress,
        ):
            bar = Bar(progress, "answering")
            bar.begin(len(requests), 0)
            for numbers in self._batches(requests):
                for source, words in self._by_source(requests[numbers[0]].asks, asked).items():
                    tasks = {word: asked[word] for word in words}
                    new = self._answer_batch(source, tasks, [requests[number] for number in numbers])
                    for number, reply in zip(numbers, new, strict=True):
                        found[number] = _joined(found[number], reply) if number in found else reply
                bar.advance(len(numbers))
        return [found[number] for number in range(len(requests))]

    def repliers(self, word: str) -> Tasks:
        """The tasks that answer a word of ASKED."""
        able = self._able([word])
        if not able:
            known = sorted({str(task.replies_to) for task in self.tasks.values() if task.replies_to})
            raise ConfigError(
                f"a {word} is asked for, but no task of the checkpoint answers it; it answers: {', '.join(known) or 'nothing'}"
            )
        if self.by in able:
            return {self.by: able[self.by]}
        return able if word == "text" else dict(list(able.items())[:1])

    def _able(self, words: Iterable[str]) -> dict[str, Task[Any]]:
        return {name: task for name, task in self.tasks.items() if task.replies_to in list(words)}

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[int, ...]]:
        """Numbers of requests that ask the same, so that each request of a batch has one text of each word."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.asks, []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                yield tuple(numbers[start : start + self.batch_size])

    def _by_source(self, words: Iterable[str], asked: Mapping[str, Tasks]) -> dict[str, list[str]]:
        """The words that are read as each source's texts: as the first one that trained the task."""
        places: dict[str, list[str]] = {}
        for word in words:
            first = next(iter(asked[word]))
            source = next(source for source, names in self.sources.items() if first in names)
            places.setdefault(source, []).append(word)
        return places

    def _answer_batch(self, source: str, tasks: Mapping[str, Tasks], requests: Sequence[Request]) -> list[Answer]:
        texts = [word for word in tasks if word in TEXTS]
        chats = [word for word in texts if _is_chat(tasks[word])]
        data, collate = own_data(self.datamodule, source, requests, texts, chats=chats)
        replies, items = [Answer(request, _asked(request)) for request in requests], list[Item]()
        shown = list[list[int]]()  # the requests about each item
        for place, numbers in enumerate(by_image(requests)):
            try:
                require_image(requests[numbers[0]], self.model.image_encoder.reads)
                item = data.item(place)
                _require_size(item, requests[numbers[0]])
            except (CorruptImage, DataError) as error:
                for number in numbers:
                    replies[number].record["error"] = str(error)
            else:
                items.append(item)
                shown.append(numbers)
        if not items:
            return replies
        collated = collate(items)
        if isinstance(collated, DataError):
            raise collated
        batch = moved(collated, self.device)
        encoded = self.model.encode(batch, texts)
        for word, repliers in tasks.items():
            for task in repliers.values():
                view = _read_as(task.reads, word, batch, encoded)
                said = task.reply(self.model, *view, self.top)
                # a record for each text, whose id is the number of its request, or, where there are no words, each image
                about = [[number] for number in batch[word]["ids"]] if word in texts else shown
                for numbers, record in zip(about, said, strict=True):
                    for number in numbers:
                        replies[number].record.update(record)
        if (self.looks or self.attention) and any("images" in batch[word] for word in texts):
            raise ConfigError(
                "attention: maps are drawn of one image, but a question holds several at places; ask without"
            )
        looks = {word: self._look(word, tasks[word], batch, encoded) for word in texts} if self.looks else {}
        weights = {word: self._attention(word, batch, encoded) for word in texts} if self.attention else {}
        for row, number in enumerate(
            number for numbers in shown for number in numbers
        ):  # as the texts of each word stand
            replies[number] = replace(
                replies[number],
                looks={word: found[row] for word, found in looks.items()},
                attention={word: found[row] for word, found in weights.items()},
            )
        return replies

    def _attention(self, word: str, batch: Any, encoded: Encoded) -> list[AttentionWeights]:
        images, tokenizer = self.model.images_of(batch), self.datamodule.tokenizer
        return read_attention(self.model, images, encoded.image, encoded.text[word], batch[word], tokenizer)

    def _look(self, word: str, repliers: Tasks, batch: Any, encoded: Encoded) -> list[Look]:
        """By the task that replies, if one number decides what it says, else by matching: it knows any text."""
        able = [*repliers.values(), *self._able(["text"]).values()]
        task = next((task for task in able if hasattr(task, "evidence")), None)
        evidence: Any = getattr(task, "evidence", None)
        layer = self.layer if self.layer is not None else getattr(task, "layer", None)
        text, tokenizer = encoded.text[word], self.datamodule.tokenizer
        return look(
            self.model, evidence, self.model.images_of(batch), encoded.image, text, batch[word], tokenizer, layer
        )


def _is_chat(repliers: Tasks) -> bool:
    """Whether what is asked is a turn of a conversation."""
    return any(task.reads == CONVERSATIONS for task in repliers.values())


def _read_as(kind: str, word: str, batch: Any, encoded: Encoded) -> tuple[Batch, Encoded]:
    """A batch whose texts stand under the request's word, as a task finds them: under the kind that it reads."""
    if word not in batch:
        return batch, encoded
    text, feats = {kind: encoded.text[word]}, {kind: encoded.text_feats[word]}
    view: Any = {**batch, kind: batch[word]}
    return view, replace(encoded, text=text, text_feats=feats)


def _require_size(item: Item, request: Request) -> None:
    if item.size == UNKNOWN and "phrase" in request.asks:
        raise DataError(
            f"{request.image} does not say how large its image is, so that no box can be given in pixels; "
            "put its `size` (width, height) into the file"
        )


def _asked(request: Request) -> Record:
    images = [str(request.image), *(str(image) for image in request.others)]
    return {**(request.facts or {}), "image": images if request.others else images[0], **request.texts}


def _joined(first: Answer, second: Answer) -> Answer:
    looks, attention = {**first.looks, **second.looks}, {**first.attention, **second.attention}
    return Answer(first.request, first.record | second.record, looks, attention)
