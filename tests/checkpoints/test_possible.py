"""Counts of a stored configuration that no checkpoint of its tensors has are refused before anything is built of them."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fusionkit.checkpoints.possible import MANY_POSITIONS, Most, require_possible_parts
from fusionkit.errors import DataError

STATE = {"a": torch.zeros(4, 5), "b": torch.zeros(3)}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_layers", 3, "the checkpoint has 2 tensors"),
        ("depth", 3, "the checkpoint has 2 tensors"),
        ("num_hidden_layers", 2, None),
        ("max_window_layers", 3, None),
        ("hidden_size", 21, "the largest tensor of the checkpoint has 20 numbers"),
        ("num_queries", 21, "the largest tensor"),
        ("hidden_size", 20, None),
        ("seed", 10**12, None),
    ],
)
def test_what_a_checkpoint_can_have(name: str, value: int, told: str | None) -> None:
    fault = Most.of(STATE).fault(name, value)
    assert fault is None if told is None else told in str(fault)
    assert Most.of({}).fault("hidden_size", 1)


@pytest.mark.parametrize(
    ("key", "value", "is_refused"),
    [
        ("text_encoder.config.num_hidden_layers", 3, True),
        ("fusion.num_layers", 10**10, True),
        ("model.embed_size", 21, True),
        ("image_encoder.depth", 2, False),
        ("image_encoder.depths", [1, 3], True),
        ("image_encoder.layers", [2, 2], False),
        ("image_encoder.channels", [20, 21], True),
        ("image_encoder.hidden_sizes", [21], True),
        ("image_encoder.embed_dims", [21], True),
        ("image_encoder.width", 21, True),
        ("task.vqa_decoder.num_layers", 3, True),
        ("task.itc.queue_size", 65536, False),
        ("text_encoder.config.max_position_embeddings", MANY_POSITIONS, False),
        ("text_encoder.config.max_position_embeddings", MANY_POSITIONS + 1, True),
        ("text_encoder.config.n_positions", 10**9, True),
        ("trainer.num_layers", 10**9, False),
        ("fusion.num_layers", 1e9, False),  # which a builder refuses
    ],
)
def test_a_stored_configuration(key: str, value: Any, is_refused: bool) -> None:
    sections = ("image_encoder", "text_encoder", "fusion", "model", "task")
    config = OmegaConf.create({name: {} for name in sections} | {"trainer": {}})
    OmegaConf.update(config, key, value)
    if not is_refused:
        require_possible_parts(config, STATE, "x.ckpt")
        return
    with pytest.raises(
        DataError, match=rf"^checkpoint x.ckpt: {key}(\.\d)? is \d+, but the .* has \d+ .*; is it damaged\?$"
    ):
        require_possible_parts(config, STATE, "x.ckpt")
    OmegaConf.update(config, "trainer.more", value)
    OmegaConf.update(config, key, "${trainer.more}")
    with pytest.raises(DataError, match=key):
        require_possible_parts(config, STATE, "x.ckpt")
