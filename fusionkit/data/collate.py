"""Items to a batch: pixels stacked or regions padded, the texts of each kind tokenised into rows that point at their image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.cleaning import filled
from fusionkit.data.dataset import Item
from fusionkit.data.images import image_key
from fusionkit.data.pixels.stored import StoredStates
from fusionkit.data.regions import Found, pad_regions
from fusionkit.data.sample import WEIGHT, Sample, Text
from fusionkit.data.streams.clips import Clip
from fusionkit.data.streams.recordings import Spectrogram
from fusionkit.data.tables.samples import as_samples
from fusionkit.data.texts.chat import FIRST, ChatTemplate, place_tensor
from fusionkit.data.texts.conversations import PICTURES, TURNS, Conversation, require_places
from fusionkit.data.texts.word_labels import LABELS, label_rows
from fusionkit.data.tokenizer import companion_of
from fusionkit.errors import DataError
from fusionkit.losses import IGNORE
from fusionkit.types import Batch, Stored

MAX_WORKERS = 256  # that count each on its own


def new_counts() -> Tensor:
    """Texts that were read, cut, and left with nothing to learn, (MAX_WORKERS, 3), for ``Collate``."""
    with torch.inference_mode(False):  # they are counted on outside of it
        counts = torch.zeros(MAX_WORKERS, 3, dtype=torch.long)
    counts.share_memory_()
    return counts


def told_cuts(source: str, read: int, cut: int, silent: int, max_length: int) -> str:
    """A sentence about texts that are not read to their end, and conversations without a reply to learn."""
    key = f"{max_length} tokens, data.sources.{source}.max_length"
    told = f"source {source}: {cut:,} of the {read:,} texts read were cut at {key}"
    return told + (f"; {silent:,} conversations have no reply that is learnt" if silent else "")


class Collate:
    """Makes the batches of one source.

    Every kind of `kinds` is a key of every batch, with (0, L) rows where no image of the batch has such a text. Facts
    become tensors by what they are: `box` -> `boxes` (T, 4) cxcywh in 0..1; `answers` -> `answer_scores` (T, A), given
    a vocabulary; any other number `x` but the `sample_weight` -> `x` (T,). Which facts a kind has is read off the source's
    first text of it, and all must have them. Where samples have a second image, it is a row behind those of all samples, and
    `other_index` (T,) of every kind that they have texts of names it, but of conversations, of which a batch has `images` and
    `prompt_images` (T, K, 2) where any holds its pictures otherwise than one before all turns (`TextRows`). Texts are tokenised
    as `clean` gives them, within the template of their kind (`cleaning.filled`); conversations, which have `turns`, by the chat
    template (`chat.ChatTemplate`). `counts`, which all workers share, says how many were read, how many of them were cut, and
    how many have nothing to learn.
    """

    def __init__(
        self,
        source: str,
        samples: Sequence[Sample],
        kinds: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        answers: AnswerVocabulary | None,
        clean: Callable[[str], str] | None = None,
        counts: Tensor | None = None,
        templates: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.source, self.tokenizer, self.max_length, self.answers = source, tokenizer, max_length, answers
        samples = as_samples(samples)
        firsts = {kind: samples.first(kind) for kind in kinds}  # an example for all of a kind
        self.facts: dict[str, Mapping[str, Any]] = {
            kind: {} if text is None else text.facts for kind, text in firsts.items()
        }
        self.clean = clean or str  # which leaves a text as it is
        self.counts = new_counts() if counts is None else counts
        has_other = np.diff(samples.other_ends, prepend=0) > 0
        self.paired = frozenset(kind for kind in kinds if (has_other & (samples.counts(kind) > 0)).any())
        self.templates = templates or {}
        is_chat = any(TURNS in facts for facts in self.facts.values())
        self.chat = ChatTemplate(tokenizer, chat_template) if is_chat else None

    def __call__(self, items: list[Item] | DataError) -> Batch | DataError:
        """The batch, or what is wrong with the items; see `Loader` for why errors are returned."""
        try:
            return items if isinstance(items, DataError) else self._batch(items)
        except DataError as error:
            return error

    def _batch(self, items: Sequence[Item]) -> Batch:
        images = [(item, 0) for item in items]
        images += [(item, place) for item in items for place, _ in enumerate(item.others, start=1)]
        shown = [item.others[place - 1] if place else item.pixel_values for item, place in images]
        batch: dict[str, Any] = {
            "source": self.source,
            "image_ids": [item.sample.image_id for item, _ in images],
            "image_keys": torch.tensor([image_key(item.sample, place) for item, place in images]),
            "image_sizes": torch.tensor([item.size for item, _ in images], dtype=torch.float),
        }
        if isinstance(shown[0], StoredStates):
            columns = zip(*(states.parts for states in shown), strict=True)
            batch["stored"] = Stored(tuple(torch.stack(column) for column in columns))
        elif isinstance(shown[0], Found):
            batch["regions"] = pad_regions(shown)
        elif isinstance(shown[0], Clip):
            batch["frames"] = shown[0].pad(shown)
        elif isinstance(shown[0], Spectrogram):
            batch["sounds"] = shown[0].pad(shown)
        else:  # numpy, because torch's threads wait for each other wherever the processors are busy training
            batch |= on_canvases([pixel_values.numpy() for pixel_values in shown])
        for kind, facts in self.facts.items():
            batch[kind] = self._rows(kind, facts, items)
        return batch  # type: ignore[return-value]  # a Batch has further keys, one a kind

    def _rows(self, kind: str, facts: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Any]:
        texts = [text for item in items for text in item.texts[kind]]
        is_chat = self.chat is not None and TURNS in facts
        if is_chat:
            rows = self.spell(
                texts, [row for row, item in zip(image_rows(items), items, strict=True) for _ in item.texts[kind]]
            )
        else:
            rows = self.tokenize([text.text for text in texts], self.templates.get(kind))
        rows["image_index"] = torch.tensor(
            [row for row, item in enumerate(items) for _ in item.texts[kind]], dtype=torch.long
        )
        if kind in self.paired and not is_chat and not isinstance(items[0].pixel_values, Clip):
            rows["other_index"] = torch.tensor(second_rows(items, kind), dtype=torch.long)
        rows["ids"] = [text.id for text in texts]
        for name, example in facts.items():
            if name == "box":
                boxes = [box_of(item, kind, text) for item in items for text in item.texts[kind]]
                rows["boxes"] = torch.stack(boxes) if boxes else torch.zeros(0, 4)
            elif name == LABELS:
                rows |= label_rows(
                    [_labelled(text, kind) for text in texts], self.tokenizer, self.max_length, self.clean
                )
            elif name == "answers" and self.answers is not None:
                rows["answer_scores"] = self._scores(texts)
            elif isinstance(example, int | float) and name != WEIGHT:  # which decided what is drawn
                values = [fact(text, name, kind) for text in texts]
                rows[name] = torch.tensor(values or [example])[: len(values)]
        return rows

    def tokenize(self, texts: Sequence[str], template: str | None = None) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `word_index`, each (T, L), of texts as `clean` gives them, within their template."""
        if not texts:
            names = ["input_ids", "attention_mask", "word_index"]
            if companion_of(self.tokenizer) is not None:
                names += ["instruction_ids", "instruction_mask"]
            return {name: torch.zeros(0, 1, dtype=torch.long) for name in names}
        cleaned, shortened = [self.clean(text) for text in texts], 0
        if template is not None:
            cleaned, shortened = filled(template, cleaned, self.tokenizer, self.max_length)
        encoded = self.tokenizer(
            cleaned, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        self._count(len(texts), shortened or sum(bool(each.overflowing) for each in encoded.encodings or ()), 0)
        words = [[-1 if word is None else word for word in encoded.word_ids(row)] for row in range(len(texts))]
        instructions = {}
        if (companion := companion_of(self.tokenizer)) is not None:
            asked = companion(cleaned, padding=True, return_tensors="pt", verbose=False)
            instructions = {"instruction_ids": asked["input_ids"], "instruction_mask": asked["attention_mask"]}
        return instructions | {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "word_index": torch.tensor(words),
        }

    def tokens(self, text: str, kind: str) -> list[str]:
        """The tokens of a text at their places in `input_ids`, with '' for those that begin, end and separate."""
        tokenizer = self.tokenizer
        framing = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
        ids = self.tokenize([text], self.templates.get(kind))["input_ids"][0].tolist()
        return [
            "" if token in framing else name
            for token, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
        ]

    def spell(self, texts: Sequence[Text], images: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Conversations as `ChatTemplate.rows` has them, and where their pictures, which are these rows of images, stand."""
        assert self.chat is not None
        told = [Conversation.of(text) for text in texts]
        images = [
            [own[number] for number in text.facts.get(PICTURES, range(len(own)))]
            for text, own in zip(texts, images, strict=True)
        ]
        for text, conversation, own in zip(texts, told, images, strict=True):
            require_places(conversation, len(own), f"the conversation {text.id} of source {self.source}")
        spelt = self.chat.spell([(text.id, each) for text, each in zip(texts, told, strict=True)], self.max_length)
        silent = sum(all(target == IGNORE for target in each.targets) for each in spelt)
        self._count(len(texts), sum(each.is_cut for each in spelt), silent)
        rows = dict[str, Any](self.chat.rows(spelt, self.tokenizer.pad_token_id))
        if any(each.places != FIRST or each.prompt_places != FIRST for each in spelt):
            rows["images"] = place_tensor([each.places for each in spelt], images)
            rows["prompt_images"] = place_tensor([each.prompt_places for each in spelt], images)
        return rows

    def _count(self, *numbers: int) -> None:
        worker = get_worker_info()
        self.counts[0 if worker is None else 1 + worker.id % (MAX_WORKERS - 1)] += torch.tensor(numbers)

    def _scores(self, texts: Sequence[Text]) -> Tensor:
        assert self.answers is not None
        scores = torch.zeros(len(texts), len(self.answers))
        for row, text in enumerate(texts):
            for index, score in self.answers.scores(fact(text, "answers", "questions")).items():
                scores[row, index] = score
        return scores


def on_canvases(images: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """`pixel_values` (I, 3, H, W) of images (3, h, w), and where they differ in shape, `pixel_mask` (I, H, W)."""
    if len({image.shape for image in images}) == 1:
        return {"pixel_values": torch.from_numpy(np.stack(images))}
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    values = np.zeros((len(images), 3, height, width), dtype=np.float32)
    mask = np.zeros((len(images), height, width), dtype=bool)
    for row, image in enumerate(images):
        values[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = True
    return {"pixel_values": torch.from_numpy(values), "pixel_mask": torch.from_numpy(mask)}


def image_rows(items: Sequence[Item]) -> list[list[int]]:
    """For each item the rows of its images, its own first."""
    ends = np.cumsum([len(item.others) for item in items]) + len(items)
    return [
        [row, *range(int(end) - len(item.others), int(end))]
        for row, (item, end) in enumerate(zip(items, ends, strict=True))
    ]


def second_rows(items: Sequence[Item], kind: str) -> list[int]:
    """For each text of a kind, the row of its sample's second image."""
    rows = []
    for item, own in zip(items, image_rows(items), strict=True):
        if not item.others and item.texts[kind]:
            raise DataError(
                f"image {item.sample.image_id} has no second image, as others of its source have: add it in the reader"
            )
        rows += own[1:2] * len(item.texts[kind])
    return rows


def fact(text: Text, name: str, kind: str) -> Any:
    """A fact that every text of the kind has to have."""
    if name not in text.facts:
        raise DataError(
            f"text {text.id} of kind '{kind}' has no '{name}', as other texts of its source have: add it in the reader"
        )
    return text.facts[name]


def _labelled(text: Text, kind: str) -> Text:
    fact(text, LABELS, kind)
    return text


def box_of(item: Item, kind: str, text: Text) -> Tensor:
    """The box (4,) of a text after the transforms."""
    fact(text, "box", kind)
    return item.boxes[kind, text.id]
