"""What each graph computes: the model's own methods, between plain tensors; text t is about image t."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.checkpoints.graphs.nested import filled, flat
from fusionkit.fusion.layers import row_by_row
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import SupportsPairScores, Task
from fusionkit.tasks.decoding import CachedDecoderState, DecoderInputs, SupportsSaying
from fusionkit.types import Encoded, Fused, Memory, Tokens

Tensors = dict[str, Tensor]
IMAGE, MEMORY, PAST, CONTEXT, NEXT = "image_embeds", "memory_", "past_", "context_", "next_"


class Graph(nn.Module):
    """Tensors by name to tensors by name; ``names`` are those of the inputs, in the order of a call."""

    names: Sequence[str]

    def compute(self, given: Tensors) -> Tensors:
        """The outputs of inputs (rows, ...)."""
        raise NotImplementedError

    def forward(self, *tensors: Tensor) -> Tensors:
        with row_by_row():
            found = self.compute(dict(zip(self.names, tensors, strict=True)))
        return {
            name: tensor.contiguous() for name, tensor in found.items()
        }  # torch's programs hold others to their strides


def numbered(prefix: str, tensors: Sequence[Tensor]) -> Tensors:
    """Tensors by a common name and their number."""
    return {f"{prefix}{number}": tensor for number, tensor in enumerate(tensors)}


def of(prefix: str, given: Mapping[str, Tensor]) -> list[Tensor]:
    """Those of a common name."""
    return [tensor for name, tensor in given.items() if name.startswith(prefix)]


class ImageGraph(Graph):
    """``pixel_values`` (I, 3, H, W) -> tokens, what the fusion makes of them before any text, and features of contrast."""

    names = ("pixel_values",)

    def __init__(self, model: VisionLanguageModel, has_contrast: bool) -> None:
        super().__init__()
        self.model, self.has_contrast = model, has_contrast

    def compute(self, given: Tensors) -> Tensors:
        image = self.model.encode_image(given["pixel_values"])
        feats = {"image_feats": self.model.project_image(image)} if self.has_contrast else {}
        return feats | {IMAGE: image.embeds} | numbered(MEMORY, flat(self.model.fusion.prepare(image)))


class TextGraph(Graph):
    """``input_ids`` and ``attention_mask`` (T, L) -> features of contrast."""

    names = ("input_ids", "attention_mask")

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def compute(self, given: Tensors) -> Tensors:
        tokens = self.model.encode_text(given["input_ids"], given["attention_mask"])
        return {"text_feats": self.model.project_text(tokens)}


class FusesOnce:
    """A model whose tasks ask it to fuse the same texts with the same images: it does so for the first."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model = model
        self._found: Fused | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def fuse(self, *inputs: Any) -> Fused:
        if self._found is None:
            self._found = self._model.fuse(*inputs)
        return self._found


class PairGraph(Graph):
    """Texts and what ``ImageGraph`` made of the image of each -> the numbers of each task, by its name."""

    def __init__(self, model: VisionLanguageModel, tasks: Mapping[str, Task[Any]], memory: Memory) -> None:
        super().__init__()
        self.model, self.tasks, self.memory = model, nn.ModuleDict(tasks), memory
        self.names = ("input_ids", "attention_mask", IMAGE, *numbered(MEMORY, flat(memory)))

    def compute(self, given: Tensors) -> Tensors:
        model: Any = FusesOnce(self.model)
        text = self.model.encode_text(given["input_ids"], given["attention_mask"])
        scores = {}
        for name, task in self.tasks.items():
            assert isinstance(task, Task)
            assert isinstance(task, SupportsPairScores)
            batch, encoded = _one_kind(task.reads, given, self.memory, text)
            scores[name] = task.pair_scores(model, batch, encoded)
        return scores


