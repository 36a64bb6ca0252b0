import math
from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring.scorers import HIDDEN

SAMPLES = [Sample(key, Path("x.png"), {}) for key in (1, 2)]


def test_hidden_features_are_explained_in_parts_of_what_a_guesser_leaves():
    records = [
        {"image_id": 1, "error": 1.0, "mean_error": 2.0},
        {"image_id": 2, "error": 2.0, "mean_error": 10.0},
    ]
    assert HIDDEN(records, SAMPLES) == {"mrm_explained": 75.0}  # of sums: an image counts by its variance
    assert HIDDEN([{"image_id": 1, "error": 3.0, "mean_error": 2.0}], SAMPLES) == {"mrm_explained": -50.0}
    assert HIDDEN([], SAMPLES) == HIDDEN([{"image_id": 1, "error": 0.0, "mean_error": 0.0}], SAMPLES) == {}
    with pytest.raises(DataError, match="unknown image_id 3"):
        HIDDEN([{"image_id": 3}], SAMPLES)


def test_a_feature_loss_that_is_no_number_stays_in_sight():
    """A metric that vanished would let the mean of the others choose a checkpoint."""
    sample = Sample(1, Path("x.png"), {"captions": (Text(10, "a cat"),)})
    assert math.isnan(HIDDEN([{"image_id": 1, "error": math.nan, "mean_error": 2.0}], [sample])["mrm_explained"])
    assert HIDDEN([{"image_id": 1, "error": 0.5, "mean_error": 2.0}], [sample])["mrm_explained"] == 75
