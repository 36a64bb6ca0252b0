"""Blocks that are computed anew in the backward pass: which they are, the same gradients, fewer bytes, nothing counted twice."""

import copy

import pytest
import timm
import torch
from hydra.utils import instantiate
from torch import nn

from fusionkit.assembly.composition import training_config
from fusionkit.contracts.encoders import images_for
from fusionkit.encoders.base import SupportsRecompute
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError
from fusionkit.training.memory.live import LiveMemory
from fusionkit.types import Tokens
from tests.test_choices import TOWERS, needs_pretrained
from tests.test_choices import TOY_SIZES as ONE_LAYER
from tests.toys import VOCABULARY, choices, toy_encoder_decoder, toy_fusion, toy_language_model, toy_text_half

TOY_SIZES = ONE_LAYER | {
    "timm": {"name": "vit_tiny_patch16_224", "depth": 3},
    "swin_base": {"depths": (2, 2, 2, 2), "embed_dim": 16, "num_heads": (1, 2, 4, 8)},
}
WITHOUT = {"patches", "regions", "bert_embeddings"}  # of one layer, or none


def held(run):
    """What a forward pass gives, and how many bytes are held for the backward pass behind it."""
    with LiveMemory() as memory:
        loss = run()
    return loss, memory.bytes


def gradients(part, run):
    """Of a loss in training mode, what is drawn being the same each time; and the bytes that were held for them."""
    part.train()
    torch.manual_seed(0)
    loss, size = held(run)
    loss.backward()
    found = {name: parameter.grad for name, parameter in part.named_parameters() if parameter.grad is not None}
    part.zero_grad()
    return found, size


def require_same(part, run, share, make=lambda part: recompute(blocks_of(part))):
    """The gradients of a part are those that it has when its blocks are computed anew, for at most a share of the bytes."""
    plain, size = gradients(part, run)
    assert make(part)
    anew, less = gradients(part, run)
    assert plain.keys() == anew.keys()
    assert plain
    largest = max(float(gradient.abs().max()) for gradient in plain.values())  # the key's bias has none but noise
    for name, gradient in plain.items():
        torch.testing.assert_close(anew[name], gradient, rtol=1e-6, atol=1e-6 * largest, msg=name)
    assert less < share * size, (less, size)


def of_tokens(encoder, *given):
    def run():
        tokens = encoder(*given)
        return (tokens.embeds.square().mean() + tokens.pooled.sin().sum()).float()

    return run


def as_asked(encoder):
    return encoder.recompute() if isinstance(encoder, SupportsRecompute) else recompute(blocks_of(encoder))


@pytest.mark.parametrize("name", choices("image_encoder"))
def test_every_image_encoder(name):
    needs_pretrained(name)
    block = training_config(f"image_encoder={name}").image_encoder
    options = {"pretrained": False} if block.get("pretrained") else {}
    options |= {"frozen": False} if "frozen" in block else {}
    encoder = instantiate(block, **options, **TOY_SIZES.get(name, {}))
    if name in WITHOUT:
        assert not as_asked(encoder)
        return
    share = 0.85 if "resnet10t" in str(block) else 0.6  # alone, or of the frames
    require_same(encoder, of_tokens(encoder, images_for(encoder, 2)), share, as_asked)


@pytest.mark.parametrize("name", choices("text_encoder"))
def test_every_text_encoder(name, tmp_path):
    needs_pretrained(name)
    block = training_config(f"text_encoder={name}").text_encoder
    options = {}
    if name in TOWERS:
        TOWERS[name].save_pretrained(tmp_path)
        options["pretrained"] = str(tmp_path)
    vocabulary = 40 if "config" in block or name in TOWERS else 30522
    encoder = instantiate(block, vocab_size=vocabulary, **options)
    if name in WITHOUT:
        assert not as_asked(encoder)
        return
    ids = torch.randint(5, 40, (8, 9))
    require_same(encoder, of_tokens(encoder, ids, torch.ones_like(ids)), 0.75, as_asked)


@pytest.mark.parametrize("name", choices("fusion"))
def test_every_fusion(name):
    torch.manual_seed(0)
    make = toy_fusion(name)
    takes = "dropout" in getattr(make, "keywords", {})
    fusion = make(image_size=32, text_size=32, **({"dropout": 0.3} if takes else {}))
    holder = nn.ModuleDict({"fusion": fusion})
    words = None
    if hasattr(fusion, "join"):
        words = toy_text_half(fusion, 32)
        fusion.join(words)
        holder["words"] = words
    image, text = torch.randn(3, 17, 32, requires_grad=True), torch.randn(12, 9, 32, requires_grad=True)
    index, mask = torch.arange(12) % 3, (torch.arange(9) < torch.arange(3, 15)[:, None].clamp(max=9)).long()

    def run():
        memory = fusion.prepare(Tokens(image, None, image[:, 0]))
        fused = fusion(memory, Tokens(text, mask, text[:, 0]), index)
        return torch.stack([part.square().mean() for part in fused if part is not None]).sum()

    def make_anew(_):
        return recompute(blocks_of(fusion)) + (words.recompute() if words is not None else 0)

    if name == "late":
        assert not make_anew(None)
        return
    require_same(holder, run, 0.75, make_anew)


def names(part, **options):
    blocks = blocks_of(part, **options)
    return [name for name, module in part.named_modules() if any(module is block for block in blocks)]


