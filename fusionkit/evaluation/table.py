"""The scores as a table, each beside what a guesser scores that reads only the text, and one that sees nothing."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

GUESSERS = {"baseline": "text only", "chance": "chance"}  # suffix of a metric -> column


def score_table(metrics: Mapping[str, float]) -> Table:
    """A table of a flat map ``<source>/<metric>``; rows in its order, a line between sources."""
    table = Table(title="scores in %", title_justify="left", header_style="bold")
    table.add_column("source")
    table.add_column("metric")
    for title in ("score", *GUESSERS.values()):
        table.add_column(title, justify="right")
    rows = [name for name in metrics if not name.endswith(tuple(f"_{suffix}" for suffix in GUESSERS))]
    previous = None
    for name in rows:
        source, _, metric = name.partition("/")
        if previous is not None and source != previous:
            table.add_section()
        guesses = [metrics.get(f"{name}_{suffix}") for suffix in GUESSERS]
        cells = ["" if guess is None else f"{guess:.1f}" for guess in guesses]
        table.add_row("" if source == previous else source, metric, f"[bold]{metrics[name]:.1f}[/bold]", *cells)
        previous = source
    return table


def print_scores(metrics: Mapping[str, float], console: Console | None = None) -> None:
    """Print the table."""
    (console or Console()).print(score_table(metrics))


def details_table(details: Mapping[str, Mapping[str, Any]]) -> Table:
    """The scores of benchmarks with their intervals; metrics more than one level down are only in the files."""
    table = Table(title="scores in %, ranks from 1", title_justify="left", header_style="bold")
    for title in ("benchmark", "split", "samples", "metric", "score", "95% interval"):
        table.add_column(title, justify="left" if title in ("benchmark", "split", "metric") else "right")
    for label, about in details.items():
        first = (label, about["split"], f"{about['samples']:,}")
        for name, value in about["scores"].items():
            if name.count("/") < 2:
                low, high = about["intervals"][name]
                table.add_row(*first, name, f"[bold]{value:.2f}[/bold]", f"{low:.2f} to {high:.2f}")
                first = ("", "", "")
        table.add_section()
    return table


def print_details(details: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the table, and below it what has to be said about the scores."""
    console = console or Console()
    console.print(details_table(details))
    for note in dict.fromkeys(f"{name}: {note}" for about in details.values() for name, note in about["notes"].items()):
        console.print(note, highlight=False, markup=False)
