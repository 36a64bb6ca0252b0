"""What a checkpoint carries beside its weights, so that it can be used alone: plain strings, numbers and lists."""

import json
import platform
import reprlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fusionkit import __version__
from fusionkit.data.datamodule import DataModule
from fusionkit.data.tokenizer import COMPANION, companion_of, load_tokenizer
from fusionkit.encoders.base import ImageEncoder, SupportsWeightless, TextEncoder
from fusionkit.errors import DataError, UserError
from fusionkit.files.names import is_file_name
from fusionkit.files.unicode import is_unicode, shown
from fusionkit.model.model import VisionLanguageModel

LIBRARIES = ("torch", "torchvision", "lightning", "timm", "transformers", "hydra-core")


def collect_artifacts(config: DictConfig, datamodule: DataModule, model: VisionLanguageModel) -> dict[str, Any]:
    """What a run carries."""
    answers = datamodule.answers.answers if datamodule.answers else None
    return artifacts_of(config, model, datamodule.tokenizer, answers)


def artifacts_of(
    config: DictConfig, model: VisionLanguageModel, tokenizer: Any | None, answers: Sequence[str] | None
) -> dict[str, Any]:
    """The configuration (with its interpolations, so that data.root can be changed later), vocabularies and versions.

    Without a tokenizer, the one that the configuration names is loaded where it is needed.
    """
    return {
        "config": OmegaConf.to_yaml(config),
        "answers": None if answers is None else list(answers),
        "tokenizer": None if tokenizer is None else tokenizer_files(tokenizer),
        "text_encoder": json.dumps(sizes_of(model.text_encoder)),
        "image_encoder": json.dumps(sizes_of(model.image_encoder)),
        "versions": {"fusionkit": __version__, "python": platform.python_version()}
        | {n: version(n) for n in LIBRARIES},
        "git": git_commit(),
    }


def sizes_of(encoder: ImageEncoder | TextEncoder) -> dict[str, Any]:
    """What an encoder's files said of its architecture, for a checkpoint that is to be built without them."""
    return encoder.sizes() if isinstance(encoder, SupportsWeightless) else {}


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """The files of a tokenizer directory, text by name; those of its companion as COMPANION/name."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    if (companion := companion_of(tokenizer)) is not None:
        files |= {f"{COMPANION}/{name}": text for name, text in tokenizer_files(companion).items()}
    return files


def check_content(path: str | Path, content: Any) -> None:
    """Raise DataError with the first field of a checkpoint's content that is not what ``artifacts_of`` and a model gave."""
    artifacts, state = content["fusionkit"], content["state_dict"]
    if not isinstance(artifacts, dict):
        raise DataError(f"checkpoint {path} is damaged: its part 'fusionkit' is {reprlib.repr(artifacts)}, no object")
    answers, files = artifacts.get("answers"), artifacts.get("tokenizer")
    for name, is_right, expected in (
        ("config", is_object(artifacts.get("config"), read_yaml), "a configuration as yaml text"),
        ("text_encoder", is_object(artifacts.get("text_encoder"), json.loads), "the sizes of an encoder as json text"),
        ("answers", answers is None or is_all(answers, list, str), "a list of texts, or null"),
        (
            "tokenizer",
            files is None or (is_all(files, dict, str) and is_all(files.values(), None, str)),
            "files as texts",
        ),
    ):
        if name not in artifacts or not is_right:
            found = reprlib.repr(artifacts[name]) if name in artifacts else "missing"
            raise DataError(f"checkpoint {path} is damaged: its '{name}' is {found}, but has to be {expected}")
    for name, texts in (("answers", answers or ()), ("tokenizer", (files or {}).values())):
        if (broken := next((text for text in texts if not is_unicode(text)), None)) is not None:
            raise DataError(
                f"checkpoint {path} is damaged: its '{name}' holds {shown(broken)}, which is no text in Unicode"
            )
    if not is_all(state, dict, str) or not state:
        raise DataError(
            f"checkpoint {path} is damaged: its state_dict is {reprlib.repr(state)}, but has to hold tensors"
        )
    for name, tensor in state.items():
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_meta
        ):
            found = "a sparse, quantized or empty tensor" if isinstance(tensor, Tensor) else reprlib.repr(tensor)
            raise DataError(f"checkpoint {path} is damaged: {name} is {found}, but has to be a plain tensor")


def is_all(values: Any, kind: type | None, inner: type | UnionType) -> bool:
    """Whether it is of a kind, if one is named, and holds nothing but the inner one."""
    return (kind is None or isinstance(values, kind)) and all(isinstance(value, inner) for value in values)


def is_object(text: Any, parse: Callable[[str], Any]) -> bool:
    """Whether it is a text that parses to names and values."""
    try:
        return isinstance(text, str) and isinstance(parse(text), dict)
    except (ValueError, RecursionError, yaml.YAMLError):
        return False


def read_yaml(text: str) -> Any:
    """Plain values, by libyaml where it is there: quickly, and as deep as it goes."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def tokenizer_from(files: dict[str, str]) -> Any:
    """The tokenizer that ``tokenizer_files`` took apart; DataError where a name among them leads elsewhere."""
    for name, text in files.items():
        if not is_file_name(name.removeprefix(f"{COMPANION}/")) or not isinstance(text, str):
            raise DataError(
                f"the checkpoint's tokenizer has a file named {name!a}, which is no plain name of a text file"
            )
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_text(text, encoding="utf-8")
        try:
            return load_tokenizer(folder)
        except UserError as error:
            raise DataError(f"the checkpoint's own {str(error).replace(folder, 'tokenizer')}") from error


def git_commit() -> str | None:
    """The commit of the source tree that is running, with a + where it was changed; None outside a repository."""
    source = Path(__file__).parents[2]
    if not (source / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=source, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
