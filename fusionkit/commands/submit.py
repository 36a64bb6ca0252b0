"""``fusionkit submit``: check a file of predictions and write what the benchmark's server takes, without torch."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_top_level
from fusionkit.cli.schemas import SubmitConfig
from fusionkit.commands.score import only_block
from fusionkit.errors import ConfigError
from fusionkit.scoring.base import as_scorer
from fusionkit.scoring.record_schema import read_predictions


def submit(config: DictConfig) -> None:
    """Write the file below ``config.output``."""
    check_top_level(config, SubmitConfig)
    block = only_block(config)
    if block.get("submission") is None:
        raise ConfigError(f"there is no server that takes files for {block.name}; for its scores: fusionkit score")
    (form,) = as_scorer(instantiate(next(iter(block.scorers.values())))).schema
    predictions = Path(config.predictions)
    records = read_predictions(predictions)
    path = instantiate(block.submission).write(
        records, form, predictions, Path(config.questions), Path(config.output), config.split, config.method
    )
    print(f"{len(records):,} records, every id once: {path}")
