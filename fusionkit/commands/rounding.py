"""What a checkpoint loses where its weights are rounded: how far what it says moves, and its scores beside those of before."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console

from fusionkit.assembly.parts import Parts, evaluation_options
from fusionkit.checkpoints.load import load_parts
from fusionkit.cli.main import STORED
from fusionkit.commands.run_folder import unrounded_folder
from fusionkit.config import home_of
from fusionkit.data.datamodule import DataModule
from fusionkit.distributed import rank
from fusionkit.files.atomic import write_text
from fusionkit.inference.divergence import Divergence, divergences
from fusionkit.inference.evaluate import Split
from fusionkit.reporting.comparison import compare_runs
from fusionkit.reporting.comparison_table import print_comparison
from fusionkit.reporting.reading import read_runs


def measure_rounding(
    config: DictConfig, parts: Parts, splits: Sequence[Split], data: DataModule, folder: Path, device: torch.device
) -> None:
    """Write ``int8.json``, and print it and the scores beside those of the weights as they are, where these were evaluated.

    Does nothing where nothing is rounded. A checkpoint that has its weights in 8 bits alone is compared with nothing.
    """
    if parts.int8 is None:
        return
    found: dict[str, Divergence] = {}
    if config.int8:
        before = load_parts(
            config.checkpoint, {name: config[name] for name in STORED}, has_data=False, trust=config.trust
        )
        ours, theirs = ((each.model, each.tasks) for each in (before, parts))
        found = divergences(ours, theirs, splits, data, device, evaluation_options(parts.config))
    if rank() > 0:
        return
    bytes_ = {"before": parts.int8.before, "after": parts.int8.after}
    kl = {label: asdict(each) for label, each in found.items()}
    content = {"layers": list(parts.int8.layers), "bytes": bytes_, "kl": kl}
    write_text(folder / "int8.json", json.dumps(content, indent=2) + "\n")
    for label, each in found.items():
        print(
            f"{label}: KL(before || int8) {each.kl:.2g} nats, the mean over {each.rows:,} distributions; of {each.agreement:.2%} "
            "the likeliest stays"
        )
    if config.int8:
        print_beside(config, folder)


def print_beside(config: DictConfig, folder: Path, resamples: int = 10000) -> None:
    """Print both scores, each with its interval, and the tested differences, as ``fusionkit compare`` does."""
    other = unrounded_folder(home_of(Path(config.checkpoint)), config)
    if other is not None:
        runs = read_runs([str(other), str(folder)])
        if len(runs) == 2 and runs[0].checkpoint == runs[1].checkpoint:
            return print_comparison(compare_runs(runs, resamples=resamples, seed=config.seed), Console())
    print(
        f"the scores of its weights as they are: the same command without int8; then both: fusionkit compare FOLDER {folder}"
    )
