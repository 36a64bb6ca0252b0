"""What a notebook imports: ``import fusionkit as fk``. The commands of the terminal do their work by the same functions."""

from fusionkit.api.model import Model, load
from fusionkit.api.runs import Scores, TrainedRun, compose, evaluate, train

__all__ = ["Model", "Scores", "TrainedRun", "compose", "evaluate", "load", "train"]
