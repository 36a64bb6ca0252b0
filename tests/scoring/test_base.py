"""What makes a scorer: a class with three members, one derived, a plain function."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.base import BaseScorer, FunctionScorer, as_scorer
from fusionkit.scoring.record_schema import RecordSchema, is_anything
from fusionkit.scoring.sample_scores import SampleScores, scores_of
from fusionkit.scoring.sheet import GREEN, RED

SUPPORT = {1: [0.0, 1.0], 2: [1.0], 3: [0.5, 0.5, 1.0]}  # of the claims about each image
SAMPLES = [
    Sample(
        image,
        Path(f"{image}.png"),
        {
            "claims": tuple(Text(f"{image}{n}", f"claim {image}{n}", {"support": x}) for n, x in enumerate(values)),
            "captions": (Text(f"c{image}", "a caption"),),
        },
    )
    for image, values in SUPPORT.items()
]
RECORDS = [
    {"claim_id": text.id, "support": given}
    for (sample, given) in zip(SAMPLES, (0.0, 1.0, 0.5), strict=True)
    for text in sample.texts["claims"]
]


def hits(records, samples):
    truth = {text.id: text.facts["support"] for sample in samples for text in sample.texts["claims"]}
    right = [truth[record["claim_id"]] == record["support"] for record in records]
    off = [abs(truth[record["claim_id"]] - record["support"]) for record in records]
    return {"hit_rate": 100 * sum(right) / len(right), "support_mae": sum(off) / len(off)}


def test_a_function_has_a_row_a_record_where_its_metrics_are_means():
    scorer = as_scorer(hits, "claims")
    judged = scorer.rows(RECORDS, SAMPLES)
    assert scores_of(judged.rows) == pytest.approx(hits(RECORDS, SAMPLES))
    assert scorer(RECORDS, SAMPLES) == scorer.scores(judged, SAMPLES) == hits(RECORDS, SAMPLES)
    assert [(row["id"], row["image_id"], row["score"]) for row in judged.rows] == [
        *(("10", 1, 100), ("11", 1, 0), ("20", 2, 100)),
        *(("30", 3, 100), ("31", 3, 100), ("32", 3, 0)),
    ]
    assert judged.notes == {}
    assert scorer.directions(["hit_rate", "support_mae"]) == {"support_mae": False}


def test_a_mean_over_images_has_a_row_an_image():
    def by_image(records, samples):
        """A share of the claims about each image, then the mean of these."""
        told = {record["claim_id"]: record["support"] for record in records}
        shares = []
        for sample in samples:
            claims = sample.texts["claims"]
            shares.append(sum(told.get(text.id) == text.facts["support"] for text in claims) / len(claims))
        return {"mean_share": 100 * sum(shares) / len(shares)}

    judged = as_scorer(by_image, "claims").rows(RECORDS, SAMPLES)
    assert [(row["id"], row["score"]) for row in judged.rows] == [
        *((1, 50), (2, 100)),
        (3, pytest.approx(200 / 3)),
    ]
    assert scores_of(judged.rows) == pytest.approx(by_image(RECORDS, SAMPLES))


def test_a_metric_that_is_no_mean_has_no_interval_and_that_is_said():
    def score(records, samples):
        return {"counted": float(len(records)), **hits(records, samples)}

    judged = as_scorer(score, "claims").rows(RECORDS, SAMPLES)
    assert set(scores_of(judged.rows)) == {"hit_rate", "support_mae"}
    assert judged.notes["intervals"].startswith("counted: no mean over records or images")
    alone = as_scorer(lambda records, samples: {"counted": float(len(records))}, "claims").rows(RECORDS, SAMPLES)
    assert (alone.rows, alone.scores) == ([], {"counted": 6.0})
    assert "counted" in alone.notes["intervals"]


def test_a_function_that_cannot_do_with_few_has_no_rows():
    def score(records, samples):
        if len(records) < 2:
            raise ZeroDivisionError
        return {"deviation": 1.0}

    assert as_scorer(score, "claims").rows(RECORDS, SAMPLES).rows == []
    assert as_scorer(lambda records, samples: {}, "claims").rows([], SAMPLES).rows == []


def test_an_error_has_high_scores_where_it_is_small():
    def error(records, samples):
        return {"off_by": hits(records, samples)["support_mae"]}

    error.metrics = {"off_by": False}
    rows = as_scorer(error, "claims").rows(RECORDS, SAMPLES).rows
    assert [row["score"] for row in rows] == [100, 99, 100, 100, 100, 99.5]
    assert as_scorer(error).directions(["off_by"]) == {"off_by": False}


def test_records_about_images_and_two_of_one_text():
    def seen(records, samples):
        return {"seen": 100 * sum(record["seen"] for record in records) / len(records)}

    rows = as_scorer(seen, "claims").rows([{"image_id": 1, "seen": 1}, {"image_id": 3, "seen": 0}], SAMPLES).rows
    assert [(row["id"], row["image_id"], row["score"]) for row in rows] == [(1, 1, 100), (3, 3, 0)]
    pairs = [{"claim_id": "10", "image_id": image, "seen": image == 1} for image in (1, 2)]
    rows = as_scorer(seen, "claims").rows(pairs, SAMPLES).rows
    assert [(row["id"], row["image_id"], row["score"]) for row in rows] == [("10", 1, 100), ("2/10", 1, 0)]


def test_a_default_gallery_shows_what_was_given_and_is_true_the_worst_first():
    scorer = as_scorer(hits, "claims")
    rows = scorer.rows(RECORDS, SAMPLES).rows
    panels = scorer.sheet(RECORDS, SAMPLES, rows).panels
    assert [panel.heading for panel in panels] == ["claim 11", "claim 32", *(f"claim {n}" for n in (10, 20, 30, 31))]
    (picture,) = panels[0].pictures
    assert [(note.text, note.color) for note in picture.notes][:1] == [("given: 0", RED)]
    assert picture.notes[1].text == "true: 1"
    assert panels[-1].pictures[0].notes[0].color == GREEN
    (shown, *_) = scorer.examples(RECORDS, SAMPLES, rows, 1)
    assert (shown.id, shown.given, shown.true, shown.score) == ("10", 0.0, 0.0, 100)


class Hits(BaseScorer):
    schema = (RecordSchema("claims", "claim_id", "support", "a number", is_anything),)
    metrics = {"hits": True, "off_by": False}  # noqa: RUF012
    prefix = "claim_"

    def rows(self, records, samples):
        owner = {text.id: sample.image_id for sample in samples for text in sample.texts["claims"]}
        return SampleScores(
            [
                {"id": r["claim_id"], "score": 0.0, "image_id": owner[r["claim_id"]], "values": {"hits/a": 50.0}}
                for r in records
            ]
        )


def test_a_derived_scorer_needs_its_rows_alone():
    scorer = Hits()
    assert as_scorer(scorer) is scorer
    assert scorer(RECORDS, SAMPLES) == {"claim_hits_a": 50.0}
    assert scorer.directions(["hits/a", "claim_hits_a", "off_by", "other"]) == {
        "hits/a": True,
        "claim_hits_a": True,
        "off_by": False,
    }
    assert scorer.headlines_of_run() == {"hits", "claim_hits"}
    assert len(scorer.examples(RECORDS, SAMPLES, scorer.rows(RECORDS, SAMPLES).rows, 2)) == 2
    assert scorer.notes(SAMPLES) == scorer.baselines([], SAMPLES, [], str.split, scorer) == {}


def test_a_class_with_the_three_members_is_a_scorer():
    own = Hits()
    given = SimpleNamespace(
        schema=own.schema, metrics=own.metrics, rows=own.rows, prefix="x_", notes=lambda samples: {"a": "b"}
    )
    scorer = as_scorer(given)
    assert isinstance(scorer, BaseScorer)
    assert scorer(RECORDS, SAMPLES) == {"x_hits_a": 50.0}
    assert scorer.notes(SAMPLES) == {"a": "b"}
    assert scorer.directions(["x_off_by"]) == {"x_off_by": False}
    assert [panel.heading for panel in scorer.sheet(RECORDS, SAMPLES, own.rows(RECORDS, SAMPLES).rows).panels][:1] == [
        "claim 10"
    ]
    assert isinstance(as_scorer(SimpleNamespace(schema=(), metrics={}, rows=1)), BaseScorer)
    assert isinstance(as_scorer(hits), FunctionScorer)
