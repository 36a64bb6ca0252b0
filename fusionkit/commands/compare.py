"""``fusionkit compare``: runs beside a baseline as tables, plots and one page, or as a blind rating sheet, without torch."""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from fusionkit.assembly.trust import packages, require_trusted_block
from fusionkit.cli.schemas import NO_RUNS, check
from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, clean
from fusionkit.files.atomic import write_text
from fusionkit.reporting.comparison import compare_runs
from fusionkit.reporting.comparison_table import print_comparison
from fusionkit.reporting.rating_results import print_ratings, rated, read_key, read_results, summary_of
from fusionkit.reporting.rating_sheet import key_of, make_sheet, rating_page
from fusionkit.reporting.reading import read_runs
from fusionkit.reporting.record import RunRecord
from fusionkit.reporting.report import write_report
from fusionkit.scoring.records import require_writable

# of a configuration that is no run's, and DataError, which is a ValueError
MISFITS = (KeyError, TypeError, ValueError, AttributeError)


def compare(config: DictConfig) -> None:
    """Print the tables, and write ``table.md``, ``table.csv``, ``plots/*.png`` and ``index.html``.

    With ``rating`` what two runs said becomes a sheet for people instead; with ``rating_results`` theirs are read.
    """
    check(config, "CompareConfig")
    for key, least in (("examples", 0), ("resamples", 1), ("rating_pairs", 1), ("seed", 0)):
        if config[key] < least:
            raise ConfigError(f"{key} is {config[key]}, but has to be a number from {least} up")
    if results := _list("rating_results", config.rating_results):
        read_ratings(config, results)
        return
    if not (runs := _list("runs", config.runs)):
        raise ConfigError(NO_RUNS)
    trust = packages(config.trust)
    if config.rating is not None:
        write_sheet(config, runs, trust)
        return
    comparison = compare_runs(
        read_runs(runs, None if config.costs is None else Path(config.costs)),
        config.baseline,
        _list("metrics", config.metrics),
        config.group_seeds,
        config.resamples,
        config.seed,
        config.sort,
    )
    print_comparison(comparison, Console())
    write_report(comparison, Path(config.output_dir), partial(samples_of, trust=trust), config.examples)


def write_sheet(config: DictConfig, runs: Sequence[str], trust: Sequence[str]) -> None:
    """Write ``rating.html``, for those who rate, and ``key.json``, which says what stood on which side."""
    folder, load = Path(config.rating), partial(samples_of, trust=trust)
    sheet = make_sheet(read_runs(runs), load, config.rating_of, config.rating_pairs, config.seed)
    page, digest = rating_page(sheet)
    require_writable(folder, "rating")
    key = key_of(sheet, digest)
    if (folder / "key.json").exists() and read_key(folder / "key.json") != key:
        raise ConfigError(
            f"rating={folder} has the key of another sheet, which what its raters send back is read by; give another folder"
        )
    write_text(folder / "rating.html", page)
    write_text(folder / "key.json", json.dumps(key, indent=1) + "\n")
    print(f"{len(sheet.pairs)} pairs of {sheet.of}; {sheet.same} samples to which both said the same are left out")
    print(f"to those who rate: {folder}/rating.html   to keep: {folder}/key.json")
    print(f"then: fusionkit compare rating={folder} rating_results=[FILE,FILE]")


def read_ratings(config: DictConfig, results: Sequence[str]) -> None:
    """Print who is preferred and how far raters agree, and write it as ``ratings.json`` beside the key."""
    if config.rating is None:
        raise ConfigError("rating is null, but rating_results need its key.json; give rating=FOLDER, that of the sheet")
    folder = Path(config.rating)
    key = read_key(folder / "key.json")
    ratings = rated(key, read_results([Path(name) for name in results], key), config.resamples, config.seed)
    print_ratings(ratings)
    require_writable(folder, "rating")
    write_text(folder / "ratings.json", json.dumps(summary_of(ratings), indent=1, ensure_ascii=False) + "\n")
    print(f"numbers: {folder}/ratings.json")


def _list(key: str, value: object) -> list[str]:
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, Sequence) or not all(isinstance(item, str) for item in found):
        raise ConfigError(f"{key} is {value}, but has to be a list of texts; quote what looks like a number")
    return list(found)


def reading(run: RunRecord, label: str) -> tuple[str, Mapping[str, Any], Sequence[str]]:
    """Where a run's configuration says how the samples of a file of rows are read, what it says, and of which splits."""
    scored = run.samples[label]
    name = scored.prefix.partition("/")[0]
    if scored.split is not None:
        return f"benchmark.{name}", run.benchmarks[name], [scored.split]
    sources = run.config["data"]["sources"]
    source = max((known for known in sources if f"{name}_".startswith(f"{known}_")), key=len)
    return f"data.sources.{source}", sources[source], sources[source]["splits"][name[len(source) + 1 :] or scored.role]


def samples_of(run: RunRecord, label: str, trust: Sequence[str] = ()) -> Sequence[Sample]:
    """The samples that one of the run's files of rows is about, read by the reader of its configuration.

    Empty where the data, or the reader, are gone: a report does without the examples then. A reader that is neither ours nor
    of a package in ``trust`` is not run, and told: all else that runs are compared by is in their files.
    """
    try:
        place, block, splits = reading(run, label)
        require_trusted_block(block["reader"], "data", f"{place}.reader", f"run {run.paths[0]}", trust)
        with chdir(run.base):  # what the paths of a configuration start from
            found = [sample for split in splits for sample in instantiate(block["reader"]).read(split)]
    except ConfigError as error:
        warnings.warn(f"{clean(str(error))}; its samples are not shown", stacklevel=2)
        return []
    except (InstantiationException, OSError, *MISFITS):
        return []
    return [replace(sample, image=run.base / sample.image) for sample in found]
