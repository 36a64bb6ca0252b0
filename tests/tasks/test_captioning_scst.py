"""SCST: the loss and its gradient by hand, what is drawn and what is trained are one distribution, and rewards rise."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.tasks.captioning import Captioning
from fusionkit.tasks.captioning_scst import (
    SelfCriticalCaptioning,
    deviation,
    others_mean,
    policy_loss,
    sample_log_probs,
    without_dropout,
)
from fusionkit.tasks.decoding import DecoderInputs, decoder_state_of, fuse_causal
from fusionkit.tasks.generation import GenerationConfig, Greedy, Sampling
from fusionkit.tasks.mlm import WordProjection
from fusionkit.training.module import seed_batch
from tests.toys import SEP, choices, toy_batch, toy_dims, toy_fusion, toy_model, toy_no_rows

CAUSAL = [name for name in choices("fusion") if "causal" in toy_fusion(name).func.provides]


class Words:
    """A reward: the share of the words that are even numbers; an image's own number breaks ties."""

    def begin(self, training):
        self.training = training

    def __call__(self, source, image_ids, captions, has_ended):
        self.asked = source, list(image_ids), list(captions), list(has_ended)
        return [
            sum(int(word[1:]) % 2 == 0 for word in caption.split()) / max(len(caption.split()), 1) + 0.01 * image_id
            for image_id, caption in zip(image_ids, captions, strict=True)
        ]


class Same(Words):
    def __call__(self, source, image_ids, captions, has_ended):
        return [0.1 + 0.2] * len(captions)


def built(fusion="cross_attention", reward=None, **options):
    torch.manual_seed(0)
    model = toy_model(fusion)
    options = {"max_length": 6} | options
    task = SelfCriticalCaptioning(toy_dims(model), reward or Words(), **options)
    if task.head is not None:
        nn.init.normal_(task.head.bias)  # so that tokens differ in how likely they are
        nn.init.constant_(task.head.bias[SEP], 3.0)  # and texts end
    return model, task


@pytest.mark.parametrize("fusion", CAUSAL)
@pytest.mark.parametrize(
    ("sampling", "rules"),
    [
        (Sampling(), {}),
        (Sampling(0.7, top_k=9), {"min_length": 3, "no_repeat_ngram": 1}),
        (Sampling(1.3, top_p=0.8), {"min_length": 2}),
    ],
)
def test_log_p_is_of_what_was_drawn_from(fusion, sampling, rules):
    """The drawing's own choices, whose log p is added up token by token, against the one pass with a gradient."""
    model, task = built(fusion, prompt="t7")
    model.eval()
    batch = toy_batch(images=3)
    rows = torch.arange(3).repeat_interleave(4)
    config = replace(task.writer.rules, **({"min_length": 0} | rules))
    prompts = task.writer.prompts(rows, task.head)
    memory = model.encode(batch, []).memory
    total = torch.zeros(len(rows))
    has_ended = torch.zeros(len(rows), dtype=torch.bool)

    class Noted(Sampling):
        def _draw(self, scores):
            nonlocal total, has_ended
            drawn = super()._draw(scores)
            log_probs = F.log_softmax(self.kept(scores), dim=1)
            total = total + log_probs.gather(1, drawn[:, None]).squeeze(1).masked_fill(has_ended, 0)
            has_ended = has_ended | (drawn == SEP)
            return drawn

    noted = Noted(sampling.temperature, sampling.top_k, sampling.top_p)
    with torch.no_grad():
        tokens = noted(decoder_state_of(DecoderInputs(model, task.head, memory, prompts)), config).tokens
    log_probs = sample_log_probs(model, task.head, memory, prompts, tokens, sampling, config)
    torch.testing.assert_close(log_probs, total, rtol=1e-4, atol=1e-4)
    assert log_probs.requires_grad
    assert (log_probs < 0).all()
    assert task.head is None or (tokens == SEP).any(dim=1).float().mean() > 0.1


def test_any_of_several_ends_is_the_end():
    """Two tokens end a text, and the first is written for both: its log p is that of either."""
    model, task = built()
    model.eval()
    batch = toy_batch(images=2)
    prompts = task.writer.prompts(torch.arange(2), task.head)
    memory = model.encode(batch, []).memory
    rules = replace(task.writer.rules, other_ends=(9,))
    tokens = torch.tensor([[SEP], [SEP]])
    logits, _ = decoder_state_of(DecoderInputs(model, task.head, memory, prompts)).start()
    probs = rules.restrict(logits, tokens[:, :0]).softmax(dim=1)
    found = sample_log_probs(model, task.head, memory, prompts, tokens, Sampling(), rules)
    torch.testing.assert_close(found.exp(), probs[:, SEP] + probs[:, 9])


