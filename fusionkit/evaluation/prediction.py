"""Run the model over one split of a source and collect every task's records, in one pass over the images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, suggest
from fusionkit.evaluation.records import Records
from fusionkit.evaluation.reranking import Reranker, Reranking
from fusionkit.evaluation.retrieval import Pairing, has_features, nearest, ranking_records, similarities
from fusionkit.tasks.base import Task
from fusionkit.types import Batch, Regions, Tokens

PRECISIONS = {
    **dict.fromkeys(("32-true", "32", "64-true"), None),
    **dict.fromkeys(("bf16-mixed", "bf16-true"), torch.bfloat16),
    **dict.fromkeys(("16-mixed", "16-true"), torch.float16),
}
RERANKED = "_reranked"  # suffix of a task's re-ranked predictions


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

    @property
    def tokenizer(self) -> Any: ...

    def samples(self, source: str, role: str) -> Sequence[Sample]: ...

    def eval_loader(self, source: str, role: str) -> Loader:
        """Every text of every image once, in the order of ``samples``."""
        ...


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate; ``precision`` is spelt as Lightning spells it, ``quiet`` means no progress bar."""

    reranking: Reranking = field(default_factory=Reranking)
    precision: str = "32-true"
    gallery: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        if str(self.precision) not in PRECISIONS:
            hint = suggest(self.precision, PRECISIONS)
            raise ConfigError(f"unknown precision '{self.precision}' for the evaluation: {hint}")


def predict_source(
    model: Any,
    tasks: Mapping[str, Task[Any]],
    datamodule: EvaluationData,
    source: str,
    role: str,
    device: torch.device,
    options: EvaluationOptions,
) -> dict[str, Records]:
    """The records of every task over one split, by task name; features come back ranked (``ranking_records``).

    With both an "itc" and an "itm" task the ranking of "itc" is there a second time, re-ranked, as "itc_reranked".
    """
    samples = datamodule.samples(source, role)
    pairing = Pairing.of(samples)
    is_reranked = {"itc", "itm"} <= tasks.keys() and options.reranking.k > 0
    reranker = Reranker(model, tasks["itm"], pairing, options.reranking, device) if is_reranked else None
    loader = datamodule.eval_loader(source, role)
    with _evaluating(model, tasks.values(), device, options), _progress(options) as progress:
        predictions: dict[str, Records] = {name: [] for name in tasks}
        bar = progress.add_task(f"{source} {role}", total=len(loader))
        for batch in to_device(loader, device):
            _predict_batch(model, tasks, batch, predictions, reranker)
            progress.advance(bar)
        for name in [name for name, records in predictions.items() if has_features(records)]:
            sim = similarities(predictions[name], samples)
            predictions[name] = ranking_records(sim, sim.T, pairing)
            if reranker is not None and name == "itc":
                pairs = int((nearest(sim, options.reranking.k) | nearest(sim.T, options.reranking.k).T).sum())
                again = progress.add_task(f"{source} {role} re-ranking", total=pairs)
                scores = reranker(sim, _image_tokens(model, loader, device), _advancing(progress, again))
                predictions[name + RERANKED] = ranking_records(*scores, pairing)
    return predictions


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their tensors on the device."""
    for batch in batches:
        yield _moved(batch, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Regions):
        return Regions(*(_moved(part, device) for part in value))
    return {key: _moved(part, device) for key, part in value.items()} if isinstance(value, dict) else value


def _predict_batch(
    model: Any,
    tasks: Mapping[str, Task[Any]],
    batch: Batch,
    predictions: dict[str, Records],
    reranker: Reranker | None,
) -> None:
    """Encode the batch once and let every task whose texts it has add its records."""
    kinds = {kind for kind, rows in batch.items() if isinstance(rows, dict) and rows["ids"]}
    present = {name: task for name, task in tasks.items() if task.reads in kinds}
    encoded = model.encode(batch, sorted({task.reads for task in present.values() if task.encodes}))
    for name, task in present.items():
        predictions[name] += task.predict(model, batch, encoded)
    if reranker is not None and "itm" in present:
        reranker.keep(batch, encoded)


def _image_tokens(model: Any, loader: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, Tokens]]:
    """Encode all images a second time, when they are asked for."""
    for batch in to_device(loader, device):
        yield batch, model.encode_image(model.images_of(batch))


@contextmanager
def _evaluating(
    model: nn.Module, tasks: Iterable[nn.Module], device: torch.device, options: EvaluationOptions
) -> Iterator[None]:
    """Evaluation mode, no gradients, the precision asked for; the modules' modes are put back."""
    modes = [(module, module.training) for module in (model, *tasks)]
    dtype = PRECISIONS[str(options.precision)]
    try:
        for module, _ in modes:
            module.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        for module, mode in modes:
            module.train(mode)


def _progress(options: EvaluationOptions) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=Console(stderr=True), disable=options.quiet)


def _advancing(progress: Progress, bar: Any) -> Callable[[int], None]:
    return lambda count: progress.advance(bar, count)
