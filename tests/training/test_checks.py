"""What does not fit together, seen when the parts are there."""

import pytest

from fusionkit.training.checks import lonely
from tests.toys import choices, toy_dims, toy_model, toy_task


@pytest.mark.parametrize("name", choices("task"))
def test_a_batch_of_one_is_told_where_images_are_compared(name):
    tasks = {name: toy_task(name, toy_dims(toy_model()))}
    told = lonely({"toy": {name: 1.0}}, tasks, {"toy": 1}, 1)
    assert len(told) == (name in ("itc", "itm", "ranking", "grounding_gradcam"))
    assert not lonely({"toy": {name: 1.0}}, tasks, {"toy": 2}, 1)
    for sentence in told:
        assert sentence.startswith(f"objectives.toy.{name}: with data.sources.toy.batch_size=1 there is no other image")
    assert len(lonely({"toy": {name: 1.0}}, tasks, {"toy": 1}, 2)) == len(told) - (name == "itc")  # over all ranks
