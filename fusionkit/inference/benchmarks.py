"""Published benchmarks as splits to evaluate a checkpoint on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.inference.all_pairs import AllPairs
from fusionkit.inference.evaluate import PublishedSplit, Split
from fusionkit.inference.linear_probe import FIT, LinearProbe, check_folders
from fusionkit.inference.own_pairs import OwnPairs
from fusionkit.inference.prediction import EvaluationData
from fusionkit.scoring.benchmark import Published
from fusionkit.tasks.base import Task

IMAGES = {"pixel_values": "photos", "regions": "region features (npz files)"} | {
    "frames": "streams of pictures",
    "sounds": "recordings",
}
Tasks = Mapping[str, Task[Any]]


def published_splits(
    benchmark: Published, chosen: Tasks, tasks: Tasks, train: Callable[[], Sequence[Sample]]
) -> list[Split]:
    """The splits of a benchmark, answered by the ``chosen`` tasks; of all ``tasks`` one that matches ranks again."""
    has_ranking = any(task.ranks for task in chosen.values())
    helpers = {name: task for name, task in tasks.items() if task.matches} if has_ranking else {}
    return [
        PublishedSplit(
            source=benchmark.name,
            role=split,
            tasks=chosen,
            scorers={name: benchmark.scorer(name) for name in chosen},
            labels={name: benchmark.label(split, name) for name in chosen},
            stem=f"{benchmark.name}_{split}",
            train=train,
            helpers=dict(list(helpers.items())[:1]),
            protocol=benchmark.protocol,
        )
        for split in benchmark.splits
    ]


def tasks_for(benchmark: Published, tasks: Tasks) -> dict[str, Task[Any]]:
    """The checkpoint's tasks that answer the benchmark, by the benchmark's names; ConfigError where there is none."""
    places = {
        name: next((own for own in (name, *benchmark.instead.get(name, ())) if own in tasks), None)
        for name in benchmark.scorers
    }
    found: dict[str, Any] = {
        name: stand_in(benchmark, name, tasks[own]) for name, own in places.items() if own is not None
    }
    found |= {name: LinearProbe() for name in benchmark.scorers if benchmark.is_fitted(name)}
    if not found:
        wanted = " or ".join(f"'{name}'" for name in benchmark.scorers)
        raise ConfigError(
            f"benchmark {benchmark.name} is answered by the task {wanted}, which the checkpoint has not learnt; "
            f"{suggest(next(iter(benchmark.scorers)), tasks)}"
        )
    return found


def stand_in(benchmark: Published, name: str, task: Task[Any]) -> Any:
    """The task as the scorer wants it: for rankings one that only matches ranks every pair; for pairs, their scores."""
    schema = benchmark.scorer(name).schema
    value = next((form.value for form in schema if form.of_pairs), None)
    if value is not None and (task.matches or task.ranks):
        return OwnPairs(task, value)
    reads_rankings = any(form.lists for form in schema)
    return AllPairs(task) if reads_rankings and task.matches and not task.ranks else task


def read_all(datamodule: EvaluationData, benchmarks: Mapping[str, Published], reads: str) -> None:
    """Read all annotations before the first prediction, so that a missing file is told at once.

    ``benchmarks`` by their place in the configuration; ``reads`` is what the checkpoint reads of an image.
    """
    for place, benchmark in benchmarks.items():
        fitted = [FIT] if any(map(benchmark.is_fitted, benchmark.scorers)) else []
        for split in (*fitted, *benchmark.splits):
            try:
                samples = datamodule.samples(benchmark.name, split)
                if fitted:
                    check_folders(datamodule.samples(benchmark.name, FIT), samples)
            except DataError as error:
                raise DataError(f"benchmark {benchmark.name}: {error}; its files lie below root=FOLDER") from error
            if other := [each.image for each in samples if has_pixels(each.image) != (reads == "pixel_values")]:
                raise DataError(
                    f"benchmark {benchmark.name}: the checkpoint reads {IMAGES[reads]}, which {other[0]} is not; name the "
                    f"folder that has them as benchmark.{place}.files.images=FOLDER"
                )
