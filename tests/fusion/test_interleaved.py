"""Blocks that look at the image between a causal language model's layers: the library's own, and Flamingo's formula."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fusionkit.encoders.language import LanguageModel
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.interleaved import Interleaved, InterleavedResampled
from fusionkit.fusion.projectors import Perceiver, PixelShuffle
from fusionkit.model.model import Reader, assemble
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.tasks.decoding import CachedDecoderState, DecoderInputs, fuse_causal
from fusionkit.tasks.generation import GenerationConfig, Greedy
from fusionkit.training.optim import build_optimizer
from fusionkit.types import TextFormat, Tokens
from tests.encoders.test_language import FAMILIES
from tests.fusion.readers import IMAGE, INDEX, LENGTH, LENGTHS, check_reader, image, prompts
from tests.fusion.test_prefix import library
from tests.toys import (
    CLS,
    PAD,
    SEP,
    VOCABULARY,
    toy_batch,
    toy_dims,
    toy_fusion,
    toy_language_model,
    toy_model,
    toy_task,
)

HEADS = 4
WORDS = TextFormat(CLS, SEP, PAD, None, 1)
NAMES = ["interleaved", "interleaved_resampled"]
OTHERS = [kind for kind in FAMILIES if kind != "llama"]
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1]])
all_families = pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
)


def build(kind="llama", name="interleaved", checkpointing=False, **options):
    """A reader of scattered weights over a family of the language model's tests, which has two layers."""
    torch.manual_seed(0)
    config = {"model_type": kind, **FAMILIES[kind]}
    text_encoder = LanguageModel(VOCABULARY, config=config, text_format=WORDS, checkpointing=checkpointing)
    fusion = toy_fusion(name)(image_size=IMAGE, text_size=text_encoder.hidden_size, **options)
    fusion.join(text_encoder)
    reader = Reader(text_encoder, fusion).eval()
    for parameter in reader.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    for number, block in enumerate(fusion.cross_layers):
        if block.cross_gate is not None and options.get("gate") != 0:
            block.cross_gate.data.fill_(0.9 - number / 2)
            block.feed_forward_gate.data.fill_(number - 0.6)
    reader.text_encoder.word_embeddings.weight.data.mul_(3)
    return reader


class Looking(torch.nn.Module):
    """A layer of the library behind a block, which is written out for one text after the other."""

    def __init__(self, block, layer, seen, mask):
        super().__init__()
        self.block, self.layer, self.seen, self.mask = block, layer, seen, mask

    def __getattr__(self, name):
        """Fields of the layer that the library reads."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["layer"], name)

    def forward(self, hidden_states, *args, **kwargs):
        rows = zip(hidden_states, self.seen, self.mask, strict=True)
        return self.layer(torch.stack([look(self.block, *row) for row in rows]), *args, **kwargs)


def look(block, states, seen, mask):
    """Flamingo's gated block for one text (L, D) and the tokens (N, Di) of its image, of which the mask (N,) leaves some."""
    seen, cross = seen[mask.bool()], block.cross_attention
    query, key, value = cross.query(norm(block.norm_cross, states)), cross.key(seen), cross.value(seen)
    heads = []
    for one in range(HEADS):
        width = query.shape[1] // HEADS
        part = slice(one * width, (one + 1) * width)
        weights = (query[:, part] @ key[:, part].T / width**0.5).softmax(dim=1)
        heads.append(weights @ value[:, part])
    gates = (1.0, 1.0) if block.cross_gate is None else (block.cross_gate.tanh(), block.feed_forward_gate.tanh())
    states = states + gates[0] * (torch.cat(heads, dim=1) @ cross.output.weight.T)
    linear, normed = block.feed_forward, norm(block.norm_feed_forward, states)
    return states + gates[1] * linear.down(F.silu(linear.gate(normed)) * linear.up(normed))


