"""Captioning: causal language modelling over the fusion (BLIP); what is causal is the mask of the text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError, suggest
from fusionkit.losses import masked_cross_entropy
from fusionkit.model.model import Reader, VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, leading_rows
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal, word_logits
from fusionkit.tasks.generation import BeamSearch, DecoderState, Generated, GenerationConfig, Search, Watched
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.metrics import hits, means
from fusionkit.tasks.mlm import word_head
from fusionkit.tasks.words import Words
from fusionkit.types import Asked, Dims, Encoded, Instructions, TaskOutput, Tokens, at_least_fp32

RANDOM = "random"


@dataclass
class CaptionWriter:
    """What tasks of captioning have in common: the tokens of a caption that are predicted, and how one is found.

    ``prompt_ids``  the tokens that every caption starts with, which are read and not scored.
    ``asked_ids``   the prompt as what looks at images spells it, where that reads it too (InstructBLIP).
    The other options are those of ``Captioning``.
    """

    words: Words
    prompt_ids: list[int]
    rules: GenerationConfig
    search: Search
    texts_per_image: int | None
    label_smoothing: float
    prefix: str | None = None
    asked_ids: list[int] | None = None
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if self.prefix not in (None, RANDOM):
            raise ConfigError(
                f"task.captioning.prefix is '{self.prefix}'; {suggest(str(self.prefix), [RANDOM])}, or leave it null"
            )

    @classmethod
    def of(
        cls,
        dims: Dims,
        prompt: str,
        label_smoothing: float,
        texts_per_image: int | None,
        search: Search | None,
        max_length: int,
        min_length: int,
        no_repeat_ngram: int,
        prefix: str | None = None,
    ) -> "CaptionWriter":
        """Of a task's options and the plain values of its run."""
        words, special = Words(dims.tokens, dims.special_ids), tuple(dims.special_ids)
        lengths = (max_length, min_length, no_repeat_ngram)
        ids = [dims.cls_token_id, *words.spell(prompt, "task.captioning.prompt")]
        if dims.encodes_prompts:  # a whole text
            ids.append(dims.sep_token_id)
        rules = GenerationConfig(dims.sep_token_id, *lengths, special, tuple(ids), dims.other_ends)
        asked = None
        if (own := dims.instruction_words) is not None and prompt.split():
            asked = [own.start, *Words(own.tokens, ()).spell(prompt, "task.captioning.prompt"), own.end]
        found = search or BeamSearch()
        return cls(words, ids, rules, found, texts_per_image, label_smoothing, prefix, asked, dims.vocab_size)

    def loss(
        self,
        reader: Reader,
        head: nn.Module | None,
        batch: CaptionBatch,
        encoded: Encoded,
        is_training: bool = False,
        shared: Tokens | None = None,
    ) -> TaskOutput:
        """Cross entropy of each token of the captions, from those before it and the image.

        With a random ``prefix`` it is, in training, of the tokens behind the prefix alone. ``shared`` are the captions as another
        task had them encoded, where each token has seen none after it.
        """
        captions = batch["captions"]
        rows = leading_rows(captions["image_index"], self.texts_per_image)
        text, is_scored = self.texts(
            captions["input_ids"][rows], captions["attention_mask"][rows], captions["image_index"][rows], head
        )
        # behind a prompt they are other texts
        given = None if shared is None or len(self.prompt_ids) > 1 else shared.take(rows)
        if is_training and self.prefix == RANDOM:
            behind = len(self.prompt_ids) - 1  # as many of the prompt are always of the prefix
            prefix = behind + random_prefix(text.attention_mask.sum(dim=1) - behind)
            text, places = text._replace(prefix=prefix), torch.arange(is_scored.shape[1], device=is_scored.device)
            is_scored &= places >= prefix[:, None] - 1  # the last of the prefix has the first token behind it to tell
            given = None
        states = fuse_causal(reader, encoded.memory, text, given)
        logits = word_logits(reader, head, states[is_scored])
        targets = text.input_ids[:, 1:][is_scored[:, :-1]]
        loss = masked_cross_entropy(logits, targets, self.label_smoothing)

        def read(other: VisionLanguageModel, task: Any, seen: Encoded) -> Tensor:
            theirs, words = task.spoken_by(other)
            return word_logits(theirs, words, fuse_causal(theirs, seen.memory, text)[is_scored])

        return TaskOutput(loss, logits, targets, {"token_accuracy": hits(logits, targets)}, (Asked(logits, read),))

    def texts(self, ids: Tensor, mask: Tensor, image_index: Tensor, head: nn.Module | None) -> tuple[Prompts, Tensor]:
        """Captions (T, L) behind the prompt in place of their start, and bool (T, P + L - 1): the next token is scored."""
        prompt, first = self.prompts(image_index, head), len(self.prompt_ids)
        mask = torch.cat([prompt.attention_mask, mask[:, 1:]], dim=1)
        is_scored = torch.zeros_like(mask, dtype=torch.bool)
        is_scored[:, first - 1 : -1] = mask[:, first:].bool()  # from the last token of the prompt on
        text = prompt._replace(input_ids=torch.cat([prompt.input_ids, ids[:, 1:]], dim=1), attention_mask=mask)
        return text, is_scored

    def predict(self, reader: Reader, head: nn.Module | None, batch: CaptionBatch, encoded: Encoded) -> Records:
        """COCO's own records, one an image: {"image_id", "caption"}."""
        found = self._find(reader, head, batch, encoded).tolist()
        return [
            {"image_id": image_id, "caption": self.words.text(tokens)}
            for image_id, tokens in zip(batch["image_ids"], found, strict=True)
        ]

    def reply(self, reader: Reader, head: nn.Module | None, batch: CaptionBatch, encoded: Encoded) -> Records:
        """One an image: {"caption", "caption_score"}, the mean log-probability of its tokens before its end, in nats.

        It is what the model says of them, whatever the search divides by or forbids; None for a caption without tokens.
        """
        found = self._find(reader, head, batch, encoded)
        is_said = (found == self.rules.end).cumsum(dim=1) == 0
        start = found.new_zeros(len(found), 1)  # the prompt stands in its place
        mask = torch.cat([torch.ones_like(start), is_said.long()], dim=1)
        images = torch.arange(len(found), device=found.device)
        text, is_scored = self.texts(torch.cat([start, found], dim=1), mask, images, head)
        totals = log_likelihoods(reader, head, fuse_causal(reader, encoded.memory, text), text, is_scored)
        return [
            {"caption": self.words.text(tokens), "caption_score": total / count if count else None}
            for tokens, total, count in zip(found.tolist(), totals.tolist(), is_said.sum(dim=1).tolist(), strict=True)
        ]

    @contextmanager
    def watched(self, tell: Callable[[Sequence[str]], None]) -> Iterator[None]:
        """Within, ``tell`` is given the texts so far of a batch's captions (I,), once a token: of a beam search the best now.

        What it raises ends the search.
        """
        search = self.search

        def said(tokens: Tensor) -> None:
            tell([self.words.text(row) for row in self.rules.said(tokens)])

        def found(steps: DecoderState, rules: GenerationConfig) -> Generated:
            return search(Watched(steps, said), rules)

        self.search = found
        try:
            yield
        finally:
            self.search = search

    def _find(self, reader: Reader, head: nn.Module | None, batch: CaptionBatch, encoded: Encoded) -> Tensor:
        """The tokens (I, L) of a caption of each image, filled with the end."""
        steps = decoder_state_of(self.inputs(reader, head, batch, encoded))
        return self.search(steps, self.rules).tokens

    def inputs(self, reader: Reader, head: nn.Module | None, batch: CaptionBatch, encoded: Encoded) -> DecoderInputs:
        """What the caption of each image follows."""
        keys = batch["image_keys"]
        prompts = self.prompts(torch.arange(keys.shape[0], device=keys.device), head)
        return DecoderInputs(reader, head, encoded.memory, prompts)

    def prompted(self, length: int) -> int:
        """How many tokens a caption of at most ``length`` may have before those that are scored."""
        return len(self.prompt_ids) + (length - 2 if self.prefix == RANDOM else 0)

    def prompts(self, image_index: Tensor, head: nn.Module | None) -> Prompts:
        """What captions start with; a language model that lets a prefix see itself (PaliGemma) has all of it for one."""
        ids = torch.tensor(self.prompt_ids, device=image_index.device).expand(image_index.shape[0], -1)
        prefix = len(self.prompt_ids) if head is None else 1
        asked = None
        if self.asked_ids is not None:
            asked_ids = torch.tensor(self.asked_ids, device=image_index.device).expand(image_index.shape[0], -1)
            asked = Instructions(asked_ids, torch.ones_like(asked_ids))
        return Prompts(ids, torch.ones_like(ids), image_index, torch.full_like(image_index, prefix), asked)


