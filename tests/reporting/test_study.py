"""A study is a comparison over seeds: what runs cost and how that grows stands beside their scores, in every form."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from fusionkit.cli.main import run
from fusionkit.errors import ConfigError, DataError
from fusionkit.reporting import measure_cost
from fusionkit.reporting.callback import WriteStudy
from fusionkit.reporting.comparison import Comparison, compare_runs
from fusionkit.reporting.comparison_plots import panels
from fusionkit.reporting.comparison_table import as_csv, as_markdown, cost_columns, growth_columns, print_comparison
from fusionkit.reporting.reading import read_runs
from fusionkit.reporting.run_costs import Costs, read_costs
from tests.reporting.test_comparison_page import Reader
from tests.reporting.worlds import write, write_run

ROOT = Path(__file__).parents[2]
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
COSTS = {
    "steps": {"gated": STEP, "late": STEP | {"step_seconds": 0.1}},
    "growth": {"gated": {"image_tokens": LINEAR, "texts_per_image": LINEAR}},
    "theory": {"gated": "N", "mine": "N²"},
}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for variant, seeds in SCORES.items():
        for seed, (vqa, grounding) in seeds.items():
            metrics = {
                "world/vqa_accuracy": vqa,
                "world/vqa_accuracy_baseline": 34.6,
                "world/vqa_accuracy_chance": 18.2,
            }
            if grounding is not None:
                metrics |= {"world/grounding_acc50": grounding, "world/grounding_acc50_baseline": 9.0}
            config = {"name": "study", "seed": int(seed), "fusion": {"_target_": f"my.{variant}"}}
            write_run(tmp_path / "sweep" / variant / seed, metrics, **config)
    write(tmp_path / "sweep" / "cost.json", json.dumps(COSTS))
    return tmp_path / "sweep"


def study(sweep: Path, **options: Any) -> Comparison:
    return compare_runs(read_runs([str(sweep)]), seeds_together=True, sort="world/vqa_accuracy", **options)


def table(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of a markdown table by their first cell."""
    return {first: cells for first, *cells in cells_of(text.partition(f"## {heading}")[2].split("\n\n")[1])}


