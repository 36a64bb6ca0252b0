"""The published ALBEF pre-training step, number for number.

``data/albef_tiny.*`` was made by running the published model code at a small random size: weights in its checkpoint layout, the
inputs, the masks and negatives it drew, and its states, losses and gradient norms.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.text import TextEncoder
from fusionkit.fusion.bert import BERT_LAYER
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.model import assemble
from fusionkit.momentum import MomentumTeacher
from fusionkit.negatives import Drawn, HardNegatives
from fusionkit.tasks.itc import ITC
from fusionkit.tasks.itm import ITM
from fusionkit.tasks.mlm import MLM
from fusionkit.types import Dims

DATA = Path(__file__).parent / "data"
SIZES = json.loads((DATA / "albef_tiny.json").read_text())
BERT = SIZES["bert"]


def our_names(momentum: bool) -> dict[str, str]:
    """Published prefix -> our prefix, longest first, for the student or the momentum copy; heads under ``itm.`` and ``mlm.``."""
    m = "_m" if momentum else ""
    bert = f"text_encoder{m}.bert."
    layer = {theirs: ours for ours, theirs in BERT_LAYER.items()}
    layer |= {f"crossattention.self.{n}": f"cross_attention.{n}" for n in ("query", "key", "value")}
    layer |= {"crossattention.output.dense": "cross_attention.output", "crossattention.output.LayerNorm": "norm_cross"}
    table = {
        f"visual_encoder{m}.": "model.image_encoder.backbone.",
        f"{bert}embeddings.": "model.text_encoder.backbone.embeddings.",
    }
    for i in range(BERT["num_hidden_layers"]):
        upper = i - BERT["fusion_layer"]
        if upper < 0:
            table[f"{bert}encoder.layer.{i}."] = f"model.text_encoder.backbone.encoder.layer.{i}."
        else:
            for theirs, ours in layer.items():
                table[f"{bert}encoder.layer.{i}.{theirs}."] = f"model.fusion.layers.{upper}.{ours}."
    predictions = f"text_encoder{m}.cls.predictions."
    table |= {f"vision_proj{m}.": "model.image_projection.", f"text_proj{m}.": "model.text_projection."}
    table |= {f"{predictions}transform.dense.": "mlm.dense.", f"{predictions}transform.LayerNorm.": "mlm.norm."}
    table |= {f"{predictions}bias": "mlm.bias"}
    return table if momentum else table | {"itm_head.": "itm.", "temp": "model.temperature"}


def rename(weights: Mapping[str, Tensor], momentum: bool) -> dict[str, Tensor]:
    table = our_names(momentum)
    renamed = {}
    for name, tensor in weights.items():
        prefix = max((p for p in table if name.startswith(p)), key=len, default=None)
        if prefix and not re.search(r"position_ids$", name):
            renamed[table[prefix] + name[len(prefix) :]] = tensor
    return renamed


def scripted(*answers: tuple[Tensor, Tensor]):
    """A component that gives back what the published code drew, call by call."""
    queue = list(answers)
    return lambda *_: queue.pop(0)


class ScriptedNegatives(HardNegatives):
    """The same for negatives: the images, then the texts, that the published code drew."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.answers = [images, texts]

    def forward(self, *_) -> Drawn:
        columns = self.answers.pop(0)[:, None]
        return Drawn(columns, torch.ones_like(columns, dtype=torch.bool), torch.zeros(()))


