"""What an evaluation is told, shows and leaves behind; what it predicts, the tests of a whole run say."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from fusionkit.assembly.evaluation_options import EvaluationOptions, Reranking
from fusionkit.errors import ConfigError
from fusionkit.inference import prediction
from fusionkit.inference.all_pairs import AllPairs
from fusionkit.inference.prediction import evaluating, moved, predict_source
from fusionkit.inference.rankings import Pairing
from fusionkit.types import Regions, Tokens
from tests.inference.test_evaluate import CPU, NUM_IMAGES, QUIET, FakeData, FakeModel, all_tasks, evaluate_source


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images").mkdir()
    return FakeData(tmp_path / "images")


def test_what_is_done_unless_told():
    assert EvaluationOptions() == EvaluationOptions(Reranking(), "32-true", True, False, None, "")
    assert Reranking() == Reranking(32, "density_ratio", 256, 2**31)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        *dict.fromkeys(("32-true", "32", "64-true")).items(),
        *dict.fromkeys(("bf16-mixed", "bf16-true"), torch.bfloat16).items(),
        *dict.fromkeys(("16-mixed", "16-true"), torch.float16).items(),
    ],
)
def test_precisions_are_those_of_lightning(precision, dtype):
    with evaluating(nn.Identity(), [], CPU, EvaluationOptions(precision=precision)):
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert dtype is None or torch.get_autocast_dtype("cpu") == dtype
    with pytest.raises(ConfigError, match=f"unknown precision '{precision}_' for the evaluation: "):
        EvaluationOptions(precision=f"{precision}_")


def test_modes_are_put_back_after_a_failure():
    model, task = nn.Identity().train(), nn.Identity().eval()

    def fail():
        with evaluating(model, [task], CPU, QUIET):
            assert (model.training, task.training, torch.is_inference_mode_enabled()) == (False, False, True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (model.training, task.training, torch.is_inference_mode_enabled()) == (True, False, False)


class Bar:
    """What each bar was told, by its title."""

    told: dict[str, list[object]] = {}  # noqa: RUF012

    def __init__(self, progress, title):
        self.steps = self.told.setdefault(title, [])

    def begin(self, total, done):
        self.steps.append((total, done))

    def advance(self, count):
        self.steps.append(count)


@pytest.mark.parametrize("quiet", [False, True])
def test_how_far_it_is(data, monkeypatch, quiet):
    asked = []
    monkeypatch.setattr(prediction, "show_progress", lambda is_quiet: asked.append(is_quiet) or nullcontext())
    monkeypatch.setattr(prediction, "Bar", Bar)
    monkeypatch.setattr(Bar, "told", {})
    options = EvaluationOptions(Reranking(k=2, chunk=100), quiet=quiet)
    evaluate_source(FakeModel(), all_tasks(), data, "toy", "test", CPU, options)
    assert asked == [quiet]
    assert Bar.told["toy test"] == [(3, 0), 1, 1, 1]
    (total, done), *steps = Bar.told["toy test re-ranking"]
    assert done == 0
    assert sum(steps) == total
    chosen = {"any name": AllPairs(all_tasks()["itm"])}
    predict_source(FakeModel(), chosen, data, "toy", "test", CPU, options)
    assert Bar.told["toy test all pairs"][0] == (2 * NUM_IMAGES * NUM_IMAGES, 0)


@pytest.mark.parametrize(("k", "listed"), [(3, 5), (7, 7)])
def test_lists_are_as_deep_as_the_reranking_or_deeper(data, monkeypatch, k, listed):
    assert prediction.DEPTH == 100
    monkeypatch.setattr(prediction, "DEPTH", 5)
    options = EvaluationOptions(Reranking(k=k), quiet=True)
    _, predictions = evaluate_source(FakeModel(), all_tasks(), data, "toy", "test", CPU, options)
    for name in ("itc", "itc_reranked"):
        lengths = {len(record.get("image_ids", record.get("caption_ids"))) for record in predictions[name]}
        assert lengths == {listed}


def test_who_scores_pairs_and_how(data):
    settings, tasks, pairing = Reranking(k=3), all_tasks(), Pairing.of(data.samples("toy", "test"))
    assert prediction.matching(tasks, pairing, settings) == (tasks["itm"], settings)
    assert prediction.matching(tasks, pairing, replace(settings, k=0))[0] is None
    assert prediction.matching(tasks, pairing, replace(settings, k=1))[0] is tasks["itm"]
    assert prediction.matching({"itm": tasks["itm"]}, pairing, settings) == (None, settings)
    assert prediction.matching({"itc": tasks["itc"]}, pairing, settings) == (None, settings)
    renamed = {"b": tasks["itm"], "a": tasks["itc"]}
    assert prediction.matching(renamed, pairing, settings) == (tasks["itm"], settings)
    by_matching = {"itc": AllPairs(tasks["itm"]), "itm": tasks["itm"]}
    found = prediction.matching(by_matching, pairing, settings)
    assert found == (tasks["itm"], Reranking(k=2 * NUM_IMAGES, rule="itm"))
    assert prediction.matching(by_matching, Pairing.of([]), settings) == (None, settings)


def test_encodings_are_named_after_their_source_and_role(data, tmp_path):
    options = EvaluationOptions(quiet=True, cache=tmp_path / "cache")
    evaluate_source(FakeModel(), all_tasks(), data, "toy", "odd", CPU, options)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("toy_odd_")
    evaluate_source(FakeModel(), {"itc": all_tasks()["itc"]}, data, "toy", "test", CPU, options)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing is ranked again, nothing is kept


def test_everything_of_a_batch_is_moved():
    meta, one = torch.device("meta"), torch.ones(2)
    batch = {"ids": ["a"], "x": one, "captions": {"rows": one, "n": 3}, "text": Tokens(one, None, one)}
    found = moved(batch | {"regions": Regions(*[one] * len(Regions._fields))}, meta)
    assert (found["ids"], found["captions"]["n"], found["text"].mask) == (["a"], 3, None)
    tensors = [found["x"], found["captions"]["rows"], found["text"].embeds, found["text"].pooled, *found["regions"]]
    assert {tensor.device for tensor in tensors} == {meta}
    assert (type(found["text"]), type(found["regions"])) == (Tokens, Regions)


def test_a_record_takes_its_own_row_along_and_not_the_matrix():
    matrix = torch.arange(12.0).reshape(3, 4)
    record = prediction._unshared({"image_id": 1, "feats": matrix[1]})
    assert record["feats"].tolist() == [4, 5, 6, 7]
    assert record["feats"].untyped_storage().nbytes() == 16
    assert prediction._unshared({"image_id": 1}) == {"image_id": 1}


def test_only_the_first_of_several_processes_shows_how_far_it_is(data, monkeypatch):
    asked = []
    monkeypatch.setattr(prediction, "show_progress", lambda is_quiet: asked.append(is_quiet) or nullcontext())
    monkeypatch.setattr(prediction, "Bar", Bar)
    monkeypatch.setattr(prediction, "rank", lambda: 1)
    with pytest.raises(AssertionError, match="each batch is predicted once"):  # the first one's batch did not come
        evaluate_source(FakeModel(), all_tasks(), data, "toy", "test", CPU, EvaluationOptions(quiet=False))
    assert asked == [True]
