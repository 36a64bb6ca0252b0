"""Run the model over one split of a source and collect every task's records, in one pass over the images.

Several processes take the batches in turns, each batch as one process would see it, and end with the records of all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import Progress
from torch import Tensor, nn

from fusionkit.assembly.digests import digest, weights_digest
from fusionkit.assembly.evaluation_options import MATCH, PRECISIONS, EvaluationOptions, Reranking
from fusionkit.data.sample import Sample
from fusionkit.distributed import gather_objects, rank, world_size
from fusionkit.inference.all_pairs import AllPairs
from fusionkit.inference.candidates import TopK, best
from fusionkit.inference.encoding_cache import KEPT, Encodings, encodings_in
from fusionkit.inference.progress import Bar, show_progress
from fusionkit.inference.rankings import Pairing, list_records, similarities
from fusionkit.inference.reranking import Reranker
from fusionkit.model.model import VisionLanguageModel
from fusionkit.scoring.records import RERANKED, Records
from fusionkit.scoring.retrieval import has_features
from fusionkit.tasks.base import Task
from fusionkit.types import Batch, Encoded, Frames, Regions, Sounds, Stored, Tokens

DEPTH = 100  # items that a ranking lists at least


class Loader(Protocol):
    """Batches that can be counted and read more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class EvaluationData(Protocol):
    """What the evaluation asks of the data module."""

    @property
    def sources(self) -> Mapping[str, Any]:
        """By name; ``splits`` of each has the roles as keys."""
        ...

    def tokens_of(self, source: str, kind: str) -> Callable[[str], list[str]]:
        """What gives the tokens of a text as they are read, '' for those that are no part of it."""
        ...

    def samples(self, source: str, role: str) -> Sequence[Sample]: ...

    def eval_loader(self, source: str, role: str, numbers: Sequence[int] | None = None) -> Loader:
        """Every text of every image once, in the order of ``samples``; or only the batches of these numbers."""
        ...

    def identity(self, source: str, role: str) -> Iterable[str]:
        """What the batches are a function of, in words."""
        ...


def predict_source(
    model: VisionLanguageModel,
    tasks: Mapping[str, Task[Any]],
    datamodule: EvaluationData,
    source: str,
    role: str,
    device: torch.device,
    options: EvaluationOptions,
) -> dict[str, Records]:
    """The records of every task over one split, by task name; features come back ranked (``list_records``).

    With a task that ranks and one that matches, the ranking is there a second time, re-ranked, as "<task>_reranked".
    An ``AllPairs`` ranks by the logits of all pairs.
    """
    samples = datamodule.samples(source, role)
    pairing, depth = Pairing.of(samples), max(DEPTH, options.reranking.k)
    matcher, settings = matching(tasks, pairing, options.reranking)
    folder = None
    if matcher is not None and options.cache is not None:
        folder = cache_folder(model, tasks, datamodule, source, role, device, options)
    with (
        encodings_in(folder) if matcher is not None else nullcontext() as encodings,
        evaluating(model, tasks.values(), device, options),
        show_progress(options.quiet or rank() > 0) as progress,
    ):
        predictions = _predict_all(model, tasks, datamodule, source, role, device, encodings, progress)

        def match(sim: Tensor, rankings: tuple[TopK, TopK], title: str) -> Records:
            assert encodings is not None
            count = len(datamodule.eval_loader(source, role))
            reranker = Reranker(model, matcher, encodings, count, pairing, settings, device)
            by_text, by_image = reranker(sim, *rankings, Bar(progress, f"{source} {role} {title}"))
            return list_records(by_text.first(depth), by_image.first(depth), pairing)

        for name in [name for name, task in tasks.items() if isinstance(task, AllPairs) and encodings is not None]:
            sim = torch.zeros(len(pairing.caption_ids), len(pairing.image_ids))
            predictions[name] = match(sim, (best(sim, settings.k), best(sim.T, settings.k)), "all pairs")
        for name in [name for name, records in predictions.items() if has_features(records)]:
            sim = similarities(predictions[name], samples)
            rankings = best(sim, depth), best(sim.T, depth)
            predictions[name] = list_records(*rankings, pairing)
            if encodings is not None:
                predictions[name + RERANKED] = match(sim, rankings, "re-ranking")
    return predictions


