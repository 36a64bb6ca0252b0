"""graphs.json, for who has the graphs and not us: their ports, how images and texts are read, and what numbers mean."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from fusionkit import __version__
from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.graphs.examples import BATCH, Example
from fusionkit.checkpoints.graphs.modules import NEXT
from fusionkit.data.cleaning import KINDS
from fusionkit.data.texts.chat import ChatTemplate
from fusionkit.data.texts.conversations import CONVERSATIONS
from fusionkit.data.tokenizer import text_format
from fusionkit.data.transforms import Finish
from fusionkit.tasks.base import SupportsPairScores, Task
from fusionkit.tasks.decoding import SupportsSaying
from fusionkit.tasks.generation import GenerationConfig

VERSION = 1
TOKENIZER = "tokenizer"  # the folder of its files
COSINE = (
    "the product of image_feats and text_feats is their cosine, which training divides by the temperature (plus bias)"
)
READ = (
    "a text is put in its normal form, changed by clean, and put in the place of {text} in the template; one of more than "
    "max_length tokens loses words of its own at its end, so that what the template has behind it stays"
)


def ports_of(example: Example, names: list[str]) -> list[dict[str, Any]]:
    """Inputs or outputs: name, type and shape, dimensions that a call chooses by their names."""
    tensors = example.inputs | example.outputs
    return [
        {"name": name, "dtype": str(tensors[name].dtype).removeprefix("torch."), "shape": example.shape(name)}
        for name in names
    ]


def reading_images(finish: Finish) -> dict[str, Any]:
    """How an image becomes ``pixel_values``."""
    scale, shift = finish.scale.reshape(-1), finish.shift.reshape(-1)
    return {
        "channels": "RGB, what is transparent on white, turned by its EXIF orientation",
        "jpeg": "decoded at 1/2, 1/4 or 1/8 of its size where no side falls below the size (Pillow's Image.draft)",
        "size": [finish.size, finish.size],
        "fit": finish.fit,
        "resample": finish.resample.value,
        "scale": scale.tolist(),
        "shift": shift.tolist(),
        "mean": (-shift / (255 * scale)).tolist(),
        "std": (1 / (255 * scale)).tolist(),
        "says": "squash: the whole image is resized to the size; crop: the largest square in its middle is. Then, of values from "
        "0 to 255, value * scale + shift, which is (value / 255 - mean) / std",
    }


def reading_texts(parts: Parts, source: str, task: Task[Any]) -> dict[str, Any]:
    """How a text becomes ``input_ids`` for a task that a source trained."""
    settings, data = parts.datamodule.sources[source], parts.config.data.sources[source]
    kind = KINDS.get(str(task.replies_to), task.reads)
    clean = data.get("clean")
    found = {
        "max_length": settings.max_length,
        "template": (settings.template or {}).get(kind),
        "clean": None
        if clean is None
        else {name: value for name, value in clean.items() if name[0] != "_"}
        | {"function": str(clean.get("_target_"))},
    }
    if (chat := chat_of(parts, source, task)) is not None:
        found |= {
            "chat_template": chat.template or parts.datamodule.tokenizer.chat_template,
            "says": "input_ids are the turns as the template writes them up to the reply, without spaces at the end and without "
            "special tokens around them; of a conversation that is too long the oldest turns are left out",
        }
    return found


def chat_of(parts: Parts, source: str, task: Task[Any]) -> ChatTemplate | None:
    """How conversations are written for a task that reads them."""
    if task.reads != CONVERSATIONS:
        return None
    return ChatTemplate(parts.datamodule.tokenizer, parts.datamodule.sources[source].chat_template)


def said_of(task: SupportsSaying, example: Example, chat: ChatTemplate | None = None) -> dict[str, Any]:
    """What may be said, and which output of a step is which input of the next; the end of a turn ends a reply."""
    rules: GenerationConfig = task.saying()
    if chat is not None:
        rules = replace(rules, end=chat.end, other_ends=rules.ends)
    carried = {name: name.removeprefix(NEXT) for name in example.outputs if name.startswith(NEXT)}
    answers = getattr(getattr(task, "decoding", None), "texts", None)
    return {
        "ends": list(rules.ends),
        "banned": sorted(rules.banned),
        "min_length": rules.min_length,
        "max_length": rules.max_length,
        "no_repeat_ngram": rules.no_repeat_ngram,
        "carried": carried,
    } | ({} if answers is None else {"answers": list(answers)})


def describe(
    parts: Parts,
    sources: Mapping[str, str],
    graphs: Mapping[str, Any],
    examples: Mapping[str, Example],
    layout: str,
    is_int8: bool,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """All of graphs.json; ``graphs`` are the files with their ports, ``sources`` the one that each task is read as."""
    words = text_format(parts.datamodule.tokenizer)
    tasks = {}
    for name, source in sources.items():
        task = parts.tasks[name]
        entry: dict[str, Any] = {"replies_to": task.replies_to, "text": reading_texts(parts, source, task)}
        if task.replies_to == "caption":
            del entry["text"]
        if task.ranks:
            entry |= {"graphs": ["image", "text"], "says": COSINE}
            entry |= {"temperature": parts.model.temperature.item()}
            bias = getattr(task, "bias", None)
            entry |= {} if bias is None else {"bias": bias.item()}
        elif isinstance(task, SupportsSaying):
            step = examples[f"{name}_step"]
            entry |= {
                "graphs": ["image", f"{name}_prefill", f"{name}_step"],
                **said_of(task, step, chat_of(parts, source, task)),
            }
        elif isinstance(task, SupportsPairScores):
            entry |= {"graphs": ["image", "pair"], "output": name, **asdict(task.meaning())}
            entry["labels"] = list(entry["labels"])
        tasks[name] = entry
    return {
        "version": VERSION,
        "fusionkit": __version__,
        "layout": layout,
        "int8": is_int8,
        "rows": f"'{BATCH}' is the same in all inputs: text t is about image t",
        "image": reading_images(parts.datamodule.finish),
        "text": {
            "tokenizer": f"{TOKENIZER}/tokenizer.json",
            "padding": {"id": words.pad, "side": "right", "attention_mask": 0},
            "start": words.start,
            "end": words.end,
            "normal_form": "NFC",
            "says": READ,
        },
        "temperature": parts.model.temperature.item(),
        "graphs": dict(graphs),
        "tasks": tasks,
        "left_out": dict(left_out),
    }
