"""Chat: what the assistant says in a conversation about an image, its turns and what ends them (LLaVA)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusionkit.errors import ConfigError
from fusionkit.fusion.base import require_several_images
from fusionkit.losses import IGNORE, masked_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal, word_logits
from fusionkit.tasks.generation import BeamSearch, GenerationConfig, Search
from fusionkit.tasks.metrics import hits, means
from fusionkit.tasks.mlm import word_head
from fusionkit.tasks.words import Words
from fusionkit.types import Asked, Batch, Dims, Encoded, TaskOutput, TextRows


class ConversationRows(TextRows):
    """Whole conversations, written by a chat template."""

    targets: Tensor  # (T, L) int64, the tokens that the assistant says; IGNORE elsewhere
    prompt_ids: Tensor  # (T, P) int64, what the last reply follows
    prompt_mask: Tensor  # (T, P) int64, 1 = token
    prompt_images: Tensor  # (T, K, 2) int64, as ``images``, of the prompts
    end: Tensor  # (T,) int64, the token that ends a reply, one for all


class ConversationBatch(Batch):
    """A batch with conversations."""

    conversations: ConversationRows


class Chat(Task[ConversationBatch]):
    """Predict each token that the assistant says, from the image and all that was said before; nothing else is learnt.

    ``label_smoothing`` share of the target probability that is spread over the vocabulary.
    ``search``          how a reply is found, of at most ``max_length`` tokens.
    """

    needs = frozenset({"text", "causal"})
    reads = "conversations"
    distribution = "softmax"
    replies_to = "question"
    encodes = False

    def __init__(
        self,
        dims: Dims,
        label_smoothing: float = 0.0,
        search: Search | None = None,
        max_length: int = 64,
        no_repeat_ngram: int = 0,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        self.words = Words(dims.tokens, dims.special_ids)
        self.search: Search = search or BeamSearch()
        lengths = (max_length, 1, no_repeat_ngram)
        self.rules = GenerationConfig(dims.sep_token_id, *lengths, tuple(dims.special_ids), other_ends=dims.other_ends)
        self.label_smoothing, self.vocab_size = label_smoothing, dims.vocab_size
        self.head = word_head(dims, eps)

    def forward(
        self, model: VisionLanguageModel, batch: ConversationBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        rows = batch["conversations"]
        texts = _causal(model, rows, rows["input_ids"], rows["attention_mask"], rows.get("images"))
        states = fuse_causal(model, encoded.memory, texts)
        targets = rows["targets"][:, 1:]
        is_said = targets != IGNORE
        logits = word_logits(model, self.head, states[:, :-1][is_said])  # each token from the one before it
        said = targets[is_said]
        loss = masked_cross_entropy(logits, said, self.label_smoothing)

        def read(other: VisionLanguageModel, task: Chat, seen: Encoded) -> Tensor:
            return word_logits(other, task.head, fuse_causal(other, seen.memory, texts)[:, :-1][is_said])

        return TaskOutput(loss, logits, said, {"token_accuracy": hits(logits, said)}, (Asked(logits, read),))

    def columns(self) -> tuple[str, Any]:
        return "words", self.vocab_size

    def check(self, model: VisionLanguageModel) -> None:
        """Raise ConfigError for an encoder-decoder that reads no first token, as conversations begin with one of their own."""
        if model.encodes_prompts and not getattr(model.text_encoder, "reads_start", True):
            raise ConfigError(
                "task chat: a conversation begins with its own first token, which an encoder-decoder does not read whose "
                "tokenizer has no start (T5); choose one that has, such as BART, or task=[vqa_open]"
            )

    def longest(self, length: int) -> int:
        """A conversation, and the reply that may be said to it."""
        return length + self.rules.max_length

    def predict(self, model: VisionLanguageModel, batch: ConversationBatch, encoded: Encoded) -> Records:
        """The last reply of each conversation: {"conversation_id", "answer"}."""
        rows = batch["conversations"]
        if not len(rows["end"]):
            return []
        end = int(rows["end"][0])
        rules = replace(self.rules, end=end, other_ends=self.rules.ends)
        steps = decoder_state_of(self.said(model, batch, encoded))
        said = rules.said(self.search(steps, rules).tokens)
        return [
            {"conversation_id": id, "answer": self.words.text(tokens)}
            for id, tokens in zip(rows["ids"], said, strict=True)
        ]

    def said(self, model: VisionLanguageModel, batch: ConversationBatch, encoded: Encoded) -> DecoderInputs:
        """What the last reply of each conversation follows."""
        rows = batch["conversations"]
        prompts = _causal(model, rows, rows["prompt_ids"], rows["prompt_mask"], rows.get("prompt_images"))
        return DecoderInputs(model, self.head, encoded.memory, prompts)

    def saying(self) -> GenerationConfig:
        return self.rules


def _causal(
    model: VisionLanguageModel, rows: ConversationRows, ids: Tensor, mask: Tensor, images: Tensor | None
) -> Prompts:
    """Conversations with the image of each, or with several at their places. Raises ConfigError for a fusion that takes one."""
    if images is not None:
        require_several_images(model.fusion)
    index = rows["image_index"] if images is None else images
    return Prompts(ids, mask, index, torch.ones_like(rows["image_index"]))
