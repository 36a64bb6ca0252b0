"""Adapters: nothing changes at the start, what they learn is theirs alone, and merged they are the same model without them."""

import copy
import sys

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fusionkit.assembly.checks import check_image_size, freeze_unreached
from fusionkit.checkpoints.load import initialise
from fusionkit.encoders.coca import AttentionPooledEncoder
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.probe import unreached_parameters
from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError
from fusionkit.model.adapters import Adapters, Rule, adapted_layers, merge, with_adapters
from fusionkit.model.model import assemble
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.training.stages import Stage, Stages
from tests.toys import VOCABULARY, toy_batch, toy_fusion, toy_language_model, toy_model

DECOMPOSED = pytest.mark.parametrize("decomposed", [False, True], ids=["lora", "dora"])
FUSIONS = pytest.mark.parametrize("fusion", ["cross_attention", "merged_attention", "prefix", "late"])


def adapted(model, decomposed=False, dropout=0.0, **rules):
    torch.manual_seed(3)
    Adapters(rules or {"all": Rule(".", rank=3, alpha=6.0)}, dropout, decomposed)(model)
    return model


def built(fusion, **options):
    torch.manual_seed(0)
    return toy_model(fusion, **options).eval()


def learnt(model):
    """The same model, whose adapters have learnt something."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def outputs(model):
    """What a model makes of a batch: pooled and text states, and what contrast compares."""
    torch.manual_seed(1)
    batch = toy_batch(3, 2)
    batch["pixel_values"] = batch["pixel_values"].to(model.temperature.dtype)
    encoded = model.encode(batch, ["captions"])
    fused = model.fuse(encoded.memory, encoded.text["captions"], batch["captions"]["image_index"])
    parts = [fused.pooled, fused.text, encoded.image_feats, encoded.text_feats["captions"]]
    return torch.cat([part.flatten() for part in parts if part is not None])


@DECOMPOSED
@FUSIONS
def test_at_the_start_nothing_changes(fusion, decomposed):
    plain = built(fusion)
    model = adapted(copy.deepcopy(plain), decomposed)
    assert adapted_layers(model)
    # the length of a weight's rows is reckoned anew by DoRA
    torch.testing.assert_close(outputs(model), outputs(plain), rtol=0, atol=2e-6 if decomposed else 0)


@DECOMPOSED
@FUSIONS
def test_merged_they_are_the_same_model_with_the_names_of_before(fusion, decomposed):
    plain = built(fusion)
    model = learnt(adapted(copy.deepcopy(plain), decomposed)).double()  # in which rounding is no difference
    before = outputs(model)
    assert (before - outputs(plain)).abs().max() > 1e-2
    assert merge(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=2e-6)  # what is contrasted is fp32
    assert not merge(model)


def test_lora_is_its_formula():
    model = learnt(adapted(built("cross_attention"), one=Rule(r"^fusion\.layers\.0\..*query$", rank=2, alpha=5.0)))
    (name, layer), *others = adapted_layers(model).items()
    assert name.startswith("fusion.layers.0.")
    down, up = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    assert down.shape == (2, layer.in_features)
    assert up.shape == (layer.out_features, 2)
    x = torch.randn(4, layer.in_features)
    base = layer.get_base_layer()
    torch.testing.assert_close(layer(x), base(x) + 5.0 / 2 * x @ down.T @ up.T)
    assert all(part.r["default"] == 2 for _, part in others)


def test_of_two_rules_that_find_a_layer_the_later_counts():
    model = adapted(
        built("cross_attention"), all=Rule(r"^fusion\.", rank=2, alpha=2.0), more=Rule("query", rank=5, alpha=1.0)
    )
    found = {name: (layer.r["default"], layer.lora_alpha["default"]) for name, layer in adapted_layers(model).items()}
    assert all(sizes == ((5, 1.0) if "query" in name else (2, 2.0)) for name, sizes in found.items())
    assert len(set(found.values())) == 2


@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_trains_is_not_their_choice(is_frozen):
    model = built("prefix")
    model.text_encoder.requires_grad_(not is_frozen)
    model.text_encoder.is_frozen = is_frozen
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    adapted(model, text=Rule(r"^text_encoder\."))
    for name, parameter in model.named_parameters():
        is_new = ".lora_" in name
        assert parameter.requires_grad == (is_new or before[name.replace(".base_layer", "")])
    assert not any("lora_" in name for name, _ in model.fusion.named_parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_their_dropout_is_drawn_in_training_alone(dropout):
    model = learnt(adapted(built("prefix"), dropout=dropout, text=Rule(r"^text_encoder\.")))
    said = outputs(model)
    model.text_encoder.train()
    assert torch.equal(outputs(model), said) == (dropout == 0.0)


def test_in_a_frozen_encoder_they_alone_learn():
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    encoder = HFTextEncoder(VOCABULARY, config=config | {"intermediate_size": 40}, frozen=True)
    model = adapted(nn.ModuleDict({"text_encoder": encoder}), text=Rule(r"^text_encoder\..*(query|value)"))
    encoder(torch.ones(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.long)).embeds.sum().backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    assert found == {name for name in model.state_dict() if ".lora_" in name}
    assert len(found) == 4


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_frozen_text_encoder_stays_in_evaluation_mode_and_they_do_not(dropout):
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    noise = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    encoder = HFTextEncoder(VOCABULARY, config=config | noise | {"intermediate_size": 40}, frozen=True)
    model = nn.ModuleDict({"text_encoder": encoder}).train()
    learnt(adapted(model, dropout=dropout, text=Rule(r"query|value")))
    ids = torch.arange(5, 11)[None]

    def states():
        return encoder(ids, torch.ones_like(ids)).embeds

    for train in (lambda: None, model.train):  # as it was left, and as a trainer asks for
        train()
        assert torch.equal(states(), states()) == (dropout == 0.0)
        assert not any(
            part.training for part in encoder.backbone.modules() if type(part) is nn.Dropout and part.p == 0.1
        )
        assert not any(layer.get_base_layer().training for layer in adapted_layers(model).values())
    states().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, p in model.named_parameters() if ".lora_" in name
    }
    model.eval()
    assert torch.equal(states(), states())


def test_in_a_frozen_image_encoder_statistics_stay_and_they_learn():
    encoder = TimmEncoder("mobilevit_xxs", frozen=True, pool="mean")
    model = adapted(nn.ModuleDict({"image_encoder": encoder}), image=Rule(r"attn\.(qkv|proj)")).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    encoder(torch.randn(2, 3, 64, 64)).embeds.square().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(layer.lora_B["default"].weight.grad.any() for layer in adapted_layers(model).values())


@pytest.mark.parametrize("is_frozen", [False, True])
def test_where_nothing_is_said_none_beside_the_decoder_train(is_frozen):
    torch.manual_seed(0)
    model = toy_model("encoder_decoder")
    half = EncoderDecoderLM(
        VOCABULARY,
        config={"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4}
        | {"tie_word_embeddings": False, "dropout_rate": 0.0},
        frozen=is_frozen,
    )
    model = adapted(assemble(model.image_encoder, half, toy_fusion("encoder_decoder"), embed_size=16))
    says = ("text_encoder.decoder.", "text_encoder.head.")
    assert {name.split(".")[1] for name in adapted_layers(model) if f"{name}.".startswith(says)} == {"decoder", "head"}
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert any(before[name] for name in before if name.startswith(says))
    model.fusion.freeze_unused(frozenset({"pooled"}))
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.startswith(says))
    assert any(
        p.requires_grad for name, p in model.named_parameters() if "encoder.encoder." in name and ".lora_" in name
    )
    half.set_saying(True)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


@DECOMPOSED
@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_that_is_read_past_its_layer_is_refused(frozen, decomposed):
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2, "pool": "mean"}
    encoder = TimmEncoder("beit_base_patch16_224", frozen=frozen, **sizes)
    model = nn.ModuleDict({"image_encoder": encoder})
    whole = adapted(copy.deepcopy(model), decomposed)
    with pytest.raises(
        ConfigError,
        match=r"no effect beside image_encoder\.backbone\.blocks\.0\.attn\.qkv, whose weight Attention reads itself; leave",
    ):
        check_image_size(whole.image_encoder, 32)
    adapted(model, decomposed, image=Rule(r"(proj|fc[12])$"))
    assert len(adapted_layers(model)) == 3
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert check_image_size(encoder, 32) == 5
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_the_parts_of_torch_s_attention_are_not_found():
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    encoder = AttentionPooledEncoder("vit_tiny_patch16_224", num_queries=3, query_heads=2, **options)
    model = adapted(nn.ModuleDict({"image_encoder": encoder}))
    assert len(adapted_layers(model)) == 4
    assert not any(".read." in name for name in adapted_layers(model))
    check_image_size(encoder, 32)


class ReadsItself(nn.Module):
    """Stands for a library's part of a text encoder."""

    def __init__(self):
        super().__init__()
        self.map, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, states):
        return nn.functional.linear(states, self.map.weight)


