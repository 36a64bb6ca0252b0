"""What every fusion promises, over every file in conf/fusion."""

import pytest
import torch
from omegaconf import OmegaConf

from fusionkit.contracts.fusions import CHECKS, IMAGE, TEXT, masked_image_tokens_change_nothing
from fusionkit.errors import ConfigError
from tests.toys import CONF, choices, joined, toy_fusion

FUSIONS = choices("fusion")


def build(name):
    torch.manual_seed(0)
    return joined(toy_fusion(name)(image_size=IMAGE, text_size=TEXT), TEXT).eval()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", FUSIONS)
def test_it_keeps_the_contract(name, check):
    if name == "prefix_shuffle" and check is masked_image_tokens_change_nothing:
        with pytest.raises(ConfigError, match=r"fusion\.projector: PixelShuffle joins neighbours of a square"):
            check(lambda: build(name))
        return
    check(lambda: build(name))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_without_layers_is_refused(name):
    if "num_layers" not in OmegaConf.load(CONF / "fusion" / f"{name}.yaml"):
        pytest.skip(f"{name} has no layers to count")
    with pytest.raises(ConfigError, match=r"fusion\.num_layers is 0, but has to be at least 1"):
        toy_fusion(name)(image_size=IMAGE, text_size=TEXT, num_layers=0)


def test_most_fusions_are_causal():
    assert sum("causal" in build(name).provides for name in FUSIONS) >= 8