def log_likelihoods(reader: Reader, head: nn.Module | None, states: Tensor, text: Prompts, is_scored: Tensor) -> Tensor:
    """log p (T,), in nats, of texts with states (T, L, D), over the tokens after those that bool (T, L) ``is_scored`` marks."""
    logits = at_least_fp32(word_logits(reader, head, states[:, :-1]))
    found = F.log_softmax(logits, dim=2).gather(2, text.input_ids[:, 1:, None]).squeeze(2)
    return found.masked_fill(~is_scored[:, :-1], 0.0).sum(dim=1)


def random_prefix(lengths: Tensor) -> Tensor:
    """How many first tokens of texts of these lengths (T,) are a prefix: from 1 to all but one, each as likely (SimVLM)."""
    most = lengths - 1
    draw = torch.rand(lengths.shape, device=lengths.device)  # below 1, but the product may round up to ``most``
    return 1 + torch.minimum((draw * most).long(), (most - 1).clamp(min=0))


class Captioning(Task[CaptionBatch]):
    """Predict each token of a caption from those before it and the image; the tokenizer's end (BERT's [SEP]) ends it.

    ``prompt``          words that every caption starts with, as "a picture of"; they are read and not scored.
    ``label_smoothing`` share of the target probability that is spread over the vocabulary.
    ``texts_per_image`` how many captions of an image are trained on; None: all in the batch.
    ``search``          how a caption is found; ``max_length`` and the like say which may be (``GenerationConfig``).
    ``head``            builds what says words from (hidden_size, vocab_size); None: BERT's, tied to the word embeddings.
    ``prefix``          "random": in training the first tokens of each caption, a random number of them, see one another, and
                        only those behind them are scored: the prefix language modelling of SimVLM (Wang et al. 2022), whose
                        architecture is ``fusion=merged_attention``. None: every token sees those before it.

    It has no text encoded for itself. Over a text encoder that is causal by itself it reads the captions as contrast has them
    encoded (CoCa: one reading, two losses); all others encode them once more, under a causal mask.
    """

    needs = frozenset({"text", "causal"})
    reads = "captions"
    distribution = "softmax"
    replies_to = "caption"
    encodes = False

    def __init__(
        self,
        dims: Dims,
        prompt: str = "",
        label_smoothing: float = 0.1,
        texts_per_image: int | None = None,
        search: Search | None = None,
        max_length: int = 20,
        min_length: int = 5,
        no_repeat_ngram: int = 0,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
        head: Callable[[int, int], nn.Module] | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        generation = (search, max_length, min_length, no_repeat_ngram, prefix)
        self.writer = CaptionWriter.of(dims, prompt, label_smoothing, texts_per_image, *generation)
        self.head = word_head(dims, eps, head)

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        shared = encoded.text.get(self.reads) if model.is_causal else None
        return self.writer.loss(model, self.head, batch, encoded, self.training, shared)

    def columns(self) -> tuple[str, Any]:
        return "words", self.writer.vocab_size

    def spoken_by(self, model: VisionLanguageModel) -> tuple[Reader, nn.Module | None]:
        """What reads a caption, and the head that says its words (None: the model's own)."""
        return model, self.head

    def said(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> DecoderInputs:
        """What the caption of each image follows."""
        return self.writer.inputs(model, self.head, batch, encoded)

    def saying(self) -> GenerationConfig:
        return self.writer.rules

    def check(self, model: VisionLanguageModel) -> None:
        """Raise ConfigError for a random prefix whose tokens the fusion does not let see one another."""
        sees_prefix = getattr(model.fusion, "sees_prefix", True) or not model.is_causal
        if self.writer.prefix == RANDOM and not sees_prefix:
            raise ConfigError(
                "task.captioning.prefix=random wants tokens of a prefix to see one another, but neither text_encoder nor fusion "
                f"{type(model.fusion).__name__} lets one see a later one; choose a fusion that does, such as merged_attention, "
                "or prefix with fusion.sees=text, or set task.captioning.prefix=null"
            )

    def longest(self, length: int) -> int:
        """A caption of the data, or one that is said, behind the prompt."""
        prompt = len(self.writer.prompt_ids)
        return prompt + max(length - 1, self.writer.rules.max_length)

    def prompted(self, length: int) -> int:
        """The prompt, and with a random prefix all but the last token of a caption."""
        return self.writer.prompted(length)

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """COCO's own records, one an image: {"image_id", "caption"}."""
        return self.writer.predict(model, self.head, batch, encoded)

    def reply(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, top: int) -> Records:
        """{"caption", "caption_score"}: the mean log-probability of its tokens, in nats."""
        return self.writer.reply(model, self.head, batch, encoded)
