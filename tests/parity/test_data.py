"""The copied fixtures prove every published family in a clone that has nothing beside it, and stay small."""

import pytest
from safetensors.torch import load_file

from fusionkit.checkpoints.source import read_source
from tests.parity.published import DATA

FAMILIES = [
    "albef_tiny",
    "blip_caption",
    "blip_vqa",
    "meter",
    "uniter_nlvr2",
    "uniter_re",
    "uniter_tiny",
    "vilt",
    "xvlm",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_fixture_here(family: str) -> None:
    (path,) = DATA.glob(f"{family}*.json")
    assert len(read_source(path.with_suffix(".pth")).state) > 60
    assert any("grad_norm" in name for name in load_file(path.with_suffix(".io.safetensors")))


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 25e6
