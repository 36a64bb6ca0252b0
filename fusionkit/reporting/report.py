"""Everything that a comparison leaves in a folder: tables, plots and one page."""

from pathlib import Path

from fusionkit.errors import DataError
from fusionkit.files.atomic import write_text
from fusionkit.reporting.comparison import Comparison
from fusionkit.reporting.comparison_page import report_page
from fusionkit.reporting.comparison_plots import draw, panels
from fusionkit.reporting.comparison_table import as_csv, as_markdown
from fusionkit.reporting.side_by_side import Load, examples


def write_report(comparison: Comparison, folder: Path, load: Load, count: int) -> None:
    """Write ``table.md``, ``table.csv``, ``plots/*.png`` and ``index.html``.

    ``load`` gives the samples of a file of rows, of which the page shows ``count`` of each kind side by side. DataError
    where the folder cannot be written to.
    """
    drawn = panels(comparison)
    try:
        write_text(folder / "table.md", as_markdown(comparison))
        write_text(folder / "table.csv", as_csv(comparison))
        for old in (folder / "plots").glob("*.png"):  # of an earlier comparison, which had other metrics
            old.unlink()
        for panel in (panel for group in drawn.values() for panel in group):
            draw(panel, folder / "plots" / f"{panel.name}.png")
        write_text(folder / "index.html", report_page(comparison, drawn, examples(comparison, load, count)))
    except OSError as error:
        raise DataError(
            f"output_dir={folder} cannot be written to ({error.strerror}); choose another output_dir=FOLDER"
        ) from error
    print(f"page: {folder}/index.html   tables: {folder}/table.md, table.csv   plots: {folder}/plots")
