"""``fusionkit check FOLDER``: whether the parts of one's own that a folder of configurations names keep their contracts."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from fusionkit.cli.app import see_working_folder
from fusionkit.config import group_choices
from fusionkit.contracts import balancers, encoders, fusions, tasks
from fusionkit.contracts.toys import (
    TEXT_KINDS,
    VOCABULARY,
    choice,
    joined,
    module,
    of_size,
    toy_dims,
    toy_fusion,
    toy_model,
    toy_task,
)
from fusionkit.encoders.base import ImageEncoder, TextEncoder
from fusionkit.errors import ConfigError, UserError, suggest
from fusionkit.fusion.base import Fusion
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task

Check = Callable[[Any], None]


def run(arguments: Sequence[str]) -> int:
    """The ``check`` command; 1 where a part breaks its contract."""
    if len(arguments) != 1:
        raise ConfigError("fusionkit check takes one folder, that of --config-dir: fusionkit check my_conf")
    folder = Path(arguments[0])
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give that of --config-dir")
    found = [(group, path) for group in KINDS for path in sorted((folder / group).glob("*.yaml"))]
    if not found:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
        raise ConfigError(
            f"{folder} has no choice of {', '.join(KINDS)} to check (its folders: {', '.join(sorted(names)) or 'none'})"
        )
    see_working_folder()
    broken = [f"{group}/{path.stem}" for group, path in found if not check(group, path)]
    print(
        f"{len(found) - len(broken)} of {len(found)} parts keep their contracts"
        + "".join(f"; not {name}" for name in broken)
    )
    return 1 if broken else 0


def check(group: str, path: Path) -> bool:
    """Run the checks of a group on one choice and print what each found."""
    is_kept = True
    print(f"{group}/{path.stem}")
    for name, fault in faults(group, path):
        is_kept &= fault is None
        print(f"  {name.replace('_', ' ')}: {'holds' if fault is None else f'BROKEN: {fault}'}")
    return is_kept


def faults(group: str, path: Path) -> Iterator[tuple[str, str | None]]:
    """By check, the sentence about what does not hold, or None."""
    build, checks = KINDS[group]
    for each in checks:
        torch.manual_seed(0)
        try:
            each(partial(build, path))
        except (AssertionError, UserError) as error:
            yield each.__name__, str(error)
        except Exception as error:  # one's own code may raise anything
            yield each.__name__, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        else:
            yield each.__name__, None


def fusion_of(path: Path) -> Fusion:
    """The fusion, built between widths that differ."""
    torch.manual_seed(0)
    built = joined(toy_fusion(path)(image_size=fusions.IMAGE, text_size=fusions.TEXT), fusions.TEXT)
    module(built).eval()
    return built


def task_of(path: Path) -> tuple[VisionLanguageModel, Task[Any]]:
    """The task over the first fusion of ours that can feed it."""
    torch.manual_seed(0)
    for name in group_choices("fusion"):
        model = toy_model(name)
        task = toy_task(path, toy_dims(model))
        if tasks.feeds(model, task):
            require_kind(task)
            return model, task
    raise ConfigError(f"no fusion of ours provides what it needs, {', '.join(sorted(task.needs))}")


def require_kind(task: Task[Any]) -> None:
    """The texts that it reads are of a kind that there is a drawn batch of."""
    if task.reads not in TEXT_KINDS:
        raise ConfigError(
            f"it reads '{task.reads}', a kind of its own, of which the checks have no texts; "
            f"{suggest(task.reads, TEXT_KINDS)}"
        )


def image_encoder_of(path: Path) -> ImageEncoder:
    """The image encoder as it is configured."""
    encoder: ImageEncoder = built("image_encoder", path)
    return encoder


def text_encoder_of(path: Path) -> TextEncoder:
    """The text encoder of a toy vocabulary."""
    encoder: TextEncoder = built("text_encoder", path, vocab_size=VOCABULARY)
    return encoder


def built(group: str, path: Path, **given: Any) -> Any:
    """What a choice names, with the numbers of size=small."""
    torch.manual_seed(0)
    return instantiate(of_size("small", **{group: choice(group, path)})[group], **given)


KINDS: dict[str, tuple[Callable[[Path], Any], Sequence[Check]]] = {
    "fusion": (fusion_of, fusions.CHECKS),
    "task": (task_of, tasks.CHECKS),
    "balance": (partial(built, "balance"), balancers.CHECKS),
    "image_encoder": (image_encoder_of, encoders.IMAGE_CHECKS),
    "text_encoder": (text_encoder_of, encoders.TEXT_CHECKS),
}
