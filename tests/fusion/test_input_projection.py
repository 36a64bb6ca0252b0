"""How tokens enter a fusion, by hand."""

import pytest
import torch
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.input_projection import NORMED, ClassToken, Projection, TypedImage, TypedProjection, unchanged
from fusionkit.types import Tokens

IMAGE, TEXT, WIDTH = 6, 4, 5


def tokens(width, mask=None):
    embeds = torch.randn(2, 3, width)
    return Tokens(embeds, mask, embeds[:, 0])


def test_typed_tokens_are_mapped_and_told_apart():
    entry, image, text = TypedProjection(IMAGE, TEXT, WIDTH, image_types=2), tokens(IMAGE), torch.randn(2, 7, TEXT)
    assert entry.types.shape == (3, WIDTH)
    assert (entry.image_types, entry.own_tokens) == (2, 0)
    torch.testing.assert_close(entry.text(text), entry.project_text(text) + entry.types[0])
    for place in (0, 1):
        expected = entry.project_image(image.embeds) + entry.types[1 + place]
        torch.testing.assert_close(entry.image(image, place).embeds, expected)
    assert 0.01 < TypedProjection(IMAGE, TEXT, 4000).types.std().item() < 0.03
    assert isinstance(NORMED(IMAGE, TEXT, WIDTH).project_image[1], nn.LayerNorm)


def test_typed_images_are_normed_beside_texts_as_they_come():
    entry, image, text = (
        TypedImage(WIDTH, WIDTH, WIDTH, image_types=2, dropout=0.5).eval(),
        tokens(WIDTH),
        torch.randn(2, 7, WIDTH),
    )
    assert entry.text(text) is text
    for place in (0, 1):
        torch.testing.assert_close(entry.image(image, place).embeds, entry.norm(image.embeds + entry.types[place]))
    assert 0.01 < TypedImage(4000, 4000, 4000).types.std().item() < 0.03
    assert (entry.train().image(image).embeds == 0).any()
    with pytest.raises(ConfigError, match=r"tokens of width 6 cannot enter a fusion of width 5 unchanged"):
        TypedImage(IMAGE, WIDTH, WIDTH)
    with pytest.raises(ConfigError, match=r"tokens of width 4 cannot enter a fusion of width 5 unchanged"):
        TypedImage(WIDTH, TEXT, WIDTH)


def test_untyped_tokens_are_mapped_alone():
    entry, image = Projection(IMAGE, TEXT, WIDTH, nn.Linear), tokens(IMAGE)
    torch.testing.assert_close(entry.image(image).embeds, entry.project_image(image.embeds))
    text = torch.randn(1, 2, TEXT)
    torch.testing.assert_close(entry.text(text), entry.project_text(text))
    assert isinstance(unchanged(3, 3), nn.Identity)


def test_a_class_token_stands_before_the_images():
    entry, mask = ClassToken(IMAGE, TEXT, WIDTH), torch.tensor([[1, 1, 0], [1, 0, 0]])
    image = tokens(IMAGE, mask)
    found = entry.image(image)
    assert found.embeds.shape == (2, 4, WIDTH)
    torch.testing.assert_close(found.embeds[:, 0], entry.class_token[0].expand(2, -1))
    torch.testing.assert_close(found.embeds[:, 1:], entry.project_image(image.embeds))
    assert found.mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert entry.image(tokens(IMAGE)).mask is None
    assert entry.own_tokens == 1
    assert 0.01 < ClassToken(IMAGE, TEXT, 4000).class_token.std().item() < 0.03
