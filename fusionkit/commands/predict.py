"""``fusionkit predict``: write a checkpoint's predictions, one JSON line each, without scoring them."""

from dataclasses import replace

from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_top_level
from fusionkit.assembly.parts import evaluation_options
from fusionkit.cli.schemas import PredictConfig
from fusionkit.commands.benchmarks import benchmark_splits
from fusionkit.commands.evaluation_setup import chosen, device_of, restore, share
from fusionkit.commands.predict_images import answer_own
from fusionkit.data.datamodule import DataModule
from fusionkit.data.requests import ASKED
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError
from fusionkit.inference.evaluate import own_splits, predict_split
from fusionkit.scoring.records import write_records


def predict(config: DictConfig) -> None:
    """Predict, in as many processes as ``config.devices``; with an ``image``, answer what is asked about it."""
    check_top_level(config, PredictConfig)
    if config.image is not None:
        return answer_own(config)
    for key in (*ASKED, "by", "output", "overlay", "attention"):
        if config[key]:
            raise ConfigError(f"{key} is given, but no image to ask about; add image=PICTURE")
    share("fusionkit.commands.predict:predict_share", config)


def predict_share(config: DictConfig) -> None:
    """Write ``predictions/<source>_<role>_<task>.jsonl`` for the chosen sources and roles."""
    parts, folder = restore(config, PredictConfig)
    device, options = device_of(parts), evaluation_options(parts.config)
    data: DataModule = parts.datamodule
    if config.get("benchmark"):
        splits, data = benchmark_splits(config, parts)
    else:
        own = own_splits(parts.tasks, data, *chosen(config, parts))
        splits = [replace(split, stem=f"{split.source}_{split.role}") for split in own]
    for split in splits:
        predictions = predict_split(parts.model, split, data, device, options)
        notes = [f"{split.source}: {note}" for note in split.notes().values()]
        told = notes if config.get("benchmark") else data.told_cuts(split.source, split.role)  # of all processes
        if rank() > 0:
            continue
        for stem, records in split.predictions_of(predictions).items():
            path = folder / "predictions" / f"{stem}.jsonl"
            write_records(path, records)
            print(f"{len(records):,} predictions: {path}")
        for line in told:
            print(line)