def test_what_nothing_depends_on_is_frozen_and_what_has_no_effect_refused():
    part = ReadsItself()
    adapted(part, mine=Rule("unused", rank=1))

    def find():
        return unreached_parameters(part, [part(torch.ones(1, 4))])

    freeze_unreached("text_encoder", part, find)
    assert [name for name, parameter in part.named_parameters() if parameter.requires_grad] == ["map.weight"]
    part = adapted(ReadsItself(), mine=Rule("map", rank=1))
    with pytest.raises(ConfigError, match=r"beside text_encoder\.map, whose weight ReadsItself reads itself"):
        freeze_unreached("text_encoder", part, find)


def test_under_activation_checkpointing_they_get_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        whole = nn.ModuleDict({"text_encoder": toy_language_model(checkpointing=checkpointing, frozen=True)})
        learnt(adapted(whole, text=Rule(".")))
        ids = torch.arange(5, 11)[None]
        whole.text_encoder.train()(ids, torch.ones_like(ids)).embeds.square().sum().backward()
        gradients.append({name: p.grad for name, p in whole.named_parameters() if p.requires_grad})
    plain, anew = gradients
    assert plain.keys() == anew.keys()
    assert all(grad.abs().sum() > 0 for grad in plain.values())
    for name, grad in plain.items():
        torch.testing.assert_close(anew[name], grad, rtol=1e-6, atol=1e-6)


