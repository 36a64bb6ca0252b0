"""How much faster a language model trains when it reads an image once for all its texts, instead of once before each.

The rivals: one row [image; text] a text, as LLaVA, nanoVLM and transformers have it; the keys and values of one reading
(fusion=prefix); and texts packed behind one image (fusion.cache_mb=0). Losses and gradients are compared in the same run.
Run: python -m benchmarks.shared_prefix [--images 4] [--texts 6] [--tokens 64] [--threads 1]
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import report
from fusionkit.encoders.language import LanguageModel
from fusionkit.fusion.prefix import Prefix
from fusionkit.fusion.projectors import MLP
from fusionkit.reporting.measure_cost import race
from fusionkit.types import Tokens

WIDTH, WORDS = 64, 1000  # of image tokens; of the vocabulary


class Step(nn.Module):
    """Forward and backward through a projector and a language model of ``layers`` layers: the loss of each next word."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        config = {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "intermediate_size": hidden * 11 // 4,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        }
        self.words = LanguageModel(WORDS, config=config)
        self.fusion = Prefix(WIDTH, hidden, partial(MLP, depth=2))
        self.fusion.join(self.words)

    def forward(self, image: Tensor, ids: Tensor, index: Tensor, cache_mb: float = float("inf")) -> float:
        self.fusion.cache_mb = cache_mb
        memory = self.fusion.prepare(Tokens(image, None, image[:, 0]))
        states = self.fusion(memory, self.words(ids, torch.ones_like(ids)), index).text
        loss = F.cross_entropy(self.words.predict_words(states[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.zero_grad()
        loss.backward()
        return loss.item()

    def gradients(self) -> Tensor:
        """All of them, as one vector."""
        return torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None])


def main() -> None:
    """Time the ways on one batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"images": 4, "texts": 6, "tokens": 64, "length": 20, "hidden": 256, "layers": 4, "threads": 1, "rounds": 7}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step = Step(options.hidden, options.layers)
    image = torch.randn(options.images, options.tokens, WIDTH)
    index = torch.arange(options.images).repeat_interleave(options.texts)
    ids = torch.randint(5, WORDS, (len(index), options.length))
    rows = torch.arange(len(index))
    base = "one image before each text"
    rivals = {
        base: lambda: step(image[index], ids, rows, 0.0),
        "one reading for all texts (fusionkit)": lambda: step(image, ids, index),
        "texts packed behind one image (fusionkit)": lambda: step(image, ids, index, 0.0),
    }
    expected, reference = rivals[base](), step.gradients()
    for name, run in rivals.items():
        loss, apart = run(), (step.gradients() - reference).abs().max()
        print(f"{name}: loss {loss:.6f} ({loss - expected:+.1e}), gradients apart by {apart:.1e}")
    title = (
        f"{options.images} images of {options.tokens} tokens, {options.texts} texts each, {options.threads} thread(s)"
    )
    report(title, race(rivals, options.rounds, time.process_time), base, options.output)


if __name__ == "__main__":
    main()
