"""Fixtures of published code, imported as a user would, and compared by their published names.

``NAME.pth`` holds weights in the published layout, ``NAME.io.safetensors`` inputs, draws, states, losses and gradient norms,
``NAME.json`` the sizes, which become options of the import.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fusionkit.checkpoints.base import Plan, longest
from fusionkit.checkpoints.pretrained import Pretrained, from_pretrained
from fusionkit.checkpoints.source import Source, read_source
from fusionkit.checkpoints.write import import_into
from fusionkit.negatives import Drawn, HardNegatives
from tests.conftest import REFERENCE
from tests.parity.imported import NO_DROPOUT, close, planned

DATA = Path(__file__).parent / "data"
PUBLIC = REFERENCE / "reference/fixtures"
FOLDER = Path(os.environ.get("FUSIONKIT_FIXTURES", PUBLIC))


def fixtures(*beginnings: str, but: tuple[str, ...] = ()) -> list[Any]:
    """Paths without suffix of the fixtures whose names begin so, each once; those that are not copied here may be missing.

    The copies, of each family one at least, come before the reference files; before both a folder named in the environment.
    """
    found = {}
    for folder in (FOLDER, DATA) if FOLDER == PUBLIC else (DATA, FOLDER):
        for path in sorted(folder.glob("*.json")):
            if path.stem.startswith(beginnings) and not path.stem.startswith(but or ("-",)):
                found[path.stem] = path.with_suffix("")
    marks = {name: pytest.mark.reference if path.parent == PUBLIC else () for name, path in found.items()}
    missing = [
        pytest.param(
            FOLDER / beginnings[0],
            id=beginnings[0],
            marks=pytest.mark.skip(reason=f"a further fixture, not copied here: no file {FOLDER}/{beginnings[0]}*"),
        )
    ]
    return [pytest.param(path, id=name, marks=marks[name]) for name, path in found.items()] or missing


@dataclass(frozen=True)
class Published:
    """One fixture beside our network with its weights."""

    sizes: dict[str, Any]
    io: dict[str, Tensor]
    weights: dict[str, Tensor]
    plan: Plan
    network: Pretrained

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.module.named_parameters())


class Imported(NamedTuple):
    """Our network with the weights of a published checkpoint."""

    source: Source
    plan: Plan
    network: Pretrained


def import_network(family: str, path: Path, folder: Path, options: Mapping[str, Any]) -> Imported:
    """Import a checkpoint as the command line does, with options over those of conf/import, and load what is written."""
    planner = planned(family, {**options, "bert": {**options.get("bert", {}), **NO_DROPOUT}})
    import_into(folder, str(path), planner)
    source = read_source(path)
    return Imported(source, planner(source), from_pretrained(folder))


def imported(path: Path, folder: Path, options: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Published:
    """Import a fixture with the sizes that ``options`` takes from its json; in training mode, without dropout."""
    sizes = json.loads(path.with_suffix(".json").read_text())
    family = path.name.partition("_")[0]
    source, plan, network = import_network(family, path.with_suffix(".pth"), folder / path.name, options(sizes))
    network.module.train()
    return Published(sizes, load_file(path.with_suffix(".io.safetensors")), dict(source.state), plan, network)


def taken(sizes: Mapping[str, Any], names: Mapping[str, tuple[str, ...]], *plain: str) -> dict[str, Any]:
    """The named groups of sizes, each less what is a note to the reader, and plain sizes, where the json has them."""
    groups = {
        group: {n: sizes[group][n] for n in inner if n in sizes[group]}
        for group, inner in names.items()
        if group in sizes
    }
    return groups | {name: sizes[name] for name in plain if name in sizes}


def close_where(mask: Tensor, ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal at the real tokens: what the published code computes at padding is read by nobody."""
    assert mask.any()
    close(ours[mask.bool()], theirs[mask.bool()], tolerance)


