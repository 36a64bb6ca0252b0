"""Which parts of a run are compiled by torch.compile (``compile``)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fusionkit.encoders.probe import first_line
from fusionkit.encoders.recompute import MARK, blocks_of
from fusionkit.errors import ConfigError, suggest
from fusionkit.internals import allow_recompiling
from fusionkit.model.model import VisionLanguageModel

PARTS = ("image_encoder", "text_encoder", "fusion")
KEYS = ("parts", "backend", "mode", "dynamic")


def compile_parts(section: Any, model: VisionLanguageModel, device: str) -> list[str]:
    """Compile the blocks of layers of the parts that the section ``compile`` names, in place: names of weights stay.

    Of a part without such blocks all of it; of blocks that are computed anew in the backward pass what they consist of, so that
    both passes run the same code. Gives sentences about what is compiled; ConfigError for a mistake in the section, and where
    torch.compile does not work on this machine.
    """
    options = _options(section)
    names = _names(options.pop("parts"))
    if not names:
        return []
    _require_working(options, device)
    allow_recompiling()
    told = []
    for name in names:
        modules = compiled_modules(model.get_submodule(name))
        for module in modules:
            module.compile(**options)
        told.append(f"{len(modules)} of {name}")
    return [f"torch.compile ({options['backend']}): {', '.join(told)}; the first steps compile, which takes a while"]


def compiled_modules(part: nn.Module) -> list[nn.Module]:
    """The modules of a part that are compiled, each for itself: equal ones share what was compiled."""
    found: list[nn.Module] = []
    for block in blocks_of(part, outermost=True) or [part]:
        found += [child for child in block.children() if _is_called(child)] if hasattr(type(block), MARK) else [block]
    return found


def _is_called(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Identity)


def _options(section: Any) -> dict[str, Any]:
    section = dict(section or {}) if isinstance(section, Mapping) or not section else {"parts": section}
    for key in section:
        if key not in KEYS:
            raise ConfigError(f"compile.{key}: there is no such key; {suggest(str(key), KEYS)}")
    found: dict[str, Any] = {"parts": False, "backend": "inductor", "mode": None, "dynamic": None} | section
    if found["dynamic"] not in (None, True, False):
        raise ConfigError(f"compile.dynamic is {found['dynamic']!r}, but has to be true, false or null")
    return found


def _names(chosen: Any) -> tuple[str, ...]:
    if isinstance(chosen, bool) or chosen is None:
        return PARTS if chosen else ()
    names = tuple(chosen) if isinstance(chosen, list | tuple) else (chosen,)
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"compile.parts is '{name}'; give true, false or parts: {suggest(str(name), PARTS)}")
    return names


def _require_working(options: Mapping[str, Any], device: str) -> None:
    """Compile and run one operation, forwards and backwards, since what is missing is told by no flag."""
    try:
        number = torch.ones(2, device=device, requires_grad=True)
        torch.compile(lambda x: (x * x).sum(), **options)(number).backward()
    except Exception as error:  # whatever a backend, its compiler or this version of Python makes of it
        raise ConfigError(
            f"compile.parts: torch.compile does not work here with backend {options['backend']} and mode {options['mode']} "
            f"({type(error).__name__}: {first_line(error)[:200]}); install what it lacks (inductor on a CPU: a C++ compiler), "
            "or set compile.parts=false"
        ) from error
