"""Retrieval by a matching task alone, as UNITER, ViLT and METER do it: every caption is scored with every image."""

from typing import Any

from torch import nn

from fusionkit.scoring.records import Records


class AllPairs(nn.Module):
    """Stands in the place of a task that ranks where a model has learnt to match, but no contrast.

    Of T captions and I images it asks for T x I forward passes of the fusion, whose logits ``predict_source`` ranks.
    """

    ranks = matches = False
    distribution = None

    def __init__(self, matcher: Any) -> None:
        super().__init__()
        self.matcher, self.reads, self.replies_to = matcher, matcher.reads, matcher.replies_to
        self.encodes = matcher.encodes

    def predict(self, model: object, batch: object, encoded: object) -> Records:
        """Nothing: a batch does not hold all that a caption is to be ranked among."""
        return []