def matching(tasks: Mapping[str, Task[Any]], pairing: Pairing, settings: Reranking) -> tuple[Any, Reranking]:
    """The task that scores pairs, or None, and how: all pairs by its logit where there is no contrastive ranking."""
    if not pairing.caption_ids:
        return None, settings
    for task in tasks.values():
        if isinstance(task, AllPairs):
            most = max(len(pairing.caption_ids), len(pairing.image_ids))
            return task.matcher, replace(settings, k=most, rule=MATCH)
    has_ranking = any(task.ranks for task in tasks.values())
    return (matcher_of(tasks) if has_ranking and settings.k > 0 else None), settings


def matcher_of(tasks: Mapping[str, Task[Any]]) -> Any:
    """The first task that matches captions with images, or None."""
    return next((task for task in tasks.values() if task.matches), None)


def cache_folder(
    model: VisionLanguageModel,
    tasks: Mapping[str, Task[Any]],
    datamodule: EvaluationData,
    source: str,
    role: str,
    device: torch.device,
    options: EvaluationOptions,
) -> Path:
    """Where the encodings of a split stay: a folder named after all that they are a function of."""
    reads = sorted({f"{task.reads} {task.encodes}" for task in tasks.values()})
    how = (str(options.precision), device.type, options.recipe, reads, KEPT)
    what = weights_digest(model, *tasks.values())
    return Path(str(options.cache)) / f"{source}_{role}_{digest([what], how, datamodule.identity(source, role))}"


def _predict_all(
    model: VisionLanguageModel,
    tasks: Mapping[str, Task[Any]],
    datamodule: EvaluationData,
    source: str,
    role: str,
    device: torch.device,
    encodings: Encodings | None,
    progress: Progress,
) -> dict[str, Records]:
    """Every task's records of all batches, in the order of the batches, over all processes."""
    count = len(datamodule.eval_loader(source, role))
    own = range(rank(), count, world_size())
    bar = Bar(progress, f"{source} {role}")
    bar.begin(len(own), 0)
    found: list[tuple[int, dict[str, Records]]] = []
    for number, loaded in zip(own, datamodule.eval_loader(source, role, own), strict=True):
        batch = moved(loaded, device)
        present = present_tasks(tasks, batch)
        kinds = sorted({task.reads for task in present.values() if task.encodes})
        encoded = _encode(model, batch, kinds, number, encodings)
        records = {name: task.predict(model, batch, encoded) for name, task in present.items()}
        found.append((number, {name: [_unshared(record) for record in new] for name, new in records.items()}))
        bar.advance(1)
    every = sorted(gather_objects(found), key=lambda part: part[0])
    assert [number for number, _ in every] == list(range(count)), "each batch is predicted once"
    return {name: [record for _, part in every for record in part.get(name, ())] for name in tasks}


def _encode(
    model: VisionLanguageModel, batch: Batch, kinds: Sequence[str], number: int, encodings: Encodings | None
) -> Encoded:
    """The batch as the encoders see it, read where it was kept, and kept where it is to be."""
    if encodings is None:
        return model.encode(batch, kinds)
    if not encodings.has(number):
        encoded = model.encode(batch, kinds)
        encodings.save(number, batch, encoded)
        return encoded
    _, kept = encodings.load(number)
    image, feats, text, text_feats = (
        moved(part, batch["image_keys"].device) for part in (kept.image, kept.image_feats, kept.text, kept.text_feats)
    )
    return Encoded(image, model.fusion.prepare(image), feats, text, text_feats)


def present_tasks(tasks: Mapping[str, Task[Any]], batch: Batch) -> dict[str, Task[Any]]:
    """The tasks whose texts the batch has."""
    kinds = {kind for kind, rows in batch.items() if isinstance(rows, dict) and rows["ids"]}
    return {name: task for name, task in tasks.items() if task.reads in kinds}


def _unshared(record: dict[str, Any]) -> dict[str, Any]:
    """With features of its own: a row of a matrix takes the whole matrix along to another process."""
    return {**record, "feats": record["feats"].clone()} if "feats" in record else record


def moved(value: Any, device: torch.device) -> Any:
    """The value with its tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Regions | Frames | Sounds | Tokens | Stored):
        return type(value)(*(moved(part, device) for part in value))
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    return {key: moved(part, device) for key, part in value.items()} if isinstance(value, dict) else value


@contextmanager
def evaluating(
    model: nn.Module, tasks: Iterable[nn.Module], device: torch.device, options: EvaluationOptions
) -> Iterator[None]:
    """The modules on the device, in evaluation mode, no gradients, the precision asked for; their modes are put back."""
    modes = [(module, module.training) for module in (model, *tasks)]
    dtype = PRECISIONS[str(options.precision)]
    try:
        for module, _ in modes:
            module.to(device).eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        for module, mode in modes:
            module.train(mode)
