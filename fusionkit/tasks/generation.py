"""Text from a model that scores the next token: greedy, sampling and beam search, over a protocol of three calls.

Knows neither tasks nor images: whatever can say what comes after R rows of tokens can be decoded here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.errors import ConfigError

MOST_BEAMS, MOST_PENALTY = 1000, 100
UNLIKELY = -1e9  # the log-probability of a hypothesis that is not there


class DecoderState(Protocol):
    """A language model asked for one token after the other; its state is a value that each call returns anew."""

    def start(self) -> tuple[Tensor, Any]:
        """Logits (R, V) of the first token of each of R rows, and the state after the R prompts."""
        ...

    def advance(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (R, V) of the token after the tokens (R,), and the state after them."""
        ...

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of the given rows, in their order; a row may come often or never."""
        ...


class Generated(NamedTuple):
    """The best text of each of R prompts."""

    tokens: Tensor  # (R, L) int64, without the prompt; ``end`` from the end on
    scores: Tensor  # (R,) log-probability, of a beam divided by its length ** length_penalty


@dataclass(frozen=True)
class GenerationConfig:
    """What may be generated.

    ``end``             the token that ends a text, and what follows it.
    ``other_ends``      tokens that end a text too; ``end`` is written in their place.
    ``max_length``      most tokens of a text, its end included; a text that has not ended then is cut.
    ``min_length``      fewest tokens before the end.
    ``no_repeat_ngram`` length of the token sequences that may come only once in a text; 0: all may repeat.
    ``banned``          tokens that are never generated; the end is never one of them, be it the start or padding too.
    ``prompt``          what every text starts with; of the searches only ``ClassicBeamSearch`` counts it.
    """

    end: int
    max_length: int = 20
    min_length: int = 0
    no_repeat_ngram: int = 0
    banned: tuple[int, ...] = ()
    prompt: tuple[int, ...] = ()
    other_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min_length < self.max_length:
            raise ConfigError(
                f"generation: min_length is {self.min_length} and max_length {self.max_length}; give 0 <= min_length < max_length"
            )
        if self.no_repeat_ngram < 0:
            raise ConfigError(f"generation: no_repeat_ngram is {self.no_repeat_ngram}; give 0 (off) or a length")
        object.__setattr__(self, "banned", tuple(token for token in self.banned if token not in self.ends))

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a text."""
        return (self.end, *self.other_ends)

    def ended(self, tokens: Tensor) -> Tensor:
        """Tokens (...) with ``end`` wherever one of the ends is."""
        for other in self.other_ends:
            tokens = tokens.masked_fill(tokens == other, self.end)
        return tokens

    def said(self, tokens: Tensor) -> list[list[int]]:
        """Texts (R, L) as their tokens before the end."""
        return [row[: row.index(self.end)] if self.end in row else row for row in tokens.tolist()]

    def restrict(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Scores (R, V) of the token after tokens (R, t), -inf for those that the rules forbid."""
        scores = scores.clone()
        scores[:, list(self.banned)] = float("-inf")
        if tokens.shape[1] < self.min_length:
            scores[:, list(self.ends)] = float("-inf")
        rows, repeated = repeats(tokens, self.no_repeat_ngram)
        scores[rows, repeated] = float("-inf")
        return scores


def repeats(tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows and tokens (N,) that, put after the tokens (R, t) of their row, would repeat one of its n-grams of this size."""
    if not size or tokens.shape[1] < size:
        nothing = tokens.new_zeros(0)
        return nothing, nothing
    grams = tokens.unfold(1, size, 1)  # (R, t - size + 1, size)
    last = tokens[:, None, tokens.shape[1] - size + 1 :]
    rows, places = (grams[..., :-1] == last).all(dim=2).nonzero(as_tuple=True)
    return rows, grams[rows, places, -1]


class Watched:
    """Steps that tell, before each but the first, of the tokens (P, t) that the first row of each of P prompts has so far.

    Of a beam search that is the best one that goes on.
    """

    def __init__(self, steps: DecoderState, tell: Callable[[Tensor], None]) -> None:
        self.steps, self.tell, self.prompts = steps, tell, 0

    def start(self) -> tuple[Tensor, Any]:
        logits, state = self.steps.start()
        self.prompts = len(logits)
        return logits, (state, torch.zeros(len(logits), 0, dtype=torch.int64, device=logits.device))

    def advance(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        inner, before = state
        said = torch.cat([before, tokens[:, None]], dim=1)
        self.tell(said[:: len(said) // self.prompts])
        logits, inner = self.steps.advance(tokens, inner)
        return logits, (inner, said)

    def select(self, state: Any, rows: Tensor) -> Any:
        inner, said = state
        return self.steps.select(inner, rows), said[rows]


class Search(Protocol):
    """Finds a text for each prompt."""

    def __call__(self, steps: DecoderState, rules: GenerationConfig) -> Generated: ...


@dataclass(frozen=True)
class Greedy:
    """The likeliest token at each step."""

    def __call__(self, steps: DecoderState, rules: GenerationConfig) -> Generated:
        return _walk(steps, rules, lambda scores: scores.argmax(dim=1))


@dataclass(frozen=True)
class Sampling:
    """Tokens drawn from the ``top_k`` likeliest (0: all) and of these the fewest that hold ``top_p`` of the probability.

    Scores are divided by the ``temperature`` first.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ConfigError(
                f"search: temperature is {self.temperature}, top_k {self.top_k} and top_p {self.top_p}; give a temperature "
                "above 0, a top_k from 0 up and a top_p above 0 and up to 1"
            )

    def __call__(self, steps: DecoderState, rules: GenerationConfig) -> Generated:
        return _walk(steps, rules, self._draw)

    def _draw(self, scores: Tensor) -> Tensor:
        return torch.multinomial(self.kept(scores).softmax(dim=1), 1).squeeze(1)

    def kept(self, scores: Tensor) -> Tensor:
        """What is drawn from, as logits (R, V) of scores (R, V): -inf where a token is never drawn."""
        return keep_top_p(keep_top_k(scores / self.temperature, self.top_k), self.top_p)


def keep_top_k(scores: Tensor, top_k: int) -> Tensor:
    """Scores (R, V), -inf but for the ``top_k`` highest of a row; 0 keeps all."""
    if not top_k or top_k >= scores.shape[1]:
        return scores
    return scores.masked_fill(scores < scores.topk(top_k, dim=1).values[:, -1:], float("-inf"))


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Scores (R, V), -inf but for the likeliest tokens whose probabilities together just reach ``top_p`` (Holtzman 2020)."""
    if top_p >= 1:
        return scores
    ordered, order = scores.sort(dim=1, descending=True)
    probabilities = ordered.softmax(dim=1)
    is_dropped = probabilities.cumsum(dim=1) - probabilities >= top_p  # the likeliest token is never dropped
    return scores.masked_fill(torch.zeros_like(is_dropped).scatter(1, order, is_dropped), float("-inf"))


def _walk(steps: DecoderState, rules: GenerationConfig, choose: Callable[[Tensor], Tensor]) -> Generated:
    """One text a prompt, token by token, as ``choose`` picks them from the restricted scores (R, V)."""
    logits, state = steps.start()
    tokens = torch.zeros(len(logits), 0, dtype=torch.int64, device=logits.device)
    total = logits.new_zeros(len(logits), dtype=torch.float32)
    has_ended = torch.zeros_like(total, dtype=torch.bool)
    while True:
        log_probs = F.log_softmax(logits.float(), dim=1)
        chosen = choose(rules.restrict(log_probs, tokens)).masked_fill(has_ended, rules.end)
        total = total + log_probs.gather(1, chosen[:, None]).squeeze(1).masked_fill(has_ended, 0.0)
        chosen = rules.ended(chosen)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        has_ended = has_ended | (chosen == rules.end)
        if tokens.shape[1] == rules.max_length or has_ended.all():
            return Generated(tokens, total)
        logits, state = steps.advance(chosen, state)


def require_beams(beams: int, length_penalty: float) -> None:
    """Raise ConfigError for what no search can have; a length to a huge power is no number any more."""
    if not 1 <= beams <= MOST_BEAMS:
        raise ConfigError(f"search: beams is {beams}; give 1 or more, up to {MOST_BEAMS}")
    if not abs(length_penalty) <= MOST_PENALTY:
        raise ConfigError(
            f"search: length_penalty is {length_penalty}; give a number from -{MOST_PENALTY} to {MOST_PENALTY}, such as 1"
        )


@dataclass(frozen=True)
class BeamSearch:
    """The best of ``beams`` hypotheses a prompt, scored by log-probability / length ** ``length_penalty``.

    Of the 2 * beams best continuations those that end among the first ``beams`` are finished, and the best others go on.
    A prompt is done when its best running hypothesis, at its present length, is worse than all of ``beams`` finished ones;
    with ``early_stopping`` as soon as there are that many. These are transformers' rules, and its scores.
    """

    beams: int = 3
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        require_beams(self.beams, self.length_penalty)

    def __call__(self, steps: DecoderState, rules: GenerationConfig) -> Generated:
        logits, state = steps.start()
        prompts, device = len(logits), logits.device
        first = torch.arange(prompts, device=device)[:, None] * self.beams  # the row of each prompt's first beam
        spread = torch.arange(prompts, device=device).repeat_interleave(self.beams)
        logits, state = logits[spread], steps.select(state, spread)
        tokens = torch.zeros(prompts, self.beams, 0, dtype=torch.int64, device=device)
        scores = torch.full((prompts, self.beams), UNLIKELY, device=device)
        scores[:, 0] = 0.0  # the beams of a prompt start equal: only one of them may go on
        finished = _Finished.none(prompts, self.beams, rules, device)
        is_open = torch.ones(prompts, dtype=torch.bool, device=device)
        for length in range(1, rules.max_length + 1):
            log_probs = rules.restrict(F.log_softmax(logits.float(), dim=1), tokens.flatten(0, 1))
            total = (scores.flatten()[:, None] + log_probs).view(prompts, -1)
            best, index = total.topk(2 * self.beams, dim=1)
            source, token = index // logits.shape[1], rules.ended(index % logits.shape[1])
            candidates = torch.cat([_take(tokens, source), token[..., None]], dim=2)  # (prompts, 2 * beams, length)
            has_ended = (token == rules.end) | (length == rules.max_length)
            is_new = has_ended[:, : self.beams] & is_open[:, None]
            lengthwise = best / length**self.length_penalty
            finished = finished.add(candidates[:, : self.beams], lengthwise[:, : self.beams], is_new)
            scores, kept = best.masked_fill(has_ended, float("-inf")).topk(self.beams, dim=1)
            is_open = is_open & finished.can_improve(scores[:, 0] / length**self.length_penalty, self.early_stopping)
            if length == rules.max_length or not is_open.any():
                break
            tokens = _take(candidates, kept)
            rows = (first + source.gather(1, kept)).flatten()
            logits, state = steps.advance(tokens[..., -1].flatten(), steps.select(state, rows))
        return Generated(finished.tokens[:, 0], finished.scores[:, 0])


class _Finished(NamedTuple):
    """The best finished hypotheses of each prompt, the best first."""

    tokens: Tensor  # (prompts, beams, max_length), filled with ``end``
    scores: Tensor  # (prompts, beams), UNLIKELY where there is none yet
    end: int

    @classmethod
    def none(cls, prompts: int, beams: int, rules: GenerationConfig, device: torch.device) -> "_Finished":
        shape = (prompts, beams, rules.max_length)
        return cls(
            torch.full(shape, rules.end, dtype=torch.int64, device=device),
            torch.full(shape[:2], UNLIKELY, device=device),
            rules.end,
        )

    def add(self, tokens: Tensor, scores: Tensor, is_finished: Tensor) -> "_Finished":
        """With those hypotheses (prompts, beams, t) that have finished, where they are among the best."""
        padded = F.pad(tokens, (0, self.tokens.shape[2] - tokens.shape[2]), value=self.end)
        both = torch.cat([self.scores, scores.masked_fill(~is_finished, UNLIKELY)], dim=1)
        best, kept = both.topk(self.scores.shape[1], dim=1)
        return self._replace(tokens=_take(torch.cat([self.tokens, padded], dim=1), kept), scores=best)

    def can_improve(self, best: Tensor, early_stopping: bool) -> Tensor:
        """Bool (prompts,): is there a free place, or may a running hypothesis of score best (prompts,) take one?"""
        worst = self.scores[:, -1]
        return (worst == UNLIKELY) | ((best > worst) & (not early_stopping))


def _take(hypotheses: Tensor, index: Tensor) -> Tensor:
    """Hypotheses (prompts, N, t) by their numbers (prompts, M) -> (prompts, M, t)."""
    return hypotheses.gather(1, index[..., None].expand(-1, -1, hypotheses.shape[2]))


def token_losses(
    steps: DecoderState, logits: Tensor, state: Any, tokens: Tensor, mask: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy (R,) of given texts, tokens (R, L) with their mask, summed over their tokens.

    ``logits`` (R, V) and ``state`` are what the steps gave before the first of them.
    """
    total = logits.new_zeros(len(tokens), dtype=torch.float32)
    for place, (token, is_there) in enumerate(zip(tokens.T, mask.T, strict=True)):
        loss = F.cross_entropy(logits.float(), token, reduction="none", label_smoothing=label_smoothing)
        total = total + loss.masked_fill(~is_there.bool(), 0.0)
        if place < tokens.shape[1] - 1:
            logits, state = steps.advance(token, state)
    return total
