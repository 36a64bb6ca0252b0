import io

from rich.console import Console

from fusionkit.evaluation.table import print_scores


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
