"""Attention and the shared blocks, by hand and against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from fusionkit.errors import ConfigError
from fusionkit.fusion.layers import (
    Attention,
    FeedForward,
    Grouping,
    KeyValue,
    Packing,
    PreNormBlock,
    attend,
    attention_weights,
    key_mask,
    seen_by_image,
    stack,
)

WIDTH, HEADS = 8, 2


def test_attention_is_torchs_with_and_without_gradients():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, HEADS, 3, 4), torch.randn(2, HEADS, 5, 4), torch.randn(2, HEADS, 5, 4)
    mask = key_mask(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attend(query.requires_grad_(), key, value, mask), expected)
    with torch.no_grad():
        torch.testing.assert_close(attend(query, key, value, mask), expected)
    weights = attention_weights(query, key, mask)
    assert (weights[1, :, :, 2:4] == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, HEADS, 3))


def test_dropout_of_attention_is_on_in_training_alone():
    torch.manual_seed(0)
    attention, states = Attention(WIDTH, HEADS, dropout=0.9), torch.randn(1, 6, WIDTH)
    memory = attention.project(states, None)
    attention.eval()
    first = attention(states, memory)
    assert torch.equal(first, attention(states, memory))
    with torch.no_grad():
        torch.testing.assert_close(attention(states, memory), first)
    attention.train()
    assert not torch.allclose(attention(states, memory), attention(states, memory))


def test_a_pre_norm_block_drops_after_attention_and_after_the_feed_forward():
    """With everything dropped nothing is added to the residual stream; with one part closed the other still drops."""
    block, states = PreNormBlock(WIDTH, HEADS, dropout=1.0).train(), torch.randn(2, 3, WIDTH)
    assert torch.equal(block(states, None), states)
    block.attention.output.weight.data.zero_()
    block.attention.output.bias.data.zero_()
    assert torch.equal(block(states, None), states)
    block.eval()
    expected = states + block.feed_forward(block.norm_feed_forward(states))
    torch.testing.assert_close(block(states, None), expected)
    assert not torch.allclose(expected, states)


def test_a_block_that_goes_on_equals_one_that_reads_all_at_once():
    torch.manual_seed(0)
    block, states = PreNormBlock(WIDTH, HEADS).eval(), torch.randn(2, 5, WIDTH)
    causal = torch.ones(5, 5).tril().expand(2, 5, 5)
    whole = block(states, causal)
    first, past = block.extend(states[:, :3], causal[:, :3, :3], None)
    second, after = block.extend(states[:, 3:], causal[:, 3:], past)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    assert past.mask is None
    assert (past.key.shape[2], after.key.shape[2]) == (3, 5)


def test_keys_of_earlier_tokens_come_first():
    one, two = (torch.full((1, 1, 1, 2), float(number)) for number in (1, 2))
    joined = KeyValue(two, -two, torch.ones(1, 2)).after(KeyValue(one, -one, None))
    assert joined.key[0, 0, :, 0].tolist() == [1, 2]
    assert joined.value[0, 0, :, 0].tolist() == [-1, -2]
    assert joined.mask is not None


def test_rows_of_one_image_are_put_side_by_side_and_back():
    index = torch.tensor([2, 0, 2, 2])
    grouping = Grouping.of(index, images=4)
    assert grouping.slots == 3
    rows = torch.arange(4.0).view(4, 1, 1, 1).expand(4, HEADS, 2, 3)
    table = grouping.gather(rows)
    assert table.shape == (4, HEADS, 6, 3)
    assert table[2, 0, :, 0].tolist() == [0, 0, 2, 2, 3, 3]
    assert table[0, 0, :, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert (table[1] == 0).all()
    assert torch.equal(grouping.scatter(table), rows)


def test_padding_is_left_out_and_put_back():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    packing = Packing.of(mask)
    states = torch.arange(6.0).view(2, 3, 1)
    assert packing.pack(states).flatten().tolist() == [0, 1, 3]
    assert packing.unpack(packing.pack(states)).flatten().tolist() == [0, 1, 0, 3, 0, 0]


def test_which_tokens_are_real_behind_earlier_ones_is_read_off_their_own_columns():
    """Two new tokens behind three earlier ones; of the second row only the first is real."""
    mask = torch.tensor([[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]])
    packing = Packing.of(mask)
    assert packing.place.tolist() == [0, 1, 2]
    assert (packing.rows, packing.length) == (2, 2)


def test_packed_states_are_attended_as_padded_ones():
    torch.manual_seed(0)
    attention, states = Attention(WIDTH, HEADS, context_size=6), torch.randn(3, 4, WIDTH)
    context, mask = torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    index = torch.tensor([1, 0, 1])
    memory = attention.project(context, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    expected = attention(states, KeyValue(*(part[index] for part in memory)))
    grouping, packing = Grouping.of(index, 2), Packing.of(mask)
    torch.testing.assert_close(attention(states, memory, grouping), expected)
    packed = attention(packing.pack(states), memory, grouping, packing)
    torch.testing.assert_close(packed, packing.pack(expected))


def test_masks_of_keys_and_what_an_image_may_see():
    causal = torch.ones(2, 3, 3).tril()
    assert key_mask(None) is None
    assert key_mask(torch.ones(2, 3)).shape == (2, 1, 1, 3)
    assert key_mask(causal).shape == (2, 1, 3, 3)
    assert seen_by_image(torch.ones(2, 3)).shape == (2, 3)
    assert seen_by_image(causal).tolist() == [[1, 0, 0]] * 2


def test_sizes_that_cannot_be():
    with pytest.raises(ConfigError, match=r"fusion\.num_heads is 3, .* width 8 .*; give one of 1, 2, 4, 8$"):
        Attention(8, 3)
    with pytest.raises(ConfigError, match=r"fusion\.num_heads is 0"):
        Attention(8, 0)
    with pytest.raises(ConfigError, match=r"fusion\.num_layers is 0"):
        stack(0, lambda number: FeedForward(2, 3))
    assert len(stack(1, lambda number: FeedForward(2, 3))) == 1
    assert [layer[0].out_features for layer in stack(2, lambda number: FeedForward(2, 3 + number))] == [3, 4]
    assert PreNormBlock(WIDTH, HEADS).feed_forward[0].out_features == 4 * WIDTH
    assert PreNormBlock(WIDTH, HEADS, intermediate_size=5).feed_forward[0].out_features == 5
