"""The composed run as a short tree: what is trained, on what, for how long, where."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lightning import Trainer
from rich.console import Console
from rich.tree import Tree
from torch import nn

from fusionkit.assembly.parts import Parts
from fusionkit.model.base_weights import count_parameters
from fusionkit.scoring.scorers import notes_of


def print_run(
    parts: Parts, trainer: Trainer, memory: Sequence[tuple[str, float]] = (), console: Console | None = None
) -> None:
    """Print the tree; ``memory`` is in bytes, by what it is for, and last in all."""
    config = parts.config
    tree = Tree(f"[bold]{config.name}[/bold]  seed {config.seed}  ->  {config.output_dir}", highlight=True)
    tree.add(_model(parts))
    tree.add(_objectives(parts))
    tree.add(f"balance    {config.balance._target_.rpartition('.')[2]}")
    tree.add(f"steps      {_length(parts, trainer)}")
    if config.get("stages"):
        tree.add("stages     " + ", then ".join(f"{name} ({_span(stage)})" for name, stage in config.stages.items()))
    ranks = f", {trainer.world_size} ranks" if trainer.world_size > 1 else ""
    tree.add(f"device     {trainer.strategy.root_device}{ranks}, precision {trainer.precision}")
    if memory:
        tree.add(_memory(memory))
    console = console or Console(soft_wrap=True)
    console.print(tree, soft_wrap=False)  # which would cut a tree's rows off
    for note in _notes(parts):
        console.print(note, highlight=False, markup=False)


def _model(parts: Parts) -> Tree:
    model = parts.model
    rows: dict[str, list[nn.Module]] = {
        "image_encoder": [model.get_submodule("image_encoder")],
        "text_encoder": [model.get_submodule("text_encoder")],
        "fusion": [model.get_submodule("fusion")],
        "projections": [model.image_projection, model.text_projection],
        **{f"task {name}": [task] for name, task in parts.tasks.items()},
    }
    branch = Tree(f"model      {_count([model, *parts.tasks.values()])} parameters")
    for name, modules in rows.items():
        branch.add(f"{name:<15}{_count(modules)}  {type(modules[0]).__name__}")
    return branch


def _count(modules: Iterable[nn.Module]) -> str:
    """Parameters of some modules together, and how many of them are frozen."""
    modules = list(modules)
    counts = count_parameters(modules)
    total = sum(counts.values())
    frozen = total - sum(
        counts[id(p)] for p in {p for module in modules for p in module.parameters() if p.requires_grad}
    )
    note = " frozen" if frozen == total else f" ({_short(frozen)} frozen)"
    return f"{_short(total):>7}{note if frozen else ''}"


def _short(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 10_000 else str(number)


def _objectives(parts: Parts) -> Tree:
    data, branch = parts.datamodule, Tree("objectives")
    for source, weights in parts.objectives.items():
        images, dropped = len(data.samples(source, "train")), data.dropped[source]
        note = f", {dropped} dropped that held-out splits show" if dropped else ""
        note += "".join(f", {told}" for told in data.told_missing(source, "train"))
        row = branch.add(f"{source}: {images:,} images, {data.sources[source].batch_size} a step{note}")
        row.add("  ".join(f"{task} x {weight:g}" for task, weight in weights.items()))
    return branch


def _notes(parts: Parts) -> Iterator[str]:
    """What has to be said beside the scores of the validation."""
    data = parts.datamodule
    for source, weights in parts.objectives.items():
        held_out = data.sources[source].splits.keys() - {"train"}
        for role in sorted(held_out & {"val", *parts.config.evaluation.roles}):
            yield from (f"{source}, {role}: {told}" for told in data.told_missing(source, role))
        if "val" in data.sources[source].splits:
            tasks = {name: parts.tasks[name] for name in weights}
            for what, note in notes_of(tasks, data.samples(source, "val")).items():
                yield f"validation on {source}, {what}: {note}"


def _memory(rows: Sequence[tuple[str, float]]) -> Tree:
    *each, (_, total) = rows
    branch = Tree(f"memory     {total / 2**20:,.1f} MB a process, batches aside (fusionkit plan measures them)")
    for name, size in each:
        branch.add(f"{name:<38}{size / 2**20:>10,.1f}")
    return branch


def _span(stage: Any) -> str:
    return "to the end" if stage.steps is None else f"{stage.steps} steps"


def _length(parts: Parts, trainer: Trainer) -> str:
    """How long the run is, in the words of its configuration."""
    per_epoch = -(-parts.datamodule.steps // trainer.world_size)
    limits = [f"{trainer.max_epochs} epochs of {per_epoch}"] if (trainer.max_epochs or 0) > 0 else []
    limits += [f"{trainer.max_steps} steps"] if trainer.max_steps > 0 else []
    minutes = (parts.config.scheduler or {}).get("max_minutes")
    limits += [f"{minutes:g} minutes"] if minutes else []
    accumulated = trainer.accumulate_grad_batches
    note = f", each optimiser step over {accumulated}" if accumulated > 1 else ""
    return f"{', or '.join(limits) or 'no end'}{note}"
