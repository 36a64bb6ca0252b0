"""A comparison as text: in the terminal, as markdown, and as csv with one line for each run and metric.

Each shows scores beside what guessers reach, then what the runs cost, and how that grows where it was measured.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionkit.errors import clean
from fusionkit.files.spreadsheets import as_cell
from fusionkit.reporting.comparison import Cell, Comparison
from fusionkit.reporting.config_differences import ABSENT
from fusionkit.reporting.run_costs import COSTS

GROWTH = "Growth of the cost: powers of the size"
PADDING = 3  # characters of a column beside its content
Column = tuple[str, list[Text]]  # header and cells
COLUMNS = ("score", "low", "high", "difference", "difference_low", "difference_high", "p", "p_corrected", "mark")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print differences, scores and costs, in as many tables as the width takes, and the notes."""
    names = [clean(entry.name) for entry in comparison.entries]
    tables = [
        ("what differs", names, _differences(comparison)),
        ("scores in %, 95% intervals", [*names, *comparison.guesses], _scores(comparison)),
        ("costs", names, _numbers(cost_columns(comparison), ", ")),
        (GROWTH, names, _numbers(growth_columns(comparison), ": ")),
    ]
    for title, rows, columns in tables:
        for table in _tables(title, rows, columns, console.width):
            console.print(table)
    for note in comparison.notes:
        console.print(clean(note), markup=False, highlight=False)


def as_markdown(comparison: Comparison) -> str:
    """Return the tables of differences, scores with costs, tests and growth, and the notes."""
    names = [_plain(entry.name) for entry in comparison.entries]
    parts = []
    if comparison.differences:
        rows = [[_code(key), *map(_plain, values)] for key, values in comparison.differences.items()]
        parts.append("## What differs\n\n" + _markdown(*_upright(["", *names], rows)))
    scores = [
        [_code(metric), *map(score_text, _column(comparison, metric)), *guess_texts(comparison, metric)]
        for metric in comparison.metrics
    ]
    blank = [""] * len(comparison.guesses)
    scores += [[title, *cells, *blank] for title, cells in cost_columns(comparison)]
    header = ["", *names, *(f"*{guesser}*" for guesser in comparison.guesses)]
    parts.append("## Scores, in %, with 95% intervals\n\n" + _markdown(*_upright(header, scores)))
    tests = [[_code(metric), _plain(name), *tested_texts(cell)] for metric, name, cell in _tested(comparison)]
    if tests:
        titles = ["", "run", f"more than {_plain(comparison.baseline)}", "95% interval", "p", "p, corrected", ""]
        parts.append("## Against the baseline\n\n" + _markdown(titles, tests))
    if growth := growth_columns(comparison):
        rows = [list(row) for row in zip(names, *(map(_plain, cells) for _, cells in growth), strict=True)]
        parts.append(f"## {GROWTH}\n\n" + _markdown(["", *(title for title, _ in growth)], rows))
    return "\n".join([*parts, "\n\n".join(map(_plain, comparison.notes))]) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return one line for each run and metric: the score, the test against the baseline, costs, and what differs.

    ``values`` are the scores of single seeds; a cost is in its own unit (COSTS), a growth the power of the size.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    powers = list(dict.fromkeys(name for entry in comparison.entries for name in entry.measured.exponents()))
    header = ["run", "metric", *COLUMNS, "seeds", "values", *comparison.guesses]
    header += [*(f"cost/{name}" for name in comparison.costs), *(f"growth/{name}" for name in powers)]
    writer.writerow([*header, *map(as_cell, comparison.differences)])
    for at, entry in enumerate(comparison.entries):
        settings = [as_cell(values[at]) for values in comparison.differences.values()]
        exponents = entry.measured.exponents()
        costs = [
            *(entry.costs.get(name, "") for name in comparison.costs),
            *(exponents.get(name, "") for name in powers),
        ]
        for metric in comparison.metrics:
            if cell := comparison.cells.get((entry.name, metric)):
                low, high = cell.interval or ("", "")
                test = [*cell.difference, cell.p] if cell.difference else [""] * 5
                values = entry.values(metric)
                seeds = [len(values), " ".join(map(str, values))]
                guesses = [row.get(metric, "") for row in comparison.guesses.values()]
                line = [as_cell(entry.name), as_cell(metric), cell.score, low, high, *test, cell.mark]
                writer.writerow([*line, *seeds, *guesses, *costs, *settings])
    return out.getvalue()


