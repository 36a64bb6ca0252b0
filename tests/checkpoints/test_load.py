"""A checkpoint with a part of another kind is told in one sentence that names the file and the part."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fusionkit.assembly.artifacts import check_content
from fusionkit.checkpoints.load import forget_weights, read_checkpoint, told_of
from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.errors import ConfigError, DataError, UserError

GOOD = {"config": "name: x", "text_encoder": "{}", "answers": None, "tokenizer": None}


def content(state: Any = None, **changed: Any) -> Any:
    return {"fusionkit": GOOD | changed, "state_dict": {"a": torch.ones(1)} if state is None else state}


@pytest.mark.parametrize(
    "changed", [{}, {"answers": ["yes"]}, {"answers": []}, {"tokenizer": {"tokenizer.json": "{}"}}]
)
def test_what_a_run_wrote_is_taken(changed: Any) -> None:
    check_content("x.ckpt", content(**changed))


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("config", None, "yaml text"),
        ("config", "[1, 2]", "yaml text"),
        ("config", "a: {", "yaml text"),
        ("text_encoder", None, "json text"),
        ("text_encoder", "[" * 20000, "json text"),
        ("text_encoder", "{", "json text"),
        ("answers", {"yes": 0}, "a list of texts, or null"),
        ("answers", [1], "a list of texts, or null"),
        ("tokenizer", [1], "files as texts"),
        ("tokenizer", {"a": 1}, "files as texts"),
        ("tokenizer", {1: "a"}, "files as texts"),
    ],
)
def test_a_part_of_another_kind_is_named(part: str, value: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"x\.ckpt is damaged: its '{part}' is .*{words}"):
        check_content("x.ckpt", content(**{part: value}))


@pytest.mark.parametrize(
    ("part", "value"), [("answers", ["yes", "n\ud83do"]), ("tokenizer", {"tokenizer.json": "x" * 200 + "\ud83d"})]
)
def test_half_a_letter_in_a_text_is_the_fault_of_the_part_it_stands_in(part: str, value: Any) -> None:
    with pytest.raises(
        DataError, match=rf"x\.ckpt is damaged: its '{part}' holds .{{0,60}}ud83d.*, which is no text in Unicode"
    ):
        check_content("x.ckpt", content(**{part: value}))


@pytest.mark.parametrize("part", GOOD)
def test_a_part_that_is_missing(part: str) -> None:
    less = content()
    del less["fusionkit"][part]
    with pytest.raises(DataError, match=f"its '{part}' is missing"):
        check_content("x.ckpt", less)
    for whole in (3, None, 1.5, []):
        with pytest.raises(DataError, match=r"its part 'fusionkit' is .*, no object"):
            check_content("x.ckpt", {"fusionkit": whole, "state_dict": {}})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (0, "its state_dict is 0"),
        ({}, r"its state_dict is \{\}"),
        ({1: torch.ones(1)}, "its state_dict is"),
        ({"a": None}, "a is None, but has to be a plain tensor"),
        ({"a": [1]}, r"a is \[1\]"),
        ({"a": torch.eye(2).to_sparse()}, "a is a sparse, quantized or empty tensor"),
        ({"a": torch.ones(1, device="meta")}, "a is a sparse, quantized or empty tensor"),
        ({"a": torch.quantize_per_tensor(torch.ones(1), 0.1, 0, torch.qint8)}, "a is a sparse, quantized"),
    ],
)
def test_weights_of_another_kind(state: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"x\.ckpt is damaged: {words}"):
        check_content("x.ckpt", content(state))


def test_what_is_read_is_checked(tmp_path: Path) -> None:
    torch.save(content(answers=3), tmp_path / "x.ckpt")
    with pytest.raises(DataError, match=r"x\.ckpt.* its 'answers' is 3"):
        from_pretrained(tmp_path / "x.ckpt")


def test_what_is_no_plain_file_is_none_of_those_that_there_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.ckpt")
    with pytest.raises(DataError, match=r"x\.ckpt is no plain file; checkpoints lie in"):
        read_checkpoint(tmp_path / "x.ckpt")
    (tmp_path / "y.ckpt").write_text("")
    with pytest.raises(DataError, match=r"z\.ckpt does not exist; there are: \S*y\.ckpt$"):
        read_checkpoint(tmp_path / "z.ckpt")
    with pytest.raises(DataError, match=r" is a folder; there are: \S*y\.ckpt$"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("wrapped", [TypeError("no int"), KeyError("a"), AttributeError("b"), RecursionError("deep")])
def test_a_configuration_that_cannot_be_built_names_its_checkpoint(wrapped: Exception) -> None:
    with pytest.raises(DataError, match=r"checkpoint x\.ckpt: its configuration cannot be built"), told_of("x.ckpt"):
        raise wrapped


def test_a_key_that_a_library_looks_up_in_vain_is_told_as_such() -> None:
    with pytest.raises(DataError, match=r"cannot be built \('gelu_3' is not known\)"), told_of("x.ckpt"):
        raise KeyError("gelu_3")


def test_a_refusal_names_its_checkpoint_once() -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint x\.ckpt: data.root is 3$"), told_of("x.ckpt"):
        raise ConfigError("data.root is 3")
    with pytest.raises(DataError, match=r"^x\.ckpt is cut$"), told_of("x.ckpt"):
        raise DataError("x.ckpt is cut")
    with pytest.raises(ConfigError, match=r"^checkpoint e: tests is nan$"), told_of("e"):
        raise ConfigError("tests is nan")
    with pytest.raises(UserError, match=r"^checkpoint x\.ckpt: inner$"), told_of("x.ckpt"):
        raise TypeError("outer") from DataError("inner")
    with pytest.raises(ZeroDivisionError), told_of("x.ckpt"):
        raise ZeroDivisionError


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    from fusionkit.data.tokenizer import build_tokenizer, load_tokenizer

    build_tokenizer(["a cat"], tmp_path / "t")
    path = tmp_path / "t/tokenizer.json"
    whole = json.loads(path.read_text())
    for damage in ("[" * 20000, "word", json.dumps(whole | {"added_tokens": [{"id": "x"}]}), json.dumps("word")):
        path.write_text(damage)
        with pytest.raises(DataError, match=rf"tokenizer: {path} cannot be read .*; save the tokenizer anew"):
            load_tokenizer(tmp_path / "t")
    path.write_text(json.dumps(whole))
    path = tmp_path / "t/tokenizer_config.json"
    for damage, words in (("{", "Expecting property"), ("[" * 20000, "nested too deeply")):
        path.write_text(damage)
        with pytest.raises(DataError, match=rf"tokenizer: {path} cannot be read \({words}"):
            load_tokenizer(tmp_path / "t")


def test_a_tower_that_counts_from_its_padding_is_built_as_it_was_trained() -> None:
    """Before the tokenizer's padding was the tower's, RoBERTa had its own: what the checkpoint says, not the tokenizer."""
    text = {"_target_": "fusionkit.encoders.text.HFTextEncoder", "config": {"model_type": "roberta"}}
    known = lambda section, name: section == "text_encoder"  # noqa: E731
    config = OmegaConf.create({"image_encoder": {}, "text_encoder": text})
    forget_weights(config, {"text_encoder": {"hidden_size": 8}}, known)
    assert config.text_encoder.config == {"model_type": "roberta"}
    forget_weights(config, {"text_encoder": {"pad_token_id": 1}}, known)
    assert config.text_encoder.config.pad_token_id == 1
    forget_weights(config, {"text_encoder": {"pad_token_id": 5}}, known)
    assert config.text_encoder.config.pad_token_id == 1  # what the run itself was given
