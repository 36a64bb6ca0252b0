"""Networks of published sizes, built quickly."""

import copy
import functools
from collections.abc import Iterator

import pytest

from fusionkit.checkpoints import build


@pytest.fixture(scope="module")
def fast() -> Iterator[None]:
    """Names and shapes need no drawn weights, and one choice of data and tasks need be composed once only."""
    with pytest.MonkeyPatch.context() as patch:
        for tower in ("vision_transformer", "swin_transformer"):
            patch.setattr(f"timm.models.{tower}.trunc_normal_", lambda tensor, **options: tensor)
        cached = functools.cache(build.training_config)
        patch.setattr(build, "training_config", lambda *overrides: copy.deepcopy(cached(*overrides)))
        yield
