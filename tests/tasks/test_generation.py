"""Decoding against transformers' own, for the scores of one small random language model."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TopKLogitsWarper, TopPLogitsWarper

from fusionkit.errors import ConfigError
from fusionkit.tasks.classic_beams import ClassicBeamSearch
from fusionkit.tasks.generation import (
    BeamSearch,
    GenerationConfig,
    Greedy,
    Sampling,
    Watched,
    _Finished,
    keep_top_k,
    keep_top_p,
    token_losses,
)

VOCABULARY, END = 14, 1
BANNED = (0, 2, 3)  # the prompts: no n-gram that comes twice holds one, and transformers counts those of the prompt too
PROMPTS = torch.tensor(BANNED)[:, None]


def language_model(seed):
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=END, pad_token_id=2)).eval()
    model.transformer.wte.weight.data.mul_(25)  # scores that depend on what came before
    return model


class Reader:
    """DecoderState over a language model; its state is all tokens so far."""

    def __init__(self, model, prompts):
        self.model, self.prompts = model, prompts

    def start(self):
        return self.model(self.prompts).logits[:, -1], self.prompts

    def advance(self, tokens, state):
        state = torch.cat([state, tokens[:, None]], dim=1)
        return self.model(state).logits[:, -1], state

    def select(self, state, rows):
        return state[rows]


def ours(tokens):
    """Token lists up to and with the end."""
    rows = [row.tolist() for row in tokens]
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def theirs(model, rules, **options):
    output = model.generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        max_new_tokens=rules.max_length,
        min_new_tokens=rules.min_length,
        no_repeat_ngram_size=rules.no_repeat_ngram,
        suppress_tokens=list(rules.banned),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return ours(output.sequences[:, PROMPTS.shape[1] :]), output.get("sequences_scores")


RULES = {
    "plain": GenerationConfig(END, 9, banned=BANNED),
    "long": GenerationConfig(END, 9, min_length=6, banned=BANNED),
    "no_repeat": GenerationConfig(END, 12, no_repeat_ngram=2, banned=BANNED),
    "all": GenerationConfig(END, 12, min_length=4, no_repeat_ngram=3, banned=BANNED),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("seed", range(2))
@torch.inference_mode()
def test_greedy_is_transformers(seed, rules):
    model = language_model(seed)
    assert ours(Greedy()(Reader(model, PROMPTS), rules).tokens) == theirs(model, rules)[0]


@pytest.mark.parametrize(
    "search",
    [
        {"beams": 2, "length_penalty": 1.0},
        {"beams": 4, "length_penalty": 2.0},
        {"beams": 3, "length_penalty": 0.0, "early_stopping": True},
        {"beams": 5, "length_penalty": -1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@torch.inference_mode()
def test_beam_search_is_transformers(rules, search):
    for seed in range(2):
        model = language_model(seed)
        found = BeamSearch(**search)(Reader(model, PROMPTS), rules)
        options = {key: value for key, value in search.items() if key != "beams"}
        tokens, scores = theirs(model, rules, num_beams=search["beams"], **options)
        assert ours(found.tokens) == tokens
        torch.testing.assert_close(found.scores, scores, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_beams_find_what_greedy_misses():
    better = 0
    for seed in range(8):
        steps = Reader(language_model(seed), PROMPTS)
        alone, found = (search(steps, RULES["plain"]) for search in (Greedy(), BeamSearch(6, length_penalty=0.0)))
        assert (found.scores >= alone.scores - 1e-5).all()
        better += int((found.scores > alone.scores + 1e-3).sum())
    assert better > 0


def test_truncated_distributions_are_transformers():
    torch.manual_seed(0)
    scores = torch.randn(50, VOCABULARY) * 3
    for top_k in (1, 4, VOCABULARY):
        assert torch.equal(keep_top_k(scores, top_k), TopKLogitsWarper(top_k)(None, scores))
    for top_p in (0.1, 0.5, 0.9):
        assert torch.equal(keep_top_p(scores, top_p), TopPLogitsWarper(top_p)(None, scores))
    assert keep_top_p(scores, 1.0) is scores  # sums that are rounded would drop the rarest tokens


@torch.inference_mode()
def test_samples_follow_the_truncated_law():
    model, count = language_model(0), 4000
    steps, rules = Reader(model, PROMPTS[:1].repeat(count, 1)), GenerationConfig(END, 1, banned=BANNED)
    torch.manual_seed(1)
    drawn = torch.bincount(Sampling(20.0, top_k=5)(steps, rules).tokens[:, 0], minlength=VOCABULARY) / count
    scores = model(PROMPTS[:1]).logits[:, -1].log_softmax(dim=1) / 20.0
    scores[:, list(BANNED)] = float("-inf")
    law = keep_top_k(scores, 5).softmax(dim=1)[0]
    assert ((drawn > 0) == (law > 0)).all()
    assert (drawn - law).abs().max() < 0.03
    assert torch.equal(Sampling(top_k=1)(steps, rules).tokens, Greedy()(steps, rules).tokens)
    drawn = []
    for search in (Sampling(), Sampling(temperature=1.0, top_k=0, top_p=1.0)):  # by default nothing is changed
        torch.manual_seed(2)
        drawn.append(search(steps, rules).tokens)
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: GenerationConfig(END, 5, min_length=5), "min_length is 5"),
        (lambda: GenerationConfig(END, no_repeat_ngram=-1), "no_repeat_ngram is -1"),
        (lambda: Sampling(top_p=0.0), "top_p 0.0"),
        (lambda: BeamSearch(beams=0), "beams is 0"),
        (lambda: BeamSearch(beams=1001), "beams is 1001; give 1 or more, up to 1000"),
        (lambda: ClassicBeamSearch(beams=0), "beams is 0"),
        (lambda: BeamSearch(length_penalty=101), "length_penalty is 101; give a number from -100 to 100"),
        (lambda: BeamSearch(length_penalty=-(2**31)), "length_penalty is -2147483648"),
        (lambda: ClassicBeamSearch(length_penalty=float("nan")), "length_penalty is nan"),
    ],
)
def test_impossible_options_are_one_sentence(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()


@pytest.mark.parametrize("kind", [BeamSearch, ClassicBeamSearch])
def test_the_last_options_that_are_possible(kind):
    assert kind(beams=1000, length_penalty=-100) != kind(beams=1, length_penalty=100)


def test_a_running_text_is_compared_at_the_length_it_has():
    """A text that would win two steps later is given up, as transformers gives it up: at its length it is the worst."""
    first = torch.full((10,), 0.0055)
    first[[END, 2]] = torch.tensor([0.407, 0.549])
    after = torch.full((10, 10), 0.08)
    after[2, [END, 3]] = torch.tensor([0.2725, 0.2466])
    after[3] = 1e-9
    after[3, END] = 1.0

    class Chain:
        def start(self):
            return first[None].log(), torch.zeros(1)

        def advance(self, tokens, state):
            return after[tokens].log(), state

        def select(self, state, rows):
            return state.expand(len(rows))

    found = BeamSearch(2)(Chain(), GenerationConfig(END, max_length=6))
    assert found.tokens[0].tolist() == [END] * 6
    patient = BeamSearch(2, length_penalty=3.0)(Chain(), GenerationConfig(END, max_length=6))
    assert patient.tokens[0, :3].tolist() == [2, 3, END]


def test_the_end_is_never_banned():
    """Where one token starts, ends and pads texts (GPT-2, CLIP), the rules of every task let it end them."""
    rules = GenerationConfig(END, max_length=5, min_length=1, banned=(0, END, 4))
    assert rules.banned == (0, 4)
    scores = rules.restrict(torch.zeros(1, 6), torch.zeros(1, 1, dtype=torch.long))
    assert scores[0, END] == 0
    assert scores[0, [0, 4]].isneginf().all()
    assert rules.restrict(torch.zeros(1, 6), torch.zeros(1, 0, dtype=torch.long))[0, END].isneginf()


def test_rules_are_values():
    with pytest.raises(FrozenInstanceError):
        GenerationConfig(END).end = 2


def test_a_given_text_is_read_up_to_its_last_token_and_no_further():
    """What follows the last token scores nothing."""
    model = language_model(0)
    steps = Counting(model, PROMPTS)
    logits, state = steps.start()
    tokens = torch.tensor([[5, 6, 7]]).repeat(len(PROMPTS), 1)
    token_losses(steps, logits, state, tokens, torch.ones_like(tokens))
    assert steps.count == 2


class Counting(Reader):
    count = 0

    def advance(self, tokens, state):
        self.count += 1
        return super().advance(tokens, state)


def test_a_hypothesis_that_can_but_draw_level_improves_nothing():
    finished = _Finished(torch.zeros(1, 1, 4, dtype=torch.long), torch.tensor([[-1.0]]), END)
    assert [finished.can_improve(torch.tensor([best]), False).item() for best in (-1.0, -0.5)] == [False, True]
    assert not finished.can_improve(torch.tensor([-0.5]), True)


@pytest.mark.parametrize("search", [Greedy(), BeamSearch(3)], ids=["greedy", "beams"])
@pytest.mark.parametrize("least", [0, 4])
@torch.inference_mode()
def test_a_text_ends_at_any_of_several_ends(search, least):
    ends = [END, 4, 9, 11]
    rules = GenerationConfig(END, 9, least, banned=(*BANNED, 9), other_ends=(4, 9, 11))
    for seed in range(3):
        model = language_model(seed)
        found = search(Reader(model, PROMPTS), rules).tokens
        options = {"eos_token_id": ends, "num_beams": getattr(search, "beams", 1)}
        said, _ = theirs(model, GenerationConfig(END, 9, least, banned=BANNED), **options)
        for row, (ours_, text) in enumerate(zip(found.tolist(), said, strict=True)):
            length = next((place for place, token in enumerate(text) if token in ends), len(text))
            assert ours_[:length] == text[:length], (seed, row)
            assert all(token == END for token in ours_[length:])
            assert length >= least


@pytest.mark.parametrize("search", [Greedy(), BeamSearch(3), ClassicBeamSearch(3)])
def test_who_watches_sees_each_prompt_grow_and_changes_nothing(search):
    model, rules = language_model(1), RULES["long"]
    seen = []
    with torch.no_grad():
        found = search(Watched(Reader(model, PROMPTS), seen.append), rules)
        plain = search(Reader(model, PROMPTS), rules)
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.scores, plain.scores)
    assert len(seen) >= rules.min_length
    assert [tokens.shape for tokens in seen] == [(len(PROMPTS), place) for place in range(1, len(seen) + 1)]
    if isinstance(search, Greedy):
        assert torch.equal(seen[-1], found.tokens[:, : len(seen)])


def test_what_a_watcher_raises_ends_the_search():
    def leave(tokens):
        raise LookupError

    with pytest.raises(LookupError), torch.no_grad():
        BeamSearch(2)(Watched(Reader(language_model(1), PROMPTS), leave), RULES["long"])
