"""What runs cost, as their logs tell and as ``measure_cost`` measures it (``cost.json``), and how that grows with the input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fusionkit.errors import ConfigError, DataError
from fusionkit.files.names import link_out_of
from fusionkit.files.plain import read_json
from fusionkit.reporting.statistics import exponent

FILE = "cost.json"  # in a sweep's folder, above VARIANT/SEED
AGAIN = "measure again: python -m fusionkit.reporting.measure_cost SWEEP"
TAIL = 3  # the exponent is fitted over so many of the largest sizes: small ones show the overhead
AXES = {"image_tokens": "image tokens (one text)", "texts_per_image": "texts of one image"}
MEASURES = {"seconds": "forward and backward, s", "megabytes": "kept for backward, MB"}


class Unit(NamedTuple):
    """The display of a cost: its title, the unit it is divided by, and the decimals."""

    title: str
    size: float
    digits: int

    def text(self, value: float) -> str:
        """Return the value in this unit."""
        return f"{value / self.size:,.{self.digits}f}"


COSTS = {
    "parameters": Unit("parameters of the model, M", 1e6, 2),
    "fusion_parameters": Unit("parameters of the fusion, M", 1e6, 2),
    "fusion_flops_per_sample": Unit("MFLOPs a sample, fusion alone", 1e6, 1),
    "flops_per_sample": Unit("MFLOPs a sample, whole model", 1e6, 1),
    "step_seconds": Unit("ms a training step, one thread", 1e-3, 0),
    "samples_per_s": Unit("samples/s", 1, 0),
    "peak_mb": Unit("peak memory, MB", 1, 0),
    "image_seconds": Unit("ms of training an image", 1e-3, 2),  # of the run's own log, whatever else the machine did
}


@dataclass(frozen=True)
class Costs:
    """The measured costs of one variant of a sweep; empty where none were measured.

    ``step``    of a training step, by the keys of ``cost.json``.
    ``growth``  of the fusion alone, by what grows (``AXES``): its ``sizes``, and the measures at each.
    ``theory``  the cost of a layer in big O.
    """

    step: Mapping[str, float] = field(default_factory=dict)
    growth: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    theory: str | None = None

    def exponents(self) -> dict[str, float]:
        """Return by "axis/measure" the power of the size that the measure grows with."""
        return {
            f"{axis}/{name}": exponent(self.growth[axis]["sizes"][-TAIL:], self.growth[axis][name][-TAIL:])
            for axis, name in product(AXES, MEASURES)
            if axis in self.growth
        }


def read_costs(home: Path, file: Path | None = None) -> Costs:
    """Read the costs of the run in SWEEP/VARIANT/SEED from ``file`` or from the sweep's own; empty where there is none.

    ConfigError where ``file`` is missing, DataError where it holds something else.
    """
    if file is not None and not file.is_file():
        raise ConfigError(f"costs: there is no file {file}; {AGAIN.replace('again', 'them')}")
    path = file or home.parent.parent / FILE
    if file is None and link_out_of(path.parent, [path]) is not None:
        raise DataError(f"{path} leads out of the sweep's folder; put the file itself there, or remove it")
    content = read_json(path, AGAIN) if path.is_file() else {}
    names = [home.parent.name] if file is None else [home.parent.name, home.name]  # a named one may be of single runs
    try:
        name = next((name for name in names if name in content.get("steps", {})), None)
        parts = [content.get(part, {}).get(name) for part in ("steps", "growth", "theory")]
        step, growth, theory = parts[0] or {}, parts[1] or {}, parts[2]
        is_sound = _are_numbers(step.values()) and _is_growth(growth) and isinstance(theory, str | None)
    except (AttributeError, KeyError, TypeError):  # another structure
        is_sound = False
    if not is_sound:
        raise DataError(f"{path} is no file of costs; {AGAIN}")
    return Costs(step, growth, theory)


def _are_numbers(values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _is_growth(axes: Mapping[str, Any]) -> bool:
    """Return whether each axis has sizes and as many of every measure, all positive."""
    for axis in axes.values():
        rows = [axis[name] for name in ("sizes", *MEASURES)]
        if {len(row) for row in rows} != {len(rows[0])} or len(rows[0]) < 2:
            return False
        if not all(_are_numbers(row) and min(row) > 0 for row in rows):
            return False
    return True
