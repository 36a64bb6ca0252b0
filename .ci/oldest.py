"""Print the oldest version that pyproject.toml allows of each dependency, as a constraints file for pip."""

import re
import tomllib
from pathlib import Path

EXTRAS = (
    "pretrained",
    "regions",
    "adapters",
    "quantised",
    "search",
    "graphs",
    "serve",
)  # the tools of `dev` are not what a user has


def oldest(pyproject: dict) -> list[str]:
    """``name==version`` for each ``name>=version`` of the dependencies and of the extras that a user installs."""
    project = pyproject["project"]
    wanted = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    bounds = [re.match(r"([\w.-]+)(?:\[.*?\])?>=([\w.]+)", line) for line in wanted]
    if missing := [line for line, bound in zip(wanted, bounds, strict=True) if not bound]:
        raise SystemExit(f"pyproject.toml: no oldest version of {', '.join(missing)}; write name>=version")
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


if __name__ == "__main__":
    print("\n".join(oldest(tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text()))))