@pytest.fixture(scope="module")
def step():
    torch.manual_seed(0)
    io = load_file(DATA / "albef_tiny.io.safetensors")
    weights = torch.load(DATA / "albef_tiny.pth", weights_only=True)["model"]
    text_config = {k: v for k, v in BERT.items() if k not in ("fusion_layer", "encoder_width")}
    text_config |= {"model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = dict(SIZES["vit"], img_size=SIZES["image_size"], patch_size=SIZES["patch_size"])
    upper = BERT["num_hidden_layers"] - BERT["fusion_layer"]
    model = assemble(
        TimmEncoder("vit_tiny_patch16_224", **options),
        TextEncoder(BERT["vocab_size"], config=text_config, num_layers=BERT["fusion_layer"]),
        lambda **sizes: CrossAttention(**sizes, num_layers=upper, num_heads=BERT["num_attention_heads"], dropout=0.0),
        embed_size=SIZES["embed_dim"],
    )
    ids = SIZES["ids"]
    width = BERT["hidden_size"]
    dims = Dims(
        width,
        width,
        width,
        width,
        SIZES["embed_dim"],
        BERT["vocab_size"],
        ids["cls"],
        ids["sep"],
        ids["pad"],
        ids["mask"],
    )
    tasks = {
        "itc": ITC(dims, queue_size=SIZES["queue_size"]),
        "itm": ITM(dims, negatives=ScriptedNegatives(io["negative_image"], io["negative_text"])),
        "mlm": MLM(dims, masking=scripted((io["mlm_input_ids"], io["mlm_labels"]))),
    }
    teacher = MomentumTeacher(model, tasks, momentum=SIZES["momentum"], alpha=SIZES["alpha"])
    parts = nn.ModuleDict({"model": model, "itm": tasks["itm"].head, "mlm": tasks["mlm"].head})
    parts.load_state_dict(rename(weights, momentum=False), strict=True)
    momentum_parts = nn.ModuleDict({"model": teacher.model, "mlm": teacher.heads["mlm"]})
    missing, unexpected = momentum_parts.load_state_dict(rename(weights, momentum=True), strict=False)
    assert (missing, unexpected) == (["model.temperature"], [])  # the published code has one temperature
    for side, queue in (("image", tasks["itc"].image_queue), ("text", tasks["itc"].text_queue)):
        queue.feats.copy_(weights[f"{side}_queue"].T)
        queue.keys.copy_(-1 - torch.arange(SIZES["queue_size"]))
    rows = torch.arange(SIZES["batch"])
    captions = {
        "input_ids": io["input_ids"],
        "attention_mask": io["attention_mask"],
        "word_index": rows[:, None],
        "image_index": rows,
    }
    batch = {"image_keys": rows, "pixel_values": io["pixel_values"], "captions": captions}
    teacher.update(model, tasks)
    encoded, seen = model.encode(batch, ["captions"]), teacher.encode(batch, ["captions"])
    outputs = {n: t(model, batch, encoded, teacher.view(n, seen, teacher.alpha(0))) for n, t in tasks.items()}
    sum(out.loss for out in outputs.values()).backward()
    return {"io": io, "parts": parts, "tasks": tasks, "encoded": encoded, "seen": seen, "outputs": outputs}


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours.detach(), theirs, rtol=tolerance, atol=tolerance)


def test_states_and_features(step):
    io, encoded, seen = step["io"], step["encoded"], step["seen"]
    close(encoded.image.embeds, io["image_embeds"])
    close(encoded.image_feats, io["image_feats"])
    close(encoded.text_feats["captions"], io["text_feats"])
    close(seen.image_feats, io["image_feats_m"])
    close(seen.text_feats["captions"], io["text_feats_m"])


@pytest.mark.parametrize("task", ["itc", "itm", "mlm"])
def test_losses(step, task):
    close(step["outputs"][task].loss, step["io"][f"loss_{task}"])


def test_itm_logits(step):
    # the published order of the false pairs: (text, wrong image), then (wrong text, image)
    close(step["outputs"]["itm"].logits, step["io"]["itm_logits"])


def test_queue_after_the_step(step):
    close(step["tasks"]["itc"].image_queue.feats.T, step["io"]["image_queue_after"])
    assert step["tasks"]["itc"].image_queue.pointer == step["io"]["queue_ptr_after"]


def test_gradient_norms(step):
    io = step["io"]
    theirs = {k.removeprefix("grad_norm."): v for k, v in io.items() if k.startswith("grad_norm.")}
    renamed = rename(theirs, momentum=False)
    gradients = {name: p.grad for name, p in step["parts"].named_parameters() if p.grad is not None}
    table = "text_encoder.cls.predictions.decoder"  # tied there too: reported with the embeddings
    assert len(renamed) == len([k for k in theirs if not k.startswith(table)]) >= 140
    assert set(renamed) == set(gradients)
    for name, norm in renamed.items():
        assert gradients[name].norm() == pytest.approx(norm.item(), rel=1e-4, abs=1e-6), name
