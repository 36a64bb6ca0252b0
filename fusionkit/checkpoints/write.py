"""From a published file to a folder of ours; nothing is written unless all of it fits."""

from collections.abc import Callable
from pathlib import Path

from fusionkit.checkpoints.base import Plan, convert
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.directory import write_directory
from fusionkit.checkpoints.source import Source, read_source
from fusionkit.data.tokenizer import load_tokenizer
from fusionkit.errors import ConfigError
from fusionkit.training.artifacts import artifacts_of

Planner = Callable[[Source], Plan]


def import_into(folder: Path, path: str, planner: Planner, tokenizer: str | None = None) -> str:
    """Convert the checkpoint at ``path`` and write it to a new folder; gives a line that says what it is."""
    source = read_source(path)
    plan = planner(source)
    words = load_tokenizer(tokenizer) if tokenizer else None
    config = compose_plan(plan, tokenizer or plan.tokenizer)
    network = empty_network(config, plan.ids, plan.answers)
    rows = network.model.text_encoder.word_embeddings.num_embeddings
    if words is not None and len(words) > rows:
        raise ConfigError(
            f"tokenizer={tokenizer} has {len(words)} tokens, but the checkpoint embeds {rows}; give its own"
        )
    state = convert(source, plan, network.module.state_dict())
    origin = {"family": plan.family, "release": plan.release, "file": source.path.name, "sha256": source.sha256}
    content = artifacts_of(config, network.model, words, plan.answers or None) | {"ids": dict(plan.ids)}
    write_directory(folder, state, {"fusionkit": content | {"origin": origin | {"left_out": dict(plan.left_out)}}})
    numbers = sum(tensor.numel() for tensor in state.values())
    return f"{folder}: {len(state):,} tensors, {numbers:,} numbers, of {plan.release}; every published tensor is accounted for"
