"""The benchmarks that a command names, as splits to evaluate a checkpoint on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_arguments
from fusionkit.assembly.parts import Parts
from fusionkit.data.datamodule import DataModule
from fusionkit.data.sample import Sample
from fusionkit.data.source import Source
from fusionkit.errors import ConfigError
from fusionkit.inference.benchmarks import Tasks, published_splits, read_all, tasks_for
from fusionkit.inference.evaluate import Split, or_none
from fusionkit.inference.linear_probe import FIT
from fusionkit.scoring.benchmark import Published


def benchmark_splits(config: DictConfig, parts: Parts) -> tuple[list[Split], DataModule]:
    """The splits of the configuration's benchmarks, all read, and the data that has them."""
    check_arguments(config)
    benchmarks: list[Published] = [instantiate(block, _convert_="all") for block in config.benchmark.values()]
    tasks = {benchmark.name: tasks_for(benchmark, parts.tasks) for benchmark in benchmarks}
    datamodule = data_of(parts, benchmarks, tasks)
    read_all(datamodule, dict(zip(config.benchmark, benchmarks, strict=True)), parts.model.image_encoder.reads)
    splits: list[Split] = []
    for benchmark, block in zip(benchmarks, config.benchmark.values(), strict=True):
        train = training_texts(block)
        made = published_splits(benchmark, tasks[benchmark.name], parts.tasks, train)
        splits += [replace(split, notes=partial(notes_on_length, benchmark, datamodule, split.role)) for split in made]
    return splits, datamodule


def training_texts(block: DictConfig) -> Callable[[], Sequence[Sample]]:
    """What reads the texts that guessers learn from, who never see an image; none where the folder does not have them."""
    if block.get("train") is None:
        return list
    block.files.update({"images": None} if "images" in block.files else {})
    return cache(lambda: or_none(lambda: instantiate(block.reader, _convert_="all").read(block.train), block.name))


def notes_on_length(benchmark: Published, datamodule: DataModule, split: str) -> dict[str, str]:
    """A note where texts of the benchmark were not read to their end."""
    read, cut, _ = datamodule.cut_texts(benchmark.name, split)
    told = f"{cut:,} of the {read:,} texts read were cut at {benchmark.max_length} tokens, the benchmark's max_length"
    return {"length": told} if cut else {}


def data_of(parts: Parts, benchmarks: Iterable[Published], tasks: Mapping[str, Tasks]) -> DataModule:
    """The benchmarks as sources, their splits as roles.

    Images and texts are read as the checkpoint's own: its image size or regions, tokenizer, answers, cleaning and templates.
    """
    regions = next((own.regions for own in parts.datamodule.sources.values() if own.regions is not None), None)
    sources = {
        benchmark.name: Source(
            benchmark.reader,
            {split: [split] for split in benchmark.splits} | fitted_to(benchmark),
            benchmark.batch_size,
            {task.reads: 1 for task in tasks[benchmark.name].values()},
            benchmark.max_length,
            regions=regions,
            **read_as_trained(parts.datamodule, [task.reads for task in tasks[benchmark.name].values()]),
        )
        for benchmark in benchmarks
    }
    answers = parts.datamodule.answers
    restored = {"answers": answers} if answers is not None else {}
    build = instantiate(parts.config.data, _partial_=True)
    about_training: dict[str, Any] = {"prepare": None, "drop_overlap": (), "allow_overlap": ()}
    built: DataModule = build(sources=sources, tokenizer=parts.datamodule.tokenizer, **about_training, **restored)
    return built


def fitted_to(benchmark: Published) -> dict[str, list[str]]:
    """The role of what a probe is fitted to, where one answers the benchmark; ConfigError where it names no such split."""
    if not any(map(benchmark.is_fitted, benchmark.scorers)):
        return {}
    if benchmark.train is None or benchmark.train in benchmark.splits:
        raise ConfigError(
            f"benchmark.{benchmark.name}.train is {benchmark.train}, but has to name a split that is not scored, to fit to"
        )
    return {FIT: [benchmark.train]}


def read_as_trained(datamodule: DataModule, kinds: Sequence[str]) -> dict[str, Any]:
    """How texts of some kinds were cleaned, and within which template they were read, in the first source that has each."""
    owners = [next((own for own in datamodule.sources.values() if kind in own.kinds), None) for kind in kinds]
    templates = {
        kind: own.template[kind]
        for kind, own in zip(kinds, owners, strict=True)
        if own is not None and own.template and kind in own.template
    }
    return {"clean": next((own.clean for own in owners if own is not None), None), "template": templates or None}
