"""Scorers as torchmetrics, and torchmetrics as scorers."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from lightning import LightningModule
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError
from torchmetrics.text import BLEUScore

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.benchmark import Published, score_predictions
from fusionkit.scoring.bootstrap import intervals
from fusionkit.scoring.classification import Entailment
from fusionkit.scoring.results import published_scores
from fusionkit.scoring.retrieval import Retrieval
from fusionkit.scoring.sample_scores import scores_of
from fusionkit.training.metrics import MetricScorer, ScorerMetric

LABELS = ("contradiction", "neutral", "entailment")


def samples(images: int = 6, texts: int = 2) -> list[Sample]:
    return [
        Sample(
            image,
            Path(f"{image}.jpg"),
            {
                "hypotheses": tuple(
                    Text(10 * image + n, f"a {image} b", {"gold_label": LABELS[(image + n) % 3], "age": float(image)})
                    for n in range(texts)
                )
            },
            others=(Path("b.jpg"),),
        )
        for image in range(images)
    ]


def answers(some: list[Sample], wrong: int = 3) -> list[dict]:
    """Right but for every so many."""
    texts = [text for sample in some for text in sample.texts["hypotheses"]]
    return [
        {"pair_id": text.id, "label": LABELS[0] if number % wrong == 0 else text.facts["gold_label"], "age": 3.0}
        for number, text in enumerate(texts)
    ]


def f1(**options) -> MetricScorer:
    options = {
        "prediction": "label",
        "target": "gold_label",
        "key": "pair_id",
        "kind": "hypotheses",
        "labels": LABELS,
    } | options
    return MetricScorer(options.pop("metric", None) or MulticlassF1Score(3), **options)


def test_a_scorer_is_a_metric_over_batches():
    some = samples()
    metric = ScorerMetric(Entailment())
    expected = Entailment()(answers(some), some)
    for _ in range(2):
        for start in range(0, 6, 2):
            records = [r for r in answers(some) if r["pair_id"] // 10 in (start, start + 1)]
            metric.update(records, some[start : start + 2])
        metric.update(records[:1], some[-1:])  # a sampler pads its shards
        found = metric.compute()
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)
        metric.reset()
    assert len(expected) == 4


def test_samples_come_out_as_they_went_in():
    seen = []

    def look(records, samples):
        seen.extend(samples)
        return {"count": len(records)}

    metric = ScorerMetric(look)
    (whole,) = samples(images=1)
    for text in whole.texts["hypotheses"]:
        metric.update([{"pair_id": text.id}], [Sample(0, whole.image, {"hypotheses": (text,)}, others=whole.others)])
    assert metric.compute() == {"count": 2}
    assert seen == [whole]


def test_records_may_have_tensors_and_a_plain_function_scores_too():
    rows = torch.eye(4)
    some = [Sample(n, Path("x"), {"captions": (Text(n, "a"),)}) for n in range(4)]
    metric = ScorerMetric(Retrieval())
    for n in range(4):
        metric.update([{"image_id": n, "feats": rows[n]}, {"caption_id": n, "feats": rows[n]}], [some[n]])
    assert metric.compute()["image_to_text_r1"] == 100


def test_metrics_of_ranks_are_merged_and_kept():
    some = samples()
    first, second = ScorerMetric(Entailment()), ScorerMetric(Entailment())
    first.update(answers(some)[:6], some[:3])
    second.update(answers(some)[6:], some[3:])
    first.merge_state(second)
    expected = Entailment()(answers(some), some)
    assert {name: value.item() for name, value in first.compute().items()} == pytest.approx(expected)
    second.persistent(True)
    restored = ScorerMetric(Entailment())
    restored.persistent(True)
    restored.load_state_dict(second.state_dict())
    assert restored.compute() == second.compute()


def test_in_anybodys_module_and_collection():
    class Theirs(LightningModule):
        def __init__(self):
            super().__init__()
            self.scores = MetricCollection({"entailment": ScorerMetric(Entailment())}, prefix="val/")

    module = Theirs()
    some = samples()
    module.scores["entailment"].update(answers(some), some)
    assert (
        module.scores.compute()["val/entailment_accuracy"] == Entailment()(answers(some), some)["entailment_accuracy"]
    )


def test_a_metric_is_a_scorer():
    some = samples()
    given = [LABELS.index(record["label"]) for record in answers(some)]
    true = [LABELS.index(text.facts["gold_label"]) for sample in some for text in sample.texts["hypotheses"]]
    metric = MulticlassF1Score(3)
    metric.update(torch.tensor(given), torch.tensor(true))
    scorer = f1(scale=100)
    expected = 100 * metric.compute().item()
    for _ in range(2):  # it starts anew
        assert scorer(answers(some), some) == pytest.approx({"multiclass_f1_score": expected})
    assert scorer.metrics == {"multiclass_f1_score": True}
    judged = scorer.rows(answers(some), some)
    assert judged.rows == []  # no mean over texts
    assert judged.scores == pytest.approx({"multiclass_f1_score": expected})
    assert "intervals" in judged.notes


def test_a_mean_over_texts_has_a_row_for_each():
    some = samples()
    scorer = f1(metric=MulticlassAccuracy(3, average="micro"), scale=100, name="accuracy")
    judged = scorer.rows(answers(some), some)
    assert [row["id"] for row in judged.rows] == [text.id for sample in some for text in sample.texts["hypotheses"]]
    assert [row["image_id"] for row in judged.rows] == [sample.image_id for sample in some for _ in range(2)]
    expected = Entailment()(answers(some), some)["entailment_accuracy"]
    assert scores_of(judged.rows) == pytest.approx({"accuracy": expected})
    assert scorer(answers(some), some) == pytest.approx({"accuracy": expected})
    assert {row["score"] for row in judged.rows} == {0.0, 100.0}
    low, high = intervals(judged.rows, resamples=100)["accuracy"]
    assert low < expected < high


@pytest.mark.parametrize(
    ("metric", "name", "value"),
    [(MeanAbsoluteError, "mean_absolute_error", 1.5), (MeanSquaredError, "mean_squared_error", 19 / 6)],
)
def test_numbers_and_errors(metric, name, value):
    some = samples()
    scorer = f1(metric=metric(), prediction="age", target="age", labels=None)
    assert scorer(answers(some), some) == pytest.approx({name: value})
    assert scorer.metrics == {name: False}
    judged = scorer.rows(answers(some), some)
    assert scores_of(judged.rows) == pytest.approx({name: value})
    assert judged.rows[0]["score"] == 100 - min(100, judged.rows[0]["values"][name])


def test_texts_of_an_image_are_its_targets():
    some = [
        Sample(n, Path("x"), {"captions": tuple(Text(10 * n + k, text) for k, text in enumerate(texts))})
        for n, texts in enumerate([("a red ball", "one ball"), ("two cats sit", "cats")])
    ]
    scorer = MetricScorer(BLEUScore(n_gram=2), "caption", "text", key="image_id", scale=100)
    records = [{"image_id": 0, "caption": "a red ball"}, {"image_id": 1, "caption": "two dogs sit"}]
    expected = BLEUScore(n_gram=2)
    expected.update(["a red ball", "two dogs sit"], [["a red ball", "one ball"], ["two cats sit", "cats"]])
    assert scorer(records, some) == pytest.approx({"bleu_score": 100 * expected.compute().item()})
    (schema,) = scorer.schema
    assert schema.wanted(some) == [0, 1]


def test_scores_of_classes_have_their_names():
    some = samples()
    scorer = f1(metric=MulticlassAccuracy(3, average=None), name="accuracy")
    assert scorer(answers(some), some).keys() == {f"accuracy/{label}" for label in LABELS}
    assert f1(metric=MulticlassAccuracy(3, average=None), prediction="age", target="age", labels=None, name="a")(
        [{"pair_id": 0, "age": 1}], [Sample(0, Path("x"), {"hypotheses": (Text(0, "a", {"age": 1}),)})]
    ).keys() == {"a/0", "a/1", "a/2"}


def test_what_has_no_record_or_no_target_is_left_out():
    some = samples()
    scorer = f1(metric=MulticlassAccuracy(3, average="micro"), name="accuracy")
    assert scorer([{"pair_id": 0, "label": LABELS[0]}, {"pair_id": 999, "label": LABELS[0]}], some) == {"accuracy": 1}
    assert scorer([], some) == {}
    told = scorer.rows(answers(some)[:7], some).notes
    assert told == {"missing": "5 without a prediction are left out, and not counted as wrong"}
    assert scorer.rows(answers(some), some).notes == {}
    assert f1(target="age_group")(answers(some), some) == {}


def test_of_a_benchmark():
    some = samples()
    scorer = f1(metric=MulticlassAccuracy(3, average="micro"), name="accuracy", scale=100)
    benchmark = Published("toy", "how", SimpleNamespace(read=lambda split: some), ("val",), {"entailment": scorer})
    scored = score_predictions(benchmark, answers(some), Path("p.json"), "val")
    assert published_scores(scored.judged) == pytest.approx(
        {"accuracy": Entailment()(answers(some), some)["entailment_accuracy"]}
    )
    assert scored.directions == {"accuracy": True}
    with pytest.raises(DataError, match="one of contradiction, neutral, entailment"):
        score_predictions(benchmark, [{**record, "label": "maybe"} for record in answers(some)], Path("p.json"), "val")


def test_what_cannot_be_is_one_sentence():
    some = samples()
    with pytest.raises(ConfigError, match=r"scorer\.metric is 'f1', but has to be a metric of torchmetrics"):
        f1(metric="f1")
    with pytest.raises(
        ConfigError, match=r"scorer\.prediction is 'lable', which no record has; did you mean 'label'\?"
    ):
        f1(prediction="lable")(answers(some), some)
    with pytest.raises(DataError, match=r"scorer\.labels are no, yes, but there is 'contradiction'"):
        f1(labels=["no", "yes"])(answers(some), some)
    with pytest.raises(DataError, match=r"scorer: .* is neither a text nor a number that MeanAbsoluteError reads"):
        f1(metric=MeanAbsoluteError(), target="age", labels=None)([{"pair_id": 0, "label": {"a": 1}}], some)


@pytest.mark.parametrize(
    "metric", [MulticlassF1Score(2), MulticlassConfusionMatrix(3), MulticlassAccuracy(4, average=None)]
)
def test_a_metric_that_does_not_fit_is_one_sentence(metric):
    some = samples()
    with pytest.raises(
        ConfigError, match=rf"^scorer\.metric: {type(metric).__name__} makes no scores of these predictions"
    ):
        f1(metric=metric)(answers(some), some)


def test_by_configuration_and_alone_among_ranks(monkeypatch):
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: pytest.fail("asked for other ranks"))
    scorer = instantiate(
        {
            "_target_": "fusionkit.training.metrics.MetricScorer",
            "metric": {"_target_": "torchmetrics.classification.MulticlassAccuracy", "num_classes": 3},
            "prediction": "label",
            "target": "gold_label",
            "key": "pair_id",
            "kind": "hypotheses",
            "labels": list(LABELS),
        }
    )
    some = samples()
    assert 0 < scorer(answers(some), some)["multiclass_accuracy"] < 1
