"""UNITER's published passes, number for number: states, logits, losses and gradient norms of imported checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fusionkit.losses import masked_cross_entropy
from fusionkit.tasks.alignment import cosine_cost, transport_plan
from fusionkit.types import Regions
from tests.parity.imported import close, compare_gradient_norms, gradient_norms, imported, text_rows
from tests.parity.published import fixtures

FINE_TUNED = ("uniter_vqa", "uniter_re", "uniter_nlvr2")


def load(path):
    described = json.loads(path.with_suffix(".json").read_text())
    sizes = {
        n: v for n, v in described["config"].items() if n not in ("dropout", "type_vocab_size", "initializer_range")
    }
    options = {
        "bert": sizes | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "img_dim": described["img_dim"],
        "ids": {n: i for n, i in described["quirks"]["ids"].items() if n != "word_range"},
    } | ({"itm_ot_lambda": described["itm_ot_lambda"]} if "itm_ot_lambda" in described else {})
    io = load_file(path.with_suffix(".io.safetensors"))
    return *imported("uniter", path.with_suffix(".pth"), options), io, described


def inputs(io, task):
    """Texts and regions of a pass, each padded on its own; UNITER packs them, text first."""
    given = {name.removeprefix(f"{task}.in."): tensor for name, tensor in io.items() if name.startswith(f"{task}.in.")}
    ids = given["input_ids"]
    mask, counts = (ids != 0).long(), given["attn_masks"].sum(dim=1)
    regions = counts - mask.sum(dim=1)
    region_mask = (torch.arange(given["img_feat"].shape[1]) < regions[:, None]).long()
    return text_rows(ids, mask), Regions(given["img_feat"], given["img_pos_feat"], region_mask), given


def packed(text, image, text_mask, image_mask):
    """The real states of each pair, text first, in a row: as UNITER's with attn_masks 1."""
    return torch.cat(
        [torch.cat([t[m.bool()], i[n.bool()]]) for t, i, m, n in zip(text, image, text_mask, image_mask, strict=True)]
    )


def fuse(model, rows, regions, kind="captions"):
    encoded = model.encode({"regions": regions, kind: rows}, [kind])
    return encoded, model.fuse(encoded.memory, encoded.text[kind], rows["image_index"])


def compare_losses(loaded, loss, name, prefix):
    network, source, plan, io, described = loaded
    network.module.zero_grad()
    loss.backward()
    close(loss, io[name])
    compare_gradient_norms(gradient_norms(network.module, source, plan), io, prefix, described["tied"])


@pytest.fixture(scope="module", params=fixtures("uniter", but=FINE_TUNED))
def pretrained(request):
    return load(request.param)


def test_embeddings_and_states(pretrained):
    network, _, _, io, _ = pretrained
    rows, regions, given = inputs(io, "mlm")
    encoded, fused = fuse(network.model, rows, regions)
    real = rows["attention_mask"].bool()
    close(encoded.text["captions"].embeds[real], io["mlm.out.text_embeddings"][real])
    close(
        network.model.fusion.prepare(encoded.image).embeds[regions.mask.bool()],
        io["mlm.out.image_embeddings"][regions.mask.bool()],
    )
    states = packed(fused.text, fused.image, rows["attention_mask"], regions.mask)
    close(states, io["mlm.out.encoder_layers"][-1][given["attn_masks"].bool()])


def test_masked_language_modelling(pretrained):
    network, _, _, io, _ = pretrained
    rows, regions, given = inputs(io, "mlm")
    task = network.tasks["mlm"]
    task.masking = lambda ids, words: (ids, given["txt_labels"].masked_fill(given["txt_labels"] == -1, -100))
    batch = {"regions": regions, "captions": rows}
    out = task(network.model, batch, network.model.encode(batch, []))
    close(out.logits, io["mlm.out.scores"])
    compare_losses(pretrained, out.loss, "loss.mlm", "grad_norm_mlm.")


def test_matching_with_alignment(pretrained):
    network, _, _, io, _ = pretrained
    rows, regions, given = inputs(io, "itm")
    model, task, targets = network.model, network.tasks["itm"], given["targets"]
    _, fused = fuse(model, rows, regions)
    close(fused.pooled, io["itm.out.pooled"])
    logits = task.head(fused.pooled)
    close(logits, io["itm.out.logits"])
    masks = rows["attention_mask"].bool(), regions.mask.bool()
    cost = cosine_cost(fused.text, fused.image, *masks)
    close(cost, io["itm.out.ot_cost"])
    close(transport_plan(cost.detach(), *masks, 0.5, 50).transpose(1, 2), io["itm.out.ot_plan"])
    loss, aligned = masked_cross_entropy(logits, targets), task.matching.alignment(fused, *masks, targets).mean()
    close(loss + aligned, io["loss.itm_plus_ot"])
    compare_losses(pretrained, aligned / task.matching.alignment.weight, "loss.ot", "grad_norm_ot.")


