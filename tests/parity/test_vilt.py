"""ViLT's published passes, number for number: states, logits, losses and gradient norms of an imported checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fusionkit.losses import masked_cross_entropy
from tests.parity.imported import (
    NO_DROPOUT,
    close,
    compare_losses,
    imported,
    task_of,
    text_rows,
)
from tests.parity.published import fixtures


@pytest.fixture(scope="module", params=fixtures("vilt"))
def vilt(request):
    sizes = json.loads(request.param.with_suffix(".json").read_text())["sizes"]
    options = {
        "hidden_size": sizes["hidden_size"],
        "num_hidden_layers": sizes["blocks"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp"],
        "image_size": sizes["position_grid"][0] * sizes["patch"],
        "patch_size": sizes["patch"],
        "vocab_size": sizes["vocab_size"],
        "max_position_embeddings": sizes["text_positions"],
    }
    checkpoint = imported("vilt", request.param.with_suffix(".pth"), {"sizes": options | NO_DROPOUT})
    return *checkpoint, load_file(request.param.with_suffix(".io.safetensors"))


def encode(model, io, pixel_values, **kinds):
    rows = {"pixel_values": pixel_values, **kinds}
    return rows, model.encode(rows, list(kinds))


def on_canvas(io, name, states):
    """Image states without the class token, put in the order in which the published pass drew its patches."""
    columns = io["patch_embed"].shape[3]
    numbers = io[f"{name}_patch_index"] @ torch.tensor([columns, 1])
    return states[:, 1:].gather(1, numbers[..., None].expand(-1, -1, states.shape[2]))


def test_states(vilt):
    network, _, _, io = vilt
    model = network.model
    _, encoded = encode(model, io, io["image"], captions=text_rows(io["text_ids"], io["text_masks"]))
    close(encoded.text["captions"].embeds, io["text_embeddings"])
    fused = model.fuse(encoded.memory, encoded.text["captions"], torch.arange(len(io["text_ids"])))
    close(fused.text, io["text_feats"])
    close(fused.pooled, io["cls_feats"])
    close(fused.image[:, 0], io["image_feats"][:, 0])
    real = io["infer_image_masks"][:, 1:].bool()
    close(on_canvas(io, "infer", encoded.image.embeds)[real], io["visual_embed"][:, 1:][real])
    close(on_canvas(io, "infer", fused.image)[real], io["image_feats"][:, 1:][real])


def test_a_subset_of_the_patches(vilt):
    """With at most ``cap`` patches of an image, those that the published pass drew."""
    network, _, _, io = vilt
    model, encoder = network.model, network.model.image_encoder
    image = encoder(io["image"])
    patches = on_canvas(io, "capped", image.embeds)
    mask = io["capped_image_masks"]
    image = image._replace(embeds=torch.cat([image.embeds[:, :1], patches], dim=1), mask=mask)
    text = model.encode_text(io["text_ids"], io["text_masks"])
    fused = model.fuse(model.fusion.prepare(image), text, torch.arange(len(mask)))
    close(fused.text, io["capped_text_feats"])
    close(fused.pooled, io["capped_cls_feats"])
    close(fused.image[mask.bool()], io["capped_image_feats"][mask.bool()])


def test_masked_language_modelling(vilt):
    network, _, _, io = vilt
    task = task_of(network, "mlm")
    task.masking = lambda ids, words: (io["text_ids_mlm"], io["text_labels_mlm"])
    batch, _ = encode(network.model, io, io["image"])
    batch["captions"] = text_rows(io["text_ids"], io["text_masks"])
    out = task(network.model, batch, network.model.encode(batch, []))
    close(out.logits, io["mlm_logits"][io["text_labels_mlm"] != -100])
    compare_losses(vilt, "mlm", out.loss)


def test_matching(vilt):
    network, _, _, io = vilt
    task = task_of(network, "itm")
    model, labels = network.model, io["itm_labels"]
    shown = torch.where(labels.bool()[:, None, None, None], io["image"], io["false_image_0"])
    _, encoded = encode(model, io, shown, captions=text_rows(io["text_ids"], io["text_masks"]))
    logits = task.score_pairs(model, encoded.memory, encoded.text["captions"], torch.arange(len(labels)))
    close(logits, io["itm_logits"])
    compare_losses(vilt, "itm", masked_cross_entropy(logits, labels))


def test_word_patch_alignment(vilt):
    network, _, _, io = vilt
    alignment = task_of(network, "itm").matching.alignment
    model, labels = network.model, io["itm_labels"]
    shown = torch.where(labels.bool()[:, None, None, None], io["image"], io["false_image_0"])
    _, encoded = encode(model, io, shown, captions=text_rows(io["text_ids"], io["text_masks"]))
    fused = model.fuse(encoded.memory, encoded.text["captions"], torch.arange(len(labels)))
    loss = alignment(fused, io["text_masks"], encoded.image.mask, labels).mean()
    compare_losses(vilt, "itm_wpa", loss)


def test_question_answering(vilt):
    network, _, _, io = vilt
    task = task_of(network, "vqa")
    questions = text_rows(io["text_ids"], io["text_masks"], answer_scores=io["vqa_targets"])
    batch, encoded = encode(network.model, io, io["image"], questions=questions)
    out = task(network.model, batch, encoded)
    close(out.logits, io["vqa_logits"])
    compare_losses(vilt, "vqa", out.loss)


def test_two_images(vilt):
    """The second image has a type embedding of its own."""
    network, _, _, io = vilt
    task, pairs = task_of(network, "nlvr2"), len(io["text_ids"])
    facts = {"other_index": torch.arange(pairs) + pairs, "label": io["nlvr2_labels"]}
    statements = text_rows(io["text_ids"], io["text_masks"], **facts)
    batch, encoded = encode(network.model, io, torch.cat([io["image_0"], io["image_1"]]), statements=statements)
    out = task(network.model, batch, encoded)
    close(out.logits, io["nlvr2_logits"])
    compare_losses(vilt, "nlvr2", out.loss)
