"""Names that stand in stored configurations, and what they are called today."""

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from fusionkit.assembly.renames import RENAMES, SPLIT, today
from fusionkit.assembly.signatures import signature_of
from fusionkit.assembly.trust import read_stored

OLD = "fusionkit.encoders.text.TextEncoder"


@pytest.mark.parametrize("option", SPLIT[OLD])
def test_an_option_of_a_class_that_was_taken_apart_finds_its_class(option: str) -> None:
    text = OmegaConf.to_yaml({"text_encoder": {"_target_": OLD, "pool": "cls", option: 2}})
    block = read_stored(text, "here").text_encoder
    assert block == {"_target_": SPLIT[OLD][option], "pool": "cls", option: 2}
    assert option in signature_of(block._target_)


def test_a_class_without_such_options_is_the_general_one() -> None:
    text = OmegaConf.to_yaml({"text_encoder": {"_target_": OLD, "pool": "cls"}})
    assert read_stored(text, "here").text_encoder._target_ == "fusionkit.encoders.text.HFTextEncoder"
    other = {"_target_": ["no name"], "top_layers": 2}
    assert today(other) == other
    assert today({"_target_": "my.TextEncoder", "top_layers": 2}) == {"_target_": "my.TextEncoder", "top_layers": 2}


@pytest.mark.parametrize("name", sorted({*RENAMES.values(), *(n for names in SPLIT.values() for n in names.values())}))
def test_what_a_name_became_exists(name: str) -> None:
    assert get_object(name) is not None
