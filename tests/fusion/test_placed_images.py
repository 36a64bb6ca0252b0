"""Texts with several images at places: which token sees which, a row in a batch and alone, a cache and recomputation."""

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.fusion.base import require_several_images
from fusionkit.fusion.placed_images import PlacedImages, is_placed
from fusionkit.tasks.decoding import CachedDecoderState, DecoderInputs, Prompts, fuse_causal
from fusionkit.types import Tokens
from tests.fusion import readers
from tests.fusion import test_interleaved as interleaved
from tests.fusion import test_prefix as prefix
from tests.fusion.readers import LENGTH, LENGTHS, RULES, searched
from tests.toys import VOCABULARY, toy_fusion

NONE = (-1, 0)
# five texts of 6, 3, 1, 4 and 3 tokens: two images, two at one place, one at the end, none, one in the middle
INDEX = torch.tensor(
    [[(1, 1), (0, 4)], [(2, 1), (1, 1)], [(2, 1), NONE], [NONE, NONE], [(0, 1), NONE]],
)
MASK = interleaved.MASK
WAYS = {
    "latest": lambda **options: interleaved.build(**options),
    "all": lambda **options: interleaved.build(sees="all", **options),
    "resampled": lambda **options: interleaved.build(name="interleaved_resampled", **options),
    "prefix": lambda **options: prefix.build(**options),
    "image": lambda **options: prefix.build(sees="image", **options),
    "no cache of images": lambda **options: prefix.build(cache_mb=0, **options),
    "gpt2": lambda **options: prefix.build("gpt2", **options),
}
all_ways = pytest.mark.parametrize("way", WAYS)


def test_the_latest_image_is_what_is_seen_where_nothing_is_said():
    """As in configurations that are older than the choice."""
    plain = interleaved.Interleaved(24, 32), interleaved.InterleavedResampled(24, 32, interleaved.Perceiver)
    assert [fusion.sees for fusion in plain] == ["latest", "latest"]


def prompts(index=INDEX):
    return readers.prompts()._replace(image_index=index)


def row_of(given, row):
    length, index = int(LENGTHS[row]), given.image_index[row : row + 1]
    index = index[:, : max(1, int((index[..., 0] >= 0).sum()))]
    text = (given.input_ids[row : row + 1, :length], given.attention_mask[row : row + 1, :length])
    return Prompts(*text, index, given.prefix[row : row + 1])


def test_which_images_stand_before_which_token():
    images = PlacedImages.of(INDEX[:2])
    assert images.before(0, 5).tolist() == [
        [[False, False], [True, False], [True, False], [True, False], [True, True]],
        [[False, False], [True, True], [True, True], [True, True], [True, True]],
    ]
    assert images.latest(3, 2).tolist() == [[[True, False], [False, True]], [[False, True], [False, True]]]
    assert PlacedImages.of(INDEX[3:4]).before(0, 9).sum() == PlacedImages.of(INDEX[3:4]).latest(0, 9).sum() == 0
    assert PlacedImages.of(INDEX).rows.min() == 0
    assert [is_placed(torch.zeros(shape)) for shape in ((2,), (2, 2), (2, 1, 2))] == [False, False, True]


@all_ways
@torch.no_grad()
def test_a_text_in_a_batch_is_as_alone_however_many_images_each_has(way):
    reader, given = WAYS[way](), prompts()
    memory = reader.fusion.prepare(readers.image(MASK))
    states = fuse_causal(reader, memory, given)
    for row in range(5):
        one = row_of(given, row)
        alone = fuse_causal(reader, memory, one)
        torch.testing.assert_close(states[row : row + 1, : int(LENGTHS[row])], alone, rtol=1e-5, atol=2e-5)
        pooled = reader.fuse(memory, reader.encode_text(one.input_ids, one.attention_mask), one.image_index).pooled
        torch.testing.assert_close(pooled, alone[:, -1], rtol=1e-5, atol=2e-5)
    assert states.isfinite().all()


@all_ways
@torch.no_grad()
def test_a_cache_changes_nothing(way):
    """Of the texts one ends with its image, so that only what is said behind it sees that."""
    reader, given = WAYS[way](), prompts()
    memory = reader.fusion.prepare(readers.image(MASK))
    parts = DecoderInputs(reader, None, memory, given)
    for search, said in searched(parts):
        for row in range(5):
            state = CachedDecoderState(DecoderInputs(reader, None, memory, row_of(given, row)))
            alone = search(state, RULES).tokens[0]
            assert torch.equal(alone, said[row, : len(alone)])
    other = readers.image(MASK)
    other.embeds[2] = torch.randn(other.embeds[2].shape)
    moved = reader.fusion.prepare(other)
    assert torch.equal(fuse_causal(reader, moved, given)[2, :1], fuse_causal(reader, memory, given)[2, :1])
    logits, state = CachedDecoderState(parts).start()
    again, state_of_other = CachedDecoderState(parts._replace(memory=moved)).start()
    said = torch.tensor([7] * 5)
    behind, _ = CachedDecoderState(parts).advance(said, state)
    behind_other, _ = CachedDecoderState(parts._replace(memory=moved)).advance(said, state_of_other)
    assert torch.equal(logits[2], again[2])
    assert not torch.allclose(behind[2], behind_other[2], atol=1e-3)


