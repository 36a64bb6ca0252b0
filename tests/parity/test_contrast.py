"""Contrastive models that transformers' classes save, imported: features, logits and losses are theirs, to 1e-5 in fp32."""

import pytest
import torch
import transformers
from torch.nn import functional as F

from tests.parity.imported import close, imported
from tests.parity.test_transformers import ROWS, fuse, saved, texts

TEXT = {"num_attention_heads": 2, "intermediate_size": 37, "vocab_size": 60, "bos_token_id": 2, "eos_token_id": 3}
SIGLIP = [
    (
        {"hidden_size": 24, "num_hidden_layers": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
        {"hidden_size": 24, "num_hidden_layers": 1, "hidden_act": "relu", "max_position_embeddings": 9},
        {"image_size": 30, "patch_size": 10},
    ),
    (
        {"hidden_size": 36, "num_hidden_layers": 1, "hidden_act": "gelu_pytorch_tanh"},
        {"hidden_size": 20, "projection_size": 36, "num_hidden_layers": 2, "max_position_embeddings": 6},
        {"image_size": 21, "patch_size": 7},
    ),
]


@pytest.mark.parametrize(("vision", "text", "image"), SIGLIP)
@torch.no_grad()
def test_siglip(vision, text, image, tmp_path):
    """Texts are padded to all positions there, and here wherever they come from."""
    vision = vision | image | {"num_attention_heads": 3, "intermediate_size": 41}
    config = transformers.SiglipConfig(text_config=TEXT | text, vision_config=vision)
    theirs = saved(transformers.SiglipModel(config), tmp_path)
    network, *_ = imported("siglip", tmp_path, {})
    pixels, rows = torch.randn(3, 3, image["image_size"], image["image_size"]), texts()
    ids = rows["input_ids"].where(rows["attention_mask"].bool(), torch.tensor(1))
    padded = F.pad(ids, (0, text["max_position_embeddings"] - ids.shape[1]), value=1)
    batch, encoded, _ = fuse(network, pixels, rows)
    out = theirs(padded, pixels, return_loss=True)
    close(encoded.image_feats, out.image_embeds)
    close(encoded.text_feats["captions"], out.text_embeds)
    close(encoded.text["captions"].embeds, out.text_model_output.last_hidden_state[:, : ids.shape[1]])
    task, model = network.tasks["itc"], network.model
    close(encoded.image_feats @ encoded.text_feats["captions"].T / model.temperature + task.bias, out.logits_per_image)
    close(task(model, batch | {"image_keys": ROWS}, encoded).loss, out.loss)


BLIP = [
    ({"hidden_size": 20, "num_hidden_layers": 2, "hidden_act": "gelu"}, {"num_hidden_layers": 1}, 12),
    ({"hidden_size": 28, "num_hidden_layers": 1, "hidden_act": "relu"}, {"num_hidden_layers": 3}, 9),
]


@pytest.mark.parametrize(("vision", "text", "width"), BLIP)
@torch.no_grad()
def test_blip(vision, text, width, tmp_path):
    vision |= {"num_attention_heads": 2, "intermediate_size": 31, "image_size": 24, "patch_size": 8}
    text |= TEXT | {"hidden_size": 24, "hidden_act": "gelu", "max_position_embeddings": 8, "layer_norm_eps": 1e-4}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=width)
    theirs = saved(transformers.BlipModel(config), tmp_path)
    network, *_ = imported("blip", tmp_path, {})
    rows, pixels = texts(), torch.randn(3, 3, 24, 24)
    batch, encoded, _ = fuse(network, pixels, rows)
    out = theirs(rows["input_ids"], pixels, rows["attention_mask"], return_loss=True)
    close(encoded.image_feats, out.image_embeds)
    close(encoded.text_feats["captions"], out.text_embeds)
    close(encoded.image.embeds, out.vision_model_output.last_hidden_state)
    task, model = network.tasks["itc"], network.model
    close(encoded.image_feats @ encoded.text_feats["captions"].T / model.temperature, out.logits_per_image)
    close(task(model, batch | {"image_keys": ROWS}, encoded).loss, out.loss)
