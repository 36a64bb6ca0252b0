"""Which samples a page shows of a scorer that is not ours, and what it says of them."""

import json
from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.reporting.comparison import compare_runs
from fusionkit.reporting.reading import read_runs
from fusionkit.reporting.side_by_side import examples
from tests.reporting.worlds import write, write_run

SAMPLES = [
    Sample(
        f"i/{n}",
        Path(f"{n}.png"),
        {
            "claims": (Text(n, f"claim {n}", {"verdict": ["yes", "no"][n % 2]}),),
            "captions": (Text(n, f"caption {n}"),),
        },
    )
    for n in range(4)
]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def shown(tmp_path: Path, rows: list[dict], records: list[dict], metrics: dict[str, float], task: str = "own") -> dict:
    folder = write_run(tmp_path / "a", metrics)
    write(folder / f"samples/my_data_{task}.jsonl", lines(rows))
    write(folder / f"predictions/my_data_{task}.jsonl", lines(records))
    comparison = compare_runs(read_runs([str(folder)]), resamples=20)
    return examples(comparison, lambda run, label: SAMPLES, 4)


def test_texts_of_a_kind_of_ones_own_are_found_by_their_ids(tmp_path: Path) -> None:
    rows = [
        {"id": n, "score": 100.0 * (n > 1), "image_id": f"i/{n}", "values": {"verdict_rate": 100.0 * (n > 1)}}
        for n in range(4)
    ]
    records = [{"claim_id": n, "certainty_score": 0.5, "verdict": "yes"} for n in range(4)]
    found = shown(tmp_path, rows, records, {"my_data/verdict_rate": 50.0})
    (groups,) = found.values()
    assert {name: [each.asked for each in group] for name, group in groups.items()} == {
        "wrong": ["claim 0", "claim 1"],
        "right": ["claim 2", "claim 3"],
    }
    assert groups["wrong"][0].truth == "yes"
    assert [answer.text for answer in groups["wrong"][1].answers] == ["yes"]


def test_of_several_rows_about_one_caption_the_first_counts(tmp_path: Path) -> None:
    rows, records = [], []
    for other in (0, 1):
        for n in range(4):
            image = f"i/{(n + other) % 4}"
            row = {"id": f"{image}/{n}", "score": 100.0 * (n % 2 == other), "image_id": f"i/{n}"}
            rows.append({**row, "sums": {"ratios:itm_accuracy": [1, 1]}})
            records.append({"caption_id": n, "image_id": image, "score": 0.1 * n + 0.05 * other, "label": 1 - other})
    rows = [{**row, "id": row["id"].replace("i/", "")} for row in rows]
    (groups,) = shown(tmp_path, rows, records, {"my_data/itm_accuracy": 50.0}, "itm").values()
    assert [(each.asked, each.answers[0].text) for each in groups["right"]] == [
        ("caption 0", "0"),
        ("caption 2", "0.2"),
    ]


def test_records_about_images_and_boxes(tmp_path: Path) -> None:
    rows = [{"id": f"i/{n}", "score": 0.0, "image_id": f"i/{n}", "values": {"boxiness": 0.0}} for n in range(2)]
    records = [{"image_id": "i/0", "where": [1, 2, 3, 4]}, {"image_id": "i/1", "told": "a cat"}]
    (groups,) = shown(tmp_path, rows, records, {"my_data/boxiness": 0.0}).values()
    first, second = groups["wrong"]
    assert (first.asked, first.truth, first.answers[0].box) == ("", "caption 0", [1, 2, 3, 4])
    assert (second.answers[0].text, second.answers[0].box) == ("a cat", None)


@pytest.mark.parametrize(("metric", "is_shown"), [("my_data/verdict_rate", True), ("my_data/verdict_rate_b", False)])
def test_the_first_metric_of_a_scorer_that_is_not_ours_is_shown_beside_ours(
    tmp_path: Path, metric: str, is_shown: bool
) -> None:
    folder = write_run(
        tmp_path / "a", {"my_data/vqa_accuracy": 1.0, "my_data/verdict_rate": 2.0, "my_data/verdict_rate_b": 3.0}
    )
    values = {"verdict_rate": 2.0, "verdict_rate_b": 3.0}
    write(folder / "samples/my_data_own.jsonl", lines([{"id": 1, "score": 1.0, "image_id": 1, "values": values}]))
    write(
        folder / "samples/my_data_vqa.jsonl",
        lines([{"id": 1, "score": 1.0, "image_id": 1, "values": {"vqa_accuracy": 1.0}}]),
    )
    comparison = compare_runs(read_runs([str(folder)]), resamples=20)
    assert (metric in comparison.metrics) == is_shown
    assert "my_data/vqa_accuracy" in comparison.metrics


def test_scores_of_a_run_are_read_from_its_details(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", {"my_data/hits": 2.0, "my_data_val/hits": 4.0})
    row = {"id": 1, "score": 1.0, "image_id": 1, "values": {"hits": 2.0}}
    about = {"prefix": "my_data", "split": "test", "intervals": {"hits": [1.0, 5.0]}}
    details = {"my_data_own": about, "my_data_val_own": {**about, "prefix": "my_data_val", "split": "val"}}
    write(folder / "details.json", json.dumps(details))
    for name in details:
        write(folder / f"samples/{name}.jsonl", lines([row]))
    write(folder / "predictions/my_data_own.jsonl", lines([{"claim_id": 1}]))
    write(folder / "predictions/my_data_own_reranked.jsonl", lines([{"claim_id": 1}]))
    (run,) = read_runs([str(folder)])
    assert run.intervals == {"my_data/hits": (1.0, 5.0), "my_data_val/hits": (1.0, 5.0)}
    first, second = run.samples["my_data_own"], run.samples["my_data_val_own"]
    assert (first.prefix, first.split, second.prefix) == ("my_data", None, "my_data_val")
    assert (first.predictions.name, second.predictions) == ("my_data_own_reranked.jsonl", None)
    (cell, _) = compare_runs([run], resamples=20).cells.values()
    assert cell.interval == (1.0, 5.0)
