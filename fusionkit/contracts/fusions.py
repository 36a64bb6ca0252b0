"""What every fusion promises. Each check takes a function that builds it, and raises AssertionError in a sentence."""

from collections.abc import Callable

import torch
from torch import Tensor

from fusionkit.contracts.toys import module, require, require_equal
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.fusion.base import Fusion, SupportsAttentionMaps, SupportsExtend, SupportsFreezing
from fusionkit.types import Fused, Tokens

IMAGE, TEXT, LENGTH, TOKENS = 24, 32, 6, 5
PARTS = {"pooled", "text", "image", "causal", "attention", "pair", "images"}
Build = Callable[[], Fusion]  # of image_size=IMAGE and text_size=TEXT, in evaluation mode


def images(count: int = 3) -> Tokens:
    """Image tokens (count, TOKENS, IMAGE), all real."""
    embeds = torch.randn(count, TOKENS, IMAGE)
    return Tokens(embeds, None, embeds.mean(1))


def texts(count: int, mask: Tensor | None = None) -> Tokens:
    """Text tokens (count, LENGTH, TEXT), all real without a mask."""
    embeds = torch.randn(count, LENGTH, TEXT)
    return Tokens(embeds, torch.ones(count, LENGTH, dtype=torch.long) if mask is None else mask, embeds[:, 0])


def parts_of(fused: Fused) -> list[Tensor]:
    """The tensors that a fusion gave."""
    return [part for part in (fused.pooled, fused.text, fused.image) if part is not None]


def states_of(fused: Fused) -> Tensor:
    """The states of the text."""
    if fused.text is None:
        raise AssertionError("a causal fusion has to provide 'text'")
    return fused.text


def shapes_and_provisions(build: Build) -> None:
    """It gives the parts that it says it provides, in the widths that it says."""
    fusion = build()
    fused = fusion(fusion.prepare(images()), texts(7), torch.tensor([0, 0, 1, 2, 2, 2, 0]))
    require(fusion.provides <= PARTS, f"provides names {sorted(fusion.provides - PARTS)}; known: {sorted(PARTS)}")
    maps = fusion.cross_attentions() if isinstance(fusion, SupportsAttentionMaps) else ()
    require(
        ("attention" in fusion.provides) == bool(maps), "provides 'attention' where cross_attentions() names layers"
    )
    expected = {"pooled": (7, fusion.pooled_size), "text": (7, LENGTH, fusion.hidden_size), "image": (7, TOKENS)}
    for part, shape in expected.items():
        value = getattr(fused, part)
        is_there = value is not None
        require(is_there == (part in fusion.provides), f"provides says otherwise of '{part}' than what it gives")
        found = tuple(value.shape[: len(shape)]) if is_there else shape
        require(found == shape, f"'{part}' is {found}, but has to be {shape}")


def image_index_names_the_image(build: Build) -> None:
    """Texts in any order, with images used often, once or never, give what each pair gives alone: no row sees another."""
    fusion, image, text = build(), images(4), texts(8)
    index = torch.tensor([3, 0, 3, 1, 0, 3, 3, 1])
    together = fusion(fusion.prepare(image), text, index)
    for row, i in enumerate(index):
        alone = fusion(
            fusion.prepare(image.take(i[None])),
            text.take(torch.tensor([row])),
            torch.tensor([0]),
        )
        require_equal(
            [part[row : row + 1] for part in parts_of(together)], parts_of(alone), "a pair in a batch and alone"
        )


def text_padding_changes_nothing(build: Build) -> None:
    """A padded text gives what it gives without padding."""
    fusion, image, index = build(), images(2), torch.tensor([0, 1, 1])
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[:, 4:] = 0
    text = texts(3, mask)
    short = Tokens(text.embeds[:, :4], mask[:, :4], text.pooled)
    padded, plain = fusion(fusion.prepare(image), text, index), fusion(fusion.prepare(image), short, index)
    if padded.text is not None:
        padded = padded._replace(text=padded.text[:, :4])
    require_equal(parts_of(padded), parts_of(plain), "a text with and without padding")


def masked_image_tokens_change_nothing(build: Build) -> None:
    """Image tokens behind a mask give what an image without them gives."""
    fusion, text, index, image = build(), texts(3), torch.tensor([0, 1, 1]), images(2)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[:, 3:] = 0
    padded = fusion(fusion.prepare(image._replace(mask=mask)), text, index)
    plain = fusion(fusion.prepare(image._replace(embeds=image.embeds[:, :3])), text, index)
    if padded.image is not None:
        padded = padded._replace(image=padded.image[:, :3])
    require_equal(parts_of(padded), parts_of(plain), "an image with and without masked tokens")


def gradient_reaches_both_inputs_and_every_parameter(build: Build) -> None:
    """Image and text are both read, and no parameter is idle."""
    fusion, image, text = build(), images(2), texts(3)
    module(fusion).train()
    for tokens in (image, text):
        tokens.embeds.requires_grad_()
    image, text = image._replace(pooled=image.embeds.mean(1)), text._replace(pooled=text.embeds[:, 0])
    fused = fusion(fusion.prepare(image), text, torch.tensor([0, 1, 1]))
    torch.stack([(part * torch.randn_like(part)).sum() for part in parts_of(fused)]).sum().backward()
    for name, tokens in (("image", image), ("text", text)):
        reached = tokens.embeds.grad is not None and tokens.embeds.grad.abs().sum(dim=(1, 2)).min() > 0
        require(reached, f"no gradient reaches the {name}")
    idle = [name for name, parameter in module(fusion).named_parameters() if parameter.grad is None]
    require(not idle, f"no gradient reaches {', '.join(idle)}")


