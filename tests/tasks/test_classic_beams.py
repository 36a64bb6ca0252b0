"""Beam search by the rules of transformers before version 5: what counts as length, and what is penalised."""

import math

import pytest
import torch

from fusionkit.tasks.classic_beams import ClassicBeamSearch
from fusionkit.tasks.generation import GenerationConfig

END = 0


class Chain:
    """A language model whose next token hangs on the last one alone; state and tokens are (R,)."""

    def __init__(self, start, after):
        self.first, self.table = torch.tensor([start]).log(), torch.tensor(after).log()

    def start(self):
        return self.first, torch.zeros(1, dtype=torch.long)

    def advance(self, tokens, state):
        return self.table[tokens], tokens

    def select(self, state, rows):
        return state[rows]


# of the tokens 0 (the end), 1 and 2: first 1 or 2, and after each the end is likely
STEPS = Chain([0.001, 0.6, 0.399], [[1.0, 0.0, 0.0], [0.7, 0.1, 0.2], [0.8, 0.15, 0.05]])


def rules(**options):
    return GenerationConfig(**{"end": END, "max_length": 4} | options)


def test_the_length_has_the_prompt_in_it_and_the_end_not():
    for prompt, length in (((), 1), ((5, 6), 3)):
        found = ClassicBeamSearch(2, length_penalty=1.0)(STEPS, rules(prompt=prompt))
        assert found.tokens[0, :2].tolist() == [1, END]
        assert found.scores.item() == pytest.approx(math.log(0.6 * 0.7) / length)


def test_what_was_said_and_what_the_prompt_says_is_penalised():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, -4.0]]).expand(2, -1)
    search, there = ClassicBeamSearch(repetition_penalty=1.5), torch.tensor([[2], [1]])
    found = search._penalised(log_probs, there, rules(prompt=(3,)))
    assert found.tolist() == [[-1.0, -2.0, -4.5, -6.0], [-1.0, -3.0, -3.0, -6.0]]
    assert torch.equal(ClassicBeamSearch()._penalised(log_probs, there, rules(prompt=(3,))), log_probs)


def test_texts_that_never_end_are_cut_and_scored_as_they_are():
    endless = Chain([1e-9, 0.6, 0.4 - 1e-9], [[1.0, 0.0, 0.0], [1e-9, 0.75, 0.25 - 1e-9], [1e-9, 0.5, 0.5 - 1e-9]])
    found = ClassicBeamSearch(2)(endless, rules(max_length=3, prompt=(7,)))
    assert found.tokens[0].tolist() == [1, 1, 1]
    assert found.scores.item() == pytest.approx(math.log(0.6 * 0.75 * 0.75) / 4, abs=1e-5)


def test_all_beams_are_found_best_first():
    ((first, second),) = ClassicBeamSearch(2).search(STEPS, rules())
    assert (first[1].tolist(), second[1].tolist()) == ([2], [1]) if first[1].tolist() == [2] else ([1], [2])
    assert first[0] >= second[0]
