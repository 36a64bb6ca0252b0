"""A W&B report of a project: ``python -m fusionkit.reporting.dashboard --project NAME``; it sends, and so needs a key.

Its panels name metrics by patterns, so that it fits any fusions, tasks and sources. W&B's package for reports is an extra.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fusionkit.errors import ConfigError, UserError
from fusionkit.scoring.scorers import OURS
from fusionkit.training.loggers import require_key

GROUPS = ("group", "label_fusion", "label_tasks", "label_sources")  # what training.loggers sets
HEADLINES = "|".join(sorted({name for scorer in OURS for name in scorer.headlines_of_run()}))
PARTS = "(_[a-z_]+)?"  # of a metric, such as an answer type or a stage
SECTIONS = {  # heading -> panels: title and the pattern of its metrics
    "Scores": {
        "headlines, by part": f"test/[^/]+/({HEADLINES}){PARTS}",
        "all scores": "test/[^/]+/.+",
    },
    "Validation": {
        "mean of the headline scores": "val/mean",
        "headlines, by part": f"val/[^/]+/({HEADLINES}){PARTS}",
        "all scores": "val/[^/]+/.+",
    },
    "Objectives": {
        "losses": "train/[^/]+/[^/]+_loss",
        "weights": "train/[^/]+/[^/]+_weight",
        "temperature and learning rate": "train/(temperature|lr)",
        "age of the queues, steps": "train/[^/]+/[^/]+_queue_age(_max)?",
    },
    "Matching": {
        "logits of true and wrong pairs, and their gap": "train/[^/]+/[^/]+_(positive_logit|negative_logit|logit_gap)",
        "distance from guessing: near 0 is collapse": "train/[^/]+/[^/]+_collapse",
        "entropy of the sampling distribution of negatives": "train/[^/]+/[^/]+_negatives_entropy",
    },
    "Gradients": {
        "norms by part": "train/gradient_norm/.+",
        "norms by objective (balance.gradients_every_n_steps)": "train/[^/]+/[^/]+_gradient_norm",
        "cosines between objectives": "train/gradient_cosine/.+",
    },
}


def build_report(project: str, entity: str | None, group: str, source: str, tasks: Sequence[str]) -> Any:
    """Build the unsaved report: a grid of panels a section, runs grouped, tables of the ``tasks``' answers on ``source``."""
    wr: Any = import_module("wandb.apis.reports")  # of W&B's extra, so nothing to declare or to check types against
    owner = {"entity": entity} if entity else {}
    key = group if group == "group" else f"config.{group}"
    blocks: list[Any] = [wr.TableOfContents()]
    for heading, panels in SECTIONS.items():
        runs = wr.Runset(project=project, groupby=[key], **owner)
        plots = [
            wr.LinePlot(title=title, x="trainer/global_step", metric_regex=f"^{names}$")
            for title, names in panels.items()
        ]
        blocks += [wr.H1(heading), wr.PanelGrid(runsets=[runs], panels=plots)]
    tables = [wr.WeavePanelSummaryTable(table_name=f"predictions/test/{source}_{task}") for task in tasks]
    runs = wr.Runset(project=project, **owner)
    blocks += [wr.H1("Answers"), wr.PanelGrid(runsets=[runs], panels=tables)] if tables else []
    return wr.Report(project=project, title="Fusion encoders", blocks=blocks, width="fluid", **owner)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fusionkit.reporting.dashboard", description=__doc__)
    parser.add_argument("--project", default="fusionkit")
    parser.add_argument("--entity", help="the team; without it your own")
    parser.add_argument("--group", default="label_fusion", choices=GROUPS)
    parser.add_argument("--source", default="shapes", help="whose tables of answers are shown")
    parser.add_argument("--tasks", nargs="*", default=[], help="whose answers on the source are shown, such as vqa")
    options = parser.parse_args(arguments)
    try:
        require_key("a W&B report", "read the runs here: fusionkit compare RUN...")
        if find_spec("wandb_workspaces") is None:
            raise ConfigError("W&B's package for reports is not installed; run: pip install 'wandb[workspaces]'")
        report = build_report(options.project, options.entity, options.group, options.source, options.tasks)
        print(report.save().url)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
