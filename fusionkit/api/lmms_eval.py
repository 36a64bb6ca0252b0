"""lmms-eval evaluates our checkpoints: ``lmms-eval --model fusionkit --model_args checkpoint=RUN --tasks ...``.

pyproject.toml names ``manifest`` in the entry points ``lmms_eval.models``, where lmms-eval (0.7) finds models of others. It
is not among our libraries: it is imported where it asks, and what it asks is answered without it, by ``Adapter``.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from PIL import Image

from fusionkit.api.model import Model, load
from fusionkit.errors import ConfigError, DataError, suggest

NAME, CLASS = "fusionkit", "Fusionkit"
ASKS = ("question", "caption")
PLACE = "<image>"  # where a prompt says that an image is seen
AT_ONCE = 64  # prompts whose images are in memory, at least
IGNORED = {"max_batch_size"}  # lmms-eval's own words, which it hands to every model


class Adapter:
    """What lmms-eval asks of a model, answered by a checkpoint.

    ``checkpoint``  a file, the folder of a run or of an export, or OWNER/NAME on the hub.
    ``batch_size``  images at a time; lmms-eval's ``--batch_size``.
    ``ask``         "question": the prompt is answered; "caption": the image is described, whatever the prompt says.
    ``by``          the task that replies where several can.
    ``trust``       packages whose parts the checkpoint may name, with + between them: their code is run.

    How a reply is searched for, and how long it may get, is the checkpoint's own: of the generation options of a task ``until``
    alone is heeded.
    """

    task_dict: dict[str, Any]  # by task and split its documents; lmms-eval sets it
    cache_hook: Any

    def __init__(
        self,
        checkpoint: str,
        device: str | None = None,
        batch_size: int | str = 32,
        ask: str = "question",
        by: str | None = None,
        trust: str = "",
        **others: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(others.keys() - IGNORED):
            known = ("checkpoint", "ask", "by", "trust")
            raise ConfigError(f"model_args: fusionkit has no '{unknown[0]}'; {suggest(unknown[0], known)}")
        if ask not in ASKS:
            raise ConfigError(f"model_args: ask is {ask}; {suggest(str(ask), ASKS)}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "lmms-eval: the model fusionkit runs in one process; start it without accelerate or torchrun"
            )
        packages = [name for name in str(trust).split("+") if name]
        self.model: Model = load(str(checkpoint), device, packages)
        if isinstance(batch_size, int) or str(batch_size).isdecimal():  # else "auto"
            self.model.batch_size = max(1, int(batch_size))
        self.asks, self.by = ask, by

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The reply to each request, in their order; a request's ``args`` are

        (prompt, options, images of a document, the document's number, task, split).
        """
        found: list[str] = []
        step = max(AT_ONCE, self.model.batch_size)
        for start in range(0, len(requests), step):
            asked = [self._asked(*request.args) for request in requests[start : start + step]]
            replies = self._replies([images for images, _ in asked], [text for _, text in asked])
            for request, reply in zip(requests[start : start + step], replies, strict=True):
                prompt, options = request.args[:2]
                said = until(str(reply), options)
                self.cache_hook.add_partial("generate_until", (prompt, options), said)
                found.append(said)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: ConfigError."""
        raise ConfigError(
            "lmms-eval: the model fusionkit generates answers and gives no log-likelihoods; choose a task with output_type "
            "generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: ConfigError."""
        raise ConfigError(
            "lmms-eval: the model fusionkit answers one prompt a document; choose a task with output_type generate_until"
        )

    def _replies(self, images: list[Any], texts: list[str]) -> list[Any]:
        if self.asks == "caption":
            captions: list[Any] = self.model.caption(images, by=self.by)
            return captions
        answers: list[Any] = self.model.answer(images, texts, by=self.by)
        return answers

    def _asked(self, prompt: str, options: Any, visuals_of: Any, number: Any, task: str, split: str) -> tuple[Any, str]:
        """The image, or the list of several, and the words about it. DataError where there is no picture."""
        visuals = visuals_of(self.task_dict[task][split][number])
        pictures = list(visuals) if isinstance(visuals, list | tuple) else [] if visuals is None else [visuals]
        if not pictures or not all(isinstance(each, Image.Image) for each in pictures):
            found = ", ".join(sorted({type(each).__name__ for each in pictures})) or "nothing"
            raise DataError(
                f"lmms-eval task {task}: document {number} of {split} shows {found}, but fusionkit answers about pictures; "
                "let doc_to_visual give a list of PIL images, or choose another task"
            )
        pictures = [picture.convert("RGB") for picture in pictures]
        if self.asks == "caption":
            return pictures[0], ""
        if len(pictures) == 1:
            return pictures[0], prompt.replace(PLACE, "").strip()
        return pictures, prompt if PLACE in prompt else f"{PLACE * len(pictures)}\n{prompt}"


def until(reply: str, options: Any) -> str:
    """A reply up to the first of the texts at which a task's ``until`` says it ends."""
    ends = options.get("until") if isinstance(options, Mapping) else None
    for end in [ends] if isinstance(ends, str) else ends or []:
        reply = reply.partition(end)[0] if end else reply
    return reply.strip()


def manifest() -> Any:
    """What lmms-eval asks of an entry point: which class is the model of which name."""
    registry: Any = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.{CLASS}")


@cache
def _model_class() -> type:
    base: Any = importlib.import_module("lmms_eval.api.model").lmms
    return type(CLASS, (Adapter, base), {"__module__": __name__, "__doc__": Adapter.__doc__, "is_simple": True})


def __getattr__(name: str) -> Any:
    """The class that lmms-eval builds is one of its own: made when it is asked for."""
    if name != CLASS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return _model_class()
