"""What can be trained with split weights, and what cannot."""

from typing import TYPE_CHECKING

from fusionkit.errors import ConfigError

if TYPE_CHECKING:
    from fusionkit.training.module import TrainingModule


def require_split(module: "TrainingModule") -> None:
    """ConfigError for what cannot be trained with split weights."""
    for name, task in module.tasks.items():
        if getattr(task, "draws_texts", False) and any(name in row for row in module.objectives.values()):
            raise ConfigError(
                f"task.{name} trains on texts that the model says, whose lengths differ between processes, so that these would "
                "wait for each other's weights; use trainer=ddp"
            )
    if not module.stages.is_all:
        raise ConfigError(
            "stages: split weights all train, at rates of their own, in every step; set stages=none, or use trainer=ddp"
        )
    if module.image_tokens is not None:
        raise ConfigError(
            "image_tokens.folder: the encoder that makes them is split among processes that make unequal numbers of them; set "
            "image_tokens.folder=null, or use trainer=ddp"
        )
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise ConfigError(
                f"trainer.strategy: {name} is kept in few bits, which cannot be split; set adapters.base_weights=null, or use "
                "trainer=ddp"
            )
