"""A comparison as text: in the terminal, as markdown, and as csv with one line for each run and metric."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionkit.errors import clean
from fusionkit.reporting.comparison import Cell, Comparison
from fusionkit.reporting.differences import ABSENT
from fusionkit.reporting.study_table import markdown

PADDING = 3  # characters of a column beside its content
Column = tuple[str, list[Text]]  # header and cells
COLUMNS = ("score", "low", "high", "difference", "difference_low", "difference_high", "p", "p_corrected", "mark")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """What differs, the scores in as many tables as the width takes, and what has to be said about them."""
    names = [clean(entry.name) for entry in comparison.entries]
    for table in _tables("what differs", names, _differences(comparison), console.width):
        console.print(table)
    for table in _tables("scores in %, 95% intervals", names, _scores(comparison), console.width):
        console.print(table)
    for note in comparison.notes:
        console.print(clean(note), markup=False, highlight=False)


def as_markdown(comparison: Comparison) -> str:
    """The tables of differences and scores, the tests in full, and the notes."""
    names = [entry.name for entry in comparison.entries]
    header = ["", *map(_plain, names)]
    parts = []
    if comparison.differences:
        rows = [[_code(key), *map(_plain, values)] for key, values in comparison.differences.items()]
        parts.append("## What differs\n\n" + markdown(*_upright(header, rows)))
    scores = [
        [_code(metric), *(score_text(comparison.cells.get((name, metric))) for name in names)]
        for metric in comparison.metrics
    ]
    parts.append("## Scores, in %, with 95% intervals\n\n" + markdown(*_upright(header, scores)))
    tests = [[_code(metric), _plain(name), *tested_texts(cell)] for metric, name, cell in _tested(comparison)]
    if tests:
        titles = ["", "run", f"more than {_plain(comparison.baseline)}", "95% interval", "p", "p, corrected", ""]
        parts.append("## Against the baseline\n\n" + markdown(titles, tests))
    return "\n".join([*parts, "\n\n".join(map(_plain, comparison.notes))]) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One line for each run and metric: the score, the test against the baseline, and what differs in the configuration."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "metric", *COLUMNS, *map(_cell, comparison.differences)])
    for at, entry in enumerate(comparison.entries):
        settings = [_cell(values[at]) for values in comparison.differences.values()]
        for metric in comparison.metrics:
            if cell := comparison.cells.get((entry.name, metric)):
                low, high = cell.interval or ("", "")
                test = [*cell.difference, cell.p] if cell.difference else [""] * 5
                writer.writerow([_cell(entry.name), _cell(metric), cell.score, low, high, *test, cell.mark, *settings])
    return out.getvalue()


def _cell(text: str) -> str:
    """A text of a run, which no spreadsheet takes for a formula; a number stays one."""
    return f"'{text}" if re.match(r"[=+@\t\r]|-(?![\d.])", text) and not re.fullmatch(r"\+[\d.e+-]+", text) else text


def score_text(cell: Cell | None) -> str:
    """ "94.3 (93.1 to 95.4) *"."""
    if cell is None:
        return ABSENT
    interval = f" ({cell.interval[0]:.1f} to {cell.interval[1]:.1f})" if cell.interval else ""
    return f"{cell.score:.1f}{interval}{f' {cell.mark}' if cell.mark else ''}"


def tested_texts(cell: Cell) -> list[str]:
    """Difference, its interval, p, corrected p and mark."""
    assert cell.difference is not None
    assert cell.p is not None
    value, low, high, p = cell.difference
    return [f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}", p_text(p), p_text(cell.p), cell.mark]


def p_text(p: float) -> str:
    """Three digits."""
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _tested(comparison: Comparison) -> list[tuple[str, str, Cell]]:
    return [
        (metric, entry.name, cell)
        for metric in comparison.metrics
        for entry in comparison.entries
        if (cell := comparison.cells.get((entry.name, metric))) and cell.p is not None
    ]


def _upright(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The table with its longer side downwards."""
    if len(header) - 1 <= len(rows):
        return header, rows
    columns = [list(column) for column in zip(header, *rows, strict=True)]
    return columns[0], columns[1:]


def _plain(text: str) -> str:
    """A text of a run, which shows as it is: no markup, no link, no end of the cell."""
    escaped = re.sub(
        r"([\\`*\[\]|~!#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.|(?<=\w)@)", r"\\\1", _line(text)
    )
    return re.sub(
        r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", escaped)
    )  # where a tag or a character begins


def _code(text: str) -> str:
    """A name as code, within as many backticks as it takes."""
    line = _line(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def _line(text: str) -> str:
    """Without control characters and ends of lines."""
    return clean(" ".join(text.splitlines()))


def _differences(comparison: Comparison) -> list[Column]:
    return [
        (_broken(key, "."), [Text(clean(value)) for value in values]) for key, values in comparison.differences.items()
    ]


def _scores(comparison: Comparison) -> list[Column]:
    return [
        (
            _broken(metric, "/"),
            [
                Text.assemble(*_lines(comparison.cells.get((entry.name, metric))), justify="right")
                for entry in comparison.entries
            ],
        )
        for metric in comparison.metrics
    ]


def _broken(name: str, after: str) -> str:
    """On several lines, so that a column is no wider than it has to be."""
    return clean(name).replace(after, f"{after}\n")


def _tables(title: str, names: Sequence[str], columns: Sequence[Column], width: int) -> Iterator[Table]:
    """As many tables as the width takes, each with the names at its left."""
    room = 0
    first = PADDING + 1 + min(width // 3, max(map(len, ["run", *names])))
    groups: list[list[Column]] = []
    for header, cells in columns:
        needed = PADDING + max(len(line) for text in (header, *map(str, cells)) for line in text.split("\n"))
        if not groups or needed > room:
            groups.append([])
            room = width - first
        groups[-1].append((header, cells))
        room -= needed
    for group in groups:
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column("run", overflow="fold", max_width=first - PADDING)
        for header, _ in group:
            table.add_column(Text(header), overflow="fold")
        for name, *cells in zip(names, *(cells for _, cells in group), strict=True):
            table.add_row(Text(name), *cells)
        yield table


def _lines(cell: Cell | None) -> list[tuple[str, str]]:
    """Score and difference, and below them the interval of the score, with styles."""
    if cell is None:
        return [(ABSENT, "dim")]
    moved = f" {cell.difference.value:+.1f}{cell.mark}" if cell.difference else ""
    interval = f"\n{cell.interval[0]:.1f} to {cell.interval[1]:.1f}" if cell.interval else ""
    return [(f"{cell.score:.1f}", "bold"), (moved, ""), (interval, "dim")]