def test_the_blocks_are_the_innermost_lists_of_layers():
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 2), num_heads=(1, 1), embed_dim=8)
    assert names(swin) == ["layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"]
    assert names(swin, outermost=True) == ["layers.0", "layers.1"]
    assert names(timm.create_model("test_vit", depth=2)) == ["blocks.0", "blocks.1"]
    kinds = {type(block).__name__ for block in blocks_of(timm.create_model("fastvit_t8"))}  # of which a part is a list
    assert "RepMixerBlock" in kinds
    assert not blocks_of(timm.create_model("vgg11", num_classes=0))  # a list of single layers
    layers = toy_encoder_decoder(config={"num_layers": 2}).encoder  # each of which is a list, too
    assert names(layers, outermost=True) == ["block.0", "block.1"]
    shared = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])
    one = nn.TransformerEncoderLayer(4, 1)
    assert blocks_of(nn.ModuleList([one, one])) == [one]
    assert not blocks_of(shared)


class Normed(nn.Module):
    """A block that has statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.map = nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.map(self.norm(x)).relu()

    def twice(self, x):
        return self.forward(self.forward(x))

    def _own(self, x):
        self.calls += 1
        return self.map(x).relu()


def normed():
    torch.manual_seed(0)
    return Normed()


def test_statistics_count_a_call_once():
    plain, anew, x = normed(), normed(), torch.randn(5, 3)
    assert recompute([anew]) == 1
    for block in (plain, anew):
        block(x).sum().backward()
    assert (plain.calls, anew.calls) == (1, 2)
    assert plain.norm.num_batches_tracked == anew.norm.num_batches_tracked == 1
    for ours, theirs in zip(anew.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(anew.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    anew.eval()(x).sum().backward()
    assert torch.equal(anew.norm.running_mean, plain.norm.running_mean)


def test_other_methods_are_computed_anew_as_wholes_and_private_ones_as_they_are():
    block, x = normed(), torch.randn(5, 3)
    recompute([block])
    block.twice(x).sum().backward()
    assert block.calls == 4  # and not once more for each call within
    with torch.no_grad():
        block(x)
    assert block.calls == 5
    block._own(x).sum().backward()
    assert block.calls == 6
    with pytest.raises(RuntimeError):
        block(torch.randn(5, 4))
    block(x).sum().backward()  # what went wrong before has no effect on what is computed anew
    assert block.calls == 9


def test_a_block_keeps_its_names_and_a_copy_has_its_own_weights():
    block = normed()
    before = list(block.state_dict())
    recompute([block])
    recompute([block])
    assert type(block).__mro__[1] is Normed  # once is enough
    assert type(block).__name__ == "Normed"
    assert isinstance(block, Normed)
    assert list(block.state_dict()) == before
    deep, shallow = copy.deepcopy(block).eval(), copy.copy(block).eval()
    shallow._modules = {**block._modules, "map": nn.Linear(3, 3)}
    x = torch.randn(5, 3)
    nn.init.zeros_(block.map.weight)
    nn.init.ones_(block.map.bias)
    assert torch.equal(block.eval()(x), torch.ones(5, 3))
    for other in (deep, shallow):
        assert not torch.equal(other(x), torch.ones(5, 3))
        assert torch.equal(other(x), other.map(other.norm(x)).relu())


@pytest.mark.parametrize("with_gradients", [True, False])
def test_what_is_read_on_behind_a_cache_is_kept_once(with_gradients):
    """Also in training mode without gradients, as captions are drawn for SCST."""
    embeds, places = torch.randn(2, 4, 32), torch.arange(4).expand(2, -1)
    mask = torch.ones(2, 4, 4, dtype=torch.bool).tril()
    torch.manual_seed(0)
    model = toy_language_model(config={"num_hidden_layers": 2}, checkpointing=True).train()
    whole = model.read(embeds, mask, places)
    with torch.set_grad_enabled(with_gradients):
        first, past = model.read_on(embeds[:, :3], mask[:, :3, :3], places[:, :3], None)
        second, past = model.read_on(embeds[:, 3:], mask[:, 3:], places[:, 3:], past)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    if with_gradients:
        second.sum().backward()
    assert [key.shape[2] for key, _ in past] == [4, 4]


def test_frozen_layers_with_adapters_are_computed_anew_in_evaluation_mode_too():
    config = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    encoder = HFTextEncoder(VOCABULARY, config=config, frozen=True)
    encoder.takes_gradients = True
    adapter = encoder.backbone.encoder.layer[0].attention.output.dense
    adapter.weight.requires_grad_(True)
    ids = torch.randint(5, VOCABULARY, (4, 9))
    require_same(encoder, of_tokens(encoder, ids, torch.ones_like(ids)), 0.7, as_asked)
    assert not encoder.backbone.training


def test_a_language_model_without_a_list_of_layers_is_refused(monkeypatch):
    monkeypatch.setattr("fusionkit.encoders.language.blocks_of", lambda *_, **__: [])
    with pytest.raises(
        ConfigError, match=r"text_encoder\.checkpointing: llama has no layers one by one; set it to false"
    ):
        toy_language_model(checkpointing=True)
    monkeypatch.setattr("fusionkit.encoders.seq2seq.blocks_of", lambda *_, **__: [])
    with pytest.raises(ConfigError, match=r"text_encoder\.checkpointing: t5 has no layers one by one; set it to false"):
        toy_encoder_decoder(checkpointing=True)


def test_gradients_of_single_losses_and_of_gradients():
    """As balancers take them: of each loss apart from the same graph, and of a norm of gradients."""
    block, x = normed().eval(), torch.randn(5, 3)
    results = []
    for _ in range(2):
        out = block(x)
        parts = [torch.autograd.grad(out[:, n].sum(), block.map.weight, retain_graph=True)[0] for n in range(3)]
        (deep,) = torch.autograd.grad(out.square().sum(), block.map.weight, create_graph=True)
        results.append([*parts, torch.autograd.grad(deep.square().sum(), block.norm.weight)[0]])
        recompute([block])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
