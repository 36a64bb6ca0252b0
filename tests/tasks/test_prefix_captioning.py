"""SimVLM's prefix language modelling: which tokens are scored, what they have seen, how the prefix is drawn."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fusionkit.errors import ConfigError
from fusionkit.fusion.mixed_cross_attention import SelfAttentionLayers
from fusionkit.tasks import captioning
from fusionkit.tasks.captioning import Captioning, random_prefix
from fusionkit.tasks.captioning_shared import SharedCaptioning
from tests.toys import CLS, SEP, choices, reads_on, toy_batch, toy_dims, toy_fusion, toy_language_model, toy_model

CAUSAL = [name for name in choices("fusion") if "causal" in toy_fusion(name).func.provides]
READ_ON = [name for name in CAUSAL if reads_on(toy_fusion(name)) and not name.startswith("encoder_decoder")]
OBEYS = [name for name in CAUSAL if not reads_on(toy_fusion(name))]
LENGTH = 9


def built(fusion, **options):
    torch.manual_seed(0)
    model = toy_model(fusion)
    return model, Captioning(toy_dims(model), prefix="random", label_smoothing=0.0, **options).train()


def full_batch():
    """Captions without padding, of nine tokens each."""
    torch.manual_seed(0)
    batch = toy_batch(images=3)
    rows = batch["captions"]
    rows["input_ids"] = torch.randint(5, 60, (3, LENGTH))
    rows["attention_mask"] = torch.ones(3, LENGTH, dtype=torch.long)
    return batch


@pytest.mark.parametrize("fusion", OBEYS)
def test_tokens_of_the_prefix_see_one_another_and_only_those_behind_it_are_scored(fusion, monkeypatch):
    """What the first logits gain or lose by each token, as gradients of the words' embeddings."""
    model, task = built(fusion)
    monkeypatch.setattr(captioning, "random_prefix", lambda lengths: torch.full_like(lengths, 4))
    batch = full_batch()
    embedded = []

    def keep(module, args, output):
        output.retain_grad()
        embedded.append(output)

    handle = model.text_encoder.word_embeddings.register_forward_hook(keep)
    out = task(model, batch, model.encode(batch, []))
    handle.remove()
    ids = batch["captions"]["input_ids"]
    assert out.targets.tolist() == ids[:, 4:].flatten().tolist()  # no loss within the prefix
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, out.targets))
    first = out.logits.view(3, LENGTH - 4, -1)[:, 0]  # of the token behind the prefix, said at the last of it
    (first.square().sum()).backward(retain_graph=True)
    seen = embedded[0].grad.abs().sum(dim=2) > 0
    assert seen.tolist() == [[True] * 4 + [False] * 5] * 3
    embedded[0].grad = None
    states = model.fuse(
        model.encode(batch, []).memory,
        model.encode_text(ids, captioning_mask(4)),
        batch["captions"]["image_index"],
    ).text
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 7) % 60
    other = model.fuse(
        model.encode(batch, []).memory,
        model.encode_text(changed, captioning_mask(4)),
        batch["captions"]["image_index"],
    ).text
    assert (states[:, 0] - other[:, 0]).abs().max() > 1e-6  # the start has seen the last of the prefix


def captioning_mask(prefix):
    """Written plainly: (3, L, L), causal but for the first tokens."""
    mask = torch.ones(LENGTH, LENGTH).tril()
    mask[:prefix, :prefix] = 1
    return mask.long().expand(3, -1, -1)


@pytest.mark.parametrize("fusion", [*OBEYS, "encoder_decoder"])
def test_the_loss_is_the_cross_entropy_behind_each_caption_s_own_prefix(fusion, monkeypatch):
    model, task = built(fusion)
    batch = toy_batch(images=3, texts_per_image=2)
    rows = batch["captions"]
    lengths = rows["attention_mask"].sum(dim=1)
    prefix = torch.tensor([1, 3, 2, 3, 1, 2])
    monkeypatch.setattr(captioning, "random_prefix", lambda asked: prefix)
    encoded = model.encode(batch, [])
    out, total, count = task(model, batch, encoded), 0.0, 0
    for row, first in enumerate(prefix.tolist()):
        ids = rows["input_ids"][row : row + 1, : int(lengths[row])]
        if (
            model.encodes_prompts
        ):  # its encoder reads a whole text, and the prefix behind it; the decoder says the others
            ids, first = torch.cat([torch.tensor([[CLS, SEP]]), ids[:, 1:]], dim=1), first + 1
        size = ids.shape[1]
        mask = torch.ones(size, size).tril()
        mask[:first, :first] = 1
        fused = model.fuse(encoded.memory, model.encode_text(ids, mask.long()[None]), rows["image_index"][row][None])
        states = fused.text[0, first - 1 : -1]
        logits = (
            task.head(states, model.text_encoder.word_embeddings.weight) if task.head else model.predict_words(states)
        )
        total, count = total + F.cross_entropy(logits, ids[0, first:], reduction="sum"), count + size - first
    torch.testing.assert_close(out.loss, total / count, rtol=1e-5, atol=1e-5)
    assert len(out.targets) == count


