"""How a configuration becomes parts."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from torch import nn

from fusionkit.assembly import parts as module
from fusionkit.assembly.parts import Parts, build_tasks, dims_of, instruction_words, plain_dims, spell
from fusionkit.data.tokenizer import word_tokenizer, wrapped
from fusionkit.errors import ConfigError
from fusionkit.types import InstructionWords
from tests.toys import VOCABULARY, toy_model


def test_shared_parameters_count_once():
    layer, other = nn.Linear(2, 1), nn.Linear(1, 1)
    parts = Parts(
        OmegaConf.create({"objectives": {"a": {"x": 0.5}}}), None, layer, {"x": nn.Sequential(layer, other), "y": other}
    )
    assert parts.parameters == 3 + 2
    assert parts.objectives == {"a": {"x": 0.5}}
    assert type(parts.objectives["a"]) is dict


def test_what_waits_for_a_later_stage_trains_again_and_what_is_frozen_stays_so():
    model, head = nn.Linear(2, 1), nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    parts = Parts(OmegaConf.create(), None, model, {"x": head})
    model.requires_grad_(False)
    head.requires_grad_(False)
    parts.thaw()
    assert [p.requires_grad for p in (model.weight, model.bias, head.weight, head.bias)] == [True, False, True, True]


def test_an_answer_with_an_unknown_word_is_not_spelt():
    rows = {"yes": [5], "a dog": [6, 7], "odd dog": [1, 7]}

    def tokenizer(texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [rows[text] for text in texts]}

    tokenizer.unk_token_id = 1
    assert spell(tokenizer, ("yes", "a dog", "odd dog")) == ((5,), (6, 7), ())
    assert spell(None, ()) == ()


def test_an_answer_within_a_text_begins_with_the_space_of_a_tokenizer_of_bytes():
    class Bytes:
        unk_token_id = None

        def tokenize(self, text):
            return ["\u0120a"]

        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [list(text.encode()) for text in texts]}

    assert spell(Bytes(), ("a",), within_text=True) == ((32, 97),)
    assert spell(Bytes(), ("a",)) == ((97,),)
    Bytes.tokenize = lambda self, text: ["a"]
    assert spell(Bytes(), ("a",), within_text=True) == ((97,),)


def test_a_token_whose_number_the_text_encoder_has_no_word_for():
    model, tokenizer = toy_model(), wrapped(word_tokenizer([" ".join(f"w{n}" for n in range(55))]))
    assert len(tokenizer) == 60 == dims_of(model, tokenizer, ()).vocab_size
    tokenizer.add_tokens(["late"])
    with pytest.raises(ConfigError, match="its token 'late' has the number 60, but the text encoder has words for 60"):
        dims_of(model, tokenizer, ())


def test_plain_values_of_a_model():
    assert plain_dims(toy_model("prefix"), {"cls": 2, "sep": 3, "pad": 0, "mask": None}, ()).predicts_words
    model = toy_model()
    assert not plain_dims(model, {"cls": 2, "sep": 3, "pad": 0, "mask": None}, ()).predicts_words
    dims = plain_dims(model, {"cls": 2, "sep": 3, "pad": 0, "mask": None}, ["yes"])
    assert (dims.cls_token_id, dims.sep_token_id, dims.pad_token_id, dims.mask_token_id) == (2, 3, 0, None)
    assert (dims.vocab_size, dims.text_size, dims.embed_size, dims.answers) == (60, 32, 16, ("yes",))


def test_tasks_of_weight_0_need_nothing_of_the_fusion(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "check_needs", lambda name, task, fusion: asked.append(name))
    monkeypatch.setattr(module, "instantiate", lambda block: lambda dims: (block.name, dims))
    config = {
        "task": {"a": {"name": "A"}, "b": {"name": "B"}},
        "objectives": {"s": {"a": 1.0, "b": 0}, "t": {"a": 2.0, "b": 0.0}},
    }
    assert build_tasks(OmegaConf.create(config), 7, None) == {"a": ("A", 7), "b": ("B", 7)}
    assert asked == ["a"]


@pytest.mark.parametrize("scorer", ["", "x", 5, {}, [1]])
def test_a_scorer_that_is_no_function_is_told(monkeypatch, scorer):
    monkeypatch.setattr(module, "instantiate", lambda block: lambda dims: SimpleNamespace(scorer=block.scorer))
    config = {"task": {"a": {"scorer": None}, "b": {"scorer": scorer}}, "objectives": {}}
    with pytest.raises(ConfigError, match=r"^task\.b\.scorer is .*, but has to be a function that gives the scores"):
        build_tasks(OmegaConf.create(config), 7, None)
    config["task"]["b"]["scorer"] = None
    assert build_tasks(OmegaConf.create(config), 7, None).keys() == {"a", "b"}


def test_what_looks_at_images_spells_by_its_own_tokenizer():
    words = word_tokenizer(["a dog"])
    assert instruction_words(toy_model("prefix").fusion, words) is None
    fusion = toy_model("prefix_instructed").fusion
    assert instruction_words(fusion, words) == InstructionWords(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"), 2, 3
    )
    words.companion = word_tokenizer(["red"])
    assert instruction_words(fusion, words).tokens[-1] == "red"
    words.companion = word_tokenizer([" ".join(f"x{n}" for n in range(VOCABULARY - 5))])
    assert instruction_words(fusion, words).tokens[-1].startswith("x")
    words.companion = word_tokenizer([" ".join(f"x{n}" for n in range(VOCABULARY - 4))])
    with pytest.raises(
        ConfigError, match=r"fusion\.projector\.vocab_size is 60, but the tokenizer .* has 61 tokens; give"
    ):
        instruction_words(fusion, words)
