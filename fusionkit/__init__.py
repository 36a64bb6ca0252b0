"""fusionkit: train, compare and evaluate vision-language fusion encoders on several objectives at once.

In Python: ``import fusionkit as fk``, then ``fk.load``, ``fk.train``, ``fk.evaluate`` and ``fk.compose`` (``fusionkit.api``).
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionkit.api import Model, Scores, TrainedRun, compose, evaluate, load, train

__version__ = "0.1.0"
__all__ = ["Model", "Scores", "TrainedRun", "__version__", "compose", "evaluate", "load", "train"]


# what libraries log of each other when transformers and peft import torchao and bitsandbytes, which they do where these are there
_SAID_ON_IMPORT = {
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    "torchao": "Skipping import of cpp extensions due to incompatible torch version",  # which are not used here
}


def _is_news(record: logging.LogRecord) -> bool:
    return _SAID_ON_IMPORT[record.name] not in record.getMessage()


for _name in _SAID_ON_IMPORT:
    logging.getLogger(_name).addFilter(_is_news)


def __getattr__(name: str) -> Any:
    """A name of the API, whose libraries take seconds to import, when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'fusionkit' has no attribute '{name}'")
    return getattr(importlib.import_module("fusionkit.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