def cells_of(table: str) -> list[list[str]]:
    """The cells of the lines of a markdown table."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def test_the_best_comes_first_with_its_costs_and_what_guessers_reach(sweep: Path) -> None:
    comparison = study(sweep)
    assert [entry.name for entry in comparison.entries] == ["gated", "late"]
    assert comparison.baseline == "gated"
    assert comparison.metrics == ["world/vqa_accuracy", "world/grounding_acc50"]  # what is sorted by, first
    assert comparison.guesses == {
        "text only": {"world/vqa_accuracy": 34.6, "world/grounding_acc50": 9.0},
        "chance": {"world/vqa_accuracy": 18.2},
    }
    assert dict(cost_columns(comparison)) == {
        "parameters of the fusion, M": ["2.50", "2.50"],
        "MFLOPs a sample, whole model": ["7.1", "7.1"],
        "ms a training step, one thread": ["250", "100"],
        "samples/s": ["384", "384"],
        "peak memory, MB": ["812", "812"],
    }


def test_the_baseline_that_is_named_stays_the_first(sweep: Path) -> None:
    assert [entry.name for entry in study(sweep, baseline="late").entries] == ["late", "gated"]


def test_less_is_better_comes_first_where_it_is(sweep: Path) -> None:
    for folder in sweep.glob("*/*/"):
        write(folder / "directions.json", '{"world/vqa_accuracy": false}')
    assert [entry.name for entry in study(sweep).entries] == ["late", "gated"]


def test_those_without_the_metric_come_last(sweep: Path) -> None:
    runs = read_runs([str(sweep / "late"), str(sweep / "gated")])
    sorted_runs = compare_runs(runs, sort="world/grounding_acc50", seeds_together=True)
    assert [entry.name for entry in sorted_runs.entries] == ["gated", "late"]
    with pytest.raises(ConfigError, match="sort: no run has 'world/vqa_acc'; did you mean 'world/vqa_accuracy'"):
        compare_runs(runs, sort="world/vqa_acc")


def test_markdown_shows_scores_costs_and_growth(sweep: Path) -> None:
    text = as_markdown(study(sweep))
    scores = table(text, "Scores")
    assert scores[""] == ["gated", "late", "*text only*", "*chance*"]
    assert scores["`world/vqa_accuracy`"] == ["62.0 (36.6 to 87.4)", "51.0 (38.3 to 63.7)", "34.6", "18.2"]
    assert scores["`world/grounding_acc50`"] == ["32.0 (6.6 to 57.4)", "—", "9.0", ""]
    assert scores["ms a training step, one thread"][:2] == ["250", "100"]
    growth = table(text, "Growth of the cost")
    assert growth[""][:3] == ["theory, a layer", "image tokens: seconds", "image tokens: megabytes"]
    assert growth["gated"] == ["O(N)", "1.00", "2.00", "1.00", "2.00"]
    assert growth["late"] == [""] * 5  # not measured
    assert "Welch's test over 2 seeds" in text


def test_csv_has_every_seed_and_every_cost(sweep: Path) -> None:
    rows = list(csv.DictReader(as_csv(study(sweep)).splitlines()))
    row = next(row for row in rows if (row["run"], row["metric"]) == ("gated", "world/vqa_accuracy"))
    assert (row["seeds"], row["values"]) == ("2", "60.0 64.0")
    assert (row["text only"], row["chance"]) == ("34.6", "18.2")
    assert (row["cost/step_seconds"], row["cost/fusion_parameters"]) == ("0.25", "2500000.0")
    assert (row["growth/image_tokens/seconds"], row["growth/image_tokens/megabytes"]) == ("1.0", "2.0")
    late = next(row for row in rows if row["run"] == "late")
    assert (late["cost/step_seconds"], late["growth/image_tokens/seconds"]) == ("0.1", "")


def test_the_terminal_shows_costs_and_growth(sweep: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_comparison(study(sweep), console)
    lines = [re.sub(r"\s+", " ", line) for line in console.export_text().splitlines()]
    assert "│ text only │ 34.6 │ 9.0 │" in lines
    assert "│ gated │ 2.50 │ 7.1 │ 250 │ 384 │ 812 │" in lines
    assert "│ gated │ O(N) │ 1.00 │ 2.00 │ 1.00 │ 2.00 │" in lines


def test_one_command_writes_page_and_plots(sweep: Path, tmp_path: Path) -> None:
    words = [str(sweep), "group_seeds=true", "sort=world/vqa_accuracy", f"output_dir={tmp_path}/out"]
    assert run(["compare", *words]) == 0
    plots = {path.name for path in (tmp_path / "out/plots").iterdir()}
    assert {f"growth_{m}_{axis}.png" for m in ("seconds", "megabytes") for axis in measure_cost.SIZES} <= plots
    assert "cost_step_world_vqa_accuracy.png" in plots
    assert not any("time" in name or "parameters" in name for name in plots)  # logged time, and equal parameters
    page = Reader((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    assert "growth-of-the-cost" in [attributes.get("id") for _, attributes in page.tags]
    shown = [attributes.get("data-value") for tag, attributes in page.tags if tag == "td"]
    assert {"34.6", "O(N)", "1.00", "0.25", "2500000.0"} <= set(shown)
    alts = [attributes["alt"] or "" for tag, attributes in page.tags if tag == "img"]
    assert any("at the largest: gated 64, to the power 2.00" in alt for alt in alts)


def test_of_every_cost_there_are_some_plots(tmp_path: Path) -> None:
    """Measured costs of two metrics; parameters as logged of six, and time as logged, where none was measured, of three."""
    metrics = {f"x/{at}_r1": 50.0 for at in range(7)}
    for variant, speed in {"a": 100, "b": 50}.items():
        folder = write_run(tmp_path / variant / "1", metrics, fusion={"_target_": f"my.{variant}"})
        write(folder / "evaluation.yaml", f"parameters: {speed}000")
        write(folder / "logs/csv/version_0/metrics.csv", f"step,train/images_per_s\n9,{speed}\n")
    costs = {"steps": {name: {"step_seconds": at, "flops_per_sample": at} for at, name in enumerate("ab", 1)}}

    def counts() -> dict[str, int]:
        drawn = panels(compare_runs(read_runs([str(tmp_path / "a"), str(tmp_path / "b")]), metrics=["*"]))
        return dict(Counter(panel.name.split("_")[1] for panel in drawn["Quality against cost"]))

    assert counts() == {"parameters": 6, "time": 3}
    write(tmp_path / "cost.json", json.dumps(costs))
    assert counts() == {"parameters": 6, "flops": 2, "step": 2}


def test_a_file_of_costs_can_be_named(sweep: Path, tmp_path: Path) -> None:
    (sweep / "cost.json").rename(tmp_path / "measured.json")
    assert not any(record.costs.step for record in read_runs([str(sweep)]))
    records = read_runs([str(sweep)], tmp_path / "measured.json")
    assert [record.costs.step["step_seconds"] for record in records] == [0.1, 0.1, 0.25, 0.25]
    single = write_run(tmp_path / "runs/gated", {"world/vqa_accuracy": 1.0})  # no seed, no sweep
    (record,) = read_runs([str(single)], tmp_path / "measured.json")
    assert record.costs.theory == "N"
    assert run(["compare", str(sweep), f"costs={tmp_path}/none.json", f"output_dir={tmp_path}/out"]) == 2


def test_evaluations_of_a_sweeps_checkpoints_have_its_costs(sweep: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "evaluated", {"vqav2/accuracy": 1.0})
    write(folder / "evaluation.yaml", json.dumps({"checkpoint": str(sweep / "late/1/checkpoints/best.ckpt")}))
    (record,) = read_runs([str(folder)])
    assert record.costs.step["step_seconds"] == 0.1


def test_the_own_logs_tell_time_and_parameters_where_nothing_was_measured(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", {"x/vqa_accuracy": 1.0})
    write(folder / "evaluation.yaml", "parameters: 3000000")
    comparison = compare_runs(read_runs([str(folder)]))
    assert comparison.entries[0].costs == {"parameters": 3e6, "image_seconds": 1 / 100}
    assert cost_columns(comparison)[1] == ("ms of training an image", ["10.00"])


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        '{"steps": []}',
        '{"steps": {"a": {"step_seconds": "fast"}}}',
        '{"steps": {"a": 3}}',
        '{"steps": {"a": {}}, "theory": {"a": 3}}',
        '{"steps": {"a": {}}, "growth": {"a": {"image_tokens": {"sizes": [1, 2], "seconds": [1, 2]}}}}',
        '{"steps": {"a": {}}, "growth": {"a": {"image_tokens": {"sizes": [1, 2], "seconds": [1, 0], "megabytes": [1, 1]}}}}',
        '{"steps": {"a": {}}, "growth": {"a": {"image_tokens": {"sizes": [1, 2], "seconds": [1, 1], "megabytes": [1]}}}}',
    ],
)
def test_a_file_of_other_content_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path / "cost.json", content)
    with pytest.raises(
        DataError, match=r"cost\.json is .*measure again: python -m fusionkit\.reporting\.measure_cost SWEEP"
    ):
        read_costs(tmp_path / "a/1")


def test_a_link_out_of_the_sweep_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "mine/secret.json", json.dumps(COSTS))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/cost.json").symlink_to(tmp_path / "mine/secret.json")
    with pytest.raises(DataError, match=r"sweep/cost\.json leads out of the sweep's folder"):
        read_costs(tmp_path / "sweep/gated/1")
    assert read_costs(tmp_path / "sweep/gated/1", tmp_path / "sweep/cost.json").theory == "N"  # the user's own word


def test_costs_of_others_are_not_those_of_a_run(tmp_path: Path) -> None:
    write(tmp_path / "cost.json", json.dumps(COSTS))
    assert read_costs(tmp_path / "other/1") == Costs()


def test_costs_are_measured_by_a_command_too(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(measure_cost, "measure", lambda *given: asked.append(given) or {"steps": {}})
    assert measure_cost.main([str(sweep), "--tasks", "vqa", "itm", "--growth"]) == 0
    assert asked == [(sweep, ["vqa", "itm"], True)]
    assert json.loads((sweep / "cost.json").read_text()) == {"steps": {}}
    monkeypatch.undo()
    assert measure_cost.main([str(sweep / "late/1")]) == 1
    assert "late/1 holds no run (VARIANT/SEED/config.yaml)" in capsys.readouterr().err


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_sweep_ends_with_its_comparison(
    is_measured: bool, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_measured:
        (sweep / "cost.json").unlink()
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(measure_cost, "measure", lambda *given: asked.append(given) or COSTS)
    callback = WriteStudy(str(tmp_path / "study"), ["vqa"], True, "world/vqa_accuracy")
    callback.on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}}))
    assert asked == [] if is_measured else [(sweep, ["vqa"], True)]
    scores = table((tmp_path / "study/table.md").read_text(), "Scores")
    assert scores[""][:2] == ["gated", "late"]
    assert scores["ms a training step, one thread"][:2] == ["250", "100"]
    assert (tmp_path / "study/index.html").is_file()


@pytest.mark.parametrize("name", ["fusion-study", "balancer-study"])
def test_the_stored_studies_are_what_a_comparison_says_of_their_runs(name: str, tmp_path: Path) -> None:
    """Their tables were written by an earlier command; scores, intervals and costs are those of today's."""
    folder = ROOT / "experiments" / name
    for about in json.loads((folder / "results.json").read_text()):
        metrics = {f"shapes/{metric}": value for metric, value in about["metrics"].items()}
        config = {"seed": int(about["seed"]), "fusion": {"_target_": f"my.{about['variant']}"}, "name": "x"}
        write_run(tmp_path / about["variant"] / about["seed"], metrics, **config)
    records = read_runs([str(tmp_path)], folder / "cost.json")
    comparison = compare_runs(records, seeds_together=True, sort="shapes/vqa_accuracy")
    scores, *growth = re.findall(r"(?:^\|.*\n)+", (folder / "README.md").read_text(), re.M)
    stored = cells_of(scores)[2:]
    names = [row[0] for row in stored[:-2]]
    assert [entry.name for entry in comparison.entries] == names
    order = ["vqa_accuracy", "grounding_acc50", "itm_accuracy", "mlm_accuracy", "text_to_image_r1", "image_to_text_r1"]
    for at, variant in enumerate(names):
        for metric, told in zip(order, stored[at][1:7], strict=True):
            cell = comparison.cells.get((variant, f"shapes/{metric}"))
            if cell is None:
                assert told == f"refused (text only: {comparison.guesses['text only'][f'shapes/{metric}']:.1f})"
            else:
                assert cell.interval is not None
                assert told == f"{cell.score:.1f} ± {(cell.interval[1] - cell.interval[0]) / 2:.1f}"
        assert [texts[at] for _, texts in cost_columns(comparison)] == stored[at][7:]
        for told in [row[2:] for text in growth for row in cells_of(text) if row[0] == variant]:
            assert [texts[at] for _, texts in growth_columns(comparison)][1:] == told
    assert bool(growth) is (name == "fusion-study")
    for guesser, row in zip(comparison.guesses.values(), stored[-2:], strict=True):
        assert [f"{guesser[f'shapes/{metric}']:.1f}" for metric in order] == row[1:7]