def test_the_prefix_is_uniform_from_the_start_to_all_but_the_last():
    torch.manual_seed(0)
    lengths = torch.tensor([2, 3, 6, 12]).repeat(20000, 1)
    drawn = random_prefix(lengths)
    assert drawn.amin(dim=0).tolist() == [1, 1, 1, 1]
    assert drawn.amax(dim=0).tolist() == [1, 2, 5, 11]
    # of 1 to L - 1 the mean is L / 2; three standard errors are .07
    torch.testing.assert_close(drawn.float().mean(dim=0), torch.tensor([1.0, 1.5, 3.0, 6.0]), rtol=0, atol=0.07)
    shares = torch.bincount(drawn[:, 2])[1:] / 20000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.01)


def test_the_draw_is_the_run_s_and_evaluation_draws_nothing():
    model, task = built("merged_attention")
    model.eval()
    batch = toy_batch(images=6)
    encoded = model.encode(batch, [])
    counts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        counts.append(len(task(model, batch, encoded).targets))
        losses = task(model, batch, encoded).loss
    assert counts[0] == counts[1] != counts[2]
    task.eval()
    plain = Captioning(toy_dims(model), label_smoothing=0.0).eval()
    plain.load_state_dict(task.state_dict())
    before = torch.random.get_rng_state()
    assert torch.equal(task(model, batch, encoded).loss, plain(model, batch, encoded).loss)
    assert task.predict(model, batch, encoded) == plain.predict(model, batch, encoded)
    assert torch.equal(before, torch.random.get_rng_state())
    assert losses.isfinite()


def test_behind_a_prompt_something_is_always_scored():
    model, task = built("merged_attention", prompt="t7 t9 t11")
    batch = toy_batch(images=4)
    for seed in range(20):
        torch.manual_seed(seed)
        out = task(model, batch, model.encode(batch, []))
        assert out.loss.isfinite()
        assert (out.targets == SEP).sum() == 4  # each caption's end
        assert not {7, 9, 11} & set(out.targets.tolist()) - set(batch["captions"]["input_ids"].flatten().tolist())


@pytest.mark.parametrize("fusion", READ_ON)
def test_a_language_model_has_to_let_the_prefix_see_itself(fusion):
    model, task = built(fusion)
    with pytest.raises(
        ConfigError,
        match=r"prefix=random wants .*; choose a fusion that does, such as merged_attention, or prefix with",
    ):
        task.check(model)
    if fusion.startswith("interleaved"):
        return
    model.fusion.sees = "text"
    task.check(model)
    batch = toy_batch(images=4)
    out = task(model, batch, model.encode(batch, []))
    out.loss.backward()
    assert out.loss.isfinite()
    assert 4 <= len(out.targets) < int(batch["captions"]["attention_mask"].sum()) - 4


def test_coca_needs_a_text_encoder_whose_tokens_see_later_ones():
    Captioning(toy_dims(model := toy_model("coca")), prefix="random").check(model)  # over BERT
    causal = toy_model("coca")
    causal.text_encoder = toy_language_model()
    with pytest.raises(ConfigError, match="neither text_encoder nor fusion CoCa lets one see a later one"):
        Captioning(toy_dims(causal), prefix="random").check(causal)


@pytest.mark.parametrize("fusion", ["cross_attention", "encoder_decoder"])
def test_behind_a_prompt_each_prefix_is_as_likely(fusion, monkeypatch):
    model, task = built(fusion, prompt="t7 t9 t11")
    asked = []
    monkeypatch.setattr(captioning, "random_prefix", lambda lengths: asked.append(lengths) or torch.ones_like(lengths))
    batch = toy_batch(images=3)
    out = task(model, batch, model.encode(batch, []))
    (lengths,) = asked
    assert torch.equal(lengths, batch["captions"]["attention_mask"].sum(dim=1))  # as if the prompt were one token
    assert len(out.targets) == int(lengths.sum()) - 3


def test_a_decoder_that_shares_the_fusion_takes_a_prefix_too(monkeypatch):
    torch.manual_seed(0)
    model = toy_model("mixed_cross_attention")
    layers = partial(SelfAttentionLayers, num_layers=2, num_heads=4, dropout=0.0)
    task = SharedCaptioning(toy_dims(model), layers, prefix="random")
    monkeypatch.setattr(captioning, "random_prefix", lambda lengths: torch.full_like(lengths, 4))
    batch = full_batch()
    ids = batch["captions"]["input_ids"]
    assert task(model, batch, model.encode(batch, [])).targets.tolist() == ids[:, 4:].flatten().tolist()
    assert len(task.eval()(model, batch, model.encode(batch, [])).targets) == 3 * 8


def test_another_word_is_refused():
    model = toy_model()
    with pytest.raises(ConfigError, match=r"task.captioning.prefix is 'randm'; did you mean 'random'"):
        Captioning(toy_dims(model), prefix="randm")
