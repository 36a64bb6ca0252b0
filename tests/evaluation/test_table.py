import io

from rich.console import Console

from fusionkit.evaluation.table import print_details, print_scores


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
