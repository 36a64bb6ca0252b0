import numpy as np
import pytest

from fusionkit.scoring import text_only_models as estimates
from fusionkit.scoring.text_only_models import Majority, ridge


def test_the_first_context_that_is_known_tells():
    majority = Majority([("a", 1), ("a", 2), ("a", 2), ("b", 3)])
    assert [majority(contexts) for contexts in (["x", "b", "a"], "a", ["x"], [])] == [3, 2, None, None]
    assert Majority([]).counts == {}


def test_regression_by_hand(monkeypatch):
    """One word in two of four texts: its weight is (5 - 3) * 2 / (2 + 1), the other texts' mean stays in the intercept."""
    predict = ridge(["Cat cat", "cat", "", ""], np.array([[5.0], [5.0], [1.0], [1.0]]))
    assert [predict(text)[0] for text in ("CAT", "cat cat", "dog", "")] == pytest.approx([3 + 4 / 3, 3 + 4 / 3, 3, 3])
    monkeypatch.setattr(estimates, "MAX_WORDS", 1)
    few = ridge(["cat dog", "cat", "", ""], np.array([[5.0, 0], [5.0, 0], [1.0, 0], [1.0, 8]]))
    assert few("dog").tolist() == [3, 2]  # too rare
    assert few("cat").tolist() == pytest.approx([3 + 4 / 3, 2 - 4 / 3])


def test_the_words_are_the_commonest_two_thousand():
    texts = [f"w{at}" for at in range(2001)] * 2 + [f"w{at}" for at in range(2000)]
    predict = ridge(texts, np.array([[float(text == "w2000" or text == "w1999")] for text in texts]))
    mean = 5 / len(texts)
    assert predict("w2000")[0] == pytest.approx(mean)
    assert predict("w1999")[0] == pytest.approx(mean + 3 * (1 - mean) / 4)
