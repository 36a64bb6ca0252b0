"""What a folder says of its language model: where texts end, how they are said, how long they are."""

import json
import warnings

import pytest
import torch
import transformers

from fusionkit.assembly.parts import plain_dims
from fusionkit.checkpoints.base import Key, Plan, convert, resize_positions
from fusionkit.checkpoints.build import build_network, compose_plan
from fusionkit.checkpoints.families.language import ends_of, language_model, run_of, saying, special_ids
from fusionkit.checkpoints.folder import completed
from fusionkit.checkpoints.runs import inverse
from fusionkit.checkpoints.source import Source
from fusionkit.encoders.language import LanguageModel
from fusionkit.errors import ConfigError, DataError
from fusionkit.fusion.prefix import Prefix
from fusionkit.fusion.projectors import Linear
from fusionkit.tasks.chat import Chat
from fusionkit.tasks.generation import BeamSearch
from tests.checkpoints.worlds import coco_world
from tests.parity.imported import planned
from tests.parity.test_language_models import TEXT, llava


def source_of(folder, generation=None, **text):
    sizes = {"model_type": "llama", "num_hidden_layers": 1, "max_position_embeddings": 64} | text
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": sizes}
    return completed(Source(folder, {"x": torch.zeros(32_000)}, config, ""), "LlavaConfig")  # as many as words


def test_where_texts_end(tmp_path):
    assert ends_of(source_of(tmp_path, eos_token_id=[7, 9])) == [7, 9]
    source = source_of(tmp_path, {"eos_token_id": [9, 11]}, eos_token_id=7)  # what generation goes by
    assert language_model(source)["config"]["eos_token_id"] == [9, 11]
    assert special_ids(source)["sep"] == 9
    assert ends_of(source_of(tmp_path, {}, eos_token_id=7)) == [7]


def test_no_end_but_the_tokenizer_s(tmp_path):
    with pytest.raises(DataError, match="eos_token_id is None, but has to be the number of the token that ends a text"):
        ends_of(source_of(tmp_path, eos_token_id=None))
    assert ends_of(source_of(tmp_path)) == [2]  # a folder leaves out what its class has by default
    coco_world(tmp_path)
    words = tmp_path / "words"
    (end,) = [
        token["id"]
        for token in json.loads((words / "tokenizer.json").read_text())["added_tokens"]
        if token["content"] == "[SEP]"
    ]
    assert ends_of(source_of(words, eos_token_id=None)) == [end]


def test_all_ends_reach_the_tasks(tmp_path):
    torch.manual_seed(0)
    theirs, *_ = llava(model_type="llama", eos_token_id=[2, 5, 6])
    theirs.save_pretrained(tmp_path)
    source = Source(tmp_path, theirs.state_dict(), json.loads((tmp_path / "config.json").read_text()), "")
    plan = planned("llava", {"tasks": ["captioning", "vqa_generative"]})(source)
    network = build_network(compose_plan(plan, plan.tokenizer), plan.ids)
    captioning, answering = network.tasks.values()
    chat = Chat(plain_dims(network.model, plan.ids, ()))
    assert captioning.writer.rules.ends == chat.rules.ends == answering.decoding.ends == (2, 5, 6)


def test_how_texts_are_said(tmp_path):
    def said(**options):
        return saying(source_of(tmp_path, options), 30)

    rules = {"no_repeat_ngram_size": 3, "min_new_tokens": 2, "max_new_tokens": 9, "repetition_penalty": 1.0}
    lengths = {"min_length": 2, "max_length": 9}
    assert said(**rules) == {"no_repeat_ngram": 3, **lengths}
    assert said(num_beams=5, length_penalty=2) == {"search": {"beams": 5, "length_penalty": 2.0}}
    assert said(num_beams=2, length_penalty=0) == {"search": {"beams": 2, "length_penalty": 0.0}}
    assert said(length_penalty=2.0, num_beams=1, early_stopping=True) == {
        "search": {"beams": 1}
    }  # nothing to choose among
    assert said(min_new_tokens=19) == {"min_length": 19}
    with pytest.raises(DataError, match=r"generation_config\.json: length_penalty is 'a', but has to be a number"):
        said(num_beams=2, length_penalty="a")
    assert said(max_new_tokens=4) == {"min_length": 0, "max_length": 4}
    assert said(max_new_tokens=512) == {"min_length": 0, "max_length": 30}
    assert said(temperature=0.2, top_p=0.9) == {}  # of no draw


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"repetition_penalty": 1.2, "suppress_tokens": [5]}, r"repetition_penalty 1.2, suppress_tokens \[5\]"),
        ({"do_sample": True, "temperature": 0.2, "top_p": 1.0}, "do_sample True, temperature 0.2"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups 2"),
        ({"num_beams": 2, "early_stopping": "never"}, "early_stopping 'never'"),
        ({"min_new_tokens": 20}, "min_new_tokens 20"),
        ({"min_new_tokens": 9, "max_new_tokens": 9}, "min_new_tokens 9"),
        ({"min_length": 3, "forced_eos_token_id": 7}, "min_length 3, forced_eos_token_id 7"),
    ],
)
def test_rules_without_an_option_are_told(tmp_path, options, told):
    with pytest.warns(UserWarning, match=rf"generation_config.json: {told}: texts are generated without"):
        saying(source_of(tmp_path, options), 30)


