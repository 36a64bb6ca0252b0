"""How many image-text pairs a second are re-ranked image by image, against pair by pair as ALBEF, X-VLM and BLIP do.

The rival repeats the image states for each pair, projects keys and values anew, and runs over texts padded to the longest
allowed. Ours is the evaluation's own re-ranking with all that belongs to it, files included. Both compute the same logits
(how far they differ is printed). On a CPU processor time counts. The default sizes are ALBEF's on COCO: 577 image tokens of
384 pixels, 6 layers of 768.
Run: python -m benchmarks.reranking [--images 2] [--texts 48] [--device cuda] [--dtype bfloat16] [--rounds 5] [--threads 1]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import report
from fusionkit.assembly.evaluation_options import Reranking
from fusionkit.data.sample import Sample, Text
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.inference.candidates import Candidates, best
from fusionkit.inference.encoding_cache import Encodings
from fusionkit.inference.progress import Bar, show_progress
from fusionkit.inference.rankings import Pairing
from fusionkit.inference.reranking import Reranker
from fusionkit.reporting.measure_cost import race
from fusionkit.types import Encoded, Tokens

RIVAL, PACKED, OURS = "pair by pair", "pair by pair, without padding", "image by image (fusionkit)"


class Matcher(nn.Module):
    """A fusion with a matching head."""

    reads = "captions"

    def __init__(self, fusion: CrossAttention) -> None:
        super().__init__()
        self.fusion, self.fuse, self.head = fusion, fusion, nn.Linear(fusion.pooled_size, 2)

    def score_pairs(self, model: object, memory: object, text: Tokens, image_index: Tensor) -> Tensor:
        """Logits (P, 2)."""
        return self.head(self.fusion(memory, text, image_index).pooled)

    def padded(self, image: Tokens, text: Tokens) -> Tensor:
        """Logits (P, 2) of P pairs with an image row each, over all text columns."""
        states = text.embeds
        for layer in self.fusion.layers:
            memory = layer.cross_attention.project(image.embeds, image.mask)
            states = layer(states, layer.self_attention.project(states, text.mask), memory)
        return self.head(states[:, 0])

    def packed(self, image: Tokens, text: Tokens) -> Tensor:
        """As ``padded``, over the texts' own tokens only."""
        index = torch.arange(len(text.embeds), device=text.embeds.device)
        return self.score_pairs(None, self.fusion.prepare(image), text, index)


def draw(images: int, texts: int, tokens: int, width: int, longest: int) -> tuple[Tokens, Tokens]:
    """Random image states (I, N, D), and text states (T, L, D) of as many tokens as COCO's captions have (13 +- 2.5)."""
    lengths = (13 + 2.5 * torch.randn(texts)).round().clamp(7, longest)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    image, text = torch.randn(images, tokens, width), torch.randn(texts, longest, width)
    return Tokens(image, None, image[:, 0]), Tokens(text, mask, text[:, 0])


def reranker(matcher: Matcher, image: Tokens, text: Tokens, folder: Path, chunk: int) -> tuple[Reranker, Candidates]:
    """The evaluation's re-ranking of every pair, its states in a folder."""
    captions = tuple(Text(number, "") for number in range(len(text.embeds)))
    samples = [
        Sample(number, Path(), {"captions": captions if number == 0 else ()}) for number in range(len(image.embeds))
    ]
    pairing = Pairing(list(range(len(samples))), [caption.id for caption in captions], torch.zeros(len(captions)))
    batch: Any = {"image_ids": pairing.image_ids, "captions": {"ids": pairing.caption_ids}}
    encodings = Encodings(folder)
    encodings.save(0, batch, Encoded(image, None, image.pooled, {"captions": text}, {"captions": text.pooled}))
    sim = torch.zeros(len(captions), len(samples))
    candidates = Candidates.of(best(sim, len(samples)), best(sim.T, len(captions)), len(captions))
    settings, device = Reranking(chunk=chunk), next(matcher.parameters()).device
    return Reranker(
        SimpleNamespace(fusion=matcher.fusion), matcher, encodings, 1, pairing, settings, device
    ), candidates


def main() -> None:
    """Time the ways on the same pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"images": 2, "texts": 48, "tokens": 577, "width": 768, "layers": 6, "longest": 30, "chunk": 256}
    for name, default in (sizes | {"batch": 32, "rounds": 5, "threads": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    fusion = CrossAttention(options.width, options.width, options.layers, options.width // 64, dropout=0.0)
    matcher = Matcher(fusion).to(device, dtype).eval()
    image, text = draw(options.images, options.texts, options.tokens, options.width, options.longest)
    image, text = (part._replace(embeds=part.embeds.to(dtype), pooled=part.pooled.to(dtype)) for part in (image, text))
    pairs = torch.cartesian_prod(torch.arange(options.images), torch.arange(options.texts)).to(device)

    there = [Tokens(*(None if part is None else part.to(device) for part in tokens)) for tokens in (image, text)]

    def alone(score: Callable[[Tokens, Tokens], Tensor]) -> Tensor:
        logits = []
        for images, texts in (part.unbind(dim=1) for part in pairs.split(options.batch)):
            rows = Tokens(there[0].embeds[images], None, there[0].pooled[images])
            logits.append(score(rows, Tokens(*(part[texts] for part in there[1]))))
        return torch.cat(logits).float().cpu()

    with TemporaryDirectory() as folder, torch.inference_mode():
        ours, candidates = reranker(matcher, image, text, Path(folder), options.chunk)

        def together() -> Tensor:
            for path in Path(folder).glob("logits_*"):
                path.unlink()
            return ours.logits(candidates, Bar(show_progress(is_quiet=True), ""))

        rivals = {RIVAL: lambda: alone(matcher.padded), PACKED: lambda: alone(matcher.packed), OURS: together}
        logits = torch.stack([run() for run in rivals.values()])
        difference = (logits - logits[0]).abs().max()
        print(f"logits from {logits.min():.3f} to {logits.max():.3f}; the ways differ by {difference:.1e} at most")
        medians = race(rivals, options.rounds, time.process_time if device.type == "cpu" else time.perf_counter)
    title = (
        f"{options.images} images x {options.texts} captions, {options.tokens} image tokens, {options.dtype}, {device}"
    )
    rates = {name: len(pairs) / seconds for name, seconds in medians.items()}
    title = f"{title}, {options.threads} thread(s)"
    report(title, medians, RIVAL, options.output, pairs_per_s=rates, apart=difference.item())
    print("pairs a second: " + ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
