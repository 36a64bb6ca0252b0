"""Where the numbers of a run go: W&B without a network or a key, and the resolved configuration, once."""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only


class ScoreWandbLogger(WandbLogger):
    """W&B whose summary keeps the best of every validation score, not the last.

    ``offline`` (the default) asks for no account and sends nothing; ``wandb sync`` uploads the folder later; the
    environment's WANDB_MODE has the last word. What W&B writes stays below ``save_dir``. Options go to ``wandb.init``.
    """

    def __init__(self, save_dir: str, project: str = "fusionkit", offline: bool = True, **options: Any) -> None:
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ.setdefault(name, str(Path(save_dir).resolve() / "wandb"))
        import wandb

        settings = wandb.Settings(silent=True, console="off")
        mode = os.environ.get("WANDB_MODE", "offline" if offline else "online")
        super().__init__(save_dir=save_dir, project=project, mode=mode, settings=settings, **options)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever its value
        self._defined: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log as Lightning does; a score is declared by its exact name first (a pattern would be ignored)."""
        for name in metrics:
            if name.startswith("val/") and name not in self._defined:
                self.experiment.define_metric(name, summary="max", step_metric="trainer/global_step")
                self._defined.add(name)
        super().log_metrics(metrics, step)


def log_config(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Give every logger the resolved configuration as one flat mapping; call it once."""
    flat = flatten(config)
    for logger in loggers:
        logger.log_hyperparams(flat)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists and other values stay."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def finish() -> None:
    """Close the W&B run, if there is one: the next run in this process would otherwise write into it."""
    if "wandb" in sys.modules:
        import wandb

        if wandb.run is not None:
            wandb.finish()
