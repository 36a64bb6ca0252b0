"""A frozen tower computes as in evaluation once it is built: Lightning leaves modules in the mode that they come in."""

import torch

from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.text import HFTextEncoder

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def test_a_frozen_image_tower_neither_reads_nor_moves_the_statistics_of_a_batch() -> None:
    encoder = TimmEncoder("resnet10t", frozen=True, pool="mean")
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    images = torch.rand(3, 3, 64, 64)
    alone, among = encoder(images[:1]).embeds, encoder(images).embeds[:1]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    assert encoder.training
    assert not any(part.training for part in encoder.backbone.modules())
    assert all(part.training for part in TimmEncoder("resnet10t", pool="mean").modules())


def test_a_frozen_text_tower_drops_nothing() -> None:
    encoder = HFTextEncoder(30, config=BERT, frozen=True)
    ids = torch.arange(5, 11)[None]
    one, other = (encoder(ids, torch.ones_like(ids)).embeds for _ in range(2))
    assert torch.equal(one, other)
    encoder = HFTextEncoder(30, config=BERT)
    one, other = (encoder(ids, torch.ones_like(ids)).embeds for _ in range(2))
    assert not torch.equal(one, other)
