"""A checkpoint as graphs that run without us: which parts it has, and the folder that they are written to."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionkit.assembly.artifacts import tokenizer_files
from fusionkit.assembly.objectives import active_objectives
from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.directory import require_new
from fusionkit.checkpoints.graphs.describe import TOKENIZER, describe, ports_of
from fusionkit.checkpoints.graphs.examples import (
    Example,
    image_example,
    pair_example,
    said_examples,
    seen_images,
    text_example,
    text_inputs,
)
from fusionkit.checkpoints.graphs.formats import (
    keep_outputs,
    no_graph,
    ports,
    quiet,
    require_equal,
    require_onnx,
    save_onnx,
    to_onnx,
    trace,
)
from fusionkit.checkpoints.graphs.modules import IMAGE, MEMORY, TextGraph
from fusionkit.checkpoints.graphs.triton import triton_config
from fusionkit.data.tokenizer import text_format
from fusionkit.encoders.base import ImageEncoder
from fusionkit.errors import ConfigError, UserError, suggest
from fusionkit.files.atomic import atomic_folder
from fusionkit.fusion.base import SupportsInstructions
from fusionkit.fusion.layers import row_by_row
from fusionkit.model.adapters import merge
from fusionkit.model.int8 import is_int8
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import SupportsPairScores, Task
from fusionkit.tasks.decoding import SupportsSaying

LAYOUTS = ("onnx", "torch")
REPOSITORY = "model_repository"  # as Triton wants it: NAME/config.pbtxt, NAME/1/model.onnx
FILE, CARD = "graphs.json", "README.md"
USE = (
    "Its graphs are run by onnxruntime or torch alone, without fusionkit. `graphs.json` says of each its inputs and outputs, how "
    "images and texts are read, and what the numbers mean."
)


def write_graphs(
    folder: Path,
    parts: Parts,
    layout: str,
    int8: bool = False,
    tasks: Sequence[str] | None = None,
    card: Callable[[Mapping[str, str | None], str], str] | None = None,
) -> list[str]:
    """Write the graphs of a checkpoint's tasks to a new folder, whole or not at all; gives lines that say what they are.

    ``tasks`` are those whose graphs are wanted; None: all that reply to something. ``card`` makes a model card of what each task
    replies to, and how the folder is used. The parts do not train any more. Raises ConfigError for what cannot be put in
    a graph.
    """
    if layout == "onnx":
        require_onnx()
    require_new(folder)
    model = parts.model
    for module in (model, *parts.tasks.values()):
        module.eval().requires_grad_(False)
    if any(is_int8(weight) for weight in model.parameters()):
        raise ConfigError(
            f"layout={layout}: the checkpoint has weights of 8 bits, which no graph reads; give the checkpoint that they are of, "
            "and int8=true with layout=onnx"
        )
    merge(model)
    chosen = choose_tasks(parts, tasks)
    require_plain(parts)
    told_card = None if card is None else card({name: parts.tasks[name].replies_to for name in chosen.sources}, USE)
    examples = examples_of(parts, chosen.sources)
    made = {name: trace(name, example) for name, example in examples.items()}
    with atomic_folder(folder, "make room, or choose another output=FOLDER") as half_made:
        written = (
            _write_onnx(half_made, made, examples, int8)
            if layout == "onnx"
            else _write_torch(half_made, made, examples)
        )
        told = describe(parts, chosen.sources, written, examples, layout, int8, chosen.left_out)
        for name, text in tokenizer_files(parts.datamodule.tokenizer).items():
            (half_made / TOKENIZER / name).parent.mkdir(parents=True, exist_ok=True)
            (half_made / TOKENIZER / name).write_text(text, encoding="utf-8")
        if told_card is not None:
            (half_made / CARD).write_text(told_card, encoding="utf-8")
        (half_made / FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"{name}: {', '.join(entry['graphs'])}" for name, entry in told["tasks"].items()]
    return lines + [f"{name}: no graph, {reason}" for name, reason in chosen.left_out.items()]


@dataclass(frozen=True)
class Chosen:
    """The tasks that get graphs, each with the source that it is read as, and why others get none."""

    sources: Mapping[str, str]
    left_out: Mapping[str, str]


def choose_tasks(parts: Parts, wanted: Sequence[str] | None) -> Chosen:
    """Of the tasks that were trained those that reply; ConfigError for a name that none has, and for one that has no graph."""
    active = active_objectives(parts.objectives, parts.tasks)
    trained = {name: source for source, names in reversed(active.items()) for name in names}
    for name in wanted or ():
        if name not in trained:
            raise ConfigError(
                f"tasks names '{name}', which the checkpoint was not trained with; {suggest(name, trained)}"
            )
    sources, left_out = dict[str, str](), dict[str, str]()
    for name, source in sorted(trained.items(), key=lambda pair: list(parts.tasks).index(pair[0])):
        task = parts.tasks[name]
        if wanted is not None and name not in wanted:
            left_out[name] = "it is not among tasks"
        elif task.replies_to is None:
            left_out[name] = "it answers nothing that is asked about one image"
        elif fault := fault_of_name(name) or fault_of(task, parts.model):
            raise ConfigError(
                f"task {name} cannot be put in a graph: {fault}; leave it out by tasks=[...], naming the others, or export "
                "without layout, which every model can be"
            )
        else:
            sources[name] = source
    if not sources:
        raise ConfigError(
            "the checkpoint has no task that replies, so that there is nothing to put in a graph; export without layout"
        )
    return Chosen(sources, left_out)


def fault_of_name(name: str) -> str | None:
    """Why a name cannot stand in graphs, where it becomes that of files, of outputs, and of a model of Triton."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", name) is None:
        return "its name has others than plain letters, digits, _ and -"
    if name in (*TextGraph.names, IMAGE) or re.fullmatch(rf"{MEMORY}\d+", name):
        return "its name is that of an input of its graph"
    return None


