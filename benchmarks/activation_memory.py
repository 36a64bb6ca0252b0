"""What a forward pass keeps for the backward pass, with and without ``activation_checkpointing``, and what that costs in time.

By part, in numbers of conf/size: bytes of tensors that are alive behind the forward pass, at most during both passes, and
processor time of both. Gradients are compared in the same run.
Run: python -m benchmarks.activation_memory [--size small] [--images 8] [--texts 4] [--only NAME ...]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from benchmarks.timing import write
from fusionkit.contracts.toys import choice, of_size, toy_language_model
from fusionkit.encoders.base import SupportsRecompute
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.reporting.measure_cost import race
from fusionkit.training.memory.live import LiveMemory
from fusionkit.types import Tokens

FUSIONS = (
    "merged_attention",
    "co_attention",
    "cross_attention",
    "gated_cross_attention",
    "bottleneck",
    "coca",
    "gated",
    "prefix",
    "interleaved",
)
TOWERS = {  # timm's, each with images of its own size
    "vit_small_patch16_224": {},
    "swin_tiny_patch4_window7_224": {"pool": "mean"},
    "convnext_tiny": {"pool": "mean"},
    "resnet50": {"pool": "mean"},
}
IMAGE_TOKENS, LENGTH = 196, 24
Loss = Callable[[], Tensor]


def fusions(size: str, images: int, texts: int) -> Iterator[tuple[str, nn.Module, Loss]]:
    """Each fusion by name, with the loss of some images of random tokens with so many texts each."""
    width = of_size(size).size.hidden_size
    index = torch.arange(images).repeat_interleave(texts)
    image, text = torch.randn(images, IMAGE_TOKENS, width), torch.randn(len(index), LENGTH, width)
    for name in FUSIONS:
        fusion = instantiate(of_size(size, fusion=choice("fusion", name)).fusion)(image_size=width, text_size=width)
        whole = nn.ModuleList([fusion])
        if hasattr(fusion, "join"):
            words = toy_language_model(
                width, config={"num_hidden_layers": 6, "intermediate_size": 4 * width, "max_position_embeddings": 512}
            )
            fusion.join(words)
            whole.append(words)

        def loss(fusion: nn.Module = fusion) -> Tensor:
            memory = fusion.prepare(Tokens(image, None, image[:, 0]))  # type: ignore[operator]
            return sum_of(fusion(memory, Tokens(text, torch.ones_like(text[..., 0]).long(), text[:, 0]), index))

        yield name, whole, loss


def towers(images: int) -> Iterator[tuple[str, nn.Module, Loss]]:
    """Each image encoder by name, with the loss of random images."""
    pixels = torch.randn(images, 3, 224, 224)
    for name, options in TOWERS.items():
        encoder = instantiate({"_target_": "fusionkit.encoders.image.TimmEncoder", "name": name, **options})
        yield name, encoder, lambda encoder=encoder: sum_of(encoder(pixels))


def sum_of(parts: tuple[Tensor | None, ...]) -> Tensor:
    return torch.stack([part.square().mean() for part in parts if part is not None and part.requires_grad]).sum()


def measure(part: nn.Module, loss: Loss) -> tuple[int, int, Tensor]:
    """Bytes alive behind the forward pass, at most until the end of the backward pass, and the gradients as one vector."""
    torch.manual_seed(0)
    part.zero_grad()
    with LiveMemory() as memory:
        out = loss()
        held = memory.bytes
        out.backward()
    return held, memory.peak, torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])


def main() -> None:
    """Print a row a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--only", nargs="*", default=[])
    for name, default in {"images": 8, "texts": 4, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| | MB held | anew | at most | anew | time | gradients apart by |\n|---|---|---|---|---|---|---|")
    found: dict[str, Row] = {}
    for rows in (fusions(options.size, options.images, options.texts), towers(options.images)):
        for name, part, loss in rows:
            if options.only and name not in options.only:
                continue
            found[name] = row(name, part.train(), loss, options.rounds)
            print(found[name].line(name), flush=True)
    if options.output is not None:
        title = f"bytes kept for the backward pass, size {options.size}: as usual / with activation_checkpointing"
        ratios = {name: row.held / row.held_less for name, row in found.items()}
        write(options.output, title, {"ratios": ratios, "rows": {name: row._asdict() for name, row in found.items()}})


class Row(NamedTuple):
    """Bytes that are held behind the forward pass and at most, without and with what is computed anew, and what that costs."""

    held: int
    held_less: int
    peak: int
    peak_less: int
    times: float
    apart: float  # the gradients, relative L2

    def line(self, name: str) -> str:
        """As a row of a table."""
        megabytes = " | ".join(f"{number / 2**20:.0f}" for number in self[:4])
        return f"| `{name}` | {megabytes} | {self.times:.2f} x | {self.apart:.0e} |"


def row(name: str, part: nn.Module, loss: Loss, rounds: int) -> Row:
    """Measure a part before and after it is told to compute anew."""
    step = {name: lambda: loss().backward()}
    held, peak, expected = measure(part, loss)
    seconds = race(step, rounds, time.process_time)[name]
    for module in part if isinstance(part, nn.ModuleList) else [part]:
        if isinstance(module, SupportsRecompute):
            module.recompute()
        else:
            recompute(blocks_of(module))
    less, lower, found = measure(part, loss)
    longer = race(step, rounds, time.process_time)[name]
    apart = (found - expected).norm() / expected.norm()
    return Row(held, less, peak, lower, longer / seconds, float(apart))


if __name__ == "__main__":
    main()
