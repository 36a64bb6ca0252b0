"""The table of fusions and tasks in the documentation is the one that the code gives."""

from pathlib import Path

from fusionkit.assembly.support_matrix import matrix, write_into
from tests.toys import choices

PAGE = Path(__file__).parents[2] / "docs/fusions.md"


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert write_into(text) == text, "run: make matrix"


def test_each_pair_has_a_cell_with_its_reason() -> None:
    header, _, *rows = [line.split(" | ") for line in matrix().splitlines() if line.startswith("|")]
    cells = {
        (row[0].strip("|` "), task.strip(" |")): cell.strip(" |")
        for row in rows
        for task, cell in zip(header[1:], row[1:], strict=True)
    }
    assert {fusion for fusion, _ in cells} == set(choices("fusion"))
    assert {task for _, task in cells} == set(choices("task"))
    assert cells["late", "captioning"] == "no causal, text"
    assert cells["gated", "grounding_gradcam"] == "no attention"
    assert cells["cross_attention", "mlm"] == "✓"