def fault_of(task: Task[Any], model: VisionLanguageModel) -> str | None:
    """Why a task has no graph."""
    if task.ranks or isinstance(task, SupportsPairScores):
        return None
    if not isinstance(task, SupportsSaying):
        return f"what {type(task).__name__} replies is not read off one row of numbers a pair"
    return (
        None if model.is_incremental else "its words are not said from keys and values, but each by the whole text anew"
    )


def require_plain(parts: Parts) -> None:
    """Raise ConfigError for images and fusions whose inputs are no plain tensors of one shape."""
    encoder: ImageEncoder = parts.model.image_encoder
    fault = None
    if encoder.reads != "pixel_values":
        fault = f"{type(encoder).__name__} reads {encoder.reads}, whose number hangs on the image"
    elif parts.datamodule.finish.fit == "keep":
        fault = "data.fit is keep, with which each image has a shape of its own"
    elif isinstance(parts.model.fusion, SupportsInstructions):
        fault = f"{type(parts.model.fusion).__name__} reads each text twice, by two tokenizers"
    if fault is not None:
        raise ConfigError(
            f"the images cannot be put in a graph: {fault}; export without layout, which every model can be"
        )


def examples_of(parts: Parts, sources: Mapping[str, str]) -> dict[str, Example]:
    """All graphs of these tasks by name, with what they are traced with."""
    model, side = parts.model, parts.datamodule.finish.size
    words = text_format(parts.datamodule.tokenizer)
    texts = text_inputs(model, words.start, words.end)
    tasks = {name: parts.tasks[name] for name in sources}
    has_contrast = any("feats" in task.needs for task in tasks.values())
    found, part = dict[str, Example](), "image"
    try:
        with quiet():
            image = found["image"] = image_example(model, side, has_contrast)
            with row_by_row(), torch.no_grad():
                tokens = model.encode_image(image.inputs["pixel_values"])
                memory = model.fusion.prepare(tokens)
            if tokens.mask is not None:
                raise ConfigError(
                    "the images cannot be put in a graph: they have a mask of their own; export without layout"
                )
            images = seen_images(image, side)
            if has_contrast:
                part = "text"
                found["text"] = text_example(model, texts)
            if pairs := {name: task for name, task in tasks.items() if not task.ranks and is_pair(task)}:
                part = "pair"
                found["pair"] = pair_example(model, pairs, memory, images, texts)
            for name, task in tasks.items():
                if isinstance(task, SupportsSaying):
                    part = name
                    found[f"{name}_prefill"], found[f"{name}_step"] = said_examples(model, task, memory, images, texts)
    except UserError:
        raise
    except Exception as error:  # whatever a part of one's own makes of plain tensors
        raise no_graph(part, error) from error
    return found


def is_pair(task: Task[Any]) -> bool:
    """Whether a task's reply is read off one row of numbers a pair."""
    return isinstance(task, SupportsPairScores) and not isinstance(task, SupportsSaying)


def _write_torch(folder: Path, made: Mapping[str, Any], examples: Mapping[str, Example]) -> dict[str, Any]:
    found = {}
    for name, program in made.items():
        example = examples[name]
        with quiet():
            torch.export.save(program, folder / f"{name}.pt2")
        found[name] = _entry(f"{name}.pt2", example, list(example.graph.names), list(example.outputs))
    return found


def _write_onnx(folder: Path, made: Mapping[str, Any], examples: Mapping[str, Example], int8: bool) -> dict[str, Any]:
    models = {name: to_onnx(name, program, examples[name]) for name, program in made.items()}
    read = {name for model in models.values() for name in ports(model)[0]}
    keep_outputs(models["image"], read | {"image_embeds", "image_feats"})
    found = {}
    for name, model in models.items():
        place = folder / REPOSITORY / name
        entry = _entry(f"{REPOSITORY}/{name}/1/model.onnx", examples[name], *ports(model))
        save_onnx(model, folder / entry["file"], int8)
        if not int8:
            require_equal(name, folder / entry["file"], examples[name], [port["name"] for port in entry["outputs"]])
        (place / "config.pbtxt").write_text(triton_config(name, entry["inputs"], entry["outputs"]), encoding="utf-8")
        found[name] = entry
    return found


def _entry(file: str, example: Example, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {"file": file, "inputs": ports_of(example, inputs), "outputs": ports_of(example, outputs)}
