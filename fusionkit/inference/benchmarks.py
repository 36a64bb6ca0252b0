"""Published benchmarks on a checkpoint: ``fusionkit evaluate`` and ``predict`` with ``benchmark=[...]``."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_arguments
from fusionkit.assembly.parts import Parts, evaluation_options
from fusionkit.data.datamodule import DataModule
from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample
from fusionkit.data.source import Source
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.inference.all_pairs import ByMatching
from fusionkit.inference.evaluate import draw_gallery, or_none
from fusionkit.inference.prediction import predict_source
from fusionkit.scoring.baselines import Tokenize
from fusionkit.scoring.benchmark import Published, Scored, judge, write_scores
from fusionkit.scoring.bootstrap import check_draws
from fusionkit.scoring.records import RERANKED, Record, Records, merge_metrics, write_records
from fusionkit.scoring.sample_scores import scores_of
from fusionkit.tasks.base import Task
from fusionkit.training.loggers import Watch
from fusionkit.visual.score_table import print_details

IMAGES = {"pixel_values": "photos", "regions": "region features (npz files)"}


class Answers(NamedTuple):
    """What a checkpoint says to one split: the records of each task, by the name that the benchmark calls it."""

    benchmark: Published
    split: str
    samples: Sequence[Sample]
    tasks: Mapping[str, Task[Any]]
    records: Mapping[str, Records]
    notes: Mapping[str, str]  # about how the texts were read


def evaluate_benchmarks(config: DictConfig, parts: Parts, folder: Path, device: torch.device, watch: Watch) -> None:
    """Write predictions, scores, their intervals and pictures below ``folder``, and print the scores."""
    check_draws(config.resamples, config.seed)
    scored = []
    blocks = {block.name: block for block in config.benchmark.values()}
    tokenize = parts.datamodule.tokenizer.tokenize
    for benchmark, splits in groupby(answer(config, parts, device), key=lambda each: each.benchmark.name):
        train = training_texts(blocks[benchmark])
        for each in splits:
            for name in each.tasks:
                label = each.benchmark.label(each.split, name)
                write_predictions(folder, label, each.records[name])
                measure = each.benchmark.measures[name]
                judged = judge(measure, each.records[name], each.samples, benchmark, each.split)
                judged.notes.update(each.notes)
                watch.log_answers(label.replace("/", "_"), measure, each.records[name], each.samples, judged.rows)
                guessed = guesses(each, name, train, tokenize)
                scored.append(Scored(label, each.split, each.benchmark.protocol, judged, guessed))
            if evaluation_options(parts.config).gallery and has_pixels(each.samples[0].image):
                stem = folder / "gallery" / f"{benchmark}_{each.split}"
                draw_gallery(each.tasks, each.records, each.samples, f"{benchmark} · {each.split}", stem)
    if scored:  # of several processes rank 0 has them all
        details = write_scores(folder, scored, config.resamples, config.seed)
        print_details(details)
        watch.log_scores(merge_metrics({label: about["scores"] for label, about in details.items()}))
        print(f"scores: {folder}/metrics.json   intervals: {folder}/details.json   answers: {folder}/predictions")


def training_texts(block: DictConfig) -> Sequence[Sample]:
    """What guessers learn from who never see an image; none where the benchmark's folder does not have it."""
    if block.get("train") is None:
        return []
    block.files.update({"images": None} if "images" in block.files else {})
    return or_none(lambda: instantiate(block.reader, _convert_="all").read(block.train), block.name)


