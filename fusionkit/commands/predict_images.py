"""``fusionkit predict image=...``: a checkpoint answers what is asked about one's own images; its data are not needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from fusionkit.assembly.objectives import active_objectives
from fusionkit.assembly.parts import Parts, dims_of, evaluation_options
from fusionkit.checkpoints.load import load_parts
from fusionkit.cli.main import STORED
from fusionkit.commands.evaluation_setup import device_of
from fusionkit.data.requests import ASKED, OWN, read_requests
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference.answering import Answer, Predictor
from fusionkit.inference.overlays import draw_reply
from fusionkit.model.saliency import find_layer
from fusionkit.scoring.records import require_writable, write_records
from fusionkit.tasks.grounding_gradcam import by_matching
from fusionkit.tasks.itm import ITM
from fusionkit.tasks.ranking import Ranking
from fusionkit.visual.answer_text import print_replies


def answer_own(config: DictConfig) -> None:
    """Print a reply to each request, and write what is asked for: replies, pictures, arrays.

    Raises DataError at the end, when all others are answered, where an image could not be read.
    """
    _check(config)
    parts = load_parts(config.checkpoint, {name: config[name] for name in STORED}, False, config.trust, config.int8)
    if parts.int8 is not None:
        print(parts.int8)
    if config.attention:
        find_layer(parts.model, config.layer)
    requests = read_requests(config.image, {word: config[word] for word in ASKED}, parts.model.image_encoder.reads)
    folder = Path(config.output_dir or "overlays")
    if config.overlay or config.attention:
        require_writable(folder)
    if config.output:
        if Path(config.output).is_dir():
            raise DataError(
                f"output={config.output} is a folder; name a file, such as output={config.output}/replies.jsonl"
            )
        require_writable(Path(config.output).parent, "output")
    seed_everything(parts.config.seed, workers=True, verbose=False)
    options = {name: config[name] for name in ("by", "top", "batch_size", "layer")}
    replies = predictor_of(parts, device_of(parts), looks=config.attention, **options).answer(requests)
    if config.overlay or config.attention:
        is_middle = parts.datamodule.finish.fit == "crop"
        replies = [_drawn(reply, number, folder, is_middle) for number, reply in enumerate(replies)]
    if config.output:
        write_records(Path(config.output), [reply.record for reply in replies])
    print_replies([reply.record for reply in replies])
    written = {"replies": config.output, "pictures": folder if config.overlay or config.attention else None}
    if told := [f"{what}: {where}" for what, where in written.items() if where]:
        print("   ".join(told))
    for line in [line for source in parts.datamodule.sources for line in parts.datamodule.told_cuts(source, OWN)]:
        print(line)
    _tell_errors(replies)


def predictor_of(parts: Parts, device: torch.device, **options: Any) -> Predictor:
    """The checkpoint as what can be asked, on the device; the tasks that were trained answer.

    A matching task also answers phrases, as NAME_gradcam after all others, if the fusion's text looks at the image.
    ``options`` are the Predictor's.
    """
    active = active_objectives(parts.objectives, parts.tasks)
    sources = {source: list(names) for source, names in active.items()}
    trained = {name: task for name, task in parts.tasks.items() if any(name in names for names in active.values())}
    dims = dims_of(parts.model, parts.datamodule.tokenizer, ())
    for name, task in list(trained.items()) if "attention" in parts.model.fusion.provides else ():
        if isinstance(task, ITM | Ranking):
            trained[f"{name}_gradcam"] = by_matching(task, dims, options.get("layer"))
            for names in sources.values():
                names += [f"{name}_gradcam"] if name in names else []
    return Predictor(
        parts.model, trained, sources, parts.datamodule, device, evaluation_options(parts.config), **options
    )


def _check(config: DictConfig) -> None:
    for key in ("top", "batch_size"):
        if config[key] < 1:
            raise ConfigError(f"{key} is {config[key]}, but has to be at least 1")
    for key in ("split", "sources"):
        if config[key] is not None:
            raise ConfigError(f"{key} is about the run's own data, and image about others; give one of them")
    if config.get("benchmark"):
        raise ConfigError("benchmark is about published data, and image about your own; give one of them")


def _drawn(reply: Answer, number: int, folder: Path, is_middle: bool) -> Answer:
    """The reply, with the files that are written of it in its record."""
    if "error" in reply.record:
        return reply
    written = draw_reply(reply, folder / f"{number:04d}_{reply.request.image.stem}", is_middle)
    return Answer(reply.request, {**reply.record, "files": [str(path) for path in written]}, reply.looks)


def _tell_errors(replies: Sequence[Answer]) -> None:
    errors = [reply.record["error"] for reply in replies if "error" in reply.record]
    if errors:
        others = f"; of {len(replies)} requests {len(errors)} could not be answered" if len(replies) > 1 else ""
        raise DataError(f"{errors[0]}{others}")
