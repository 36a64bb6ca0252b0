"""Comparisons of generated runs: what is read, what differs, scores and tests with known answers, mistakes."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fusionkit.cli.main import run
from fusionkit.commands.compare import samples_of
from fusionkit.config import home_of
from fusionkit.reporting.comparison import compare_runs
from fusionkit.reporting.comparison_table import as_csv, as_markdown, print_comparison
from fusionkit.reporting.config_differences import differences, group_name, group_seeds
from fusionkit.reporting.merge_runs import short_names
from fusionkit.reporting.reading import read_runs
from fusionkit.reporting.record import RunRecord
from fusionkit.scoring.sample_scores import scores_of
from tests.reporting.worlds import QUESTIONS, write, write_evaluation, write_run

Capture = pytest.CaptureFixture[str]
HALF = [at % 2 == 0 for at in range(QUESTIONS)]
MOST = [at % 8 != 1 for at in range(QUESTIONS)]


@pytest.fixture
def evaluations(tmp_path: Path) -> Path:
    """Two checkpoints on two benchmarks, as a sweep leaves them."""
    for number, (name, right) in enumerate({"half": HALF, "most": MOST}.items()):
        write_evaluation(tmp_path / f"{2 * number}", right, f"/runs/{name}/best.ckpt")
        write_evaluation(tmp_path / f"{2 * number + 1}", right[:20], f"/runs/{name}/best.ckpt", "other")
    return tmp_path


def record(name: str, **scores: float) -> RunRecord:
    return RunRecord(name, (Path(name),), {"seed": name[-1], "fusion": {"_target_": f"a.{name[:-1]}"}}, scores)


def test_the_table_has_the_numbers_of_the_files(evaluations: Path) -> None:
    comparison = compare_runs(read_runs([str(evaluations)]), resamples=500)
    assert [entry.name for entry in comparison.entries] == ["half", "most"]
    for (name, metric), cell in comparison.cells.items():
        folder = evaluations / f"{2 * (name == 'most') + metric.startswith('other')}"
        assert cell.score == json.loads((folder / "metrics.json").read_text())[metric]
        assert cell.interval == (cell.score - 1.5, cell.score + 2.5)  # as the evaluation kept it
    assert len(comparison.cells) == 4
    assert [run.parameters for entry in comparison.entries for run in entry.runs] == [20_000, 20_000]


def test_evaluations_under_other_settings_are_other_rows(evaluations: Path) -> None:
    write_evaluation(evaluations / "4", HALF, "/runs/half/best.ckpt", k=16)  # the same scores all the same
    write_evaluation(evaluations / "5", HALF[:20], "/runs/half/best.ckpt", "other", k=16)
    found = read_runs([str(evaluations)])
    assert [len(run.metrics) for run in found] == [2, 2, 2]
    assert [Path(run.name).name for run in found] == ["0", "most", "4"]  # the folders of those of one checkpoint
    assert differences(found)["evaluation.k"] == ["4", "4", "16"]


def test_a_difference_is_tested_on_the_same_samples(evaluations: Path) -> None:
    comparison = compare_runs(read_runs([str(evaluations)]), resamples=2000)
    difference = comparison.cells["most", "vqav2/accuracy"].difference
    # each of 20 images is half right in one run and half or wholly right in the other: moved by 50 in 15, by 0 in 5
    assert difference.value == 37.5
    assert difference.low == pytest.approx(27.5, abs=2.5)  # 37.5 -+ 1.96 * 50 * sqrt(.75 * .25 / 20)
    assert difference.high == pytest.approx(47.5, abs=2.5)
    assert difference.p == pytest.approx(2 / 2001)
    cell = comparison.cells["most", "vqav2/accuracy"]
    assert (cell.p, cell.mark) == (pytest.approx(2 * 2 / 2001), "*")  # two tests: Holm doubles the smaller p
    assert comparison.cells["half", "vqav2/accuracy"].difference is None


def test_the_other_baseline_turns_the_sign(evaluations: Path) -> None:
    comparison = compare_runs(read_runs([str(evaluations)]), "most", resamples=500)
    assert [entry.name for entry in comparison.entries] == ["most", "half"]
    assert comparison.cells["half", "vqav2/accuracy"].difference.value == -37.5


def test_equal_runs_do_not_differ(evaluations: Path) -> None:
    write_evaluation(evaluations / "4", HALF, "/runs/same/best.ckpt")
    cell = compare_runs(read_runs([str(evaluations)]), resamples=500).cells["same", "vqav2/accuracy"]
    assert (cell.difference.value, cell.difference.p, cell.mark) == (0, 1, "")


def test_files_that_were_scored_without_a_model_are_compared(tmp_path: Path) -> None:
    for name, right in {"a": HALF, "b": MOST}.items():
        write_evaluation(tmp_path / name, right, "/runs/x/best.ckpt")
        (tmp_path / name / "evaluation.yaml").unlink()
        shutil.rmtree(tmp_path / name / "predictions")
    assert run(["compare", f"{tmp_path}/?", f"output_dir={tmp_path}/out", "resamples=100"]) == 0
    text = (tmp_path / "out/table.md").read_text()
    assert "| `vqav2/accuracy` | b | +37.5 |" in text
    assert "\n\\* differs from a: p < 0.05. Bootstrap over images, 100 draws" in text  # nothing to correct for


def test_too_few_draws_are_told(evaluations: Path) -> None:
    notes = " ".join(compare_runs(read_runs([str(evaluations)]), resamples=50).notes)
    assert "with 50 draws none of 2 tests can pass; give resamples=80 or more" in notes


def test_runs_on_other_samples_are_not_tested(evaluations: Path) -> None:
    write_evaluation(evaluations / "4", HALF[:30], "/runs/few/best.ckpt")
    comparison = compare_runs(read_runs([str(evaluations)]), resamples=100)
    assert comparison.cells["few", "vqav2/accuracy"].difference is None
    assert any("few and half are not tested" in note for note in comparison.notes)


def test_intervals_come_from_the_samples_where_none_were_kept(tmp_path: Path) -> None:
    rows = [
        {"id": at, "score": 100.0 * each, "image_id": at, "values": {"vqa_accuracy": 100.0 * each}}
        for at, each in enumerate(MOST)
    ]
    folder = write_run(
        tmp_path / "a", {"my_data/vqa_accuracy": scores_of(rows)["vqa_accuracy"], "my_data/vqa_accuracy_chance": 1.0}
    )
    write(folder / "samples/my_data_vqa.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (cell,) = compare_runs(read_runs([str(folder)]), resamples=1000).cells.values()
    assert cell.score == 87.5
    assert cell.interval == pytest.approx((77, 97.5), abs=2)  # 87.5 -+ 1.96 * 33 / sqrt(40)


def test_a_run_is_read_with_its_curves(tmp_path: Path) -> None:
    (found,) = read_runs([str(write_run(tmp_path / "outputs/b", {"shapes/vqa_accuracy": 50.0}))])
    assert found.history[1] == {"step": 19, "train/loss": 2, "train/images_per_s": 50, "val/mean": 30.5}
    assert (found.base, found.config["data"]["root"]) == (tmp_path, "outputs/b/data")


@pytest.mark.parametrize(("split", "role"), [(None, "test"), ("val", "val"), (["val", "test"], "val")])
def test_the_samples_of_a_source_are_those_of_the_role_that_was_scored(
    split: str | list[str] | None, role: str, tmp_path: Path
) -> None:
    block = {"reader": {"_target_": "tests.reporting.worlds.Named"}, "splits": {"val": ["val"], "test": ["test"]}}
    run_config = {"data": {"sources": {"my_data": block}}, "evaluation": {"roles": ["test"]}}
    write(tmp_path / "evaluation.yaml", json.dumps({"split": split, "run": run_config}))
    write(tmp_path / "metrics.json", '{"my_data/vqa_accuracy": 1, "my_data_test/vqa_accuracy": 1}')
    for stem in ("my_data_vqa", "my_data_test_vqa"):
        write(tmp_path / f"samples/{stem}.jsonl", "")
    (found,) = read_runs([str(tmp_path)])
    assert [sample.image_id for sample in samples_of(found, "my_data_vqa", ["tests"])] == [role]
    assert [sample.image_id for sample in samples_of(found, "my_data_test_vqa", ["tests"])] == ["test"]


def test_a_training_is_joined_with_evaluations_of_the_checkpoint_that_it_scored(tmp_path: Path) -> None:
    run_config = {"evaluation": {"checkpoint": "last", "k": 4}, "fusion": {"_target_": "my.a"}}
    write_run(tmp_path / "a", {"shapes/vqa_accuracy": 50.0}, **run_config)
    for name in ("best", "last"):
        write(tmp_path / f"a/checkpoints/{name}.ckpt", "")
    evaluation = write_evaluation(tmp_path / "b", HALF, str(tmp_path / "a/checkpoints/last.ckpt"))
    command = yaml.safe_load((evaluation / "evaluation.yaml").read_text())
    write(evaluation / "evaluation.yaml", yaml.safe_dump(command | {"run": command["run"] | run_config}))
    (found,) = read_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    assert found.metrics == {"shapes/vqa_accuracy": 50.0, "vqav2/accuracy": 50.0}


def test_an_imported_checkpoint_is_a_folder_of_its_own(tmp_path: Path) -> None:
    assert home_of(tmp_path / "run/checkpoints/best.ckpt") == tmp_path / "run"
    assert home_of(tmp_path / "run/moved.ckpt") == tmp_path / "run"
    (tmp_path / "albef").mkdir()
    assert home_of(tmp_path / "albef") == tmp_path / "albef"


def test_what_differs_leaves_out_places_and_seeds(tmp_path: Path) -> None:
    for name, changes in {
        "a": {},
        "b": {"seed": 2},
        "c": {"fusion": {"_target_": "my.Late"}, "task": {"mlm": {"_target_": "my.MLM", "probability": 0.4}}},
    }.items():
        write_run(tmp_path / name, {"x": 1.0}, **changes)
    records = read_runs([str(tmp_path)])
    assert differences(records) == {
        "fusion": ["Cross", "Cross", "Late"],
        "fusion.num_layers": ["2", "2", "—"],
        "task.mlm": ["—", "—", "MLM"],  # a section that others have not is one row
    }
    assert differences(records[:2]) == {"seed": ["1", "2"]}  # nothing else differs
    assert [[run.name for run in group] for group in group_seeds(records)] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["late/1", "late/2"], "late"),
        (["late/10", "late/11"], "late"),
        (["b_s1", "b_s2"], "b"),
        (["1", "2"], "1 and others"),
    ],
)
def test_seeds_are_called_by_what_they_share(names: list[str], expected: str) -> None:
    assert group_name([RunRecord(name, (Path(name),)) for name in names]) == expected


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["/a/x", "/a/y"], ["x", "y"]),
        (["/a/late/1", "/a/gated/1", "/b/z"], ["late/1", "gated/1", "z"]),
        (["/a/run", "/b/run", "/b/other"], ["a/run", "b/run", "other"]),
        (["/a/b/run", "/a/b/run"], ["/a/b/run", "/a/b/run"]),
    ],
)
def test_a_name_is_as_long_as_it_has_to_be(places: list[str], names: list[str]) -> None:
    assert [name.replace("//", "/") for name in short_names(list(map(Path, places)))] == names


def test_seeds_together_are_tested_by_their_means() -> None:
    scores = {"late1": 1.0, "late2": 2.0, "late3": 3.5, "full1": 4.0, "full2": 5.0, "full3": 7.0}
    comparison = compare_runs([record(name, acc=value) for name, value in scores.items()], seeds_together=True)
    cell = comparison.cells[comparison.entries[1].name, "acc"]
    assert cell.difference == pytest.approx(
        (3.166667, -0.052132, 6.385466, 0.052323), abs=1e-5
    )  # scipy.stats.ttest_ind
    assert cell.interval == pytest.approx((5.3333 - 3.7949, 5.3333 + 3.7949), abs=1e-3)  # 4.3027 * 1.5275 / sqrt(3)


def test_tables_say_the_same(evaluations: Path) -> None:
    comparison = compare_runs(read_runs([str(evaluations)]), resamples=500)
    rows = list(csv.DictReader(as_csv(comparison).splitlines()))
    assert [(row["run"], row["metric"], float(row["score"])) for row in rows] == [
        (name, metric, cell.score) for (name, metric), cell in comparison.cells.items()
    ]
    (row,) = [row for row in rows if row["run"] == "most" and row["metric"] == "vqav2/accuracy"]
    assert (float(row["difference"]), row["mark"], row["fusion"]) == (37.5, "*", "most")
    text = as_markdown(comparison)
    assert "87.5 (86.0 to 90.0) *" in text
    assert "| `vqav2/accuracy` | most | +37.5 |" in text


def test_no_spreadsheet_takes_a_text_for_a_formula_and_no_terminal_obeys_one() -> None:
    names = ["=cmd|'/c calc'!A0", "@SUM(A1)", "+1+cmd", "-cmd", "a\x1b[2J", "-3", "+1.5e-3", "a-b"]
    runs = [RunRecord(name, (Path(name),), config={"=x": name}, metrics={"=acc": 1.0}) for name in names]
    comparison = compare_runs(runs, resamples=10)
    text = as_csv(comparison)
    rows = list(csv.reader(text.splitlines()))
    assert [row[0] for row in rows[1:]] == [f"'{name}" if n < 4 else name for n, name in enumerate(names)]
    assert [row[-1] for row in rows[1:]] == [row[0] for row in rows[1:]]
    assert rows[0][-1] == "'=x"
    assert {row[1] for row in rows[1:]} == {"'=acc"}
    console = Console(width=200, record=True, file=io.StringIO())
    print_comparison(comparison, console)
    assert "\x1b" not in console.export_text()


@pytest.mark.parametrize("width", [60, 100])
def test_the_table_fits_the_terminal(width: int, evaluations: Path) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    print_comparison(compare_runs(read_runs([str(evaluations)]), resamples=500), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert any("87.5 +37.5*" in line for line in lines)


def test_a_sweep_is_compared_by_one_command(evaluations: Path, capsys: Capture) -> None:
    out = evaluations / "report"
    words = [f"{evaluations}/[0-9]", "baseline=most", f"output_dir={out}", "resamples=200", "metrics=['vqav2/*']"]
    assert run(["compare", *words]) == 0
    assert f"page: {out}/index.html" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "plots", "table.csv", "table.md"]
    assert {path.name for path in (out / "plots").iterdir()} == {"quality_vqav2_accuracy.png"}  # costs are equal


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("{0}/nowhere", 1, "nothing matches"),
        ("{0}/x*y", 1, "nothing matches"),
        ("{0}/empty", 1, "is no run and holds none"),
        ("{0}/a {0}/b", 1, "the runs have no metric in common: a has shapes/vqa_accuracy, b has coco/vqa_accuracy"),
        ("{0}/a {0}/c baseline=d", 2, "baseline: there is no run 'd'; known: a, c"),
        ("{0}/a {0}/cut", 1, "cut/metrics.json is not complete JSON"),
        ("{0}/a {0}/c metrics=[shapes/vqa_acc]", 2, "did you mean 'shapes/vqa_accuracy'?"),
        ("{0}/unfinished", 1, "unfinished has no scores; finish it, or evaluate it"),
        ("runs=3", 2, "runs is 3, but has to be a list"),
        ("runs=[]", 2, "there are no runs to compare"),
        ("{0}/a resamples=0", 2, "resamples is 0"),
    ],
)
def test_a_mistake_is_one_sentence(line: str, code: int, words: str, tmp_path: Path, capsys: Capture) -> None:
    write_run(tmp_path / "a", {"shapes/vqa_accuracy": 50.0})
    write_run(tmp_path / "b", {"coco/vqa_accuracy": 50.0})
    write_run(tmp_path / "c", {"shapes/vqa_accuracy": 60.0}, seed=2)
    write(write_run(tmp_path / "cut", {}) / "metrics.json", '{"shapes/vqa_accuracy": 5')
    (write_run(tmp_path / "unfinished", {}) / "metrics.json").unlink()
    (tmp_path / "empty").mkdir()
    assert run(["compare", *line.format(tmp_path).split(), f"output_dir={tmp_path}/out"]) == code
    (told,) = capsys.readouterr().err.splitlines()
    assert words in told
    assert not (tmp_path / "out").exists()
