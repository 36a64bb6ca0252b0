"""What single fusions promise beyond the contract: closed gates, logged gates, linear cost, queries that read once."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusionkit.errors import ConfigError
from fusionkit.fusion.bert import PostNormBlock
from fusionkit.fusion.bottleneck import Bottleneck
from fusionkit.fusion.co_attention import CoAttention
from fusionkit.fusion.gated import Gated
from fusionkit.fusion.gated_cross_attention import GatedCrossAttention
from fusionkit.types import Tokens
from tests.toys import toy_model

IMAGE, TEXT = 24, 32
INDEX = torch.tensor([0, 1, 1])


def tokens(rows, length, width, mask=None):
    embeds = torch.randn(rows, length, width)
    return Tokens(embeds, mask, embeds[:, 0])


def texts(length=6):
    return tokens(3, length, TEXT, torch.ones(3, length, dtype=torch.long))


def flops(fusion, image_tokens, length=6):
    """Of the matrix products per text, and of those per image."""
    image = tokens(2, image_tokens, IMAGE)
    with FlopCounterMode(display=False) as prepared:
        memory = fusion.prepare(image)
    with FlopCounterMode(display=False) as fused:
        fusion(memory, texts(length), INDEX)
    return fused.get_total_flops(), prepared.get_total_flops()


def test_gated_cross_attention_starts_as_its_text_layers_and_learns_to_look():
    torch.manual_seed(0)
    fusion, text = GatedCrossAttention(IMAGE, TEXT, num_layers=2, num_heads=4, dropout=0.0), texts()
    fused = fusion(fusion.prepare(tokens(2, 5, IMAGE)), text, INDEX)
    states = text.embeds
    for layer in fusion.layers:
        states = layer(states, text.mask)
    torch.testing.assert_close(fused.text, states, rtol=1e-5, atol=1e-5)
    assert fusion.metrics()["gate"] == 0
    (fused.text * torch.randn_like(fused.text)).sum().backward()
    for block in fusion.cross_layers:
        assert block.cross_gate.grad.abs().min() > 0
        assert block.feed_forward_gate.grad.abs().min() > 0


def test_gated_cross_attention_starts_from_text_layers_and_takes_every_second():
    fusion = GatedCrossAttention(IMAGE, TEXT, num_layers=3, cross_every=2, num_heads=4)
    assert len(fusion.cross_layers) == 2
    with pytest.raises(ConfigError, match=r"fusion\.num_layers=1"):
        fusion.start_from([PostNormBlock(TEXT, 4)])
    with pytest.raises(ConfigError, match=r"fusion\.cross_every is 4; give 1 to"):
        GatedCrossAttention(IMAGE, TEXT, num_layers=3, cross_every=4, num_heads=4)


def test_the_mean_gate_is_that_of_the_real_tokens():
    torch.manual_seed(0)
    fusion, image, text = Gated(IMAGE, TEXT, num_layers=2).eval(), tokens(2, 5, IMAGE), texts()
    assert fusion.metrics() == {}
    fusion(fusion.prepare(image), text, INDEX)
    whole = fusion.metrics()["gate"]
    padding = torch.randn(3, 4, TEXT)
    mask = torch.nn.functional.pad(text.mask, (0, 4))
    fusion(fusion.prepare(image), Tokens(torch.cat([text.embeds, padding], 1), mask, text.pooled), INDEX)
    torch.testing.assert_close(fusion.metrics()["gate"], whole)
    assert 0.3 < whole < 0.7
    for layer in fusion.layers:
        torch.nn.init.constant_(layer.tell.image_gate.bias, 50.0)
    fusion(fusion.prepare(image), text, INDEX)
    torch.testing.assert_close(fusion.metrics()["gate"], torch.tensor(1.0))


@pytest.mark.parametrize("name", ["gated", "gated_cross_attention", "cross_attention"])
def test_the_model_logs_the_gate_beside_the_temperature(name):
    model = toy_model(name)
    model.fuse(model.fusion.prepare(tokens(2, 5, TEXT)), texts(), INDEX)
    assert set(model.metrics()) == {"temperature"} | ({"fusion_gate"} if name.startswith("gated") else set())


def test_gates_cost_as_much_as_the_tokens_are_many():
    fusion = Gated(IMAGE, TEXT, num_layers=2)
    few, more, most = (flops(fusion, count, count)[0] for count in (8, 16, 32))
    assert most - more == 2 * (more - few)  # linear: no product of lengths


def test_queries_that_read_an_image_once_cost_a_text_nothing_more_for_a_larger_image():
    sizes = {"num_queries": 4, "image_layers": 1, "num_layers": 2, "num_heads": 4}
    once, again = Bottleneck(IMAGE, TEXT, cross_every=0, **sizes), Bottleneck(IMAGE, TEXT, cross_every=2, **sizes)
    assert flops(once, 8)[0] == flops(once, 64)[0]
    assert flops(once, 8)[1] < flops(once, 64)[1]
    assert flops(again, 8)[0] < flops(again, 64)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_queries": 0}, "fusion.num_queries is 0"),
        ({"image_layers": 0, "cross_every": 0}, "nothing reads the image"),
    ],
)
def test_queries_that_could_read_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Bottleneck(IMAGE, TEXT, num_heads=4, **options)


def test_heads_that_do_not_divide_the_width_are_refused():
    for fusion in (Bottleneck, CoAttention, GatedCrossAttention):
        with pytest.raises(ConfigError, match="num_heads is 5, which does not divide the width 32"):
            fusion(IMAGE, TEXT, num_heads=5)
