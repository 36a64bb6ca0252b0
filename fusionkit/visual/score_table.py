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
    """The scores of benchmarks with their intervals, beside what guessers score where that is known.

    Metrics more than one level down are only in the files.
    """
    suffixes = [
        suffix for suffix in GUESSERS if any(f"_{suffix}" in str(about["guesses"]) for about in details.values())
    ]
    table = Table(title="scores in %, ranks from 1", title_justify="left", header_style="bold")
    table.add_column("benchmark", overflow="fold")
    for title in ("score", "95% interval", *(GUESSERS[suffix] for suffix in suffixes)):
        table.add_column(title, justify="right")
    for label, about in details.items():
        split = "" if about["split"] in label.split("/") else f", {about['split']}"
        table.add_row(f"[bold]{label}[/bold]{split}, {about['samples']:,} samples")
        for name, value in about["scores"].items():
            if name.count("/") < 2:
                ends = [f"{end:.2f}" for end in about["intervals"].get(name, ())]
                guesses = [about["guesses"].get(f"{name}_{suffix}") for suffix in suffixes]
                cells = ["" if guess is None else f"{guess:.2f}" for guess in guesses]
                table.add_row(f"  {name}", f"[bold]{value:.2f}[/bold]", " to ".join(ends), *cells)
        table.add_section()
    return table


def print_details(details: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the table, and below it what has to be said about the scores."""
    console = console or Console()
    console.print(details_table(details))
    for note in dict.fromkeys(f"{name}: {note}" for about in details.values() for name, note in about["notes"].items()):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