def norm(part, states):
    return states / (states.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * part.weight


def looking(reader, given, every=1):
    """The library's own model with blocks before its layers; the texts' images as the fusion's blocks see them."""
    model, fusion = library(reader), reader.fusion
    seen, mask = given.embeds, given.mask
    if isinstance(fusion, InterleavedResampled):
        seen, mask = fusion.resampler(given)
    mask = torch.ones(seen.shape[:2]) if mask is None else mask
    decoder = model.get_decoder()
    layers = next(part for part in decoder.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == 2)
    for place, block in enumerate(fusion.cross_layers):
        layers[place * every] = Looking(block, layers[place * every], seen[INDEX], mask[INDEX])
    return model


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_gives_the_library_s_numbers_with_flamingo_s_formula_between_the_layers_and_its_words(name, kind):
    """Logits to 1e-5; greedy tokens are those of ``generate`` on texts that are padded on the left."""
    reader, given, seen = build(kind, name), prompts(), image(MASK)
    model, memory = looking(reader, seen), reader.fusion.prepare(seen)
    ours = reader.predict_words(fuse_causal(reader, memory, given))
    theirs = model(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    real = given.attention_mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=2e-5)
    plain = library(reader)(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    assert not torch.allclose(plain[real], theirs[real], atol=1e-2)

    rules = GenerationConfig(SEP, max_length=6)
    found = Greedy()(CachedDecoderState(DecoderInputs(reader, None, memory, given)), rules).tokens
    left = torch.stack([row.roll(LENGTH - int(length)) for row, length in zip(given.input_ids, LENGTHS, strict=True)])
    mask = (torch.arange(LENGTH) >= LENGTH - LENGTHS).long()
    said = model.generate(
        input_ids=left, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=SEP, eos_token_id=SEP
    )[:, LENGTH:]
    assert torch.equal(found, F.pad(said, (0, found.shape[1] - said.shape[1]), value=SEP))
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize("options", [{"gate": None}, {"cross_every": 2}, {"intermediate_size": 20}])
@torch.no_grad()
def test_options_change_what_they_say(options):
    reader, given, seen = build(**options), prompts(), image(MASK)
    every = options.get("cross_every", 1)
    assert len(reader.fusion.cross_layers) == 2 // every
    assert reader.fusion.cross_layers[0].feed_forward.up.out_features == options.get("intermediate_size", 4 * 32)
    ours = reader.predict_words(fuse_causal(reader, reader.fusion.prepare(seen), given))
    model = looking(reader, seen, every)
    theirs = model(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    real = given.attention_mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=2e-5)
    assert reader.fusion.metrics().keys() == (set() if "gate" in options else {"gate"})


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_with_closed_gates_the_language_model_is_as_it_was_to_the_last_bit(name, kind):
    """Its logits and what it says piece by piece, beside the same weights that no fusion has touched."""
    reader, given = build(kind, name, gate=0), prompts()
    alone = LanguageModel(VOCABULARY, config={"model_type": kind, **FAMILIES[kind]}, text_format=WORDS).eval()
    alone.load_state_dict(reader.text_encoder.state_dict(), strict=True)
    real, memory = given.attention_mask.bool(), reader.fusion.prepare(image(MASK))
    expected = alone.predict_words(alone(given.input_ids, given.attention_mask).embeds)
    found = reader.predict_words(fuse_causal(reader, memory, given))
    assert torch.equal(found[real], expected[real])
    square = torch.ones(LENGTH, LENGTH).tril().bool() & given.attention_mask[:, None].bool()
    places = torch.arange(LENGTH).expand(5, -1)
    past = our_past = None
    for part in (slice(0, 4), slice(4, 6)):
        theirs = (given.input_ids[:, part], square[:, part, : part.stop].long(), places[:, part])
        tokens, past = alone.extend(*theirs, past)
        states, our_past = reader.extend(memory, *theirs, INDEX, our_past)
        assert torch.equal(states[real[:, part]], tokens.embeds[real[:, part]])
    text = reader.encode_text(given.input_ids, given.attention_mask)
    open_reader = build(kind, name)
    assert torch.equal(
        open_reader.fusion.encode_unimodal(text).pooled, alone(given.input_ids, given.attention_mask).pooled
    )


@all_families
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_cache_changes_nothing_and_no_row_sees_another(name, kind):
    reader = build(kind, name)
    for prefix in (None, LENGTHS[:, 0]):
        check_reader(reader, image(MASK), prompts(prefix))


@all_families
@torch.no_grad()
def test_no_token_sees_later_ones(kind):
    reader, given = build(kind), prompts()._replace(attention_mask=torch.ones(5, LENGTH, dtype=torch.long))
    memory = reader.fusion.prepare(image())
    before = fuse_causal(reader, memory, given)
    for place in range(1, LENGTH):
        words = given.input_ids.clone()
        words[:, place] = (words[:, place] + 7) % VOCABULARY
        after = fuse_causal(reader, memory, given._replace(input_ids=words))
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.equal(before[:, place], after[:, place])


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_layers_that_are_computed_anew_give_the_same_loss_and_gradients(name, kind):
    found = []
    for checkpointing in (False, True):
        reader, given = build(kind, name, checkpointing).train(), prompts()
        seen = image(MASK)
        seen.embeds.requires_grad_()
        assert reader.text_encoder.is_recomputed == checkpointing
        logits = reader.predict_words(fuse_causal(reader, reader.fusion.prepare(seen), given))
        loss = F.cross_entropy(
            logits[:, :-1][given.attention_mask[:, 1:].bool()], given.input_ids[given.input_ids > 0][:12]
        )
        loss.backward()
        gradients = {"image": seen.embeds.grad} | {n: p.grad for n, p in reader.named_parameters()}
        assert all(value is not None for value in gradients.values())
        found.append((loss.detach(), gradients))
    (loss, gradients), (other, others) = found
    torch.testing.assert_close(loss, other, rtol=0, atol=0)
    for key, value in gradients.items():
        torch.testing.assert_close(value, others[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("of_text", "of_fusion"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_block_is_computed_anew_once(of_text, of_fusion):
    reader, calls = build(checkpointing=of_text).train(), []
    for block in reader.fusion.cross_layers:
        block.cross_attention.register_forward_pre_hook(lambda *_: calls.append(1))
    if of_fusion:
        assert recompute(blocks_of(reader.fusion)) == 2
    states = fuse_causal(reader, reader.fusion.prepare(image()), prompts())
    assert len(calls) == 2
    states.square().sum().backward()
    assert len(calls) == 2 * (1 + (of_text or of_fusion))


@torch.no_grad()
def test_a_copy_reads_with_its_own_language_model_and_nothing_stays_behind_a_call():
    reader, given = build(), prompts()
    other = copy.deepcopy(reader)
    assert other.fusion.language_model is other.text_encoder
    memory, seen = reader.fusion.prepare(image()), image()
    before = fuse_causal(reader, memory, given)
    torch.testing.assert_close(fuse_causal(other, other.fusion.prepare(seen), given), before, rtol=0, atol=0)
    for parameter in other.parameters():
        parameter.add_(0.1)
    assert torch.equal(fuse_causal(reader, memory, given), before)
    changed = fuse_causal(other, other.fusion.prepare(seen), given)
    assert not torch.allclose(changed, before, atol=1e-2)
    for parameter in reader.parameters():
        parameter.zero_()
    assert torch.equal(fuse_causal(other, other.fusion.prepare(seen), given), changed)
    names = {name for name, _ in reader.named_parameters()}
    plain = LanguageModel(VOCABULARY, config={"model_type": "llama", **FAMILIES["llama"]}, text_format=WORDS)
    assert {name for name in names if name.startswith("text_encoder.")} == {
        f"text_encoder.{name}" for name, _ in plain.named_parameters()
    }
    assert all(name.startswith(("text_encoder.", "fusion.cross_layers.")) for name in names)


def frozen_model(name="interleaved", **options):
    """A whole model over a language model that does not train, and a task over its captions."""
    torch.manual_seed(0)
    model = assemble(
        toy_model().image_encoder, toy_language_model(frozen=True, **options), toy_fusion(name), embed_size=16
    )
    for block in model.fusion.cross_layers:
        block.cross_gate.data.zero_(), block.feed_forward_gate.data.zero_()
    task = toy_task("captioning", toy_dims(model))
    model.freeze_unused(task.needs)
    return model.train(), task.train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_language_model_stays_as_it_is_while_the_gates_open(name, checkpointing):
    model, task = frozen_model(name, checkpointing=checkpointing)
    before = {key: value.clone() for key, value in model.text_encoder.state_dict().items()}
    optimizer = build_optimizer(model.named_parameters(), lr=1e-2, weight_decay=0.1)
    batch, losses = toy_batch(images=4), []
    assert model.metrics()["fusion_gate"] == 0
    for _ in range(20):
        loss = task(model, batch, model.encode(batch, []), None).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    for key, value in model.text_encoder.state_dict().items():
        assert torch.equal(value, before[key])
    of_language_model = {id(parameter) for parameter in model.text_encoder.parameters()}
    with_state = {id(parameter) for parameter in optimizer.state}
    assert with_state
    assert not with_state & of_language_model
    assert with_state >= {id(parameter) for parameter in model.fusion.parameters()}
    gates = torch.cat([block.cross_gate for block in model.fusion.cross_layers]).tanh().abs()
    torch.testing.assert_close(model.metrics()["fusion_gate"], gates.mean().detach())
    assert gates.min() > 0


def test_a_teacher_is_a_mean_of_its_own():
    model, task = frozen_model()
    teacher = MomentumTeacher(model, {"captioning": task}, momentum=0.5)
    assert teacher.model.fusion.language_model is teacher.model.text_encoder
    batch = toy_batch(images=2)
    with torch.no_grad():
        model.fusion.cross_layers[0].cross_gate.fill_(1.0)
    before = model.fuse(model.encode(batch, []).memory, model.encode_text(*ids(batch)), torch.tensor([0, 1])).pooled
    teacher.update(model, {"captioning": task})
    assert teacher.model.fusion.cross_layers[0].cross_gate == 0.5
    encoded = teacher.encode(batch, ["captions"])
    taught = teacher.model.fuse(encoded.memory, encoded.text["captions"], torch.tensor([0, 1])).pooled
    assert not taught.requires_grad
    assert not torch.allclose(taught, before, atol=1e-4)


def ids(batch):
    return batch["captions"]["input_ids"], batch["captions"]["attention_mask"]


@pytest.mark.parametrize(
    ("needs", "frozen"),
    [({"feats"}, {"fusion", "head"}), ({"pooled", "feats"}, {"head"}), ({"text", "causal"}, set())],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_no_task_reads_is_frozen(name, needs, frozen):
    reader = build("phi", name)
    reader.fusion.freeze_unused(frozenset(needs))
    still = {
        part
        for part, module in (("fusion", reader.fusion), ("head", reader.text_encoder.head))
        if not any(parameter.requires_grad for parameter in module.parameters())
    }
    assert still == frozen
    assert reader.text_encoder.word_embeddings.weight.requires_grad


def test_what_cannot_be_looked_from_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = {"model_type": "bert", "intermediate_size": 64, **sizes}
    images = toy_model().image_encoder
    with pytest.raises(
        ConfigError,
        match=r"Interleaved has a causal language model read on while it looks at the image, which HFTextEncoder is not; choose",
    ):
        assemble(images, HFTextEncoder(VOCABULARY, config=bert), toy_fusion("interleaved"))
    falcon = LanguageModel(VOCABULARY, config={"model_type": "falcon", "alibi": False, **sizes}, text_format=WORDS)
    with pytest.raises(
        ConfigError,
        match=r"^text_encoder: nothing can stand between the layers of falcon \(a call brings nothing to its layers\); choo",
    ):
        assemble(images, falcon, toy_fusion("interleaved"))
    for every in (0, 3):
        with pytest.raises(ConfigError, match=rf"fusion\.cross_every is {every}; give 1 to 2, the layers"):
            build(cross_every=every)
    with pytest.raises(ConfigError, match=r"fusion\.num_heads is 5, which does not divide the width 32"):
        build(num_heads=5)
    with pytest.raises(ConfigError, match="Interleaved has no language model to read on with"):
        Interleaved(IMAGE, 32).prepare(image())
    with pytest.raises(
        ConfigError, match="maps is false, but the image's tokens are 24 wide and its latents 32; set it to"
    ):
        Perceiver(IMAGE, 32, maps=False)
    with pytest.raises(ConfigError, match="make no square whose side 2 divides"):
        InterleavedResampled(IMAGE, 32, PixelShuffle).prefix_length(5)
    assert (
        InterleavedResampled(IMAGE, 32, PixelShuffle).prefix_length(4) == Interleaved(IMAGE, 32).prefix_length(5) == 0
    )


def test_maps_of_attention_are_of_the_image_s_tokens_alone():
    assert len(build().fusion.cross_attentions()) == 2
    assert build(name="interleaved_resampled").fusion.cross_attentions() == []
    assert Interleaved.provides - InterleavedResampled.provides == {"attention"}


def test_an_image_s_keys_are_computed_once_and_not_copied_for_its_texts(monkeypatch):
    reader, given, calls = build(), prompts(), []
    for block in reader.fusion.cross_layers:
        block.cross_attention.key.register_forward_hook(lambda *_: calls.append(1))
    memory = reader.fusion.prepare(image())
    assert [tuple(layer.key.shape) for layer in memory] == [(3, HEADS, 5, 8)] * 2
    for _ in range(2):
        reader.fuse(memory, reader.encode_text(given.input_ids, given.attention_mask), INDEX)
    assert len(calls) == 2


def test_tokens_without_an_image_encoder_s_mask_are_all_seen():
    reader, given = build(), prompts()
    whole, masked = (
        fuse_causal(reader, reader.fusion.prepare(Tokens(image().embeds, mask, image().pooled)), given)
        for mask in (None, torch.ones(3, 5, dtype=torch.long))
    )
    assert torch.equal(whole, masked)
