"""Graphs with example inputs of two sizes: what differs between the two is a dimension that a call chooses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints.graphs.modules import (
    NEXT,
    Graph,
    ImageGraph,
    PairGraph,
    PrefillGraph,
    StepGraph,
    Tensors,
    TextGraph,
)
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.types import Memory

SIZES = ((5, 7, 3), (6, 9, 5))  # rows, tokens of a text, tokens said: of the example, and of another call
BATCH, LENGTH = "batch", "length"


@dataclass
class Example:
    """A graph, what it is given and gives, and the names of those dimensions that change, by tensor and place."""

    graph: Graph
    inputs: Tensors
    outputs: Tensors
    dims: dict[str, dict[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, first: Tensors, second: Tensors) -> "Example":
        """From inputs of the two sizes."""
        chosen = [{name: given[name].contiguous() for name in graph.names} for given in (first, second)]
        found = [run(graph, inputs) for inputs in chosen]
        names = {(SIZES[0][0], SIZES[1][0]): BATCH, (SIZES[0][1], SIZES[1][1]): LENGTH}
        dims = dict[str, dict[int, str]]()
        for name, one in {**chosen[0], **found[0]}.items():
            pairs = zip(one.shape, {**chosen[1], **found[1]}[name].shape, strict=True)
            changing = {place: pair for place, pair in enumerate(pairs) if pair[0] != pair[1]}
            for pair in changing.values():
                names.setdefault(pair, f"tokens_{len(names) - 1}")
            dims[name] = {place: names[pair] for place, pair in changing.items()}
        return cls(graph, chosen[0], found[0], dims)

    def shape(self, name: str) -> list[int | str]:
        """The shape of an input or output, with the names of what changes."""
        tensor = self.inputs.get(name)
        tensor = self.outputs[name] if tensor is None else tensor
        return [self.dims[name].get(place, size) for place, size in enumerate(tensor.shape)]


def run(graph: Graph, inputs: Tensors) -> Tensors:
    """What a graph gives, computed by torch."""
    with torch.no_grad():
        found: Tensors = graph(*(inputs[name] for name in graph.names))
    return found


def image_inputs(side: int) -> list[Tensors]:
    """Pixels of both sizes."""
    draw = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(rows, 3, side, side, generator=draw)} for rows, _, _ in SIZES]


def text_inputs(model: VisionLanguageModel, start: int, end: int) -> list[Tensors]:
    """Texts of both sizes, the last one shorter; what they say is of no concern."""
    found = []
    for rows, length, _ in SIZES:
        ids = torch.arange(rows * length).view(rows, length) % model.text_encoder.word_embeddings.num_embeddings
        mask = torch.ones_like(ids)
        ids[:, 0], ids[:, -1], mask[-1, -2:] = start, end, 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def image_example(model: VisionLanguageModel, side: int, has_contrast: bool) -> Example:
    """The graph of images."""
    return Example.of(ImageGraph(model, has_contrast), *image_inputs(side))


def text_example(model: VisionLanguageModel, texts: list[Tensors]) -> Example:
    """The graph of contrast's texts."""
    return Example.of(TextGraph(model), *texts)


def seen_images(image: Example, side: int) -> list[Tensors]:
    """What the graph of images makes of pixels of both sizes."""
    return [run(image.graph, inputs) for inputs in image_inputs(side)]


def pair_example(
    model: VisionLanguageModel,
    tasks: Mapping[str, Task[Any]],
    memory: Memory,
    images: list[Tensors],
    texts: list[Tensors],
) -> Example:
    """The graph of tasks that read pairs."""
    both = [image | text for image, text in zip(images, texts, strict=True)]
    return Example.of(PairGraph(model, tasks, memory), *both)


def said_examples(
    model: VisionLanguageModel, task: Task[Any], memory: Memory, images: list[Tensors], texts: list[Tensors]
) -> tuple[Example, Example]:
    """The two graphs of a task that says words: its prompts, and one token more."""
    both = [image | text for image, text in zip(images, texts, strict=True)]
    prefill = PrefillGraph(model, task, memory)
    started = Example.of(prefill, *both)
    step = StepGraph(prefill, started.inputs)
    grown, fixed = [], set(step.names)
    for given, (rows, _, count) in zip(both, SIZES, strict=True):
        state = given | run(prefill, given) | {"tokens": torch.arange(rows) % 3}
        for _ in range(count):
            found = run(step, state)
            fixed &= {name for name in step.names if _is_same(found.get(f"{NEXT}{name}"), state[name])}
            state |= {name.removeprefix(NEXT): tensor for name, tensor in found.items() if name.startswith(NEXT)}
        grown.append(state)
    step.fixed = frozenset(fixed)
    return started, Example.of(step, *grown)


def _is_same(found: Tensor | None, given: Tensor) -> bool:
    return found is not None and found.shape == given.shape and found.equal(given)
