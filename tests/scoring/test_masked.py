from pathlib import Path

import pytest

from fusionkit.data.sample import Sample
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
