"""``teacher=checkpoint``: which other checkpoint teaches, read as any foreign one is, and what of a run it can teach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fusionkit.assembly.checks import check_image_size, check_length
from fusionkit.assembly.objectives import active_objectives
from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.frozen import content_hash
from fusionkit.checkpoints.pretrained import Pretrained, from_pretrained
from fusionkit.data.tokenizer import rules_of
from fusionkit.data.transforms import Finish
from fusionkit.errors import ConfigError, suggest
from fusionkit.model.int8 import plain_state
from fusionkit.tasks.base import Task
from fusionkit.training.distillation.student import (
    IMAGE,
    PAIR,
    TEXT,
    Distillation,
    FrozenTeacher,
    Weights,
)
from fusionkit.types import Batch

ALL, PARTS, KINDS = "all", (IMAGE, TEXT, PAIR), ("cosine", "mse")


@dataclass(frozen=True)
class CheckpointTeacher:
    """The section ``teacher`` of a run that learns from another checkpoint.

    ``checkpoint``   a checkpoint of a run, or a folder that import or export wrote.
    ``trust``        packages of others' parts in it.
    ``tasks``        whose logits are learnt from: "all" that it can teach, or names.
    ``features``     whose pooled states are learnt from, of ``PARTS``.
    The other options are those of ``Weights``.
    """

    checkpoint: str | None = None
    weight: float = 1.0
    hard_weight: float = 1.0
    temperature: float = 2.0
    tasks: Any = ALL
    features: Sequence[str] = ()
    features_weight: float = 1.0
    features_loss: str = "cosine"
    trust: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ConfigError(
                "teacher.checkpoint is missing; give the checkpoint that teaches as teacher.checkpoint=PATH"
            )
        for name in ("weight", "hard_weight", "features_weight", "temperature"):
            value, is_divisor = getattr(self, name), name == "temperature"
            if type(value) not in (int, float) or not 0 <= value < float("inf") or (is_divisor and value == 0):
                raise ConfigError(
                    f"teacher.{name} is {value!r}; give a number {'above 0' if is_divisor else 'from 0 on'}"
                )
        features = self.features if is_list(self.features) else [self.features]
        for part in features:
            if part not in PARTS or part is self.features:
                raise ConfigError(f"teacher.features is {part!r}; give a list of parts: {suggest(str(part), PARTS)}")
        if self.features_loss not in KINDS:
            kind = self.features_loss
            raise ConfigError(f"teacher.features_loss is {kind!r}; {suggest(str(kind), KINDS)}")
        if self.tasks != ALL and not is_list(self.tasks):
            told = f"teacher.tasks is {self.tasks!r}; give all, or a list"
            raise ConfigError(f"{told} of tasks: teacher.tasks=[{self.tasks or 'NAME'}]")

    def build(self, parts: Parts) -> tuple[Distillation, list[str]]:
        """What is added to the losses of a run, and sentences about what is not; ConfigError where nothing can be learnt."""
        assert self.checkpoint is not None
        with torch.random.fork_rng(devices=[]):  # the student starts as it does without a teacher
            found = from_pretrained(self.checkpoint, self.trust)
        self._require_readable(found, parts)
        reasons = self._reasons(found, parts)
        taught = [name for name, reason in reasons.items() if reason is None]
        told = self._told({name: reason for name, reason in reasons.items() if reason is not None})
        widths = {part: self._widths(part, found, parts) for part in self.features}
        if not taught and not widths:
            raise ConfigError(
                f"{told or 'teacher.tasks is empty, and so is teacher.features'}; nothing is left to learn: leave the teacher out"
            )
        origin = {"checkpoint": str(self.checkpoint), "hash": content_hash(plain_state(found.module.state_dict()))}
        teacher = FrozenTeacher(found.model, found.tasks, origin, pixels_for(found, parts))
        weights = Weights(self.weight, self.hard_weight, self.temperature, self.features_weight, self.features_loss)
        return Distillation(teacher, taught, widths, weights), [told] if told else []

    def _told(self, left_out: Mapping[str, str]) -> str:
        if not left_out:
            return ""
        named = ", ".join(f"task.{name} ({reason})" for name, reason in left_out.items())
        told = f"teacher.checkpoint {self.checkpoint} cannot teach {named}"
        if self.tasks != ALL:
            raise ConfigError(f"{told}; leave {'them' if len(left_out) > 1 else 'it'} out of teacher.tasks")
        return told

    def _require_readable(self, found: Pretrained, parts: Parts) -> None:
        """ConfigError where the teacher does not read the images and texts of the run's batches."""
        own, other = parts.model.image_encoder, found.model.image_encoder
        place, data = f"teacher.checkpoint {self.checkpoint}", parts.datamodule
        if own.reads != other.reads:
            raise ConfigError(
                f"{place} reads {other.reads}, but the run's images are {own.reads}; give another teacher"
            )
        if (parts.config.get("image_tokens") or {}).get("folder"):
            raise ConfigError(
                f"{place} reads pixels, which image_tokens.folder takes out of batches; set image_tokens.folder=null"
            )
        try:
            if other.reads == "pixel_values":
                check_image_size(found.model.get_submodule("image_encoder"), data.finish.size)
            for source in parts.objectives if self._same_words(found, parts) else ():
                check_length(source, data, found.model.text_encoder.max_length)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error

    def _same_words(self, found: Pretrained, parts: Parts) -> bool:
        if found.tokenizer is None:  # it names one, which is not read
            return bool(found.config.data.get("tokenizer") == parts.config.data.get("tokenizer"))
        return rules_of(found.tokenizer) == rules_of(parts.datamodule.tokenizer)

    def _reasons(self, found: Pretrained, parts: Parts) -> dict[str, str | None]:
        """Why the teacher cannot teach each task that is asked for; None where it can."""
        trained = trained_tasks(parts)
        names = list(trained) if self.tasks == ALL else list(self.tasks)
        if unknown := [name for name in names if name not in trained]:
            raise ConfigError(
                f"teacher.tasks names {unknown[0]!r}, which the run does not train; {suggest(str(unknown[0]), trained)}"
            )
        if not self._same_words(found, parts):
            return dict.fromkeys(names, "its tokenizer is another")
        flags = [(each.model.predicts_words, each.model.encodes_prompts) for each in (found, parts)]
        return {name: why_not(trained[name], found.tasks.get(name), flags[0] == flags[1]) for name in names}

    def _widths(self, part: str, found: Pretrained, parts: Parts) -> tuple[int, int]:
        """The widths of the student's and the teacher's features; ConfigError where one of them has none."""
        told = f"teacher.features: {part} cannot be learnt from teacher.checkpoint {self.checkpoint}"
        if part != IMAGE and not self._same_words(found, parts):
            raise ConfigError(f"{told}, whose tokenizer is another; leave {part} out")
        models, trained = (parts.model, found.model), trained_tasks(parts).values()
        if part != IMAGE and not any(task.encodes for task in trained):
            raise ConfigError(f"{told}, as no task of the run has plain texts encoded; leave {part} out")
        if part == PAIR:
            if not any(task.needs - {"feats"} for task in trained):
                raise ConfigError(f"{told}, as no task of the run trains the fusion; leave {part} out")
            for model, whose in zip(models, ("run's", "teacher's"), strict=True):
                if "pooled" not in model.fusion.provides:
                    raise ConfigError(
                        f"{told}, as the {whose} fusion {type(model.fusion).__name__} pools no pair; leave {part} out"
                    )
            return models[0].fusion.pooled_size, models[1].fusion.pooled_size
        one, two = ((m.image_encoder if part == IMAGE else m.text_encoder).hidden_size for m in models)
        return one, two


