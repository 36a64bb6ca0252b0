"""What the outputs of heads with fixed classes mean, here and in published checkpoints, and their order by meaning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError
from fusionkit.tasks import entailment, itm, nlvr2

Classes = Mapping[str, Sequence[str]]
"""By task, the class that each output of a head stands for, by its name here."""
OURS: Classes = {  # constants: a checkpoint of ours stores no names for these, so that another order would permute it
    "itm": itm.LABELS,
    "nlvr2": nlvr2.LABELS,
    "nlvr2_paired": nlvr2.LABELS,
    "entailment": entailment.LABELS,
}

TURNED = {"uniter": "entailment", "visualbert": "itm"}
"""By family, the head that was imported in the published order before ``origin`` said what its classes mean."""


def require_ordered(path: Path, content: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise DataError for an import of an earlier version whose classes would be called by each other's names."""
    origin = content.get("origin") or {}
    task = TURNED.get(str(origin.get("family")))
    if "classes" not in origin and any(name.startswith(f"tasks.{task}.head.") for name in state):
        raise DataError(
            f"checkpoint {path} was imported by an earlier version, which took the classes of {task} for each other; import "
            f"{origin.get('file', 'the published file')} again"
        )


def to_ours(state: Mapping[str, Tensor], theirs: Classes) -> dict[str, Tensor]:
    """The state, by our names in the order of our modules, with the last layers of heads put from their order into ours."""
    return _reordered(state, theirs, OURS)


def to_theirs(state: Mapping[str, Tensor], theirs: Classes) -> dict[str, Tensor]:
    """The inverse of ``to_ours``."""
    return _reordered(state, OURS, theirs)


def _reordered(state: Mapping[str, Tensor], given: Classes, wanted: Classes) -> dict[str, Tensor]:
    found = dict(state)
    for task in given.keys() & wanted.keys():
        order = [list(given[task]).index(label) for label in wanted[task]]
        for place in (f"tasks.{task}.head.", f"teacher.heads.{task}."):
            names = [name for name in state if name.startswith(place)]
            last = names[-1].rpartition(".")[0] if names else None
            found |= {name: state[name][order] for name in names if name.rpartition(".")[0] == last}
    return found


def saved_labels(source: Source) -> dict[str, str]:
    """``id2label`` of a folder that transformers saved; none where it is no object of texts."""
    labels = (source.config or {}).get("id2label")
    is_plain = isinstance(labels, dict) and all(isinstance(label, str) for label in labels.values())
    return {str(number): label for number, label in labels.items()} if labels and is_plain else {}


def named_classes(source: Source, task: str, published: Sequence[str]) -> Sequence[str]:
    """The classes of a head as the saved ``id2label`` orders them, as published where it has no names ("LABEL_0").

    Raises DataError for names that are not those of the task.
    """
    labels = saved_labels(source)
    if not labels or any(label.startswith("LABEL_") for label in labels.values()):
        return published
    known = {label.lower(): label for label in OURS[task]}
    told = [labels.get(str(number), "").lower() for number in range(len(labels))]
    if sorted(told) != sorted(known):
        raise DataError(
            f"{source.path}: id2label in config.json names {', '.join(labels.values())}, but the classes of {task} are "
            f"{', '.join(OURS[task])}; name them so"
        )
    return [known[label] for label in told]
