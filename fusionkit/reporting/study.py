"""Table, plots and results.json of a study, from the files of its runs: ``python -m fusionkit.reporting.study SWEEP OUT``.

Nothing is trained or measured here. OUT/cost.json (fusionkit.reporting.cost) is shown beside the quality where it exists.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionkit.files.atomic import write_text
from fusionkit.reporting.statistics import exponent
from fusionkit.reporting.study_runs import read_runs
from fusionkit.reporting.study_table import growth_table, study_table

MARKERS = ("<!-- tables -->", "<!-- /tables -->")  # what a README shows between them is replaced
TAIL = 3  # of the measured sizes, the largest ones, the exponent is taken over: small ones show the overhead


def write_study(sweep: Path, out: Path, source: str = "shapes") -> None:
    """Write OUT/results.json, table.md and plots; renew the tables of OUT/README.md."""
    from fusionkit.reporting import study_plots

    runs, costs = read_runs(sweep, source), read_costs(out)
    write_text(out / "results.json", json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    steps, growth = costs.get("steps", {}), costs.get("growth", {})
    tables = [study_table(runs, steps)]
    study_plots.plot_quality(runs, out / "quality.png")
    if steps:
        study_plots.plot_quality_against_cost(runs, steps, out / "quality_against_cost.png")
    if growth:
        exponents = exponents_of(growth)
        tables.append(growth_table(exponents, costs["theory"]))
        study_plots.plot_growth(growth, exponents, out / "growth.png")
    text = "\n".join(tables)
    write_text(out / "table.md", text)
    renew(out / "README.md", text)
    print(f"{len(runs)} runs: {out}/table.md, results.json and plots")


def read_costs(out: Path) -> dict[str, Any]:
    """The measured costs, empty where they were not measured."""
    path = out / "cost.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def exponents_of(growth: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By variant, then by "axis/measure", the exponent over the largest sizes."""
    return {
        name: {
            f"{axis}/{measure}": exponent(row["sizes"][-TAIL:], row[measure][-TAIL:])
            for axis, row in axes.items()
            for measure in ("seconds", "megabytes")
        }
        for name, axes in growth.items()
    }


def renew(readme: Path, text: str) -> None:
    """Put the text between the markers of a README, where there is one that has them."""
    content = readme.read_text(encoding="utf-8") if readme.exists() else ""
    begin, end = (content.find(marker) for marker in MARKERS)
    if 0 <= begin < end:
        kept = content[: begin + len(MARKERS[0])], content[end:]
        write_text(readme, f"{kept[0]}\n\n{text}\n{kept[1]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fusionkit.reporting.study", description=__doc__)
    parser.add_argument("sweep", type=Path, help="folder of the runs, SWEEP/VARIANT/SEED")
    parser.add_argument("out", type=Path, help="folder of the study, such as experiments/fusion-study")
    parser.add_argument("--source", default="shapes", help="whose metrics are shown")
    options = parser.parse_args(arguments)
    write_study(options.sweep, options.out, options.source)


if __name__ == "__main__":
    main()