def test_a_teacher_has_its_own():
    model = adapted(built("prefix"), text=Rule(r"^text_encoder\."))
    teacher = MomentumTeacher(model, {}, momentum=0.5)
    learnt(model)
    teacher.update(model, {})
    layers, theirs = adapted_layers(model), adapted_layers(teacher.model)
    assert layers.keys() == theirs.keys()
    for name, layer in layers.items():
        up = layer.lora_B["default"].weight
        torch.testing.assert_close(theirs[name].lora_B["default"].weight, up / 2)  # they began at zeros


def test_stages_say_when_they_train():
    model = adapted(built("prefix"), text=Rule(r"^text_encoder\."))
    phases = {
        "project": Stage(2, [r"^fusion\."]),
        "adapt": Stage(2, [r"^fusion\.", r"\.lora_"]),
        "all": Stage(None),
    }
    stages = Stages(phases, model.named_parameters())
    trained = []
    for step in (0, 2, 4):
        stages.enter(step)
        trained.append({name for name, p in model.named_parameters() if p.requires_grad})
    assert {".lora_" in name for name in trained[0]} == {False}
    assert trained[1] - trained[0] == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert any(".base_layer." in name for name in trained[2])


@DECOMPOSED
def test_transposed_weights_are_theirs_too(decomposed):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4, "n_inner": 48}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    towers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        towers.append(nn.ModuleDict({"text_encoder": HFTextEncoder(VOCABULARY, config=config | drop, pool="last")}))
    model, other = adapted(towers[0].eval(), decomposed, text=Rule(r"c_(attn|fc|proj)$")), towers[1].eval()
    assert len(adapted_layers(model)) == 4
    model.load_state_dict(with_adapters(model, other.state_dict()))
    ids = torch.arange(5, 11)[None]

    def states(whole):
        return whole.text_encoder(ids, torch.ones_like(ids)).embeds

    torch.testing.assert_close(states(model), states(other), rtol=1e-5, atol=1e-5)
    before = states(learnt(model))
    assert (before - states(other)).abs().max() > 1e-2
    assert merge(model)
    torch.testing.assert_close(states(model), before, rtol=1e-5, atol=1e-5)


@DECOMPOSED
def test_weights_of_before_are_found_where_they_stand_now(decomposed):
    other = built("cross_attention")
    for parameter in other.parameters():
        parameter.data += 0.1
    model = adapted(built("cross_attention"), decomposed)
    model.load_state_dict(with_adapters(model, other.state_dict()))
    torch.testing.assert_close(outputs(model), outputs(other), rtol=0, atol=2e-6 if decomposed else 0)
    own = learnt(model).state_dict()
    assert with_adapters(model, own).keys() == own.keys()
    assert all(with_adapters(model, own)[name] is tensor for name, tensor in own.items())
    plain = other.state_dict()
    assert with_adapters(other, plain) == plain


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule("no such layer"), r"adapters.rules.mine.names: 'no such layer' matches none of the parameters"),
        (Rule("("), r"adapters.rules.mine.names: '\(' is no regular expression"),
        (Rule("(" * 900), r"adapters.rules.mine.names: '\(+' is no regular expression"),
        (Rule("x" * 1001), "adapters.rules.mine.names is 'xx.*x', but has to be a regex of at most 1000 characters"),
        (Rule(".", rank=0), "adapters.rules.mine: rank is 0 and alpha 32.0; give a whole number and a number above 0"),
        (Rule(".", rank=1.5), "mine: rank is 1.5 and alpha 32.0; give a whole number"),
        (Rule(".", alpha=float("inf")), "mine: rank is 16 and alpha inf; give"),
        (Rule(".", alpha="much"), "mine: rank is 16 and alpha 'much'; give"),
        (
            Rule("query", rank=10**12),
            r"mine: rank is 1000000000000, but no layer that it finds has a weight of rank above 32; give no more",
        ),
        (Rule(["a"]), r"adapters.rules.mine.names is \['a'\], but has to be a regex"),
        ({"names": ".", "rnk": 3}, "adapters.rules.mine: a rule takes no 'rnk'; did you mean 'rank'"),
        ({"rank": 3}, "adapters.rules.mine.names is not there; give a regex"),
        ("query", "adapters.rules.mine is 'query', but has to be a section of names, rank, alpha"),
        (None, "adapters.rules.mine is null, but has"),
        (Rule(".", alpha=-1), "rank is 16 and alpha -1; give"),
        (Rule("word_embeddings"), "matches none"),  # no linear layer
    ],
)
def test_a_rule_that_cannot_work_is_named(rule, words):
    with pytest.raises(ConfigError, match=words):
        adapted(built("cross_attention"), mine=rule)


