"""Table, plots and results of a study come from the files of its runs."""

import json

import pytest

from fusionkit.errors import DataError
from fusionkit.reporting.study import MARKERS, exponents_of, main, renew
from fusionkit.reporting.study_runs import read_runs, values_of, variants_of
from fusionkit.reporting.study_table import growth_table, study_table

SCORES = {  # VQA and grounding by variant and seed
    "late": {"1": (50.0, None), "2": (52.0, None)},
    "gated": {"1": (60.0, 30.0), "2": (64.0, 34.0)},
}
STEP = {
    "parameters": 2_500_000,
    "flops_per_sample": 7.1e6,
    "step_seconds": 0.25,
    "samples_per_s": 384.0,
    "peak_mb": 812.4,
}
LINEAR = {
    "sizes": [1, 2, 4, 8],
    "seconds": [9, 2, 4, 8],
    "megabytes": [9, 4, 16, 64],
}  # the smallest size is not fitted


@pytest.fixture
def sweep(tmp_path):
    for variant, seeds in SCORES.items():
        for seed, (vqa, grounding) in seeds.items():
            folder = tmp_path / "sweep" / variant / seed
            folder.mkdir(parents=True)
            metrics = {"world/vqa_accuracy": vqa, "world/vqa_accuracy_baseline": 34.6, "other/vqa_accuracy": 1.0}
            if grounding is not None:
                metrics |= {"world/grounding_acc50": grounding, "world/grounding_acc50_baseline": 9.0}
            (folder / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "sweep" / "gated" / "3").mkdir()  # not finished yet
    return tmp_path / "sweep"


def test_runs_are_read_by_variant_and_seed(sweep):
    runs = read_runs(sweep, "world")
    assert [(run.variant, run.seed) for run in runs] == [("gated", "1"), ("gated", "2"), ("late", "1"), ("late", "2")]
    assert variants_of(runs) == ["gated", "late"]
    assert values_of(runs, "gated", "vqa_accuracy") == [60, 64]
    assert values_of(runs, "late", "grounding_acc50") == []


def test_a_sweep_without_runs_and_a_torn_file_are_told_in_a_sentence(tmp_path, sweep):
    with pytest.raises(DataError, match="holds no finished run"):
        read_runs(tmp_path, "world")
    (sweep / "late" / "1" / "metrics.json").write_text('{"world/')
    with pytest.raises(DataError, match=r"late/1/metrics\.json is not complete JSON"):
        read_runs(sweep, "world")


def test_the_table_shows_the_best_first_what_is_refused_and_the_cost(sweep):
    rows = [
        line.strip("| ").split(" | ") for line in study_table(read_runs(sweep, "world"), {"gated": STEP}).splitlines()
    ]
    assert rows[0][:2] == ["VQA", "grounding, IoU ≥ 0.5"]
    assert rows[2] == ["gated", "62.0 ± 25.4", "32.0 ± 25.4", "2.50", "7.1", "250", "384", "812"]
    assert rows[3][:3] == ["late", "51.0 ± 12.7", "refused (text only: 9.0)"]
    assert rows[4][:3] == ["*text only*", "34.6", "9.0"]


def test_exponents_are_fitted_over_the_largest_sizes():
    exponents = exponents_of({"gated": {"image_tokens": LINEAR}})
    assert exponents["gated"] == pytest.approx({"image_tokens/seconds": 1.0, "image_tokens/megabytes": 2.0})
    table = growth_table({**exponents, "mine": exponents["gated"]}, {"gated": "N"}).splitlines()
    assert table[0] == "| exponent by | theory, a layer | image tokens: seconds | image tokens: megabytes |"
    assert table[2:] == ["| gated | O(N) | 1.00 | 2.00 |", "| mine |  | 1.00 | 2.00 |"]


def test_one_command_writes_it_all_again(sweep, tmp_path):
    out, (begin, end) = tmp_path / "study", MARKERS
    out.mkdir()
    (out / "README.md").write_text(f"# Which?\n{begin}\nold\n{end}\nreading\n")
    growth = {name: dict.fromkeys(("image_tokens", "texts_per_image"), LINEAR) for name in SCORES}
    costs = {"steps": dict.fromkeys(SCORES, STEP), "growth": growth, "theory": {"gated": "N"}}
    (out / "cost.json").write_text(json.dumps(costs))
    main([str(sweep), str(out), "--source", "world"])
    text = (out / "README.md").read_text()
    assert text.startswith(f"# Which?\n{begin}\n\n| ")
    assert text.endswith(f"{end}\nreading\n")
    assert "old" not in text
    assert (out / "table.md").read_text() in text
    assert len(json.loads((out / "results.json").read_text())) == 4
    for name in ("quality", "quality_against_cost", "growth"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_markers_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    renew(tmp_path / "README.md", "table")
    renew(tmp_path / "absent.md", "table")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "absent.md").exists()