def test_rules_that_are_off_are_not_told(tmp_path):
    off = {"suppress_tokens": None, "do_sample": False, "min_length": 0, "forced_eos_token_id": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert saying(source_of(tmp_path, off), 30) == {}
        assert saying(source_of(tmp_path, transformers.GenerationConfig().to_dict()), 30) == {}


def test_the_rules_of_a_folder_reach_its_captions(tmp_path):
    torch.manual_seed(0)
    theirs, *_ = llava(model_type="llama")
    theirs.save_pretrained(tmp_path)
    rules = {"eos_token_id": 2, "num_beams": 4, "length_penalty": 0.5, "early_stopping": True}
    rules |= {"max_new_tokens": 1000, "min_new_tokens": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(rules))
    source = Source(tmp_path, theirs.state_dict(), json.loads((tmp_path / "config.json").read_text()), "")
    plan = planned("llava", {"tasks": ["captioning"]})(source)
    (captioning,) = build_network(compose_plan(plan, plan.tokenizer), plan.ids).tasks.values()
    assert captioning.writer.search == BeamSearch(beams=4, length_penalty=0.5, early_stopping=True)
    assert (captioning.writer.rules.min_length, captioning.writer.rules.max_length) == (1, 64 - 9)


def test_texts_are_as_long_as_the_window_leaves_room(tmp_path):
    def longest(**text):
        run = run_of(source_of(tmp_path, eos_token_id=2, **text), ["captioning"], 9, {})
        return {source["max_length"] for source in run["data"]["sources"].values()}

    assert longest(model_type="mistral", sliding_window=20) == {11}
    assert longest(model_type="qwen2", sliding_window=20, use_sliding_window=False) == longest(model_type="llama")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_what_is_saved_in_half_precision_is_computed_with_in_full(dtype, tmp_path):
    table, scale = (
        torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype),
        torch.tensor(2.66, dtype=dtype),
    )
    keys = [Key("s", "t", change=inverse), Key("p", "q", change=resize_positions)]
    plan = Plan(family="x", release="x", groups=[], config={}, keys=keys, left_out={}, ids={})
    source = Source(tmp_path, {"s": scale, "p": table}, {}, "")
    found = convert(source, plan, {"t": torch.zeros(()), "q": torch.zeros(1, 10, 3)})
    torch.testing.assert_close(found["t"], (-scale.double()).exp().float(), rtol=1e-6, atol=0)
    assert torch.equal(found["q"], resize_positions(table.float(), torch.Size([1, 10, 3])))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_hang_on_the_length_are_not_read_on(kind):

    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 2.0, "original_max_position_embeddings": 32}
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4} if kind == "longrope" else {}
    sizes = {name: value for name, value in TEXT.items() if name != "vocab_size"}
    model = LanguageModel(80, config=sizes | {"model_type": "llama", "rope_parameters": rope | factors})
    with pytest.raises(ConfigError, match=f"positions hang on how long the whole text is .rope_type {kind}"):
        Prefix(32, 32, Linear).join(model)
    assert not model.is_read_on


def test_a_window_that_is_too_short_is_named():
    sizes = {name: value for name, value in TEXT.items() if name != "vocab_size"}
    with pytest.raises(ConfigError, match="sliding_window is 5 tokens, too few to read on"):
        LanguageModel(80, config=sizes | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5})