def is_list(value: Any) -> bool:
    """Whether an option is a list of any kind, OmegaConf's too, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def trained_tasks(parts: Parts) -> dict[str, Task[Any]]:
    """The tasks of a run that have a weight above 0 somewhere."""
    rows = active_objectives(parts.objectives, parts.tasks).values()
    return {name: parts.tasks[name] for row in rows for name in row}


def why_not(own: Task[Any], other: Task[Any] | None, same_prompts: bool) -> str | None:
    """Why a task of another model cannot teach one's own; None where it can."""
    if other is None:
        return "it has no such task"
    if type(other) is not type(own):
        return f"its is a {type(other).__name__}"
    one, two = own.columns(), other.columns()
    if one is None or two is None:
        return "it asks nothing that another model can be asked"
    if one != two:
        return f"its {two[0]} are others"
    if "causal" in own.needs and not same_prompts:
        return "its language model is of another kind"
    return None


def pixels_for(found: Pretrained, parts: Parts) -> Any:
    """What makes the teacher's pixels of the run's (FrozenTeacher.pixels)."""
    data = found.config.get("data") or {}
    own = parts.datamodule.finish
    other = Finish(own.size, *(data.get(key, [0.5] * 3) for key in ("mean", "std")))
    scale = torch.from_numpy(other.scale / own.scale)  # (3, 1, 1)
    return partial(renormalised, scale=scale, shift=torch.from_numpy(other.shift) - scale * torch.from_numpy(own.shift))


def renormalised(batch: Batch, scale: torch.Tensor, shift: torch.Tensor) -> Batch:
    """A batch whose pixels are scale * pixels + shift, those beside an image 0 as before."""
    if "pixel_values" not in batch or ((scale == 1).all() and not shift.any()):
        return batch
    pixels = batch["pixel_values"]
    changed = pixels * scale.to(pixels) + shift.to(pixels)
    if "pixel_mask" in batch:
        changed = changed * batch["pixel_mask"][:, None]
    return {**batch, "pixel_values": changed}
