"""A trained checkpoint as the service holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fusionkit.data.datamodule import DataModule
from fusionkit.data.requests import ASKED
from fusionkit.errors import ConfigError, suggest
from fusionkit.inference.answering import Predictor
from fusionkit.inference.embedding import Embedder
from fusionkit.inference.image_search import ImageSearch
from fusionkit.serving.problems import Problem

KINDS: Mapping[str, str] = {"match": "text", "answer": "question", "ground": "phrase", "caption": "caption"}


@dataclass(frozen=True)
class Served:
    """What can be asked of one checkpoint, under the ``name`` by which requests call it; ``search`` is that of its index."""

    name: str
    predictor: Predictor
    search: ImageSearch | None = None
    rows: Mapping[str, int] = field(default_factory=dict)  # of the index, by the name of an image

    @property
    def data(self) -> DataModule:
        return self.predictor.datamodule

    @cached_property
    def embedder(self) -> Embedder:
        return Embedder(self.predictor)

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of requests that it answers."""
        able = {task.replies_to for task in self.predictor.tasks.values()}
        found = [kind for kind, word in KINDS.items() if word in able]
        found += ["embed"] if self.embedder.has_contrast else []
        return found + (["search"] if self.search is not None else [])

    @cached_property
    def can_look(self) -> bool:
        """Whether its fusion's text looks at the image, so that it can be shown where."""
        return "attention" in self.predictor.model.fusion.provides

    def require(self, kind: str, by: str | None, look: bool) -> None:
        """Raise Problem for what it cannot be asked."""
        if kind not in self.kinds:
            raise Problem(422, f"the model '{self.name}' answers no '{kind}'; it answers {', '.join(self.kinds)}")
        word = KINDS.get(kind)
        able = [name for name, task in self.predictor.tasks.items() if task.replies_to == word]
        if by is not None and by not in able:
            raise Problem(422, f"by names no task that answers this; {suggest(by[:60], able)}")
        if look and not self.can_look:
            raise Problem(422, f"the model '{self.name}' cannot show where words look: its fusion has no attention")

    def described(self) -> dict[str, Any]:
        """As GET /v1/models names it."""
        tasks = {
            kind: [name for name, task in self.predictor.tasks.items() if task.replies_to == word]
            for kind, word in KINDS.items()
            if kind in self.kinds
        }
        found = {"name": self.name, "kinds": self.kinds, "tasks": tasks, "look": self.can_look}
        return found | {"indexed": 0 if self.search is None else len(self.search.index), "middle": self.is_middle}

    @property
    def is_middle(self) -> bool:
        """Whether it sees only the square in the middle of a picture."""
        return bool(self.data.finish.fit == "crop")


def require_pixels(name: str, predictor: Predictor) -> None:
    """Raise ConfigError for a checkpoint that a picture cannot be shown to."""
    if predictor.model.image_encoder.reads == "regions":
        raise ConfigError(
            f"{name} reads region features of a detector, which no picture has; serve one that reads pixels"
        )
    if (reads := predictor.model.image_encoder.reads) != "pixel_values":
        raise ConfigError(f"{name} reads {reads}, and the service takes single pictures; ask it with fusionkit predict")
    if not any(task.replies_to in ASKED for task in predictor.tasks.values()):
        raise ConfigError(f"{name} has no task that answers anything; serve another checkpoint")
