"""What is measured of a fusion alone: products and kept bytes with known answers, and who takes turns."""

import torch
from torch import nn

from fusionkit.fusion.merged_attention import MergedAttention
from fusionkit.reporting import measure_cost
from fusionkit.reporting.measure_cost import race
from fusionkit.types import Fused


class OneProduct(nn.Module):
    """One matrix product an image token, whose input and output are kept: the first for the weight, the second for the square."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(measure_cost.WIDTH, 2))

    def prepare(self, image):
        return image.embeds @ self.weight

    def forward(self, memory, text, image_index):
        return Fused(pooled=None, text=None, image=memory)


def test_products_are_counted_and_kept_bytes_are_those_of_the_graph():
    run = measure_cost.Pass(OneProduct(), image_tokens=10, texts=3)
    assert run.flops() == 2 * 10 * measure_cost.WIDTH * 2
    assert run.kept() == 4 * (10 * measure_cost.WIDTH + 10 * 2)
    run()
    assert run.fusion.weight.grad is not None


def test_what_a_merged_stream_keeps_grows_with_the_square_of_its_tokens():
    fusion = MergedAttention(measure_cost.WIDTH, measure_cost.WIDTH, num_layers=1, num_heads=4, dropout=0.0)
    few, many = (measure_cost.Pass(fusion, tokens, 1).kept() for tokens in (512, 1024))
    assert 2.5 < many / few < 4


def test_growth_names_sizes_seconds_and_memory(monkeypatch):
    monkeypatch.setattr(measure_cost, "SIZES", {"image_tokens": (2, 4), "texts_per_image": (1, 2)})
    row = measure_cost.measure_growth({"one": OneProduct()})["one"]
    assert row["image_tokens"]["sizes"] == [2, 4]
    assert row["image_tokens"]["megabytes"][1] == 2 * row["image_tokens"]["megabytes"][0]
    assert all(seconds > 0 for seconds in row["texts_per_image"]["seconds"])


def test_rivals_take_turns():
    calls = []
    medians = race({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3  # the first round does not count
    assert set(medians) == {"a", "b"}
