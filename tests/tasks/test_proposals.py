import json
from pathlib import Path

import pytest

from fusionkit.errors import DataError
from fusionkit.tasks.grounding_gradcam import _read_proposals


def read(tmp_path, content):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return _read_proposals(Path(path))


def test_proposals_are_boxes_behind_which_a_confidence_may_stand(tmp_path):
    found = read(tmp_path, {"1": [[1, 2, 3, 4.5], [1, 2, 3, 4, 0.9]], "2": []})
    assert found == {"1": [[1, 2, 3, 4.5], [1, 2, 3, 4]], "2": []}


@pytest.mark.parametrize(
    "wrong",
    [None, 5, [None], [[1, 2, 3]], [[1, 2, "3", 4]], [[1, 2, True, 4]], [[1, 2, 0, 4]], [[1, 2, 3, -4]], {"a": 1}],
)
def test_other_proposals_are_told(tmp_path, wrong):
    with pytest.raises(DataError, match=r"boxes.json has .* for image 7, but a box is \[x, y, width, height\]"):
        read(tmp_path, {"1": [[1, 2, 3, 4]], "7": wrong})
    with pytest.raises(DataError, match=r"boxes.json is not JSON \(NaN is no number of JSON\); write null"):
        read(tmp_path, {"7": [[float("nan"), 2, 3, 4]]})
