"""How a language model answers: by saying an answer, or by the likelihood of each of a list of answers (ALBEF, BLIP)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fusionkit.errors import ConfigError, suggest
from fusionkit.tasks.base import Records
from fusionkit.tasks.generation import BeamSearch, DecoderState, GenerationConfig, Search, token_losses
from fusionkit.tasks.vqa import named
from fusionkit.tasks.words import Words
from fusionkit.types import Dims

ROWS_AT_ONCE = 1024  # (question, answer) pairs that are scored together: their keys and values are held in memory


class Answers(NamedTuple):
    """The answers that a run knows, spelt."""

    texts: Sequence[str]
    ids: Tensor  # (A, L) int64 tokens with the ending one, padded on the right
    mask: Tensor  # (A, L) int64, 1 = token


class Answering(Protocol):
    """Answers R questions, given the steps that follow them."""

    def __call__(self, steps: DecoderState, answers: Answers, words: Words, ends: Sequence[int]) -> list[str]: ...


@dataclass(frozen=True)
class GenerateAnswer:
    """Answers are generated; one that is spelt as an answer the run knows is written as that."""

    search: Search = field(default_factory=BeamSearch)
    max_length: int = 10

    def __call__(self, steps: DecoderState, answers: Answers, words: Words, ends: Sequence[int]) -> list[str]:
        rules = rules_of(self.max_length, words, ends)
        known = {
            tuple(row[: count - 1]): text
            for row, count, text in zip(
                answers.ids.tolist(), answers.mask.sum(dim=1).tolist(), answers.texts, strict=True
            )
        }
        said = rules.said(self.search(steps, rules).tokens)
        return [known.get(tuple(row), words.text(row)) for row in said]


def rules_of(max_length: int, words: Words, ends: Sequence[int]) -> GenerationConfig:
    """What an answer of at most so many tokens may be."""
    end, *others = ends
    return GenerationConfig(end, max_length, min_length=1, banned=tuple(words.special), other_ends=tuple(others))


@dataclass(frozen=True)
class RankAnswers:
    """The answer of highest score among the ``k`` whose first token is likeliest.

    ``score`` "blip"  is minus the label-smoothed loss of the answer, "albef" the log-probability of its first token minus
    its loss, which counts the first token twice (each as published; both sum over the tokens).
    """

    k: int = 128
    score: str = "albef"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.score not in ("albef", "blip"):
            raise ConfigError(f"answering.score is '{self.score}'; {suggest(self.score, ['albef', 'blip'])}")
        if self.k < 1:
            raise ConfigError(f"answering.k is {self.k}; give 1 or more answers to score")

    def __call__(self, steps: DecoderState, answers: Answers, words: Words, ends: Sequence[int]) -> list[str]:
        best, candidates = self.scores(steps, answers)
        chosen = candidates.gather(1, best.argmax(dim=1, keepdim=True)).squeeze(1)
        return [answers.texts[number] for number in chosen.tolist()]

    def scores(self, steps: DecoderState, answers: Answers) -> tuple[Tensor, Tensor]:
        """Scores (R, k) of the candidates and their numbers (R, k) among the answers, by the first token's probability."""
        logits, state = steps.start()
        k = min(self.k, len(answers.texts))
        first, candidates = F.log_softmax(logits.float(), dim=1)[:, answers.ids[:, 0]].topk(k, dim=1)
        smoothing = self.label_smoothing if self.score == "blip" else 0.0
        losses = []
        for rows in torch.arange(len(logits), device=logits.device).split(max(1, ROWS_AT_ONCE // k)):
            spread, numbers = rows.repeat_interleave(k), candidates[rows].flatten()
            pairs = logits[spread], steps.select(state, spread), answers.ids[numbers], answers.mask[numbers]
            losses.append(token_losses(steps, *pairs, smoothing).view(-1, k))
        likelihood = -torch.cat(losses)
        return (first + likelihood if self.score == "albef" else likelihood), candidates


class AnswerDecoding(nn.Module):
    """What tasks that say an answer have in common: the answers that the run knows, spelt, and how one is found.

    ``answering`` says an answer, or ranks the known ones, by default the latter.
    """

    def __init__(self, dims: Dims, answering: Answering | None) -> None:
        super().__init__()
        self.end, self.pad = dims.sep_token_id, dims.pad_token_id
        self.ends = (self.end, *dims.other_ends)
        self.answering: Answering = answering or RankAnswers()
        self.words = Words(dims.tokens, dims.special_ids)
        self.ids: Tensor
        self.mask: Tensor
        for answer, tokens in zip(dims.answers, dims.answer_tokens, strict=True) if dims.tokens else ():
            if not tokens:  # without a tokenizer weights alone are wanted, and nothing can be said
                raise ConfigError(
                    f"task.vqa_generative: the tokenizer cannot spell the answer '{answer}'; set data.spell_answers=true, or "
                    "give a tokenizer that knows it"
                )
        self.set_answers(dims.answers, dims.answer_tokens)

    def set_answers(self, texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
        """The answers that are trained and ranked, with the tokens of each (without special ones)."""
        self.texts = tuple(texts)
        rows = [torch.tensor([*answer, self.end]) for answer in tokens] or [torch.zeros(0, dtype=torch.int64)]
        masks = [torch.ones_like(row) for row in rows]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad)  # (A, L)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("mask", pad_sequence(masks, batch_first=True), persistent=False)

    @property
    def longest(self) -> int:
        """Most tokens of an answer, its end included."""
        said = self.answering.max_length if isinstance(self.answering, GenerateAnswer) else 0
        return max(said, self.ids.shape[1])

    @property
    def rules(self) -> GenerationConfig:
        """What may be said; where answers are ranked, as many tokens as the longest known one has."""
        answering = self.answering
        most = answering.max_length if isinstance(answering, GenerateAnswer) else max(self.longest, 2)
        return rules_of(most, self.words, self.ends)

    @property
    def known(self) -> Answers:
        """The answers on the device of the task."""
        return Answers(self.texts, self.ids, self.mask)

    def predict(self, question_ids: Sequence[Any], steps: Callable[[], DecoderState]) -> Records:
        """VQA v2's own records of R questions, {"question_id", "answer"}, from the steps that follow them."""
        if not question_ids:
            return []
        said = self.answering(steps(), self.known, self.words, self.ends)
        return [{"question_id": i, "answer": answer} for i, answer in zip(question_ids, said, strict=True)]

    def reply(self, steps: Callable[[], DecoderState], top: int) -> Records | None:
        """The likeliest answers with their shares among the candidates; None where answers are not ranked."""
        if not isinstance(self.answering, RankAnswers):
            return None
        scores, candidates = self.answering.scores(steps(), self.known)
        best = scores.softmax(dim=1).topk(min(top, scores.shape[1]), dim=1)
        numbers = candidates.gather(1, best.indices).tolist()
        return [named([self.texts[n] for n in row], p) for row, p in zip(numbers, best.values.tolist(), strict=True)]