@pytest.mark.parametrize("pattern", [r"^(?:\w|\w\w|\.)+\s$", r"(?:.{1,1000}){1,1000}\s"])
def test_a_rule_that_takes_for_ever_is_given_up(pattern, monkeypatch):
    monkeypatch.setattr("fusionkit.model.adapters.PATIENCE", 0.2)
    with pytest.raises(
        ConfigError, match=r"adapters.rules.mine.names: to look for '.*' takes too long; write it without"
    ):
        adapted(built("cross_attention"), mine=Rule(pattern))


@pytest.mark.parametrize("rules", [None, {}, "query", ["query"]])
def test_without_rules_there_is_a_sentence(rules):
    with pytest.raises(ConfigError, match=r"adapters\.rules is .*; give rules by name, .*, or set adapters=none"):
        Adapters(rules)(built("late"))


@pytest.mark.parametrize("dropout", ["x", 1, -0.1, float("nan"), None, True])
def test_a_dropout_that_cannot_be_is_named(dropout):
    with pytest.raises(ConfigError, match=r"adapters\.dropout is .*; give a number from 0 up to 1"):
        Adapters({"all": Rule(".", rank=2)}, dropout)(built("late"))


def test_a_rule_may_be_a_plain_section():
    rules = {
        "text": {"_target_": "fusionkit.model.adapters.Rule", "names": "query", "rank": 2},
        "more": {"names": "value"},
    }
    given = OmegaConf.create({"_target_": "fusionkit.model.adapters.Adapters", "rules": rules})
    model = built("cross_attention")
    instantiate(given)(model)
    ranks = {name.rpartition(".")[2]: layer.r["default"] for name, layer in adapted_layers(model).items()}
    assert ranks == {"query": 2, "value": 16}


def whole_of(decomposed=False, dropout=0.0, **rules):
    """A module as a run has it, and its checkpoint."""
    rules = rules or {"all": {"names": "query", "rank": 2, "alpha": 4}}
    model = built("cross_attention")
    Adapters(rules, dropout, decomposed)(model)
    module = nn.ModuleDict({"model": learnt(model), "tasks": nn.ModuleDict()})
    config = OmegaConf.to_yaml({"adapters": {"rules": rules, "dropout": dropout, "decomposed": decomposed}})
    return module, {"fusionkit": {"config": config, "answers": None}, "state_dict": module.state_dict()}


@DECOMPOSED
@pytest.mark.parametrize(
    ("names", "rank", "alpha", "is_same"),
    [
        ("query", 2, 4.0, True),
        (r"que(?=ry)", 2, 4, True),  # other words for the same
        ("query", 2, 5, False),
        ("query", 3, 4, False),
    ],
)
def test_a_run_starts_from_adapters_of_its_own_share_alone(names, rank, alpha, is_same, decomposed):
    _, checkpoint = whole_of(decomposed)
    module, _ = whole_of(decomposed, 0.1, mine={"names": names, "rank": rank, "alpha": alpha})
    if is_same:
        assert initialise(module, checkpoint, "some.ckpt") == []
        return
    kind = r" \(decomposed\)" if decomposed else ""
    words = (
        rf"has adapters of rank 2 and alpha 4{kind} beside text_.*query, and this run of rank {rank} and alpha {alpha}"
    )
    with pytest.raises(ConfigError, match=words):
        initialise(module, checkpoint, "some.ckpt")


def test_a_run_does_not_start_decomposed_from_adapters_that_are_not():
    with pytest.raises(ConfigError, match=r"of rank 2 and alpha 4 beside .*run of rank 2 and alpha 4 \(decomposed\)"):
        initialise(whole_of(True)[0], whole_of(False)[1], "some.ckpt")
    with pytest.raises(ConfigError, match="has adapters, and this run none"):
        initialise(nn.ModuleDict({"model": built("cross_attention")}), whole_of()[1], "some.ckpt")


def test_without_peft_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"adapters need the package peft: run .*\[adapters\]'; or set adapters=none"):
        adapted(built("late"))
