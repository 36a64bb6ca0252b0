"""How well each text suits its own image, by whichever task can tell: one that matches, or one that contrasts."""

from typing import Any

from torch import Tensor, nn

from fusionkit.model.model import VisionLanguageModel
from fusionkit.scoring.records import Records
from fusionkit.types import Batch, Encoded


class OwnPairs(nn.Module):
    """Stands in the place of a task where a scorer wants each text scored with its image: {"caption_id", value}.

    Of a task that matches it is the log-odds of a match (of ``likelihood`` what it ranks by), of one that ranks the cosine.
    """

    ranks = matches = False
    distribution = None

    def __init__(self, task: Any, value: str) -> None:
        super().__init__()
        self.task, self.value = task, value
        self.reads, self.replies_to, self.encodes = task.reads, task.replies_to, task.encodes

    def predict(self, model: VisionLanguageModel, batch: Batch, encoded: Encoded) -> Records:
        """One record a text."""
        rows: Any = batch[self.reads]  # type: ignore[literal-required]
        scores = self._scores(model, rows, encoded).float().tolist()
        return [{"caption_id": key, self.value: score} for key, score in zip(rows["ids"], scores, strict=True)]

    def _scores(self, model: VisionLanguageModel, rows: Any, encoded: Encoded) -> Tensor:
        """The scores (T,)."""
        index = rows["image_index"]
        if self.task.matches:
            text = encoded.text[self.reads] if self.encodes else rows
            logits: Tensor = self.task.score_pairs(model, encoded.memory, text, index).float()
            return logits[:, 1] - logits[:, 0]
        return (encoded.image_feats[index].float() * encoded.text_feats[self.reads].float()).sum(dim=1)