@all_ways
@torch.no_grad()
def test_the_only_image_at_the_start_is_a_text_s_image(way):
    reader = WAYS[way]()
    memory, first = reader.fusion.prepare(readers.image(MASK)), prefix.INDEX
    placed = torch.stack([first, torch.zeros_like(first)], dim=1)[:, None]
    padded = torch.cat([placed, torch.tensor([[NONE]] * 5)], dim=1)
    plain = fuse_causal(reader, memory, prompts(first))
    real = prompts().attention_mask.bool()
    for index in (placed, padded):
        torch.testing.assert_close(fuse_causal(reader, memory, prompts(index))[real], plain[real], rtol=1e-5, atol=2e-5)


@all_ways
@torch.no_grad()
def test_no_token_sees_an_image_before_its_place_and_each_behind_sees_what_it_may(way):
    reader, given = WAYS[way](), prompts()
    given = given._replace(attention_mask=torch.ones_like(given.attention_mask))
    before = fuse_causal(reader, reader.fusion.prepare(readers.image()), given)
    for image, changed in {0: {0: 4, 4: 1}, 1: {0: 1, 1: 1}, 2: {1: 1, 2: 1}}.items():
        embeds = readers.image().embeds.clone()
        embeds[image] = torch.randn(embeds[image].shape)
        after = fuse_causal(reader, reader.fusion.prepare(Tokens(embeds, None, embeds.mean(1))), given)
        for row in range(5):
            first = changed.get(row, LENGTH)
            assert torch.equal(before[row, :first], after[row, :first])
            is_hidden = way in ("latest", "resampled") and (image, row) == (2, 1)  # another stands at its place
            for token in range(first, LENGTH):
                assert torch.equal(before[row, token], after[row, token]) == is_hidden


def test_the_latest_image_alone_is_seen_or_all_so_far():
    """Where the language model's own tokens pass nothing on, the first image is seen up to the second one."""
    for sees, last in (("latest", 4), ("all", LENGTH)):
        reader = interleaved.build(sees=sees, cross_every=2)
        embeds = readers.image().embeds.clone().requires_grad_()
        memory = reader.fusion.prepare(Tokens(embeds, None, embeds.mean(1)))
        given = prompts()
        looking = reader.fusion._looking(memory, given.attention_mask, given.image_index)
        states = looking(0, torch.randn(5, LENGTH, 32))
        for token in range(LENGTH):
            (gradient,) = torch.autograd.grad(states[0, token].sum(), embeds, retain_graph=True)
            assert bool(gradient[1].abs().sum() > 0) == (1 <= token < last)
            assert bool(gradient[0].abs().sum() > 0) == (token >= 4)
            assert gradient[2].abs().sum() == 0


@pytest.mark.parametrize("way", ["latest", "all", "prefix"])
def test_layers_that_are_computed_anew_give_the_same_gradients(way):
    found = []
    for checkpointing in (False, True):
        reader, given = WAYS[way](checkpointing=checkpointing).train(), prompts()
        seen = readers.image(MASK)
        seen.embeds.requires_grad_()
        states = fuse_causal(reader, reader.fusion.prepare(seen), given)
        states[given.attention_mask.bool()].square().sum().backward()
        found.append([seen.embeds.grad, *(p.grad for p in reader.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["latest", "prefix"])
@torch.no_grad()
def test_an_image_s_numbers_do_not_hang_on_its_row(way):
    reader, order = WAYS[way](), torch.tensor([2, 0, 1])
    states = fuse_causal(reader, reader.fusion.prepare(readers.image(MASK)), prompts())
    index = INDEX.clone()
    index[..., 0] = torch.where(INDEX[..., 0] < 0, -1, order.argsort()[INDEX[..., 0].clamp(min=0)])
    moved = fuse_causal(reader, reader.fusion.prepare(readers.image(MASK).take(order)), prompts(index))
    torch.testing.assert_close(moved, states, rtol=1e-5, atol=2e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"fusion\.sees is 'last'; .*latest"):
        interleaved.build(sees="last")
    assert "images" not in prefix.build(sees="text").fusion.provides
    with pytest.raises(
        ConfigError, match="CrossAttention takes one image a text, before all of it, but row 3 has several"
    ):
        require_several_images(toy_fusion("cross_attention")(image_size=24, text_size=32), "row 3")
    require_several_images(prefix.build().fusion)
    reader = prefix.build("gpt2")
    most = reader.text_encoder.max_length
    count = (most - LENGTH) // 5
    ids, mask = torch.full((1, LENGTH), VOCABULARY - 1), torch.ones(1, LENGTH, dtype=torch.long)
    memory = reader.fusion.prepare(readers.image())
    for more in (0, 1):
        index = torch.zeros(1, count + more, 2, dtype=torch.long)
        text = Prompts(ids, mask, index, torch.ones(1, dtype=torch.long))
        if not more:
            fuse_causal(reader, memory, text)
            continue
        over = LENGTH + 5 * (count + 1)
        told = f"a text with {count + 1} images takes {over} positions, but the language model reads {most} at once"
        with pytest.raises(ConfigError, match=told):
            fuse_causal(reader, memory, text)
