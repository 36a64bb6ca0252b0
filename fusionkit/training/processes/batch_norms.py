"""Statistics of batch norms where several processes train: each one's own, or those of the global batch."""

from collections.abc import Sequence

from lightning.pytorch.plugins import TorchSyncBatchNorm
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusionkit.errors import ConfigError

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)


class SharedStatistics(TorchSyncBatchNorm):
    """``trainer.sync_batchnorm``: Lightning's own conversion, torch's, leaves out the activation that timm's norms hold.

    Converted norms stay: in evaluation, and where there is one process, they are plain ones.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """The model, with statistics that are shared from now on; ConfigError for norms of a kind that nobody here knows."""
        for name, part in model.named_modules():
            if isinstance(part, _BatchNorm) and type(part) not in KNOWN:
                raise ConfigError(
                    f"trainer.sync_batchnorm: {name} is a {type(part).__name__}, and what it does beside a batch norm would be "
                    "lost; set it to false"
                )
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """The same."""
        return model


def of_own_rows(module: nn.Module) -> list[str]:
    """The names of batch norms that train on statistics of their own process's rows alone; frozen ones are no such."""
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm)
        and not isinstance(part, nn.SyncBatchNorm)
        and (not part.affine or any(parameter.requires_grad for parameter in part.parameters()))
    ]


def told_own_rows(module: nn.Module, images: Sequence[int], processes: int) -> list[str]:
    """What to say of a model with such norms where several processes train, each on so many images of each source a step."""
    names = of_own_rows(module) if processes > 1 else []
    if not names:
        return []
    return [
        f"batch norms ({names[0]}{', ...' if names[1:] else ''}) take their statistics from the {min(images)} images of each of "
        f"{processes} processes, not from the {min(images) * processes} of a step; on GPUs trainer.sync_batchnorm=true does"
    ]