class PrefillGraph(Graph):
    """Prompts, and what ``ImageGraph`` made of the image of each -> logits of the first token (T, V), and what to go on from."""

    def __init__(self, model: VisionLanguageModel, task: Task[Any], memory: Memory) -> None:
        super().__init__()
        self.model, self.task, self.memory = model, task, memory
        words = () if task.replies_to == "caption" else ("input_ids", "attention_mask")
        self.names = (*words, IMAGE, *numbered(MEMORY, flat(memory)))

    def inputs(self, given: Tensors) -> DecoderInputs:
        """What the task's reply follows."""
        assert isinstance(self.task, SupportsSaying)
        kind, text = self.task.reads, None
        if self.task.encodes:
            text = self.model.encode_text(given["input_ids"], given["attention_mask"])
        batch, encoded = _one_kind(kind, given, self.memory, text)
        return self.task.said(self.model, batch, encoded)

    def started(self, given: Tensors) -> tuple[Tensor, DecoderInputs, Any]:
        """Logits, and the state behind the prompts."""
        shared = self.inputs(given)
        logits, state = CachedDecoderState(shared).start()
        return logits, shared, state

    def compute(self, given: Tensors) -> Tensors:
        logits, shared, (past, seen, _, _) = self.started(given)
        context = [] if self.reads_images(shared, given) else flat(shared.memory)
        return {"logits": logits, "text_mask": seen} | numbered(CONTEXT, context) | numbered(PAST, flat(past))

    def reads_images(self, shared: DecoderInputs, given: Tensors) -> bool:
        """Whether what is said reads the images' memory, and not one that was made of it."""
        ours, theirs = flat(shared.memory), of(MEMORY, given)
        return len(ours) == len(theirs) and all(one is other for one, other in zip(ours, theirs, strict=True))


class StepGraph(Graph):
    """One more token of each text -> logits of the next (T, V), and what to go on from.

    ``example`` are inputs of the prefill; ``fixed`` the names of what no step changes.
    """

    def __init__(self, prefill: PrefillGraph, example: Tensors, fixed: Sequence[str] = ()) -> None:
        super().__init__()
        self.prefill, self.fixed = prefill, frozenset(fixed)
        with row_by_row(), torch.no_grad():
            _, self.shared, (self.past, _, _, _) = prefill.started(example)
        self.prefix = MEMORY if prefill.reads_images(self.shared, example) else CONTEXT
        memory = numbered(self.prefix, flat(self.shared.memory))
        self.names = ("tokens", "text_mask", *memory, *numbered(PAST, flat(self.past)))

    def compute(self, given: Tensors) -> Tensors:
        tokens, seen = given["tokens"], given["text_mask"]
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        shared = self.shared._replace(memory=filled(self.shared.memory, of(self.prefix, given)))
        state = filled(self.past, of(PAST, given)), seen, seen.sum(dim=1), rows
        logits, (past, seen, _, _) = CachedDecoderState(shared).advance(tokens, state)
        grown = numbered(PAST, flat(past))
        kept = {f"{NEXT}{name}": tensor for name, tensor in grown.items() if name not in self.fixed}
        return {"logits": logits, f"{NEXT}text_mask": seen} | kept


def _one_kind(kind: str, given: Tensors, like: Memory, text: Tokens | None) -> tuple[Any, Encoded]:
    """A batch with texts of one kind, each about the image of its number, as a task reads it."""
    memory = filled(like, of(MEMORY, given))
    image = Tokens(given[IMAGE], None, given[IMAGE][:, 0])  # its own pooled vector is in the memory of who reads it
    first = of(MEMORY, given)[0]
    rows = torch.arange(first.shape[0], device=first.device)
    batch: dict[str, Any] = {"image_keys": rows}
    if "input_ids" in given:
        ids, mask = given["input_ids"], given["attention_mask"]
        words = {"input_ids": ids, "attention_mask": mask, "prompt_ids": ids, "prompt_mask": mask}
        batch[kind] = words | {"image_index": rows}
    encoded = Encoded(image, memory, image.pooled, {} if text is None else {kind: text}, {})
    return batch, encoded
