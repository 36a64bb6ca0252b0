"""X-VLM's published pre-training, with whole images and with regions, number for number, over every fixture of it."""

import pytest
import torch
from torch import Tensor

from fusionkit.assembly.parts import plain_dims
from fusionkit.tasks.region_grounding import RegionGrounding
from tests.parity.published import (
    Published,
    ScriptedNegatives,
    check_gradients,
    close,
    close_laws,
    close_where,
    fixtures,
    imported,
    rows,
    taken,
)
from tests.toys import measured

GROUPS = {
    "swin": ("embed_dim", "depths", "num_heads", "window_size", "drop_path_rate"),
    "clip": (
        "vision_width", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
        "local_attn_depth",
    ),
    "bert": (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "fusion_layer",
        "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act",
    ),
}  # fmt: skip


def options(sizes: dict) -> dict:
    named = {**sizes, sizes["vision_kind"]: sizes["vision"] | {"drop_path_rate": 0.0}}
    return taken(named, GROUPS, "image_size", "embed_dim", "ids", *(["patch_size"] if "clip" in named else []))


@pytest.fixture
def load(tmp_path):
    return lambda path: imported(path, tmp_path, options)


def masking(io: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Published places and words to predict as a row of targets each; and where each prediction of ours stands in theirs."""
    targets = torch.full_like(io["text_ids"], -100)
    is_real = io["masked_ids"] != -100
    row = torch.arange(len(targets))[:, None].expand_as(is_real)[is_real]
    targets[row, io["masked_pos"][is_real]] = io["masked_ids"][is_real]
    order = torch.argsort(row * targets.shape[1] + io["masked_pos"][is_real])
    return targets, order


def outputs_of(published: Published, io: dict[str, Tensor], batch: dict):
    """The encoded batch and the three losses over images, or over regions where the batch has some."""
    network, tasks = published.network, published.network.tasks
    targets, order = masking(io)
    tasks["itm"].negatives = ScriptedNegatives(io["negative_image"], io["negative_text"], floor=1e-5)
    tasks["mlm"].masking = lambda *_: (io["text_ids_masked"], targets)
    network.model.clamp_temperature()
    encoded = network.model.encode(batch, ["captions"])
    outputs = {name: tasks[name](network.model, batch, encoded) for name in ("itc", "itm", "mlm")}
    close(encoded.image.embeds, io["image_embeds"])
    close_where(io["text_atts"], encoded.text["captions"].embeds, io["text_embeds"])
    close(encoded.image_feats, io["image_feats"])
    close(encoded.text_feats["captions"], io["text_feats"])
    positive = network.model.fuse(encoded.memory, encoded.text["captions"], batch["captions"]["image_index"])
    close_where(io["text_atts"], positive.text, io["fused_positive"])
    close(outputs["itm"].logits, io["itm_logits"])
    close(outputs["mlm"].logits, io["mlm_logits"][io["masked_ids"] != -100][order])
    close_laws(tasks["itm"].negatives.laws, io["negative_image_weights"], io["negative_text_weights"])
    for name, output in outputs.items():
        close(output.loss, io[f"loss_{name}"])
    return encoded, outputs


def part(published: Published, name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in published.io.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("path", fixtures("xvlm_"))
def test_images(load, path):
    published = load(path)
    io, network = part(published, "plain"), published.network
    captions = rows(io["text_ids"], io["text_atts"])
    keys = captions["image_index"]
    batch = {"image_keys": keys, "pixel_values": io["pixel_values"], "captions": captions}
    encoded, outputs = outputs_of(published, io, batch)
    sum(output.loss for output in outputs.values()).backward()
    check_gradients(published, "plain.grad_norm.")
    with torch.no_grad():
        shared = batch | {"image_keys": io["idx"]}
        close(network.tasks["itc"](network.model, shared, encoded).loss, io["loss_itc_idx"])
        draws = io["negative_image_idx"], io["negative_text_idx"]
        network.tasks["itm"].negatives = ScriptedNegatives(*draws, floor=1e-5)
        close(network.tasks["itm"](network.model, shared, encoded).loss, io["loss_itm_idx"])
        network.model.temperature.fill_(0.7)
        network.model.clamp_temperature()
        close(network.model.temperature, io["temp_after_0.7"])
        close(network.tasks["itc"](network.model, batch, encoded).loss, io["loss_itc_temp_0.7"])


@pytest.mark.parametrize("path", fixtures("xvlm_"))
def test_regions(load, path):
    published = load(path)
    io, network = part(published, "region"), published.network
    task = RegionGrounding(plain_dims(network.model, published.plan.ids, ()))
    task.head = network.tasks["grounding"].head
    captions = rows(io["text_ids"], io["text_atts"], boxes=io["target_bbox"], is_image=io["is_image"])
    batch = {
        "image_keys": captions["image_index"],
        "pixel_values": io["pixel_values"],
        "captions": captions,
        "views": {"image_index": io["idx_to_group_img"], "mask": io["image_atts"]},
    }
    encoded, outputs = outputs_of(published, io, batch)
    close(encoded.whole.image.embeds[io["idx_to_group_img"]], io["image_embeds_fullatts"])
    output = task(network.model, batch, encoded)
    close(output.logits, io["output_coord"][io["is_image"] == 0])
    close(torch.tensor(measured(task, output)["l1"]), io["loss_bbox"])
    close(torch.tensor(measured(task, output)["giou"]), io["loss_giou"])
    captions["is_image"] = torch.zeros_like(io["is_image"])
    everywhere = measured(task, task(network.model, batch, encoded))
    close(torch.tensor(everywhere["l1"]), io["loss_bbox_all"])
    close(torch.tensor(everywhere["giou"]), io["loss_giou_all"])
    (sum(each.loss for each in outputs.values()) + output.loss).backward()
    check_gradients(published, "region.grad_norm.")
