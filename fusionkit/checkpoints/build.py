"""Model, tasks and teacher from a configuration alone, without data: for imports, exports and ``from_pretrained``."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.parts import build_model, build_tasks, build_teacher, dims_of, plain_dims
from fusionkit.checkpoints.base import Plan
from fusionkit.data.tokenizer import text_format
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.tasks.base import Task


@dataclass(frozen=True)
class Network:
    """All that has weights."""

    model: VisionLanguageModel
    tasks: dict[str, Task[Any]]
    teacher: MomentumTeacher | None

    @property
    def module(self) -> nn.ModuleDict:
        """One module, with the names of a training module's state."""
        parts = {"model": self.model, "tasks": nn.ModuleDict(self.tasks)}
        return nn.ModuleDict(parts | ({"teacher": self.teacher} if self.teacher is not None else {}))


def build_network(config: DictConfig, words: Any, answers: Sequence[str] = ()) -> Network:
    """The network of a configuration; ``words`` is a tokenizer, or the ids of the special tokens where there is none.

    Without a tokenizer the text encoder has to name its own vocabulary size, and no task can spell.
    """
    is_spelling = not isinstance(words, Mapping)
    config = config if is_spelling else without_prompts(config)
    model = build_model(config, *((len(words), text_format(words)) if is_spelling else (1,)))
    dims = dims_of(model, words, answers) if is_spelling else plain_dims(model, words, answers)
    tasks = build_tasks(config, dims, model.fusion)
    return Network(model, tasks, build_teacher(config, model, tasks))


def without_prompts(config: DictConfig) -> DictConfig:
    """A copy in which no task says words, since there are no words yet."""
    config = copy.deepcopy(config)
    for task in config.task.values():
        if "prompt" in task:
            task.prompt = ""
    return config


def empty_network(config: DictConfig, words: Any, answers: Sequence[str] = ()) -> Network:
    """The same without memory for its tensors: names and shapes only."""
    with torch.device("meta"):
        return build_network(config, words, answers)


def compose_plan(plan: Plan, tokenizer: str) -> DictConfig:
    """The configuration of a run of this plan, as ``fusionkit train`` would write it; data.root stays open."""
    config = training_config("size=base", *plan.groups, f"tokenizer={tokenizer}")
    with open_dict(config):
        for key, value in plan.config.items():
            is_whole = not isinstance(value, Mapping) or "_target_" in value
            config[key] = value if is_whole else OmegaConf.merge(config.get(key) or {}, value)
    return config