def test_matching(pretrained):
    network, _, _, io, _ = pretrained
    rows, regions, given = inputs(io, "itm")
    _, fused = fuse(network.model, rows, regions)
    loss = masked_cross_entropy(network.tasks["itm"].head(fused.pooled), given["targets"])
    compare_losses(pretrained, loss, "loss.itm", "grad_norm_itm.")


@pytest.mark.parametrize(("name", "kind"), [("mrfr", "regress"), ("mrc", "hard"), ("mrc_kl", "soft")])
def test_hidden_regions(pretrained, name, kind):
    network, _, _, io, _ = pretrained
    rows, regions, given = inputs(io, "mrfr" if kind == "regress" else "mrc")
    model, task = network.model, network.tasks["mrm"]
    hidden = given["img_masks"]
    _, fused = fuse(model, rows, model.image_encoder.hide(regions, hidden, task.filling))
    states = fused.image[hidden]
    if kind == "regress":
        told = task.regress(model, states)
        close(told, io["mrfr.out.prediction"])
        loss = torch.nn.functional.mse_loss(told, given["feat_targets"])
    else:
        logits = task.classify(states)
        close(logits, io["mrc.out.logits"])
        task.is_soft = kind == "soft"
        total, count = task.class_loss(logits, given["label_targets"])
        loss = total / count
    compare_losses(pretrained, loss, f"loss.{name}", f"grad_norm_{name}.")


@pytest.mark.parametrize("path", fixtures("uniter_vqa"))
def test_question_answering(path):
    loaded = load(path)
    network, _, _, io, _ = loaded
    rows, regions, given = inputs(io, "vqa")
    batch = {"regions": regions, "questions": rows | {"answer_scores": given["targets"]}}
    out = network.tasks["vqa"](network.model, batch, network.model.encode(batch, ["questions"]))
    close(out.logits, io["vqa.out.logits"])
    compare_losses(loaded, out.loss, "loss.vqa", "grad_norm.")


@pytest.mark.parametrize("path", fixtures("uniter_re"))
def test_referring_expressions(path):
    """The published losses are sums over expressions, ours means."""
    loaded = load(path)
    network, _, _, io, described = loaded
    rows, regions, given = inputs(io, "re")
    task, targets = network.tasks["grounding_regions"], given["targets"].squeeze(1)
    task.margin = described["margin"]
    for kind, name in (("choice", "cls"), ("ranking", "rank")):
        batch = {"regions": regions, "expressions": rows}
        scores, corners = task.score_tokens(network.model, batch, network.model.encode(batch, ["expressions"]))
        close(scores, io["re.out.scores"])
        close(corners, given["img_pos_feat"][..., :4])
        task.loss = kind
        losses = task.losses(scores, targets, given["neg_ix"])
        close(losses, io[f"re.out.{name}_loss_per_example"])
        prefix = "grad_norm_rank." if kind == "ranking" else "grad_norm."
        compare_losses(loaded, losses.sum(), f"loss.re_{name}", prefix)


@pytest.mark.parametrize("path", fixtures("uniter_nlvr2"))
def test_two_images(path):
    loaded = load(path)
    network, _, _, io, _ = loaded
    rows, regions, given = inputs(io, "nlvr2")
    pairs = len(given["targets"])
    left, right = (torch.arange(side, 2 * pairs, 2) for side in (0, 1))
    assert torch.equal(rows["input_ids"][left], rows["input_ids"][right])
    order = torch.cat([left, right])  # ours: the first images of all pairs, then the second ones
    regions = Regions(*(part[order] for part in regions[:3]))
    statements = text_rows(
        rows["input_ids"][left], rows["attention_mask"][left], other_index=torch.arange(pairs) + pairs
    )
    batch = {"regions": regions, "statements": statements | {"label": given["targets"]}}
    out = network.tasks["nlvr2_paired"](network.model, batch, network.model.encode(batch, ["statements"]))
    close(out.logits, io["nlvr2.out.logits"])
    compare_losses(loaded, out.loss, "loss.nlvr2", "grad_norm.")
