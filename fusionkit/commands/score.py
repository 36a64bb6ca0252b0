"""``fusionkit score``: a file of predictions against a benchmark's published annotations, without a model or torch."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_arguments, check_top_level
from fusionkit.cli.schemas import ScoreConfig
from fusionkit.errors import ConfigError, suggest
from fusionkit.scoring.benchmark import Published, score_predictions
from fusionkit.scoring.record_schema import read_predictions
from fusionkit.scoring.records import require_writable, write_records
from fusionkit.scoring.results import Draws, write_scores
from fusionkit.visual.score_table import print_details

FILES = ("annotations", "questions", "instances")


def score(config: DictConfig) -> None:
    """Score a file: ``metrics.json``, ``samples.jsonl`` and ``details.json`` in ``config.output``."""
    check_top_level(config, ScoreConfig)
    draws = Draws(config.resamples, config.seed)
    benchmark = chosen_benchmark(config)
    path, folder = Path(config.predictions), Path(config.output)
    split = config.split or benchmark.splits[0]
    scored = score_predictions(benchmark, read_predictions(path), path, split, config.allow_missing)
    require_writable(folder, "output")
    write_records(folder / "samples.jsonl", scored.judged.rows)
    print_details(write_scores(folder, [scored], draws))
    print(f"scores: {folder}/metrics.json   of each sample: {folder}/samples.jsonl   intervals: {folder}/details.json")


def chosen_benchmark(config: DictConfig) -> Published:
    """The one benchmark of the configuration, reading the files that the command line names, and no images."""
    block = only_block(config)
    given = {name: config[name] for name in FILES if config.get(name) is not None}
    for name in given:
        if name not in block.files:
            raise ConfigError(f"{name}: {block.name} has no such file; {suggest(name, set(block.files) - {'images'})}")
    block.files.update(dict.fromkeys(block.files) | _beside(block, given) | given)
    benchmark: Published = instantiate(block, _convert_="all")
    return benchmark


def only_block(config: DictConfig) -> DictConfig:
    """What the configuration says of its one benchmark, checked; ConfigError for none or several."""
    blocks = list((config.get("benchmark") or {}).values())  # an empty group leaves no key
    if len(blocks) != 1:
        raise ConfigError(f"a file of predictions answers one benchmark, not {len(blocks)}: benchmark=NAME")
    check_arguments(config)
    block: DictConfig = blocks[0]
    return block


def _beside(block: DictConfig, given: dict[str, str]) -> dict[str, Any]:
    """RefCOCO's boxes lie beside its expressions."""
    return (
        {"instances": str(Path(given["annotations"]).with_name("instances.json"))} if "instances" in block.files else {}
    )