def places(published: Published, name: str) -> list[tuple[str, int, int]]:
    """Our names of a published tensor, each with the number of its part of ours and of how many parts ours is."""
    keys = published.plan.keys
    start = longest(name, {key.theirs: key for key in keys})
    found = []
    for key in keys:
        if key.theirs == start and isinstance(key.ours, str):
            parts = [other.part for other in keys if other.ours == key.ours and other.part is not None]
            found.append((key.ours + name[len(start) :], key.part or 0, 1 + max(parts, default=0)))
    return found


def check_gradients(published: Published, prefix: str = "grad_norm.") -> None:
    """Every published gradient norm is ours (1e-4; the floor is the rounding of norms that are 0), and no parameter lacks one."""
    theirs = {name.removeprefix(prefix): norm for name, norm in published.io.items() if name.startswith(prefix)}
    parameters, seen = published.parameters, set()
    assert len(theirs) > 40
    for name, norm in theirs.items():
        ours = [place for place in places(published, name) if place[0] in parameters]
        assert ours, name
        place, part, parts = ours[0]
        seen.add(place)
        gradient = parameters[place].grad
        found = 0.0 if gradient is None else (gradient.chunk(parts)[part] if parts > 1 else gradient).norm().item()
        assert found == pytest.approx(norm.item(), rel=1e-4, abs=1e-6), name
    assert [name for name, p in parameters.items() if name not in seen and p.grad is not None and p.grad.any()] == []


def check_averages(published: Published) -> None:
    """The moving averages after one step, for those that the fixture gives; none of a model that has no teacher."""
    theirs = {name.removeprefix("after."): value for name, value in published.io.items() if name.startswith("after.")}
    state = published.network.module.state_dict()
    assert bool(theirs) == (published.network.teacher is not None)
    for name, value in theirs.items():
        (place,) = {place for place, _, _ in places(published, name) if place in state}
        close(state[place], value)


class ScriptedNegatives(HardNegatives):
    """Gives back the images, then the texts, that the published code drew, and keeps the law it would have drawn from."""

    def __init__(self, images: Tensor, texts: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.answers, self.laws = [images, texts], []

    def forward(self, similarity: Tensor, is_excluded: Tensor, listed: Tensor | None = None) -> Drawn:
        self.laws.append(self.distribution(similarity, is_excluded, listed))
        columns = self.answers[(len(self.laws) - 1) % 2][:, None]
        return Drawn(columns, torch.ones_like(columns, dtype=torch.bool), torch.zeros(()))


def close_laws(laws: list[Tensor], *weights: Tensor) -> None:
    """Sampling laws against published weights, which torch.multinomial normalises."""
    for law, published in zip(laws, weights, strict=True):
        close(law, published / published.sum(dim=1, keepdim=True))


def rows(
    input_ids: Tensor, attention_mask: Tensor, image_index: Tensor | None = None, **facts: Tensor
) -> dict[str, Any]:
    """Texts of a batch; row i is about image i unless said otherwise."""
    count = torch.arange(len(input_ids))
    index = count if image_index is None else image_index
    word_index = torch.zeros_like(input_ids)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "word_index": word_index,
        "image_index": index,
        "ids": count.tolist(),
        **facts,
    }


def step(published: Published, batch: dict, kind: str, *names: str):
    """A training step of tasks, as the published forward does it: the averages move first, then all is encoded."""
    network, teacher = published.network, published.network.teacher
    network.model.clamp_temperature()
    encoded, seen, views = network.model.encode(batch, [kind]), None, {}
    if teacher is not None:
        teacher.update(network.model, network.tasks)
        seen = teacher.encode(batch, [kind])
        views = {name: teacher.view(name, seen, teacher.alpha(0)) for name in names}
    outputs = {name: network.tasks[name](network.model, batch, encoded, views.get(name)) for name in names}
    return encoded, seen, outputs


def known(ids: Tensor, mask: Tensor) -> tuple[list[str], list[list[int]]]:
    """Answers without the start and the end token, each by a name of its own."""
    answers = [row[1 : int(count) - 1].tolist() for row, count in zip(ids, mask.sum(dim=1), strict=True)]
    return [str(number) for number in range(len(answers))], answers
