"""Checkpoints are written: from a published file, for others to load, in a published layout; whole or not at all."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from torch import Tensor

from fusionkit.assembly.artifacts import artifacts_of
from fusionkit.assembly.trust import NETWORK, require_trusted
from fusionkit.checkpoints.base import Plan, convert
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.card import model_card
from fusionkit.checkpoints.directory import require_new, write_directory
from fusionkit.checkpoints.folder import own_tokenizer
from fusionkit.checkpoints.pretrained import Pretrained, from_pretrained, with_merged_adapters
from fusionkit.checkpoints.source import Source, read_source
from fusionkit.config import first_cause
from fusionkit.data.tokenizer import load_tokenizer, text_format
from fusionkit.errors import ConfigError, DataError, UserError, is_named
from fusionkit.files.tensors import save_tensors
from fusionkit.model.int8 import plain_state

Planner = Callable[[Source], Plan]
CARD = "README.md"
EXPERIMENT = "imported"  # a name that no recipe has: of two experiments of one name ours would be read


def import_into(folder: Path, path: str, planner: Planner, tokenizer: str | None = None) -> str:
    """Convert the checkpoint at ``path`` and write it to a new folder; gives a line that says what it is.

    Without a ``tokenizer`` the one that was saved in the checkpoint's folder is taken along.
    """
    source = read_source(path)
    tokenizer = tokenizer or own_tokenizer(source.path)
    with impossible_sizes(source.path):
        plan = planner(source)
    words = (
        load_tokenizer(tokenizer) if tokenizer else None
    )  # which reads the configuration too, and would be blamed for it
    with impossible_sizes(source.path):
        config = compose_plan(plan, tokenizer or plan.tokenizer)
        require_trusted(config, (*NETWORK, "teacher"), source.path)  # sizes of a foreign folder stand in it
        network = empty_network(config, plan.ids, plan.answers)
    rows = network.model.text_encoder.word_embeddings.num_embeddings
    if words is not None and len(words) > rows:
        raise ConfigError(
            f"tokenizer={tokenizer} has {len(words)} tokens, but the checkpoint embeds {rows}; give its own"
        )
    ends = getattr(network.model.text_encoder, "ends", ())  # of a language model
    if words is not None and ends and (end := text_format(words).end) not in ends:
        raise ConfigError(
            f"tokenizer={tokenizer} ends texts with the token {end}, but the checkpoint with {' or '.join(map(str, ends))}; give "
            "its own, or, where this is it, name that token as eos_token_id in the generation_config.json of its folder"
        )
    state = convert(source, plan, network.module.state_dict())
    origin: dict[str, Any] = {
        "family": plan.family,
        "release": plan.release,
        "file": source.path.name,
        "sha256": source.sha256,
    }
    content = artifacts_of(config, network.model, words, plan.answers or None) | {"ids": dict(plan.ids)}
    origin["left_out"] = dict(plan.left_out)
    origin["classes"] = {task: list(names) for task, names in plan.classes.items() if task in config.task}
    texts = {f"experiment/{EXPERIMENT}.yaml": experiment_file(plan, folder, config.tokenizer)}
    if plan.has_named_answers:
        texts["answers.json"] = json.dumps(plan.answers)
    write_directory(folder, state, {"fusionkit": content | {"origin": origin}}, texts)
    numbers = sum(tensor.numel() for tensor in state.values())
    return (
        f"{folder}: {len(state):,} tensors, {numbers:,} numbers, of {plan.release}; every published tensor is accounted for\n"
        f"score it: fusionkit evaluate checkpoint={folder} data.root=FOLDER\n"
        f"train on: fusionkit train --config-dir {folder} experiment={EXPERIMENT} data.root=FOLDER"
    )


@contextmanager
def impossible_sizes(path: Path) -> Iterator[None]:
    """Where no network has such sizes (no patch, padding outside the vocabulary), say that the options are wrong."""
    try:
        yield
    except UserError as error:
        if is_named(path, error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        InstantiationException,
    ) as error:
        raise ConfigError(
            f"{path}: no network can be built of these options ({first_cause(error)}); correct them"
        ) from error


def experiment_file(plan: Plan, folder: Path, tokenizer: str) -> str:
    """An experiment that goes on from the checkpoint, for ``fusionkit train --config-dir FOLDER experiment=imported``."""
    replaced = [key for key, value in plan.config.items() if isinstance(value, Mapping) and "_target_" in value]
    choices = {"size": "base"} | dict(text.split("=", 1) for text in plan.groups) | dict.fromkeys(replaced, "null")
    defaults = "".join(f"  - override /{group}: {choice}\n" for group, choice in choices.items())
    content: dict[str, Any] = {**plan.config, "tokenizer": tokenizer, "checkpoint": str(folder)}
    if plan.has_named_answers:  # the classifier's own, in its order, not those that are frequent in the data
        content["data"] = {**content["data"], "answers": str(folder / "answers.json")}
    return (
        f"# @package _global_\n# {plan.release}, from {folder}.\ndefaults:\n{defaults}\n"
        f"{yaml.safe_dump(content, sort_keys=False)}"
    )


def export_into(
    folder: Path,
    pretrained: Pretrained,
    max_shard_size: int | None = None,
    licence: str | None = None,
    licences: Mapping[str, str] | None = None,
) -> None:
    """Write a network to a new folder that ``from_pretrained``, ``train`` and ``evaluate`` load, bit for bit the same.

    Weights in 8 bits are plain tensors there, int8 and scales. A model card lies beside them (``card.model_card``).
    """
    require_new(folder)
    code = f"```python\nimport fusionkit as fk\n\nmodel = fk.load({folder.name!r})\n```"
    use = f"{code}\n\nNo code is stored in it, and none of it is run."
    replies = {name: task.replies_to for name, task in pretrained.tasks.items()}
    texts = {CARD: card_of(folder.name, pretrained.config, pretrained.artifacts, replies, use, licence, licences)}
    state = plain_state(pretrained.module.state_dict())
    write_directory(folder, state, {"fusionkit": pretrained.artifacts}, texts, max_shard_size)


def card_of(name: str, config: Any, artifacts: Mapping[str, Any], replies: Mapping[str, str | None], *rest: Any) -> str:
    """The model card of a configuration, whose interpolations that cannot be resolved (a folder of data) are left open."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return model_card(name, plain, artifacts, replies, *rest)


def write_published(path: Path, pretrained: Pretrained, layout: Callable[..., dict[str, Tensor]]) -> None:
    """Write a new .pth file, ``{"model": state_dict}``, in the layout of a published release."""
    if path.exists():
        raise ConfigError(f"output={path} is there already; choose another output=FILE")
    config: Any = OmegaConf.to_container(pretrained.config)
    state: Mapping[str, Tensor] = layout(pretrained.module.state_dict(), config)
    save_tensors({"model": dict(state)}, path, advice="make room, or choose another output=FILE")


def push_to_hub(
    path: Path,
    repository: str,
    trust: Sequence[str] = (),
    licence: str | None = None,
    licences: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
) -> str:
    """Upload a checkpoint as ``export_into`` writes it, adapters merged, and with its card; gives its address."""
    with TemporaryDirectory() as place:
        folder = Path(place) / repository.rpartition("/")[2]
        export_into(folder, with_merged_adapters(from_pretrained(path, trust)), max_shard_size, licence, licences)
        return upload(folder, repository)


def upload(folder: Path, repository: str) -> str:
    """Upload a folder to the Hugging Face hub, as a model of that name; gives its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"hub={repository}: {folder} is written, but the hub did not take it ({reason})") from error
