"""Beam search by the rules of transformers before version 5, which BLIP generated its published captions with."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.tasks.generation import UNLIKELY, DecoderState, Generated, GenerationConfig, require_beams


@dataclass
class _Best:
    """The best finished texts of one prompt: (score, tokens), the best first."""

    beams: int
    found: list[tuple[float, Tensor]] = field(default_factory=list)

    def add(self, score: float, tokens: Tensor) -> None:
        self.found = sorted([*self.found, (score, tokens)], key=lambda pair: -pair[0])[: self.beams]

    def is_beyond(self, score: float) -> bool:
        return len(self.found) == self.beams and self.found[-1][0] >= score


@dataclass(frozen=True)
class ClassicBeamSearch:
    """The best of ``beams`` hypotheses a prompt, scored by log-probability / length ** ``length_penalty``.

    It differs from ``BeamSearch`` in what is counted: the length has the prompt in it and the end not, and a prompt is done
    when its best continuation, ended or not, is worse than all finished texts at the length before it.
    ``repetition_penalty`` multiplies the log-probability of every token that is there already, prompt included.
    """

    beams: int = 3
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require_beams(self.beams, self.length_penalty)

    def __call__(self, steps: DecoderState, rules: GenerationConfig) -> Generated:
        best = self.search(steps, rules)
        tokens = torch.full((len(best), rules.max_length), rules.end, dtype=torch.int64)
        for row, found in zip(tokens, best, strict=True):
            row[: len(found[0][1])] = found[0][1]
        return Generated(tokens, torch.tensor([found[0][0] for found in best]))

    def search(self, steps: DecoderState, rules: GenerationConfig) -> list[list[tuple[float, Tensor]]]:
        """By prompt, the scores and the tokens (without the end) of the ``beams`` best texts."""
        logits, state = steps.start()
        prompts, vocabulary = logits.shape
        spread = torch.arange(prompts, device=logits.device).repeat_interleave(self.beams)
        logits, state = logits[spread], steps.select(state, spread)
        tokens = spread.new_zeros(prompts, self.beams, 0)
        running = torch.full((prompts, self.beams), UNLIKELY, device=logits.device)
        running[:, 0] = 0.0
        finished, is_done = [_Best(self.beams) for _ in range(prompts)], [False] * prompts
        while True:
            log_probs = self._penalised(F.log_softmax(logits.float(), dim=1), tokens.flatten(0, 1), rules)
            total = (running.flatten()[:, None] + rules.restrict(log_probs, tokens.flatten(0, 1))).view(prompts, -1)
            scores, index = total.topk(2 * self.beams, dim=1)
            source, token = index // vocabulary, rules.ended(index % vocabulary)
            length = max(1, len(rules.prompt) + tokens.shape[2]) ** self.length_penalty
            kept = torch.zeros(prompts, self.beams, dtype=torch.int64, device=logits.device)
            for row in range(prompts):
                ends = (token[row] == rules.end).tolist()
                if not is_done[row]:
                    for place in [place for place in range(self.beams) if ends[place]]:
                        finished[row].add(scores[row, place].item() / length, tokens[row, source[row, place]].cpu())
                    is_done[row] = finished[row].is_beyond(scores[row, 0].item() / length)
                kept[row] = torch.tensor([place for place, is_end in enumerate(ends) if not is_end][: self.beams])
            running = scores.gather(1, kept)
            source, token = source.gather(1, kept), token.gather(1, kept)
            longer = tokens.gather(1, source[..., None].expand(-1, -1, tokens.shape[2]))
            tokens = torch.cat([longer, token[..., None]], dim=2)
            if tokens.shape[2] == rules.max_length or all(is_done):
                return self._finalised(finished, is_done, running, tokens, rules)
            rows = (torch.arange(prompts, device=logits.device)[:, None] * self.beams + source).flatten()
            logits, state = steps.advance(token.flatten(), steps.select(state, rows))

    def _penalised(self, log_probs: Tensor, tokens: Tensor, rules: GenerationConfig) -> Tensor:
        if self.repetition_penalty == 1.0:
            return log_probs
        prompt = torch.tensor(rules.prompt, dtype=torch.int64, device=tokens.device).expand(len(tokens), -1)
        there = torch.cat([prompt, tokens], dim=1)
        return log_probs.scatter(1, there, log_probs.gather(1, there) * self.repetition_penalty)

    def _finalised(
        self, finished: list[_Best], is_done: list[bool], running: Tensor, tokens: Tensor, rules: GenerationConfig
    ) -> list[Any]:
        """Texts that reached the longest length have not ended, and count as they are."""
        length = (len(rules.prompt) + tokens.shape[2]) ** self.length_penalty
        for row in [row for row, done in enumerate(is_done) if not done]:
            for score, text in zip(running[row].tolist(), tokens[row].cpu(), strict=True):
                finished[row].add(score / length, text)
        return [best.found for best in finished]
