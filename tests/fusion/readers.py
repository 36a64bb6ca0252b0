"""Five texts of three images, and what holds of any reader of such: a cache changes nothing, and no row sees another."""

import torch

from fusionkit.tasks.answering import Answers, RankAnswers
from fusionkit.tasks.decoding import CachedDecoderState, DecoderInputs, Prompts, RecomputedDecoderState, fuse_causal
from fusionkit.tasks.generation import BeamSearch, GenerationConfig, Greedy
from fusionkit.types import Tokens
from tests.toys import PAD, SEP, VOCABULARY

IMAGE, TOKENS, LENGTH = 24, 5, 6
INDEX = torch.tensor([2, 0, 0, 1, 2])
LENGTHS = torch.tensor([[6], [3], [1], [4], [3]])
RULES = GenerationConfig(SEP, max_length=6, min_length=2)
WAYS = (CachedDecoderState, RecomputedDecoderState)


def image(mask=None):
    embeds = torch.randn(3, TOKENS, IMAGE, generator=torch.Generator().manual_seed(1))
    return Tokens(embeds, mask, embeds.mean(1))


def prompts(prefix=None, lowest=5):
    """Texts of words from ``lowest`` on, whose first ``prefix`` tokens see one another; without it none do."""
    ids = torch.randint(lowest, VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(LENGTH) < LENGTHS).long()
    return Prompts(ids * mask, mask, INDEX, torch.ones(5, dtype=torch.long) if prefix is None else prefix)


def searched(parts):
    """Each search with the tokens that it finds from kept keys and values, which are those of the whole read anew."""
    for search in (Greedy(), BeamSearch(3)):
        cached, anew = (search(way(parts), RULES) for way in WAYS)
        assert torch.equal(cached.tokens, anew.tokens)
        torch.testing.assert_close(cached.scores, anew.scores, rtol=1e-5, atol=1e-4)
        yield search, cached.tokens


def check_reader(reader, images, given):
    """Searches and ranks with kept keys as without, and reads each text alone, without masked image tokens, as in the batch."""
    memory = reader.fusion.prepare(images)
    parts = DecoderInputs(reader, None, memory, given)
    assert len(list(searched(parts))) == 2
    answers = Answers(("a", "b"), torch.tensor([[9, 8, SEP], [9, SEP, PAD]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    ranked = [RankAnswers(2).scores(way(parts), answers)[0] for way in WAYS]
    torch.testing.assert_close(*ranked, rtol=1e-5, atol=1e-4)
    states = fuse_causal(reader, memory, given)
    for row, length in enumerate(LENGTHS[:, 0].tolist()):
        one = images.take(INDEX[row : row + 1])
        if one.mask is not None:
            one = Tokens(one.embeds[:, one.mask[0].bool()], None, one.pooled)
        ids, mask = (part[row : row + 1, :length] for part in given[:2])
        text = Prompts(ids, mask, torch.tensor([0]), given.prefix[row : row + 1])
        alone = fuse_causal(reader, reader.fusion.prepare(one), text)
        torch.testing.assert_close(states[row : row + 1, :length], alone, rtol=1e-5, atol=2e-5)
