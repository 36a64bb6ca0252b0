"""How much faster a training step is when an image is encoded, and its keys and values projected, once for all its texts.

The rival is what ALBEF, BLIP and METER do for a question, an expression or a pair to be matched: one image row a text row.
Both compute the same losses (printed). Run: python -m benchmarks.one_encoding [--images 8] [--texts 6] [--threads 1]
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.timing import report
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.model.model import VisionLanguageModel, assemble
from fusionkit.reporting.measure_cost import race


def build(hidden_size: int, layers: int, image_size: int) -> VisionLanguageModel:
    """An ALBEF-like model of ``layers`` image, text and fusion layers each."""
    heads = hidden_size // 32
    config = {
        "model_type": "bert",
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden_size,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    image = TimmEncoder(
        "vit_tiny_patch16_224",
        img_size=image_size,
        patch_size=16,
        embed_dim=hidden_size,
        depth=layers,
        num_heads=heads,
    )
    fusion = partial(CrossAttention, num_layers=layers, num_heads=heads, dropout=0.0)
    return assemble(image, HFTextEncoder(1000, config=config), fusion, embed_size=64)


def step(model: VisionLanguageModel, pixels: torch.Tensor, ids: torch.Tensor, index: torch.Tensor) -> float:
    """Forward and backward through both towers and the fusion; the image rows are those that ``index`` names."""
    image, text = model.encode_image(pixels), model.encode_text(ids, torch.ones_like(ids))
    loss = model.fuse(model.fusion.prepare(image), text, index).pooled.square().mean()
    model.zero_grad()
    loss.backward()
    return loss.item()


def main() -> None:
    """Time both ways on one batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"images": 8, "texts": 6, "threads": 1, "hidden": 192, "layers": 3, "size": 224, "rounds": 15}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build(options.hidden, options.layers, options.size)
    pixels = torch.randn(options.images, 3, options.size, options.size)
    index = torch.arange(options.images).repeat_interleave(options.texts)
    ids = torch.randint(5, 1000, (len(index), 16))
    rivals = {
        "one image row a text row": lambda: step(model, pixels[index], ids, torch.arange(len(index))),
        "one image row for all its texts (fusionkit)": lambda: step(model, pixels, ids, index),
    }
    print("losses: " + ", ".join(f"{name} {run():.6f}" for name, run in rivals.items()))
    title = f"{options.images} images, {options.texts} texts each, {options.threads} thread(s): forward and backward"
    report(title, race(rivals, options.rounds, time.process_time), "one image row a text row", options.output)


if __name__ == "__main__":
    main()
