"""What a batch eight times as large takes with ``gradient_cache``, and how near its gradient is to that of it read at once.

ALBEF's step in small: a ViT-S/16 of 12 layers on images of 224, BERT of 6 layers, cross-attention of 6, 30 words a text, 3,129
answers; contrast, matching with hard negatives, masked words and questions, a caption and a question an image. Bytes are those of
tensors that are alive at most in both passes (fp32): what a step makes, and that with what is there whatever the batch is
(weights, gradients, two moments of Adam). Time is the processor's.
Run: python -m benchmarks.gradient_cache [--images 2] [--times 8] [--dropout 0.1]
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from fusionkit.contracts.toys import choice, of_size, toy_dims, toy_rows, toy_task
from fusionkit.encoders.blip import BLIPTextEncoder
from fusionkit.encoders.image import TimmEncoder
from fusionkit.model.chunks import in_chunks
from fusionkit.model.model import VisionLanguageModel, assemble
from fusionkit.training.gradient_cache import parts_read
from fusionkit.training.memory.live import LiveMemory

WORDS, ANSWERS, LENGTH, WIDTH, SIDE = 30522, 3129, 30, 384, 224
TASKS = ("itc", "itm", "mlm", "vqa")


def build(dropout: float) -> tuple[VisionLanguageModel, nn.ModuleDict]:
    """The model and the tasks."""
    torch.manual_seed(0)
    bert = {"model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 6, "num_attention_heads": 6}
    bert |= {"intermediate_size": 4 * WIDTH, "max_position_embeddings": 64}
    bert |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = of_size("small", fusion=choice("fusion", "cross_attention"))
    config.fusion.update(num_layers=6, num_heads=6, dropout=dropout)
    image = TimmEncoder("vit_small_patch16_224")
    model = assemble(image, BLIPTextEncoder(WORDS, config=bert), instantiate(config.fusion), embed_size=256)
    dims = replace(toy_dims(model), vocab_size=WORDS, answers=tuple(f"a{number}" for number in range(ANSWERS)))
    tasks = nn.ModuleDict({name: toy_task(name, dims) for name in TASKS})
    return model.train(), tasks.train()


def batch_of(images: int) -> dict[str, Any]:
    """Random images and texts."""
    torch.manual_seed(1)
    scores = torch.zeros(images, ANSWERS)
    scores[torch.arange(images), torch.randint(ANSWERS, (images,))] = 1.0
    return {
        "source": "toy",
        "image_keys": torch.arange(images),
        "pixel_values": torch.randn(images, 3, SIDE, SIDE),
        "captions": toy_rows(images, 1, LENGTH),
        "questions": toy_rows(images, 1, LENGTH) | {"answer_scores": scores},
    }


def step(model: VisionLanguageModel, tasks: nn.ModuleDict, images: int, rows: int | None) -> tuple[int, float, Tensor]:
    """Bytes that a step makes and holds at most, the batch among them, its seconds, and the gradient as one vector."""
    for part in (model, tasks):
        part.zero_grad()
    start = time.process_time()
    with LiveMemory() as memory:
        batch: Any = batch_of(images)
        torch.manual_seed(2)
        with in_chunks(rows, parts_read(tasks.values())):  # type: ignore[arg-type]
            encoded = model.encode(batch, ["captions", "questions"])
            losses = [task(model, batch, encoded).loss for task in tasks.values()]
        del encoded
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    seconds = time.process_time() - start
    found = [p.grad.flatten() for part in (model, tasks) for p in part.parameters() if p.grad is not None]
    return memory.peak, seconds, torch.cat(found)


def main() -> None:
    """Print a row for the batch, and two for the larger one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tasks = build(options.dropout)
    numbers = [p.nbytes for part in (model, tasks) for p in part.parameters()]
    beside = 3 * sum(numbers)  # weights and two moments: gradients are made in the step
    small, large = options.images, options.images * options.times
    print(
        "| images | read at a time | MB of a step | x | MB with weights and Adam's moments | x | s an image |"
        "\n|---|---|---|---|---|---|---|"
    )
    first, found = 0, {}
    for images, rows in ((small, None), (large, small), (large, None)):
        peak, seconds, found[rows] = step(model, tasks, images, rows)
        first = first or peak
        whole = peak + beside
        print(
            f"| {images} | {rows or 'all'} | {peak / 2**20:.0f} | {peak / first:.2f} | {whole / 2**20:.0f} | "
            f"{whole / (first + beside):.2f} | {seconds / images:.2f} |",
            flush=True,
        )
    apart = (found[small] - found[None]).norm() / found[None].norm()
    print(
        f"gradients of the last two are apart by {float(apart):.1e}"
        + (" (each draws its own dropout)" if options.dropout else "")
    )


if __name__ == "__main__":
    main()
