"""Which fusion can feed which task: ``python -m fusionkit.assembly.support_matrix PAGE.md`` writes the table into a file."""

import sys
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from fusionkit.assembly.checks import PARTS, lacking
from fusionkit.config import conf_dir, group_choices
from fusionkit.files.atomic import write_text

START, END = "<!-- fusions and tasks, written by make matrix -->\n", "<!-- end of fusions and tasks -->\n"


def matrix() -> str:
    """A markdown table of conf/fusion by conf/task: a tick, or what the task needs and the fusion does not provide."""
    tasks = {name: _target("task", name) for name in group_choices("task")}
    rows = [["fusion", *tasks], ["---"] * (len(tasks) + 1)]
    missing = set()
    for name in group_choices("fusion"):
        fusion = _target("fusion", name)
        cells = [lacking(task.needs, fusion.provides) for task in tasks.values()]
        missing |= {part for cell in cells for part in cell}
        rows.append([f"`{name}`", *(f"no {', '.join(cell)}" if cell else "✓" for cell in cells)])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    legend = "; ".join(f"**{part}**: {PARTS[part]}" for part in sorted(missing))
    return f"{table}\n{legend}.\n"


def write_into(text: str) -> str:
    """A text with the table between its two markers."""
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n{matrix()}\n{END}{after}"


def _target(group: str, name: str) -> Any:
    return get_object(yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())["_target_"])


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, write_into(path.read_text()))