def guess_texts(comparison: Comparison, metric: str) -> list[str]:
    """Return the score of each guesser, "" where it is not known."""
    return [f"{row[metric]:.1f}" if metric in row else "" for row in comparison.guesses.values()]


def cost_columns(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return by title the cost of each run, "" where it is not known."""
    rows = [entry.costs for entry in comparison.entries]
    return [
        (COSTS[name].title, [COSTS[name].text(row[name]) if name in row else "" for row in rows])
        for name in comparison.costs
    ]


def growth_columns(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return by title the theoretical cost and the measured exponents of each run; nothing where no growth was measured."""
    measured = [entry.measured for entry in comparison.entries]
    exponents = [costs.exponents() for costs in measured]
    names = list(dict.fromkeys(name for row in exponents for name in row))
    columns = [
        (name.replace("_", " ").replace("/", ": "), [f"{row[name]:.2f}" if name in row else "" for row in exponents])
        for name in names
    ]
    theory = [f"O({costs.theory})" if costs.theory else "" for costs in measured]
    return [("theory, a layer", theory), *columns] if names else []


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _column(comparison: Comparison, metric: str) -> list[Cell | None]:
    """Return the cells of a metric, in the order of the runs."""
    return [comparison.cells.get((entry.name, metric)) for entry in comparison.entries]


def score_text(cell: Cell | None) -> str:
    """ "94.3 (93.1 to 95.4) *"."""
    if cell is None:
        return ABSENT
    interval = f" ({cell.interval[0]:.1f} to {cell.interval[1]:.1f})" if cell.interval else ""
    return f"{cell.score:.1f}{interval}{f' {cell.mark}' if cell.mark else ''}"


def tested_texts(cell: Cell) -> list[str]:
    """Return the difference, its interval, p, corrected p and the mark."""
    assert cell.difference is not None
    assert cell.p is not None
    value, low, high, p = cell.difference
    return [f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}", p_text(p), p_text(cell.p), cell.mark]


def p_text(p: float) -> str:
    """Return three digits of a p-value."""
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _tested(comparison: Comparison) -> list[tuple[str, str, Cell]]:
    return [
        (metric, entry.name, cell)
        for metric in comparison.metrics
        for entry in comparison.entries
        if (cell := comparison.cells.get((entry.name, metric))) and cell.p is not None
    ]


def _upright(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Turn the table so that its longer side goes down."""
    if len(header) - 1 <= len(rows):
        return header, rows
    columns = [list(column) for column in zip(header, *rows, strict=True)]
    return columns[0], columns[1:]


def _plain(text: str) -> str:
    """Escape a text of a run, so that it becomes no markup, no link and no end of the cell."""
    escaped = re.sub(
        r"([\\`*\[\]|~!#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.|(?<=\w)@)", r"\\\1", _line(text)
    )
    return re.sub(
        r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", escaped)
    )  # where a tag or a character begins


def _code(text: str) -> str:
    """Quote a name as code, in as many backticks as it takes."""
    line = _line(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def _line(text: str) -> str:
    """Remove control characters and ends of lines."""
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
                *(Text.assemble(*_lines(cell), justify="right") for cell in _column(comparison, metric)),
                *(Text(text, "dim", justify="right") for text in guess_texts(comparison, metric)),
            ],
        )
        for metric in comparison.metrics
    ]


def _numbers(columns: Sequence[tuple[str, list[str]]], after: str) -> list[Column]:
    return [(_broken(title, after), [Text(clean(cell), justify="right") for cell in cells]) for title, cells in columns]


def _broken(name: str, after: str) -> str:
    """Break a name into lines, so that its column is narrow."""
    return clean(name).replace(after, f"{after}\n")


def _tables(title: str, names: Sequence[str], columns: Sequence[Column], width: int) -> Iterator[Table]:
    """Yield as many tables as the width takes, each with the names on the left."""
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
    """Return score and difference, and below them the interval, with styles."""
    if cell is None:
        return [(ABSENT, "dim")]
    moved = f" {cell.difference.value:+.1f}{cell.mark}" if cell.difference else ""
    interval = f"\n{cell.interval[0]:.1f} to {cell.interval[1]:.1f}" if cell.interval else ""
    return [(f"{cell.score:.1f}", "bold"), (moved, ""), (interval, "dim")]
