"""UNITER's published numbers: region embeddings, layers, masked regions and word-region alignment, at a small random size.

The fixture was made by running the published model code; it lies among the reference files.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fusionkit.encoders.regions import RegionEncoder
from fusionkit.fusion.bert import BERT_LAYER, PostNormBlock
from fusionkit.tasks.alignment import Alignment, cosine_cost, transport_plan
from fusionkit.tasks.mrm import MRM, squared_error
from fusionkit.types import Dims, Fused, Regions

pytestmark = pytest.mark.reference
REGIONS = {
    "img_linear": "project",
    "img_layer_norm": "norm_features",
    "pos_linear": "place",
    "pos_layer_norm": "norm_positions",
    "LayerNorm": "norm",
}


@pytest.fixture(scope="module")
def published(reference):
    """Weights, inputs and outputs, sizes."""
    stem = reference / "reference" / "fixtures" / "uniter_tiny"
    weights = torch.load(stem.with_suffix(".pth"), weights_only=True)
    return weights, load_file(stem.with_suffix(".io.safetensors")), json.loads(stem.with_suffix(".json").read_text())


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def load(module: nn.Module, weights, table):
    """Load a module from published tensors, by their prefix."""
    found = {}
    for theirs, ours in table.items():
        found |= {f"{ours}{name[len(theirs) :]}": t for name, t in weights.items() if name.startswith(theirs)}
    module.load_state_dict({name: found[name] for name in module.state_dict()})
    return module.eval()


def region_encoder(weights, sizes):
    encoder = RegionEncoder(sizes["img_dim"], sizes["config"]["hidden_size"], dropout=0.0)
    names = {f"uniter.img_embeddings.{theirs}.": f"{ours}." for theirs, ours in REGIONS.items()}
    weights = weights | {"type": weights["uniter.embeddings.token_type_embeddings.weight"][1]}
    return load(encoder, weights, names | {"type": "type_embedding"})


def regions_of(io, name):
    features = io[f"{name}.in.img_feat"]
    return Regions(features, io[f"{name}.in.img_pos_feat"], (features.abs().sum(dim=2) > 0).long())


def test_region_embeddings(published):
    weights, io, sizes = published
    regions = regions_of(io, "mlm")
    ours = region_encoder(weights, sizes)(regions).embeds
    close(ours[regions.mask.bool()], io["mlm.out.image_embeddings"][regions.mask.bool()])


def test_layers_over_the_joint_sequence(published):
    weights, io, sizes = published
    config, states, mask = sizes["config"], io["mlm.out.embeddings_gathered"], io["mlm.in.attn_masks"]
    for number, expected in enumerate(io["mlm.out.encoder_layers"]):
        block = PostNormBlock(
            config["hidden_size"], config["num_attention_heads"], intermediate_size=config["intermediate_size"]
        )
        names = {f"uniter.encoder.layer.{number}.{theirs}.": f"{ours}." for ours, theirs in BERT_LAYER.items()}
        states = load(block, weights, names)(states, mask)
        close(states[mask.bool()], expected[mask.bool()])


def masked_regions(published, **options):
    weights, _, sizes = published
    width = sizes["config"]["hidden_size"]
    dims = Dims(width, width, width, width, 8, 500, 0, 0, 0, 0, feature_size=sizes["img_dim"], hiding_size=48)
    names = {
        "feat_regress.net.0.": "head.dense.",
        "feat_regress.net.2.": "head.norm.",
        "feat_regress.bias": "bias",
        "region_classifier.net.0.": "classify.0.dense.",
        "region_classifier.net.2.": "classify.0.norm.",
        "region_classifier.net.3.": "classify.1.",
        "filling": "filling",
    }
    weights = weights | {"filling": weights["uniter.img_embeddings.mask_embedding.weight"][1]}
    return load(MRM(dims, num_classes=sizes["img_label_dim"], **options), weights, names)


def test_a_hidden_region_is_the_mask_embedding(published):
    """The published code sets hidden features to 0 and adds its mask embedding."""
    weights, io, sizes = published
    regions, chosen = regions_of(io, "mrfr"), io["mrfr.in.img_masks"].bool()
    encoder = region_encoder(weights, sizes)
    filling = weights["uniter.img_embeddings.mask_embedding.weight"][1]
    hidden = encoder.hide(regions, chosen, filling).features
    assert torch.equal(hidden[chosen], filling.expand(int(chosen.sum()), -1))
    assert torch.equal(hidden[~chosen], regions.features[~chosen])


def test_feature_regression(published):
    weights, io, sizes = published
    task = masked_regions(published)
    states = io["mrfr.out.sequence_output"][io["mrfr.in.img_mask_tgt"].bool()]
    told = region_encoder(weights, sizes).decode(task.head(states)) + task.bias
    close(told, io["mrfr.out.prediction"])
    close(squared_error(told, io["mrfr.in.feat_targets"]).mean(), io["loss.mrfr"])


def test_class_losses(published):
    _, io, _ = published
    states = io["mrc.out.sequence_output"][io["mrc.in.img_mask_tgt"].bool()]
    for is_soft, loss in ((True, "loss.mrc_kl"), (False, "loss.mrc")):
        task = masked_regions(published, is_soft=is_soft)
        logits = task.classify(states)
        close(logits, io["mrc.out.logits"])
        close(task.class_loss(logits, io["mrc.in.label_targets"]), io[loss])


def unscattered(io):
    """The last states of words (B, L, D) and regions (B, N, D), with their masks."""
    words, regions = ~io["itm.in.txt_pad"].bool(), ~io["itm.in.img_pad"].bool()
    states = io["itm.out.sequence_output"]
    text, image = states.new_zeros(*words.shape, 64), states.new_zeros(*regions.shape, 64)
    for row, (count, more) in enumerate(zip(words.sum(dim=1).tolist(), regions.sum(dim=1).tolist(), strict=True)):
        text[row, :count], image[row, :more] = states[row, :count], states[row, count : count + more]
    return text, image, words, regions


def test_word_region_alignment(published):
    _, io, sizes = published
    text, image, words, regions = unscattered(io)
    cost = cosine_cost(text, image, words, regions)
    close(cost, io["itm.out.ot_cost"])
    close(transport_plan(cost, words, regions, beta=0.5, iterations=50).transpose(1, 2), io["itm.out.ot_plan"])
    alignment = Alignment(weight=sizes["itm_ot_lambda"])
    loss = alignment(Fused(None, text, image), words, regions, io["itm.in.targets"])
    close(loss, sizes["itm_ot_lambda"] * io["loss.ot"])
    close(io["loss.itm"] + loss, io["loss.itm_plus_ot"])


def test_alignment_gradients_flow_through_the_cost_alone(published):
    """As published: the plan is a constant."""
    _, io, _ = published
    text, image, words, regions = unscattered(io)
    text.requires_grad_()
    Alignment()(Fused(None, text, image), words, regions, io["itm.in.targets"]).backward()
    gradient, text.grad = text.grad, None
    cost = cosine_cost(text, image, words, regions)
    distances = (cost * io["itm.out.ot_plan"].transpose(1, 2)).sum(dim=(1, 2))
    (0.1 * (distances * (2 * io["itm.in.targets"] - 1)).mean()).backward()
    close(gradient, text.grad)