def test_the_loss_and_its_gradient_are_the_formula(monkeypatch):
    """- mean of (r - b) times the sum of log p: by a plain loop over the samples, each text alone."""
    model, task = built(samples=3)
    model.eval()
    batch = toy_batch(images=2, texts_per_image=2)
    drawn = torch.tensor(
        [[5, 6, SEP, SEP], [8, 8, 8, 8], [SEP, SEP, SEP, SEP], [6, SEP, SEP, SEP], [7, 9, 5, SEP], [10, 12, 14, SEP]]
    )
    monkeypatch.setattr(task, "_said", lambda *args: drawn)
    parameters = [*model.fusion.parameters(), *task.parameters(), *model.text_encoder.parameters()]
    parameters = [p for p in parameters if p.requires_grad]
    out = task(model, batch, model.encode(batch, []))
    own = torch.autograd.grad(out.loss, parameters, allow_unused=True)
    texts = [[5, 6, SEP], [8, 8, 8, 8], [SEP], [6, SEP], [7, 9, 5, SEP], [10, 12, 14, SEP]]
    rewards = [0.5 + 1.0, 1.0 + 1.0, 0.0 + 1.0, 1.0 + 1.01, 0.0 + 1.01, 1.0 + 1.01]
    baselines = [(2 + 1) / 2, (1.5 + 1) / 2, (1.5 + 2) / 2, (1.01 + 2.01) / 2, 2.01, (2.01 + 1.01) / 2]
    memory, total = model.encode(batch, []).memory, 0.0
    banned = torch.zeros(60)
    banned[list(task.writer.rules.banned)] = float("-inf")
    for row, (text, reward, baseline) in enumerate(zip(texts, rewards, baselines, strict=True)):
        ids = torch.tensor([[2, *text]])
        mask = torch.ones(1, len(ids[0]), len(ids[0])).tril().long()
        states = model.fuse(memory, model.encode_text(ids, mask), torch.tensor([row // 3])).text[0]
        logits = task.head(states[:-1], model.text_encoder.word_embeddings.weight) + banned
        log_prob = logits.log_softmax(dim=1)[range(len(text)), text].sum()
        total = total - (reward - baseline) * log_prob / 6
    torch.testing.assert_close(out.loss, total, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(total, parameters, allow_unused=True)
    assert sum(grad is not None and bool(grad.abs().sum() > 0) for grad in wanted) > 10
    for one, other in zip(own, wanted, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    source, ids, captions, has_ended = task.reward.asked
    assert (source, ids) == ("toy", [100] * 3 + [101] * 3)
    assert captions == ["t5 t6", "t8 t8 t8 t8", "", "t6", "t7 t9 t5", "t10 t12 t14"]
    assert has_ended == [True, False, True, True, True, True]
    reward, baseline = out.metrics["reward"], out.metrics["baseline"]
    assert float(reward[0]) / reward[1] == pytest.approx(sum(rewards) / 6)
    assert float(baseline[0]) / baseline[1] == pytest.approx(sum(baselines) / 6)
    std = deviation(*(torch.as_tensor(part) for part in out.metrics["reward_std"]))
    assert float(std) == pytest.approx(torch.tensor(rewards).std(correction=0).item(), abs=1e-5)


def test_on_a_toy_the_expected_gradient_is_that_of_the_expected_reward():
    """Two tokens of three words: of all nine texts, weighted by their p, the formula's gradient is the exact one."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(3, 3, dtype=torch.float64)
    log_probs = logits.log_softmax(dim=1)
    expected = (log_probs[0].exp()[:, None] * log_probs[1].exp()[None] * rewards).sum()
    (exact,) = torch.autograd.grad(expected, logits, retain_graph=True)
    pairs = list(itertools.product(range(3), range(3)))
    total = torch.zeros_like(exact)
    for (a, b), (c, d) in itertools.product(pairs, pairs):  # two samples, each the other's baseline
        own = torch.stack([log_probs[0, a] + log_probs[1, b], log_probs[0, c] + log_probs[1, d]])
        drawn = torch.stack([rewards[a, b], rewards[c, d]])
        advantages = drawn - others_mean(drawn[None])[0]
        (gradient,) = torch.autograd.grad(policy_loss(own, advantages), logits, retain_graph=True)
        total -= own.sum().exp().detach() * gradient
    torch.testing.assert_close(total, exact)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_where_all_rewards_are_equal_the_gradient_is_exactly_zero(baseline):
    model, task = built(reward=Same(), samples=5, baseline=baseline)
    batch = toy_batch(images=3)
    out = task(model, batch, model.encode(batch, []))
    out.loss.backward()
    assert out.loss == 0
    parameters = [*model.fusion.parameters(), *task.parameters()]
    assert all((p.grad == 0).all() for p in parameters if p.grad is not None)
    assert any(p.grad is not None for p in parameters)


def test_the_others_mean_leaves_oneself_out():
    found = others_mean(torch.tensor([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1]], dtype=torch.float64))
    torch.testing.assert_close(found[0], torch.tensor([4.0, 3.5, 1.5], dtype=torch.float64))
    assert (found[1] == 0.1).all()


def test_the_greedy_baseline_is_the_reward_of_the_greedy_caption():
    model, task = built(baseline="greedy", samples=2)
    model.eval()
    batch = toy_batch(images=3)
    encoded = model.encode(batch, [])
    out = task(model, batch, encoded)
    task.writer.search = Greedy()
    said = [record["caption"] for record in task.eval().predict(model, batch, encoded)]
    wanted = Words()("toy", batch["image_ids"], said, [])
    torch.testing.assert_close(out.targets, torch.tensor(wanted).repeat_interleave(2))


def test_draws_are_the_run_s_and_dropout_is_off_and_put_back():
    torch.manual_seed(0)
    model = toy_model(
        lambda **sizes: toy_fusion("cross_attention").func(**sizes, num_layers=1, num_heads=4, dropout=0.5)
    )
    task = SelfCriticalCaptioning(toy_dims(model), Words(), max_length=6)
    model.train()
    batch = toy_batch(images=3)
    encoded = model.encode(batch, [])
    found = []
    for seed in (1, 1, 2):
        seed_batch(seed, 0, 0, 0)
        out = task(model, batch, encoded)
        found.append((out.loss.item(), task.reward.asked[2]))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]
    assert all(module.training for module in [*model.modules(), *task.modules()])
    with without_dropout(model.fusion, None):
        assert not any(module.training for module in model.fusion.modules())
        assert model.text_encoder.training
    with pytest.raises(KeyError), without_dropout(model.fusion):
        raise KeyError
    assert model.fusion.training
    # the same states twice, where dropout would give others
    prompts = task.writer.prompts(torch.arange(3), task.head)
    with without_dropout(model.text_encoder, model.fusion):
        one, other = (fuse_causal(model, encoded.memory, prompts) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
def test_under_autocast_the_gradient_reaches_what_the_drawing_has_used(fusion):
    """What is cast without a gradient is kept by autocast: the weights of the fusion would get none."""
    model, task = built(fusion)
    model.freeze_unused(task.needs)
    batch = toy_batch(images=3)
    with torch.autocast("cpu", torch.bfloat16):
        out = task(model, batch, model.encode(batch, []))
    out.loss.backward()
    missing = [
        n for n, p in [*model.named_parameters(), *task.named_parameters()] if p.requires_grad and p.grad is None
    ]
    assert not missing
    assert out.loss.dtype == torch.float32


def test_images_without_captions_are_left_out_and_none_cost_nothing():
    model, task = built()
    batch = toy_batch(images=4)
    batch["captions"] = {name: part[1:2] for name, part in batch["captions"].items()}
    task(model, batch, model.encode(batch, []))
    assert task.reward.asked[1] == [101] * 5
    batch["captions"] = toy_no_rows("captions")
    out = task(model, batch, model.encode(batch, []))
    assert out.loss == 0
    assert len(out.logits) == 0


@pytest.mark.parametrize(("fusion", "baseline"), [("merged_attention", "mean"), ("prefix", "greedy")])
def test_rewards_rise(fusion, baseline):
    """From chance: after some steps most of the words that are drawn are those that the reward wants."""
    model, task = built(fusion, baseline=baseline, samples=8)
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=2e-3, weight_decay=0.0)
    batch = toy_batch(images=4)
    rewards = []
    for step in range(40):
        seed_batch(0, 0, step, 0)
        out = task(model, batch, model.encode(batch, []))
        rewards.append(out.logits.mean().item() - 1.015)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15


def test_it_starts_as_captioning_does():
    model, task = built()
    plain = Captioning(toy_dims(model))
    assert task.state_dict().keys() == plain.state_dict().keys()
    assert task.init_from == "captioning"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"baseline": "men"}, "task.captioning.baseline is 'men'; did you mean 'mean'"),
        ({"samples": 1}, "task.captioning.samples is 1, but baseline=mean needs 2 an image"),
        ({"samples": 0, "baseline": "greedy"}, "task.captioning.samples is 0, but baseline=greedy needs 1 an image"),
    ],
)
def test_mistakes_are_one_sentence(options, told):
    with pytest.raises(ConfigError, match=told):
        built(**options)


def test_rules_of_a_text_hold_for_what_is_drawn():
    model, task = built(min_length=4, no_repeat_ngram=1, samples=6)
    task.sampling = Sampling(temperature=2.0)
    batch = toy_batch(images=3)
    task(model, batch, model.encode(batch, []))
    said = [caption.split() for caption in task.reward.asked[2]]
    assert all(4 <= len(words) == len(set(words)) for words in said)
    assert isinstance(task.writer.rules, GenerationConfig)


def test_without_a_reward_nothing_is_trained():
    task = SelfCriticalCaptioning(toy_dims(toy_model()), reward=None)
    with pytest.raises(ConfigError, match=r"task\.captioning\.reward is null, but captions are trained by it"):
        task.begin({})


def test_a_head_beside_the_language_models_own_is_refused():
    dims = toy_dims(toy_model("prefix"))
    with pytest.raises(ConfigError, match="the language model says words by its own"):
        SelfCriticalCaptioning(dims, head=WordProjection)