def what_is_read_trains_all_that_is_not_frozen(build: Build) -> None:
    """Plain DDP wants a gradient for every trainable parameter, also where the tasks read one part alone."""
    for part in ("pooled", "text", "image"):
        fusion = build()
        if part not in fusion.provides:
            continue
        if isinstance(fusion, SupportsFreezing):
            fusion.freeze_unused(frozenset({part}))
        value = getattr(fusion(fusion.prepare(images(2)), texts(3), torch.tensor([0, 1, 1])), part)
        (value * torch.randn_like(value)).sum().backward()
        trained = {name for name, parameter in module(fusion).named_parameters() if parameter.requires_grad}
        reached = {name for name, parameter in module(fusion).named_parameters() if parameter.grad is not None}
        require(
            trained == reached,
            f"where tasks read '{part}' alone, no gradient reaches {', '.join(sorted(trained - reached))}; freeze them in "
            "freeze_unused(needs)",
        )


def blocks_computed_anew_give_the_same_gradients(build: Build) -> None:
    """With ``activation_checkpointing`` what is drawn is drawn again, and nothing is counted or kept twice."""
    image, text, index = images(2), texts(3), torch.tensor([0, 1, 1])
    gradients = []
    for is_anew in (False, True):
        fusion = build()
        module(fusion).train()
        if is_anew and not recompute(blocks_of(module(fusion))):
            return
        torch.manual_seed(0)
        torch.stack(
            [part.square().sum() for part in parts_of(fusion(fusion.prepare(image), text, index))]
        ).sum().backward()
        gradients.append([p.grad for p in module(fusion).parameters() if p.grad is not None])
    require_equal(gradients[1], gradients[0], "gradients of blocks that are computed anew, and of those that keep all,")


def later_text_does_not_leak_under_a_causal_mask(build: Build) -> None:
    """A token's state does not change, not by one bit, with what follows it."""
    fusion = build()
    if "causal" not in fusion.provides:
        return
    image, text, index = images(2), texts(2), torch.tensor([0, 1])
    causal = torch.ones(LENGTH, LENGTH).tril().long().expand(2, -1, -1)
    for token in range(1, LENGTH):
        changed = text.embeds.clone()
        changed[:, token] = torch.randn(2, TEXT)
        before, after = (
            states_of(fusion(fusion.prepare(image), Tokens(embeds, causal, embeds.mean(1)), index))[:, :token]
            for embeds in (text.embeds, changed)
        )
        require(torch.equal(before, after), f"token {token} changes states before it, although provides says 'causal'")


def a_text_may_grow(build: Build) -> None:
    """What ``extend`` gives piece by piece is what the whole text gives at once."""
    fusion = build()
    if not isinstance(fusion, SupportsExtend):
        return
    memory, text, index = fusion.prepare(images(2)), texts(3), torch.tensor([0, 1, 1])
    causal = torch.ones(LENGTH, LENGTH).tril().long().expand(3, -1, -1)
    first, past = fusion.extend(memory, Tokens(text.embeds[:, :4], causal[:, :4, :4], text.pooled), index, None)
    second, _ = fusion.extend(memory, Tokens(text.embeds[:, 4:], causal[:, 4:], text.pooled), index, past)
    whole = states_of(fusion(memory, text._replace(mask=causal), index))
    require_equal([torch.cat([first, second], dim=1)], [whole], "a text in two pieces and at once")


def a_text_sees_its_images_from_their_places_on(build: Build) -> None:
    """One that stands before all is as a text's only image; no token before an image changes with it, and some behind it do."""
    fusion = build()
    if "images" not in fusion.provides:
        return
    image, text = images(4), texts(3)
    causal = torch.ones(LENGTH, LENGTH).tril().long().expand(3, -1, -1)
    text, placed = text._replace(mask=causal), torch.tensor([[[3, 0], [0, 2], [1, 4]], [[2, 3], [-1, 0], [-1, 0]]])
    first = torch.tensor([1, 1, 2])
    plain = fusion(fusion.prepare(image), text, first)
    start = torch.stack([first, torch.zeros_like(first)], dim=1)[:, None]
    require_equal(
        parts_of(fusion(fusion.prepare(image), text, start)),
        parts_of(plain),
        "an image at the start and a text's only one",
    )
    text = text.take(torch.arange(2))
    whole = fusion(fusion.prepare(image), text, placed)
    for row, places in enumerate(placed.tolist()):
        own = torch.tensor([[place for place in places if place[0] >= 0]])
        alone = fusion(fusion.prepare(image), text.take(torch.tensor([row])), own)
        require_equal(
            [part[row : row + 1] for part in parts_of(whole)], parts_of(alone), "a text with images and alone"
        )
        for number, token in own[0].tolist():
            embeds = image.embeds.clone()
            embeds[number] = torch.randn(TOKENS, IMAGE)
            changed = Tokens(embeds, None, embeds.mean(1))
            other = states_of(fusion(fusion.prepare(changed), text, placed))[row]
            require(
                torch.equal(other[:token], states_of(whole)[row, :token]),
                f"an image at token {token} is seen before it",
            )
            require(
                not torch.equal(other[token], states_of(whole)[row, token]), f"token {token} does not see its image"
            )


CHECKS = (
    shapes_and_provisions,
    image_index_names_the_image,
    text_padding_changes_nothing,
    masked_image_tokens_change_nothing,
    gradient_reaches_both_inputs_and_every_parameter,
    what_is_read_trains_all_that_is_not_frozen,
    blocks_computed_anew_give_the_same_gradients,
    later_text_does_not_leak_under_a_causal_mask,
    a_text_sees_its_images_from_their_places_on,
    a_text_may_grow,
)
