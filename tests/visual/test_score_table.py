import io

from rich.console import Console

from fusionkit.visual.score_table import details_table, print_details, print_scores, score_table


def test_a_score_stands_beside_its_guessers():
    metrics = {
        "shapes/vqa_accuracy": 91.26,
        "shapes/vqa_accuracy_baseline": 50.5,
        "shapes/vqa_accuracy_chance": 25.0,
        "coco/itm_accuracy": 77.0,
    }
    console = Console(width=100, record=True, file=io.StringIO())
    print_scores(metrics, console)
    rows = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["shapes", "vqa_accuracy", "91.3", "50.5", "25.0"] in rows
    assert ["coco", "itm_accuracy", "77.0"] in rows
    assert not any("_baseline" in cell or "_chance" in cell for row in rows for cell in row)


def test_a_benchmark_stands_beside_its_interval_and_guessers():
    about = {"split": "val", "samples": 3805, "notes": {"boxes": "regressed"}}
    numbers = {"scores": {"acc50": 91.26}, "intervals": {"acc50": [90.0, 92.5]}}
    details = {
        "refcoco": about | numbers | {"guesses": {"acc50_baseline": 8.0}},
        "vqav2/val": about | {"scores": {"a/b/c": 1.0}, "intervals": {"a/b/c": [0.0, 2.0]}, "guesses": {}},
    }
    console = Console(width=80, record=True, file=io.StringIO())
    print_details(details, console)
    lines = console.export_text().splitlines()
    rows = [line.replace("│", " ").split() for line in lines]
    assert ["refcoco,", "val,", "3,805", "samples"] in rows
    assert ["acc50", "91.26", "90.00", "to", "92.50", "8.00"] in rows
    assert ["vqav2/val,", "3,805", "samples"] in rows
    assert "text only" in lines[2]
    assert "chance" not in lines[2]
    assert not any("a/b/c" in row for row in rows)
    assert lines[-1].strip() == "boxes: regressed"


def cells(table):
    return list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))


def test_a_source_is_named_once_and_set_apart_from_the_next():
    metrics = {"a/x": 1.25, "a/y": 2, "b/z": 3, "b/z_chance": 0, "b/w/v": 4}
    table = score_table(metrics)
    assert cells(table) == [
        ("a", "x", "[bold]1.2[/bold]", "", ""),
        ("", "y", "[bold]2.0[/bold]", "", ""),
        ("b", "z", "[bold]3.0[/bold]", "", "0.0"),
        ("", "w/v", "[bold]4.0[/bold]", "", ""),
    ]
    assert [row.end_section for row in table.rows] == [False, True, False, False]


def test_details_show_two_levels_and_notes_once():
    about = {"split": "val", "samples": 1234, "guesses": {}, "notes": {"rule": "[red] 3"}}
    one = about | {"scores": {"a/b": 1.005, "a/b/c": 9, "n": 2}, "intervals": {"a/b": [0.5, 2]}}
    two = about | {"scores": {"n": 3}, "intervals": {}, "guesses": {"n_chance": 1, "n_baseline": None}}
    details = {"x": one, "y/val": two}
    table = details_table(details)
    assert cells(table) == [
        ("[bold]x[/bold], val, 1,234 samples", "", "", "", ""),
        ("  a/b", "[bold]1.00[/bold]", "0.50 to 2.00", "", ""),
        ("  n", "[bold]2.00[/bold]", "", "", ""),
        ("[bold]y/val[/bold], 1,234 samples", "", "", "", ""),
        ("  n", "[bold]3.00[/bold]", "", "", "1.00"),
    ]
    console = Console(width=60, record=True, file=io.StringIO(), force_terminal=True)
    console.print = (lambda show: lambda *what, **how: said.append((what, how)) or show(*what, **how))(console.print)
    said = []
    print_details(details, console)
    assert said[1:] == [(("rule: [red] 3",), {"highlight": False, "markup": False, "soft_wrap": True})]
