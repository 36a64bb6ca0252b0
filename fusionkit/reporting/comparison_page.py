"""The report page of a comparison: one file that needs no other and no network."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree.ElementTree import Element

import yaml
from PIL import Image

from fusionkit.reporting.comparison import Cell, Comparison
from fusionkit.reporting.comparison_plots import GROWTH, Panel, draw
from fusionkit.reporting.comparison_table import cost_columns, growth_columns, guess_texts, p_text
from fusionkit.reporting.config_differences import ABSENT
from fusionkit.reporting.example_cards import example_card, overlay_figures
from fusionkit.reporting.html import breakable, document, element, embedded
from fusionkit.reporting.side_by_side import Example

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # asks for nothing
Groups = Mapping[str, Mapping[str, Sequence[Example]]]


def report_page(comparison: Comparison, panels: Mapping[str, Sequence[Panel]], groups: Groups) -> str:
    """Return the page as text. ``groups`` are the examples, by file of rows and by who is right."""
    here = Path(__file__).parent
    title = f"{len(comparison.entries)} runs compared" if len(comparison.entries) > 1 else comparison.entries[0].name
    head = [
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} · fusionkit"),
        element("style", (here / "page.css").read_text(encoding="utf-8")),
    ]
    tables = {GROWTH: _growth(comparison)}
    notes = [element("p", note, class_="soft") for note in comparison.notes]
    sections = [
        _section("differences", "What differs", _differences(comparison)),
        _section("scores", "Scores", [_scores(comparison), *notes, *_tests(comparison)]),
        *(
            _section(heading.lower().replace(" ", "-"), heading, [*tables.get(heading, ()), _plots(drawn)])
            for heading, drawn in panels.items()
        ),
        _section("examples", "Predictions side by side", _examples(comparison, groups)),
        _section("overlays", "Attention", overlay_figures(comparison)),
        _section("settings", "Settings", _settings(comparison)),
    ]
    shown = [section for section in sections if section is not None]
    links = [element("a", section[0].text or "", href=f"#{section.get('id')}") for section in shown]
    header = element(
        "header", element("h1", title), *_verdicts(comparison), element("nav", *links, aria_label="sections")
    )
    script = element("script", (here / "page.js").read_text(encoding="utf-8"))
    return document(head, [header, element("main", *shown), script])


def _section(name: str, heading: str, content: Sequence[Element]) -> Element | None:
    return element("section", element("h2", heading), *content, id=name) if content else None


def _verdicts(comparison: Comparison) -> list[Element]:
    """Count the scores in which each run is better or worse than the baseline."""
    if len(comparison.entries) < 2:
        return []
    sources = ", ".join(dict.fromkeys(metric.partition("/")[0] for metric in comparison.metrics))
    about = f", in {_counted(len(comparison.metrics))} on {sources}"
    lines = [element("p", "Compared with ", element("b", comparison.baseline), about, class_="soft")]
    verdicts = []
    for entry in comparison.entries[1:]:
        cells = {m: cell for m in comparison.metrics if (cell := comparison.cells.get((entry.name, m)))}
        moves = [
            comparison.gain(m, cell.difference.value)
            for m, cell in cells.items()
            if cell.mark == "*" and cell.difference
        ]
        tested = sum(cell.p is not None for cell in cells.values())
        if tested:
            better, worse = sum(move > 0 for move in moves), sum(move < 0 for move in moves)
            verdicts.append(
                element(
                    "li",
                    element("b", entry.name),
                    ": better in ",
                    element("span", str(better), class_="good" if better else None),
                    ", worse in ",
                    element("span", str(worse), class_="bad" if worse else None),
                    f", undecided in {tested - better - worse} of {_counted(tested)}",
                )
            )
    return [*lines, element("ul", *verdicts)] if verdicts else lines


def _counted(scores: int) -> str:
    return "1 score" if scores == 1 else f"{scores} scores"


def _scores(comparison: Comparison) -> Element:
    costs = cost_columns(comparison)
    titles = [_title("run", is_number=False), *(_title(metric) for metric in comparison.metrics)]
    titles += [_title(title, after=", ") for title, _ in costs]
    rows = []
    for at, entry in enumerate(comparison.entries):
        cells = [comparison.cells.get((entry.name, metric)) for metric in comparison.metrics]
        shown = [_score(comparison, metric, cell) for metric, cell in zip(comparison.metrics, cells, strict=True)]
        is_base = entry.name == comparison.baseline and len(comparison.entries) > 1
        note = "baseline" if is_base else None
        seeds = f"{len(entry.runs)} seeds" if len(entry.runs) > 1 else None
        notes = [element("small", ", ".join(filter(None, (note, seeds))), class_="soft")] if note or seeds else []
        first = element(
            "th", *breakable(entry.name), *(element("br") for _ in notes), *notes, scope="row", data_value=entry.name
        )
        paid = [
            element("td", texts[at] or ABSENT, class_="number", data_value=entry.costs.get(name))
            for name, (_, texts) in zip(comparison.costs, costs, strict=True)
        ]
        rows.append(element("tr", first, *shown, *paid, class_="base" if is_base else None))
    for at, guesser in enumerate(comparison.guesses):
        guesses = [guess_texts(comparison, metric)[at] for metric in comparison.metrics]
        first = element("th", element("i", guesser), scope="row", data_value=guesser)
        guessed = [
            element("td", text, class_="number soft", data_value=text) for text in [*guesses, *[""] * len(costs)]
        ]
        rows.append(element("tr", first, *guessed))
    return _table(
        "scores in percent with their 95% intervals, the difference from the baseline, and costs", titles, rows
    )


def _score(comparison: Comparison, metric: str, cell: Cell | None) -> Element:
    if cell is None:
        return element("td", ABSENT, class_="number soft")
    column = [each for (_, name), each in comparison.cells.items() if name == metric]
    is_best = len(column) > 1 and comparison.gain(metric, cell.score) == max(
        comparison.gain(metric, each.score) for each in column
    )
    moved = None
    if cell.difference:
        color = None if cell.mark != "*" else "good" if comparison.gain(metric, cell.difference.value) > 0 else "bad"
        moved = element("span", f" {cell.difference.value:+.1f}{cell.mark}", class_=color)
    interval = element("small", f"{cell.interval[0]:.1f} to {cell.interval[1]:.1f}") if cell.interval else None
    parts = [element("b", f"{cell.score:.1f}"), moved, interval, _strip(cell, column)]
    return element("td", *parts, class_="number best" if is_best else "number", data_value=cell.score)


def _strip(cell: Cell, column: Sequence[Cell]) -> Element | None:
    """Draw the interval on the scale of its column."""
    ends = [end for each in column for end in (each.score, *(each.interval or ()))]
    low, width = min(ends), max(ends) - min(ends)
    if not cell.interval or not width:
        return None
    left, middle, right = (
        f"{100 * (value - low) / width:.1f}" for value in (cell.interval[0], cell.score, cell.interval[1])
    )
    axis = {"y1": 5, "y2": 5, "stroke": "currentColor"}
    return element(
        "svg",
        element("line", x1=0, x2="100", **axis, stroke_opacity=0.2),
        element("line", x1=left, x2=right, **axis, stroke_width=3, stroke_opacity=0.55),
        element(
            "line",
            x1=middle,
            x2=middle,
            y1=0,
            y2=10,
            stroke="currentColor",
            stroke_width=3,
            vector_effect="non-scaling-stroke",
        ),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _tests(comparison: Comparison) -> list[Element]:
    titles = ["metric", "run", "difference", "95% interval", "p", "p, corrected", "decided"]
    rows = []
    for metric in comparison.metrics:
        for entry in comparison.entries:
            cell = comparison.cells.get((entry.name, metric))
            if cell is None or cell.difference is None or cell.p is None:
                continue
            value, low, high, p = cell.difference
            word = {
                "*": "better" if comparison.gain(metric, value) > 0 else "worse",
                "(*)": "not after correction",
                "": "no",
            }[cell.mark]
            color = {"better": "good", "worse": "bad"}.get(word)
            rows.append(
                element(
                    "tr",
                    element("th", *breakable(metric), scope="row", data_value=metric),
                    element("td", *breakable(entry.name), data_value=entry.name),
                    element("td", f"{value:+.1f}", class_="number", data_value=value),
                    element("td", f"{low:+.1f} to {high:+.1f}", class_="number", data_value=low),
                    element("td", p_text(p), class_="number", data_value=p),
                    element("td", p_text(cell.p), class_="number", data_value=cell.p),
                    element("td", word, class_=color, data_value=word),
                )
            )
    heads = [_title(title, is_number=title not in ("metric", "run", "decided")) for title in titles]
    if not rows:
        return []
    summary = element("summary", f"All {len(rows)} tests against {comparison.baseline}")
    return [element("details", summary, _table("differences from the baseline", heads, rows))]


def _growth(comparison: Comparison) -> list[Element]:
    if not (columns := growth_columns(comparison)):
        return []
    titles = [_title("run", is_number=False), *(_title(title, at > 0, ": ") for at, (title, _) in enumerate(columns))]
    rows = []
    for at, entry in enumerate(comparison.entries):
        first = element("th", *breakable(entry.name), scope="row", data_value=entry.name)
        theory, *powers = (texts[at] for _, texts in columns)
        cells = [element("td", power, class_="number", data_value=power) for power in powers]
        rows.append(element("tr", first, element("td", theory, data_value=theory), *cells))
    return [_table("powers of the size of the input that the cost of the fusion grows with", titles, rows)]


def _differences(comparison: Comparison) -> list[Element]:
    if not comparison.differences:
        return []
    titles = [_title(title, is_number=False, after=".") for title in ("run", *comparison.differences)]
    rows = [
        element(
            "tr",
            element("th", *breakable(entry.name), scope="row", data_value=entry.name),
            *(
                element("td", *breakable(values[at]), data_value=values[at])
                for values in comparison.differences.values()
            ),
        )
        for at, entry in enumerate(comparison.entries)
    ]
    return [_table("keys of the configuration whose values differ", titles, rows)]


def _title(name: str, is_number: bool = True, after: str = "/") -> Element:
    """Make the head of a column, a button that sorts by it; all but the last part of the name is small."""
    prefix, divider, last = name.rpartition(after)
    small = element("span", *breakable(prefix + divider), class_="prefix") if prefix else None
    return element(
        "th",
        element("button", small, *breakable(last), type="button"),
        scope="col",
        class_="number" if is_number else None,
    )


def _table(caption: str, titles: Sequence[Element], rows: Sequence[Element]) -> Element:
    """Make a table in a box that scrolls where the page is narrow; its edges fade where the table goes on."""
    hidden = element("caption", caption, class_="hidden")
    table = element("table", hidden, element("thead", element("tr", *titles)), element("tbody", *rows))
    box = element("div", table, class_="scroll", role="region", aria_label=caption, tabindex=0)
    return element("div", box, class_="wide")


def _plots(panels: Sequence[Panel]) -> Element:
    """Draw each panel in the colours of a light and of a dark page."""
    figures = []
    with TemporaryDirectory() as folder:
        for panel in panels:
            paths = {theme: Path(folder) / f"{panel.name}_{theme}.png" for theme in ("light", "dark")}
            for theme, path in paths.items():
                draw(panel, path, theme)
            dark = element("source", srcset=embedded(paths["dark"]), media="(prefers-color-scheme: dark)")
            with Image.open(paths["light"]) as drawn:
                width, height = drawn.size  # known before it is shown, so that nothing moves then
            shape = {"width": width, "height": height}
            light = element("img", src=embedded(paths["light"]), alt=panel.words, loading="lazy", **shape)
            figures.append(element("figure", element("picture", dark, light)))
    return element("div", *figures, class_="plots")


def _examples(comparison: Comparison, groups: Groups) -> list[Element]:
    places = {entry.name: at for at, entry in enumerate(comparison.entries)}
    content: list[Element] = []
    for label, by_group in groups.items():
        shown = []
        for heading, found in by_group.items():
            cards = (example_card(example, places) for example in found)
            shown += [element("h4", heading), _cards(f"{label}, {heading}", cards)]
        content.append(element("details", element("summary", label), *shown, open=not content))
    return content


def _cards(name: str, cards: Iterable[Element]) -> Element:
    """A row of cards, which the keyboard can move where the page is narrow."""
    return element("div", *cards, class_="cards", role="group", aria_label=name, tabindex=0)


def _settings(comparison: Comparison) -> list[Element]:
    content: list[Element] = []
    for entry in comparison.entries:
        run = entry.runs[0]  # its seeds have the same
        about = [str(path) for each in entry.runs for path in each.paths]
        about += [f"checkpoint {run.checkpoint}"] if run.checkpoint else []
        text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "not known"
        lines = [element("p", *_lines(about), class_="soft"), _configuration(entry.name, text)]
        content.append(element("details", element("summary", entry.name), *lines))
    return content


def _configuration(name: str, text: str) -> Element:
    return element("pre", text, role="region", aria_label=f"configuration of {name}", tabindex=0)


def _lines(texts: Sequence[str]) -> list[Element | str]:
    return [part for text in texts for part in (text, element("br"))][:-1]
