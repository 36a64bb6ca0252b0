"""What a folder of transformers holds beside its weights: all sizes, its tokenizer, and how its images are read."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from fusionkit.checkpoints.directory import CONFIG, read_json
from fusionkit.checkpoints.possible import LAYERS, LENGTHS, Most
from fusionkit.checkpoints.runs import shown
from fusionkit.checkpoints.source import Source
from fusionkit.encoders.probe import first_line
from fusionkit.encoders.tower import quiet, without_code
from fusionkit.errors import DataError

FILES = ("processor_config.json", "preprocessor_config.json")  # of newer and of older versions
RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
OPENAI: dict[str, Any] = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
FIXED = {"do_resize": True, "do_rescale": True, "do_convert_rgb": True}
STEPS = re.compile(r"cross_.*(frequency|interval)")  # from layer to layer
FLAGS = (*FIXED, "do_normalize", "do_pad", "do_center_crop", "do_image_splitting")


def completed(source: Source, kind: str) -> Source:
    """The source with every size of a configuration of this class, of which a folder may leave out those that are its defaults.

    Raises DataError for sizes of another kind.
    """
    config, place = dict(source.config or {}), f"{source.path / CONFIG}: "
    try:
        with quiet():
            full = getattr(transformers, kind).from_dict(without_code(config)).to_dict()
    except Exception as error:  # of unknown kinds and values, each with an error of its own
        raise DataError(f"{place}is no {kind} ({first_line(error)}); correct it, or take the folder again") from error
    return replace(source, config={**full, "architectures": config.get("architectures")})


def require_possible(
    source: Source, part: str | None = None, least: int | None = 1, unread: Sequence[str] = ()
) -> None:
    """Raise DataError for a count in a section of config.json that no checkpoint of these tensors has.

    It has at most as many layers as tensors, and none is longer than its largest one has numbers. A foreign number of layers
    would else be built, one by one. Counts below ``least`` are refused too; what is ``unread`` may be anything.
    """
    config = source.config or {}
    most = Most.of(source.state)
    named = {
        name: value
        for name, value in (config if part is None else config.get(part) or {}).items()
        if type(value) is int and name not in unread
    }
    for name, value in sorted(named.items(), key=lambda item: not LAYERS.fullmatch(item[0])):  # these first
        key = f"{source.path / CONFIG}: {name if part is None else f'{part}.{name}'} is {shown(value)}"
        is_layers, is_length, is_step = (pattern.fullmatch(name) for pattern in (LAYERS, LENGTHS, STEPS))
        if told := most.fault(name, value):
            raise DataError(f"{key}, but {told}; correct it")
        lowest = 1 if is_step else least if is_layers or is_length else None
        if lowest is not None and value < lowest:
            raise DataError(f"{key}, but has to be at least {lowest}; correct it")


def own_tokenizer(folder: Path) -> str | None:
    """The folder itself where a tokenizer was saved with the weights; None where there is none."""
    return str(folder) if (folder / "tokenizer.json").is_file() else None


def settings_of(source: Source) -> tuple[str, dict[str, Any]]:
    """The file of the image processor's settings and its content; ("", {}) where the folder has none."""
    for name in FILES:
        if (source.path / name).is_file():
            content = read_json(source.path / name)
            settings = content.get("image_processor", content) if name == FILES[0] else content
            if isinstance(settings, dict) and ("image_mean" in settings or name != FILES[0]):
                return f"{source.path / name}: ", settings
    return "", {}


def images_of(
    source: Source,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    resample: str = "bicubic",
    fit: str = "squash",
    size: str = "size",
) -> dict[str, Any]:
    """Options of the data module that read images as the folder's processor does; the arguments where it says nothing.

    ``size`` is the setting that holds the last size of an image. Raises DataError for settings that no option gives.
    """
    place, found = settings_of(source)
    data = {"image_size": image_size, "mean": list(mean), "std": list(std), "resample": resample, "fit": fit}
    for name, value in FIXED.items():
        if found.get(name) not in (None, value):
            raise DataError(f"{place}{name} is {shown(found[name])}, but images are read with {name} true; correct it")
    for name in FLAGS:
        if type(found.get(name)) not in (bool, type(None)):
            raise DataError(f"{place}{name} is {shown(found[name])}, but has to be true or false; correct it")
    if size == "size" and found.get("do_pad"):
        raise DataError(
            f"{place}do_pad is true, but images are not padded to squares; set it to false to squash or crop them"
        )
    if (colours := ((source.config or {}).get("vision_config") or {}).get("num_channels", 3)) != 3:
        raise DataError(
            f"{source.path / CONFIG}: vision_config.num_channels is {shown(colours)}, but images have 3 colours"
        )
    if size == "max_image_size" and found.get("do_image_splitting", True) and found:
        warnings.warn(
            f"{place}do_image_splitting is true, but an image is read as one tile here: its details are seen less",
            stacklevel=2,
        )
    factor = found.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        raise DataError(f"{place}rescale_factor is {shown(factor)}, but pixels are divided by 255; correct it")
    if found.get("do_normalize") is False:
        data |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    else:
        for name, key in (("image_mean", "mean"), ("image_std", "std")):
            if found.get(name) is not None:
                data[key] = three(place, name, found[name])
    if found.get("resample") is not None:
        if found["resample"] not in RESAMPLE:
            raise DataError(
                f"{place}resample is {shown(found['resample'])}, but images are resized with "
                f"{', '.join(f'{number} ({name})' for number, name in RESAMPLE.items())}; choose one of them"
            )
        data["resample"] = RESAMPLE[found["resample"]]
    return data | _fit(place, found, image_size, size)


def _fit(place: str, found: Mapping[str, Any], image_size: int, key: str) -> dict[str, Any]:
    """Whether all of an image is squashed to the square, or its middle is taken; DataError where the sizes are others."""
    size = found.get(key)
    if size is None:
        return {}
    sides = size if isinstance(size, dict) else {"height": size, "width": size}
    if key != "size" and sides.keys() == {"longest_edge"}:  # of a tile, which is a square
        sides = dict.fromkeys(("height", "width"), sides["longest_edge"])
    is_cropped = bool(found.get("do_center_crop")) and ("shortest_edge" in sides or not isinstance(size, dict))
    if is_cropped:
        crop = found.get("crop_size") or image_size
        cut = crop if isinstance(crop, dict) else {"height": crop, "width": crop}
        sides = {"shortest_edge": sides.get("shortest_edge", sides.get("height"))} | cut
    wanted = set(sides.values()) == {image_size}
    if not wanted or not (is_cropped or sides.keys() == {"height", "width"}):
        raise DataError(
            f"{place}{key} is {shown(size)}{' with a crop' if is_cropped else ''}, but the image encoder reads squares of "
            f"{image_size} pixels; give it the processor that belongs to the model"
        )
    return {"fit": "crop" if is_cropped else "squash"}


def three(place: str, name: str, values: Any) -> list[float]:
    """A number for each colour, the mean or, by the end of its name, the spread; DataError for anything else."""
    is_right = isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
    if not is_right or not all(math.isfinite(v) for v in values) or (name.endswith("std") and min(values) <= 0):
        raise DataError(f"{place}{name} is {shown(values)}, but has to be three numbers, one a colour")
    return [float(value) for value in values]
