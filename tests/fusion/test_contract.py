"""What every fusion promises, over every file in conf/fusion."""

import pytest
import torch
from omegaconf import OmegaConf

from fusionkit.errors import ConfigError
from fusionkit.types import Tokens
from tests.toys import CONF, choices, toy_fusion

IMAGE, TEXT, LENGTH, TOKENS = 24, 32, 6, 5
FUSIONS = choices("fusion")


def build(name):
    torch.manual_seed(0)
    return toy_fusion(name)(image_size=IMAGE, text_size=TEXT).eval()


def images(count=3):
    embeds = torch.randn(count, TOKENS, IMAGE)
    return Tokens(embeds, None, embeds.mean(1))


def texts(count, mask=None):
    embeds = torch.randn(count, LENGTH, TEXT)
    return Tokens(embeds, torch.ones(count, LENGTH, dtype=torch.long) if mask is None else mask, embeds[:, 0])


def parts(fused):
    return [part for part in (fused.pooled, fused.text, fused.image) if part is not None]


def close(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FUSIONS)
def test_shapes_and_provisions(name):
    fusion, text = build(name), texts(7)
    fused = fusion(fusion.prepare(images()), text, torch.tensor([0, 0, 1, 2, 2, 2, 0]))
    assert fusion.provides <= {"pooled", "text", "image", "causal"}
    expected = {"pooled": (7, fusion.pooled_size), "text": (7, LENGTH, fusion.hidden_size), "image": (7, TOKENS)}
    for part, shape in expected.items():
        value = getattr(fused, part)
        assert (value is not None) == (part in fusion.provides)
        assert value is None or tuple(value.shape[: len(shape)]) == shape


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_without_layers_is_refused(name):
    if "num_layers" not in OmegaConf.load(CONF / "fusion" / f"{name}.yaml"):
        pytest.skip(f"{name} has no layers to count")
    with pytest.raises(ConfigError, match=r"fusion\.num_layers is 0, but has to be at least 1"):
        toy_fusion(name)(image_size=IMAGE, text_size=TEXT, num_layers=0)


@pytest.mark.parametrize("name", FUSIONS)
def test_image_index_names_the_image(name):
    """Texts in any order, with images used often, once or never, give what each pair gives alone: no row sees another."""
    fusion, image, text = build(name), images(4), texts(8)
    index = torch.tensor([3, 0, 3, 1, 0, 3, 3, 1])
    together = fusion(fusion.prepare(image), text, index)
    for row, i in enumerate(index):
        alone = fusion(
            fusion.prepare(Tokens(image.embeds[i : i + 1], None, image.pooled[i : i + 1])),
            Tokens(text.embeds[row : row + 1], text.mask[row : row + 1], text.pooled[row : row + 1]),
            torch.tensor([0]),
        )
        close([part[row : row + 1] for part in parts(together)], parts(alone))


@pytest.mark.parametrize("name", FUSIONS)
def test_text_padding_changes_nothing(name):
    fusion, image, index = build(name), images(2), torch.tensor([0, 1, 1])
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[:, 4:] = 0
    text = texts(3, mask)
    short = Tokens(text.embeds[:, :4], mask[:, :4], text.pooled)
    padded, plain = fusion(fusion.prepare(image), text, index), fusion(fusion.prepare(image), short, index)
    if padded.text is not None:
        padded = padded._replace(text=padded.text[:, :4])
    close(parts(padded), parts(plain))


@pytest.mark.parametrize("name", FUSIONS)
def test_masked_image_tokens_change_nothing(name):
    fusion, text, index = build(name), texts(3), torch.tensor([0, 1, 1])
    image = images(2)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 3:] = 0
    padded = fusion(fusion.prepare(image._replace(mask=mask)), text, index)
    plain = fusion(fusion.prepare(image._replace(embeds=image.embeds[:, :3])), text, index)
    if padded.image is not None:
        padded = padded._replace(image=padded.image[:, :3])
    close(parts(padded), parts(plain))


@pytest.mark.parametrize("name", FUSIONS)
def test_gradient_reaches_both_inputs_and_every_parameter(name):
    fusion, image, text = build(name).train(), images(2), texts(3)
    for tokens in (image, text):
        tokens.embeds.requires_grad_()
    image, text = image._replace(pooled=image.embeds.mean(1)), text._replace(pooled=text.embeds[:, 0])
    fused = fusion(fusion.prepare(image), text, torch.tensor([0, 1, 1]))
    sum((part * torch.randn_like(part)).sum() for part in parts(fused)).backward()
    assert image.embeds.grad.abs().sum(dim=(1, 2)).min() > 0
    assert text.embeds.grad.abs().sum(dim=(1, 2)).min() > 0
    assert not [n for n, p in fusion.named_parameters() if p.grad is None]


@pytest.mark.parametrize("part", ["pooled", "text", "image"])
@pytest.mark.parametrize("name", FUSIONS)
def test_what_is_read_trains_all_that_is_not_frozen(name, part):
    """Plain DDP wants a gradient for every trainable parameter, also where the tasks read one part alone."""
    fusion = build(name)
    if part not in fusion.provides:
        pytest.skip(f"{name} provides no {part}")
    if hasattr(fusion, "freeze_unused"):
        fusion.freeze_unused(frozenset({part}))
    value = getattr(fusion(fusion.prepare(images(2)), texts(3), torch.tensor([0, 1, 1])), part)
    (value * torch.randn_like(value)).sum().backward()
    trained = {n for n, p in fusion.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in fusion.named_parameters() if p.grad is not None}
    assert trained


@pytest.mark.parametrize("name", FUSIONS)
def test_no_leak_from_later_text_under_a_causal_mask(name):
    fusion = build(name)
    if "causal" not in fusion.provides:
        pytest.skip(f"{name} offers no causal text")
    image, text, index = images(2), texts(2), torch.tensor([0, 1])
    causal = torch.ones(LENGTH, LENGTH).tril().long().expand(2, -1, -1)
    for token in range(1, LENGTH):
        changed = text.embeds.clone()
        changed[:, token] = torch.randn(2, TEXT)
        before, after = (
            fusion(fusion.prepare(image), Tokens(e, causal, e.mean(1)), index).text[:, :token]
            for e in (text.embeds, changed)
        )
        assert torch.equal(before, after)
