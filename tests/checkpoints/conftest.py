"""Networks of published sizes, built quickly."""

import copy
import functools
from collections.abc import Iterator

import pytest

from fusionkit.checkpoints import build


@pytest.fixture(scope="module")
def fast() -> Iterator[None]:
    """Names and shapes need no drawn weights and no look at each number; a choice of data and tasks is composed once."""
    with pytest.MonkeyPatch.context() as patch:
        for tower in ("vision_transformer", "swin_transformer"):
            patch.setattr(f"timm.models.{tower}.trunc_normal_", lambda tensor, **options: tensor)
        patch.setattr("fusionkit.checkpoints.base._require_finite", lambda *given: None)  # of billions of numbers
        cached = functools.cache(build.training_config)
        patch.setattr(build, "training_config", lambda *overrides: copy.deepcopy(cached(*overrides)))
        yield
