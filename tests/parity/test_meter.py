"""METER's published passes, number for number: states, logits, losses and gradient norms of imported checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fusionkit.checkpoints.families.meter import resize_table
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


def options_of(described):
    """The sizes of a fixture's json, as options of the import."""
    sizes, ids = described["sizes"], described["ids"]
    vision, text, cross = sizes["vision"], sizes["text"], sizes["cross_modal"]
    special = {"cls": ids.get("cls", ids.get("bos")), "sep": ids.get("sep", ids.get("eos"))}
    return {
        "image_size": sizes["image_size"],
        "image": {
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["blocks_used"],
            "num_attention_heads": vision["heads"],
            "intermediate_size": vision["mlp"],
            "patch_size": vision["patch"],
        },
        "text": {n: v for n, v in text.items() if n != "pad_id"}
        | {"model_type": described["hyper_parameters"]["tokenizer"].split("-")[0]}
        | NO_DROPOUT,
        "fusion": {
            "hidden_size": cross["hidden_size"],
            "num_hidden_layers": cross["layers"],
            "num_attention_heads": cross["heads"],
            "intermediate_size": cross["intermediate"],
            "layer_norm_eps": cross["layer_norm_eps"],
            "hidden_dropout_prob": 0.0,
        },
        "ids": special | {"pad": ids["pad"], "mask": ids["mask"]},
    }


@pytest.fixture(scope="module", params=fixtures("meter"))
def meter(request):
    options = options_of(json.loads(request.param.with_suffix(".json").read_text()))
    checkpoint = imported("meter", request.param.with_suffix(".pth"), options)
    return *checkpoint, load_file(request.param.with_suffix(".io.safetensors"))


def run(meter, task, kind, ids="text_ids", **facts):
    """A task on the texts and images of the fixture."""
    network, _, _, io = meter
    batch = {"pixel_values": io["image"], kind: text_rows(io[ids], io["text_masks"], **facts)}
    return task(network.model, batch, network.model.encode(batch, [kind]))


def test_states(meter):
    network, _, _, io = meter
    model = network.model
    image, text = model.encode_image(io["image"]), model.encode_text(io["text_ids"], io["text_masks"])
    close(image.embeds, io["vit_output"])
    close(model.fusion.entry.project_text(text.embeds), io["text_transformed"])
    fused = model.fuse(model.fusion.prepare(image), text, torch.arange(len(io["text_ids"])))
    close(fused.text, io["text_feats"])
    close(fused.image, io["image_feats"])
    close(fused.pooled, io["cls_feats"])


def test_positions_of_another_image_size(meter):
    io = meter[-1]
    close(
        resize_table(io["clip_pos_embed_before"], io["clip_pos_embed_after"][None].shape)[0], io["clip_pos_embed_after"]
    )


def test_masked_language_modelling(meter):
    io, task = meter[-1], task_of(meter[0], "mlm")
    task.masking = lambda ids, words: (ids, io["text_labels_mlm"])
    out = run(meter, task, "captions", "text_ids_mlm")
    close(out.logits, io["mlm_logits"][io["text_labels_mlm"] != -100])
    compare_losses(meter, "mlm", out.loss)


def test_matching(meter):
    network, _, _, io = meter
    task = task_of(network, "itm")
    model, labels = network.model, io["itm_labels"]
    shown = torch.where(labels.bool()[:, None, None, None], io["image"], io["false_image_0"])
    batch = {"pixel_values": shown, "captions": text_rows(io["text_ids"], io["text_masks"])}
    encoded = model.encode(batch, ["captions"])
    rows = torch.arange(len(labels))
    logits = task.score_pairs(model, encoded.memory, encoded.text["captions"], rows)
    close(logits, io["itm_logits"])
    compare_losses(meter, "itm", masked_cross_entropy(logits, labels))


def test_question_answering(meter):
    task = task_of(meter[0], "vqa")
    out = run(meter, task, "questions", answer_scores=meter[-1]["vqa_targets"])
    close(out.logits, meter[-1]["vqa_logits"])
    compare_losses(meter, "vqa", out.loss)


def test_entailment(meter):
    io, task = meter[-1], task_of(meter[0], "entailment")
    named = dict(zip(("contradiction", "neutral", "entailment"), torch.eye(3)[io["snli_labels"]].T, strict=True))
    out = run(meter, task, "hypotheses", **named)
    close(out.logits, io["snli_logits"])
    compare_losses(meter, "snli", out.loss)


def test_two_images(meter):
    """The second image has a type embedding of its own."""
    network, _, _, io = meter
    task = task_of(network, "nlvr2")
    facts = {"other_index": torch.arange(len(io["text_ids"])) + len(io["text_ids"]), "label": io["nlvr2_labels"]}
    batch = {
        "pixel_values": torch.cat([io["image_0"], io["image_1"]]),
        "statements": text_rows(io["text_ids"], io["text_masks"], **facts),
    }
    out = task(network.model, batch, network.model.encode(batch, ["statements"]))
    close(out.logits, io["nlvr2_logits"])
    compare_losses(meter, "nlvr2", out.loss)
