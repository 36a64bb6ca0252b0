"""How a language model answers: by saying an answer, or by the likelihood of each of a list of answers (ALBEF, BLIP)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.errors import ConfigError, suggest
from fusionkit.tasks.generation import BeamSearch, DecoderState, GenerationConfig, Search, token_losses
from fusionkit.tasks.words import Words

ROWS_AT_ONCE = 1024  # (question, answer) pairs that are scored together: their keys and values are held in memory


class Answers(NamedTuple):
    """The answers that a run knows, spelt."""

    texts: Sequence[str]
    ids: Tensor  # (A, L) int64 tokens with the ending one, padded on the right
    mask: Tensor  # (A, L) int64, 1 = token


class Answering(Protocol):
    """Answers R questions, given the steps that follow them."""

    def __call__(self, steps: DecoderState, answers: Answers, words: Words, end: int) -> list[str]: ...


@dataclass(frozen=True)
class GenerateAnswer:
    """Answers are generated; one that is spelt as an answer the run knows is written as that."""

    search: Search = field(default_factory=BeamSearch)
    max_length: int = 10

    def __call__(self, steps: DecoderState, answers: Answers, words: Words, end: int) -> list[str]:
        rules = GenerationConfig(end, self.max_length, min_length=1, banned=tuple(words.special - {end}))
        known = {
            tuple(row[: count - 1]): text
            for row, count, text in zip(
                answers.ids.tolist(), answers.mask.sum(dim=1).tolist(), answers.texts, strict=True
            )
        }
        said = [row[: row.index(end)] if end in row else row for row in self.search(steps, rules).tokens.tolist()]
        return [known.get(tuple(row), words.text(row)) for row in said]


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

    def __call__(self, steps: DecoderState, answers: Answers, words: Words, end: int) -> list[str]:
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
