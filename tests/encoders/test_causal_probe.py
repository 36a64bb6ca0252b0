"""Each way in which a model may read otherwise than it is told is found, on a model simple enough to be sure of."""

import pytest
import torch

from fusionkit.encoders.causal_probe import LENGTH, Whole, fault_of, gap_texts, size_of_keys


class Sums:
    """The state of a token is a sum of what it sees, each weighed by its position; keys and values are what was summed."""

    fault = ""

    def read(self, embeds, mask, positions):
        return self.read_on(embeds, mask, positions, None)[0]

    def read_on(self, embeds, mask, positions, past):
        if self.fault == "positions":
            positions = torch.arange(embeds.shape[1])[None] + (0 if past is None else past[0][0].shape[2])
        own = embeds * (1 + positions[..., None])
        if past is not None and self.fault != "cache":
            own = torch.cat([past[0][0][:, 0], own], dim=1)
        seen = torch.ones(mask.shape[1], own.shape[1]).tril(own.shape[1] - mask.shape[1]).expand(len(mask), -1, -1)
        if self.fault != "mask":
            seen = mask[:, :, -own.shape[1] :].to(embeds)
        if self.fault == "causal":
            seen = seen * torch.ones_like(seen).tril(own.shape[1] - mask.shape[1])
        if self.fault == "later":
            seen = torch.ones_like(seen)
        if self.fault == "itself":
            seen = torch.eye(own.shape[1])[-mask.shape[1] :].expand(len(mask), -1, -1)
        states = seen @ own * (float("nan") if self.fault == "numbers" else 1.0)
        return states[..., :2] if self.fault == "width" else states, [(own[:, None], own[:, None])]

    def predict_words(self, states):
        return 2 * states


def embeds():
    torch.manual_seed(0)
    table = torch.nn.Embedding(20, 4)
    return table(gap_texts(table)).detach()


def fault(name, logits=None):
    model = Sums()
    model.fault = name
    return fault_of(model, embeds(), logits)


def test_a_model_that_does_as_it_is_told_has_no_fault():
    model = Sums()
    assert fault("") is None
    assert fault("", lambda embeds: 2 * model.read(*Whole.of(embeds))) is None
    assert size_of_keys(model, embeds()) == 2 * 4


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("numbers", "its states are no numbers"),
        ("width", "of another width"),
        ("later", "a token sees those after it"),
        ("itself", "a token does not see those before it"),
        ("causal", "it takes no mask that lets a token see later ones"),
        ("positions", "it ignores the mask or the positions"),
        ("cache", "it ignores the cache"),
    ],
)
def test_faults_are_told(name, told):
    assert told in fault(name)


def test_a_head_that_does_more_is_told():
    assert "its head does more" in fault("", lambda embeds: 3 * Sums().read(*Whole.of(embeds)))


@pytest.mark.parametrize("words", [1, 2, 3, 60])
def test_the_made_up_texts_differ_in_one_place_each(words):
    text, later, first = gap_texts(torch.nn.Embedding(words, 2))
    assert max(text.max(), later.max(), first.max()) < words
    if words > 1:
        assert (text != later).nonzero().flatten().tolist() == [LENGTH - 1]
        assert (text != first).nonzero().flatten().tolist() == [0]