def guesses(each: Answers, name: str, train: Sequence[Sample], tokenize: Tokenize) -> dict[str, float]:
    """What the two guessers of the task score by the benchmark's measure: ``<metric>_baseline``, ``<metric>_chance``."""
    guess = getattr(each.tasks[name].scorer, "baseline", None)
    measure = each.benchmark.measures[name]

    def score(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
        return scores_of(measure(records, samples).rows)

    return guess(train, each.samples, each.records[name], tokenize, score) if guess else {}


def predict_benchmarks(config: DictConfig, parts: Parts, folder: Path, device: torch.device) -> None:
    """Write the predictions alone, as for a split whose answers are secret."""
    for each in answer(config, parts, device):
        for name, records in each.records.items():
            path = write_predictions(folder, each.benchmark.label(each.split, name), records)
            print(f"{len(records):,} predictions: {path}")
        for note in each.notes.values():
            print(f"{each.benchmark.name}: {note}")


def write_predictions(folder: Path, label: str, records: Records) -> Path:
    """Write ``predictions/<label>.jsonl``, its slashes replaced."""
    path = folder / "predictions" / f"{label.replace('/', '_')}.jsonl"
    write_records(path, records)
    return path


def answer(config: DictConfig, parts: Parts, device: torch.device) -> Iterator[Answers]:
    """The records of every split of the configuration's benchmarks: all are read first, then predicted one after the other.

    Of several processes rank 0 gets them; the others help to predict.
    """
    check_arguments(config)
    benchmarks: list[Published] = [instantiate(block, _convert_="all") for block in config.benchmark.values()]
    tasks = {benchmark.name: tasks_for(benchmark, parts.tasks) for benchmark in benchmarks}
    datamodule = data_of(parts, benchmarks, tasks)
    read_all(datamodule, dict(zip(config.benchmark, benchmarks, strict=True)), parts.model.image_encoder.reads)
    options = evaluation_options(parts.config)
    for benchmark in benchmarks:
        chosen = tasks[benchmark.name]
        has_contrast = "itc" in chosen and not isinstance(chosen["itc"], ByMatching)
        helpers = {"itm": parts.tasks["itm"]} if has_contrast and "itm" in parts.tasks else {}
        for split in benchmark.splits:
            found = predict_source(parts.model, chosen | helpers, datamodule, benchmark.name, split, device, options)
            notes = notes_on_length(benchmark, *datamodule.cut_texts(benchmark.name, split))
            if rank() > 0:
                continue
            records = {name: found.get(name + RERANKED, found[name]) for name in chosen}
            yield Answers(benchmark, split, datamodule.samples(benchmark.name, split), chosen, records, notes)


def notes_on_length(benchmark: Published, read: int, cut: int) -> dict[str, str]:
    """A note where texts of the benchmark were not read to their end."""
    told = f"{cut:,} of the {read:,} texts read were cut at {benchmark.max_length} tokens, the benchmark's max_length"
    return {"length": told} if cut else {}


def tasks_for(benchmark: Published, tasks: Mapping[str, Task[Any]]) -> dict[str, Task[Any]]:
    """The checkpoint's tasks that answer the benchmark, by the benchmark's names; ConfigError where there is none."""
    places = {
        name: next((own for own in (name, *benchmark.instead.get(name, ())) if own in tasks), None)
        for name in benchmark.measures
    }
    found = {name: stand_in(name, own, tasks[own]) for name, own in places.items() if own is not None}
    if not found:
        wanted = " or ".join(f"'{name}'" for name in benchmark.measures)
        raise ConfigError(
            f"benchmark {benchmark.name} is answered by the task {wanted}, which the checkpoint has not learnt; "
            f"{suggest(next(iter(benchmark.measures)), tasks)}"
        )
    return found


def stand_in(name: str, own: str, task: Task[Any]) -> Any:
    """The task as the benchmark's ``name`` wants it: one that matches ranks every pair in the place of "itc"."""
    return ByMatching(task) if name == "itc" != own else task


def data_of(parts: Parts, benchmarks: Sequence[Published], tasks: Mapping[str, Mapping[str, Task[Any]]]) -> DataModule:
    """The benchmarks as sources, their splits as roles, with the checkpoint's image size or regions, tokenizer and answers."""
    regions = next((own.regions for own in parts.datamodule.sources.values() if own.regions is not None), None)
    sources = {
        benchmark.name: Source(
            benchmark.reader,
            {split: [split] for split in benchmark.splits},
            benchmark.batch_size,
            {task.reads: 1 for task in tasks[benchmark.name].values()},
            benchmark.max_length,
            regions=regions,
        )
        for benchmark in benchmarks
    }
    answers = parts.datamodule.answers
    restored = {"answers": answers} if answers is not None else {}
    build = instantiate(parts.config.data, _partial_=True)
    about_training: dict[str, Any] = {"prepare": None, "drop_overlap": (), "allow_overlap": ()}
    built: DataModule = build(sources=sources, tokenizer=parts.datamodule.tokenizer, **about_training, **restored)
    return built


def read_all(datamodule: DataModule, benchmarks: Mapping[str, Published], reads: str) -> None:
    """Read all annotations before the first prediction, so that a missing file is told at once.

    ``benchmarks`` by their place in the configuration; ``reads`` is what the checkpoint reads of an image.
    """
    for place, benchmark in benchmarks.items():
        for split in benchmark.splits:
            try:
                samples = datamodule.samples(benchmark.name, split)
            except DataError as error:
                raise DataError(f"benchmark {benchmark.name}: {error}; its files lie below root=FOLDER") from error
            if other := [each.image for each in samples if has_pixels(each.image) != (reads == "pixel_values")]:
                raise DataError(
                    f"benchmark {benchmark.name}: the checkpoint reads {IMAGES[reads]}, which {other[0]} is not; name the "
                    f"folder that has them as benchmark.{place}.files.images=FOLDER"
                )
