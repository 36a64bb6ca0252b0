"""What does not fit together, seen when the parts are there."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fusionkit.assembly.checks import (
    check_answers,
    check_budget,
    check_chat,
    check_contract,
    check_image_size,
    check_images,
    check_length,
    check_needs,
    check_pictures,
    check_reads,
    check_roles,
    check_temperature,
    check_template,
    check_text,
    lacking,
    lonely,
)
from fusionkit.data.sample import Sample
from fusionkit.data.source import Source
from fusionkit.data.texts.conversations import Conversation
from fusionkit.encoders.base import ImageEncoder, TextEncoder
from fusionkit.errors import ConfigError, DataError
from fusionkit.fusion.base import Fusion
from tests.data.test_chat import tokenizer_of
from tests.toys import choices, toy_dims, toy_fusion, toy_model, toy_task


@pytest.mark.parametrize("name", choices("task"))
def test_a_batch_of_one_is_told_where_images_are_compared(name):
    tasks = {name: toy_task(name, toy_dims(toy_model()))}
    told = lonely({"toy": {name: 1.0}}, tasks, {"toy": 1}, 1)
    assert len(told) == (name in ("itc", "itm", "ranking", "grounding_gradcam"))
    assert not lonely({"toy": {name: 1.0}}, tasks, {"toy": 2}, 1)
    for sentence in told:
        assert sentence.startswith(f"objectives.toy.{name}: with data.sources.toy.batch_size=1 there is no other image")
    assert len(lonely({"toy": {name: 1.0}}, tasks, {"toy": 1}, 2)) == len(told) - (name == "itc")  # over all ranks


def told(check, *given):
    """The sentence of a refusal, None where there is none."""
    try:
        check(*given)
    except ConfigError as error:
        return str(error)
    return None


def roles(given, checkpoint="best"):
    return told(
        check_roles, OmegaConf.create({"evaluation": {"roles": given, "checkpoint": checkpoint}}), {"val", "test"}
    )


def test_roles_and_the_checkpoint_of_an_evaluation():
    assert roles(["val", "test"]) is roles([], "last") is None
    assert roles("val") == "evaluation.roles is 'val', but has to be a list: [val]"
    assert roles(-1) == "evaluation.roles is -1, but has to be a list: [test]"
    assert roles(None) == "evaluation.roles is None, but has to be a list: [test]"
    assert roles(["val", "tets"]).startswith(
        "evaluation.roles: no source has a split for the role 'tets'; did you mean 'test'"
    )
    assert roles([], "bets").startswith("evaluation.checkpoint is 'bets'; did you mean 'best'")


def test_what_a_task_needs_a_fusion_provides():
    assert lacking(frozenset({"feats", "text", "image"}), frozenset({"text"})) == ["image"]
    fusion, task = (
        SimpleNamespace(provides=frozenset({"text", "pooled"})),
        SimpleNamespace(needs=frozenset({"image", "odd"})),
    )
    assert told(check_needs, "x", task, fusion) == (
        "task 'x' needs 'image' (image tokens that have seen the text's) and 'odd' from the fusion, but SimpleNamespace provides "
        "pooled, text; choose another fusion=NAME or leave x out of task=[...]"
    )
    assert told(check_needs, "x", SimpleNamespace(needs=frozenset({"pooled", "feats"})), fusion) is None


def images(has, reads, fit="squash", canvases=False):
    data = SimpleNamespace(sources={"coco": SimpleNamespace(images=has, stream=None)}, finish=SimpleNamespace(fit=fit))
    return told(check_images, "coco", data, SimpleNamespace(reads=reads, reads_canvases=canvases))


def test_an_encoder_reads_what_a_source_has():
    assert images("pixel_values", "pixel_values") is images("regions", "regions", "keep") is None
    assert images("pixel_values", "pixel_values", "keep", True) is None
    assert images("regions", "pixel_values").startswith(
        "image_encoder: SimpleNamespace reads pixel_values, but source 'coco' has"
    )
    assert images("pixel_values", "pixel_values", "keep").startswith("data.fit=keep gives images of different shapes")


def test_images_of_another_size_are_told():
    class Encoder(torch.nn.Module):
        def __init__(self, size, refusal=None):
            super().__init__()
            self.weight, self.size, self.refusal = torch.nn.Parameter(torch.ones(1)), size, refusal
            self.spare = torch.nn.Parameter(torch.ones(1))

        def forward(self, pixels):
            if self.refusal is not None:
                raise self.refusal
            assert pixels.shape == (1, 3, self.size, self.size), "Input height does not fit"
            states = pixels.flatten(2) * self.weight
            return SimpleNamespace(embeds=states, pooled=states[:, 0])

    check_image_size(encoder := Encoder(8), 8)
    assert (encoder.weight.requires_grad, encoder.spare.requires_grad) == (True, False)
    assert "data.image_size is 9, but the image encoder does not read such images (" in told(
        check_image_size, Encoder(8), 9
    )
    with pytest.raises(DataError, match=r"^own$"):
        check_image_size(Encoder(8, DataError("own")), 8)


def text(needs, not_causal=None, pools=True, **fusion):
    model = SimpleNamespace(
        text_encoder=SimpleNamespace(config=SimpleNamespace(model_type="xlnet")), fusion=SimpleNamespace(**fusion)
    )
    abilities = SimpleNamespace(not_causal=not_causal, pools_text=pools)
    return told(check_text, "x", SimpleNamespace(needs=frozenset(needs)), model, abilities)


def test_a_text_encoder_reads_as_a_task_needs():
    assert (
        text({"causal", "feats"})
        is text({"text"}, "why", False)
        is text({"feats"}, "why", False, encode_unimodal=len)
        is None
    )
    assert "'x' needs text that does not see what follows, but the text encoder xlnet cannot read so (why)" in text(
        {"causal"}, "why"
    )
    assert "of the text encoder xlnet all texts have the same; set text_encoder.pool=mean" in text(
        {"feats"}, None, False
    )


@pytest.mark.parametrize(("most", "refused"), [(None, False), (12, False), (11, True)])
def test_the_longest_text_has_positions(most, refused):
    data = SimpleNamespace(sources={"coco": SimpleNamespace(max_length=12)})
    key = "data.sources.coco.max_length"
    assert told(check_length, "coco", data, most) == (
        f"{key} is 12, but the text encoder reads 11 tokens at most; set {key}=11" if refused else None
    )


def test_questions_need_answers_and_a_source_its_texts():
    questions, captions = SimpleNamespace(reads="questions"), SimpleNamespace(reads="captions")
    none, some = SimpleNamespace(answers=()), SimpleNamespace(answers=("yes",))
    assert told(check_answers, "k", questions, some) is told(check_answers, "k", captions, none) is None
    assert (
        told(check_answers, "k", questions, none)
        == "k: the run has no answers; its data must hold questions with answers"
    )
    assert told(check_reads, "k", captions, ["captions"]) is None
    assert told(check_reads, "k", captions, ["questions"]).startswith(
        "k: the task reads captions, but the source has none;"
    )


@pytest.mark.parametrize(("start", "refused"), [(0.01, False), (0.5, False), (0.009, True), (0.51, True)])
def test_a_training_starts_within_its_temperatures(start, refused):
    model = SimpleNamespace(temperature=torch.tensor(start), temperature_range=(0.01, 0.5))
    said = f"model.temperature is {start:.4g}, outside of model.temperature_range [0.01, 0.5]; start within it, or widen it"
    assert told(check_temperature, model) == (said if refused else None)


class HalfFusion(nn.Module):
    provides = frozenset({"pooled"})
    pooled_size = hidden_size = 8


@pytest.mark.parametrize(
    ("part", "contract", "told"),
    [
        (HalfFusion(), Fusion, r"^fusion: HalfFusion has no prepare, which Fusion needs; fusionkit\.fusion\.base says"),
        (nn.Linear(1, 1), ImageEncoder, "^fusion: Linear has no hidden_size and no reads, which ImageEncoder needs"),
        (nn.Linear(1, 1), TextEncoder, "Linear has no hidden_size and no max_length and no word_embeddings, which"),
        (
            SimpleNamespace(hidden_size=1, reads="regions"),
            ImageEncoder,
            r"SimpleNamespace is no torch\.nn\.Module, which",
        ),
    ],
)
def test_what_a_part_lacks_of_its_contract_is_told_when_it_is_built(part, contract, told) -> None:
    with pytest.raises(ConfigError, match=told):
        check_contract("fusion", part, contract)
    model = toy_model()
    check_contract("fusion", model.fusion, Fusion)
    check_contract("image_encoder", model.image_encoder, ImageEncoder)
    check_contract("text_encoder", model.text_encoder, TextEncoder)


def budget(most, length, tokens=16, said=0, fusion="prefix_shuffle"):
    model = SimpleNamespace(
        fusion=toy_fusion(fusion)(image_size=8, text_size=8), text_encoder=SimpleNamespace(max_length=most)
    )
    if fusion == "prefix_shuffle":
        model.fusion.projector.skip = 0
    datamodule = SimpleNamespace(sources={"toy": SimpleNamespace(max_length=length)})
    tasks = [SimpleNamespace(longest=lambda given: given), SimpleNamespace(longest=lambda given: given + said)]
    return told(check_budget, "toy", datamodule, model, tasks, tokens)


def test_an_image_and_a_text_have_to_fit_into_the_language_model_together():
    assert budget(4 + 10, 10) is budget(None, 10) is budget(4 + 10 + 3, 10, said=3) is None
    assert (
        "fusion: an image takes 4 positions, and a text of source 'toy' up to 13 with what is said behind it"
        in budget(16, 10, said=3)
    )
    assert "the language model reads 16 at once; set data.sources.toy.max_length=9, or make" in budget(16, 10, said=3)
    assert "reads 9 at once; make the prefix shorter" in budget(9, 7, said=3)
    assert "make no square whose side 2 divides" in budget(99, 10, tokens=17)


def test_an_image_that_is_looked_at_between_the_layers_takes_no_positions():
    for fusion in ("interleaved", "interleaved_resampled"):
        assert budget(13, 10, said=3, fusion=fusion) is None
        assert budget(12, 10, said=3, fusion=fusion) == (
            "fusion: a text of source 'toy' takes up to 13 with what is said behind it, but the language model reads 12 at once; "
            "set data.sources.toy.max_length=9, or choose a text_encoder that reads more"
        )


def test_an_encoder_has_positions_for_an_image_and_a_question_and_a_decoder_for_what_it_says():
    """Told for BART; T5 has no bound."""
    data = SimpleNamespace(sources={"toy": SimpleNamespace(max_length=10)})
    tasks = [SimpleNamespace(longest=lambda given: given + 12, prompted=lambda given: given)]
    fusion = toy_fusion("encoder_decoder")(image_size=8, text_size=8)

    def said(most):
        model = SimpleNamespace(fusion=fusion, text_encoder=SimpleNamespace(max_length=most))
        return told(check_budget, "toy", data, model, tasks, 16)

    assert said(26) is said(None) is None
    assert said(25) == (
        "fusion: an image takes 16 positions, and a text of source 'toy' up to 10, but the language model reads 25 at once; set "
        "data.sources.toy.max_length=9, or have fewer image tokens "
        "(fusion.projector._target_=fusionkit.fusion.projectors.QFormer)"
    )
    assert said(21).startswith("fusion: the decoder says up to 22 tokens of a text of source 'toy', but")
    tasks[0].prompted = lambda given: 15  # a prompt, which is no text of the data
    assert said(31) is None
    assert said(30).startswith("fusion: an image takes 16 positions, and a text of source 'toy' up to 15, but")


def test_a_template_around_captions_is_not_taught():
    says, ranks = (SimpleNamespace(replies_to=replies, reads="captions") for replies in ("caption", None))
    around, plain = (SimpleNamespace(template=template) for template in ({"captions": "see: {text}"}, None))
    assert "data.sources.x.template.captions: task 'c' would learn to say the template's words too" in told(
        check_template, "data.sources.x.template", "c", says, around
    )
    assert told(check_template, "data.sources.x.template", "c", says, plain) is None
    assert told(check_template, "data.sources.x.template", "c", ranks, around) is None
    questions = SimpleNamespace(template={"questions": "Question: {text} Answer:"})
    assert told(check_template, "data.sources.x.template", "c", says, questions) is None


def talks(*said, **settings):
    """What is said of a source of conversations, each one's turns and the source's settings."""
    texts = [
        Conversation(tuple(("user", "assistant")[n % 2] for n in range(len(turns))), turns).text(number)
        for number, turns in enumerate(said)
    ]
    samples = [Sample(text.id, Path("a.jpg"), {"conversations": (text,)}) for text in texts]
    source = Source(None, {"train": ["train"]}, 1, {"conversations": 1}, **settings)
    data = SimpleNamespace(sources={"talk": source}, tokenizer=tokenizer_of("bytes"), samples=lambda *place: samples)
    return told(check_chat, "talk", data, True)


def test_conversations_without_a_token_to_learn_and_templates_without_an_end():
    assert talks(("what?", "a dog"), ("where?",)) is None
    assert talks() is None  # which the reader tells
    assert talks(("what?",), ("where?",)) == (
        "data.sources.talk: of the first 2 conversations no token is learnt; give conversations in which the assistant says "
        "something"
    )
    assert talks(("what?", "a dog"), max_length=4) == (
        "data.sources.talk: of the first 1 conversations no token is learnt, which are cut at 4 tokens before the assistant says "
        "anything; set data.sources.talk.max_length higher"
    )
    endless = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert talks(chat_template=endless).startswith(
        "data.sources.talk.chat_template: the template puts no special token behind what the assistant says"
    )
    plain = SimpleNamespace(sources={"a": Source(None, {"train": ["train"]}, 1, {"captions": 1})})
    assert told(check_chat, "a", plain, True) is None


def test_conversations_with_several_pictures_want_a_fusion_that_takes_them():
    def source(*turns, others=()):
        text = Conversation(("user", "assistant", "user")[: len(turns)], turns).text("c")
        samples = [Sample(1, Path("a.jpg"), {"conversations": (text,)}, others=others)]
        one = Sample(2, Path("c.jpg"), {"conversations": (Conversation(("user",), ("what?",)).text("d"),)})
        splits = {"train": [one], "val": [one, *samples]}
        sources = {"talk": Source(None, {role: [role] for role in splits}, 1, {"conversations": 1})}
        return SimpleNamespace(sources=sources, samples=lambda name, role: splits[role])

    able, unable = (toy_model(name).fusion for name in ("interleaved", "cross_attention"))
    for data in (source("what?"), source("what?", "<image>")):  # the assistant's are words
        assert check_pictures("talk", data, able) == check_pictures("talk", data, unable) == 1
    assert check_pictures("talk", source("<image> <image> what?", others=(Path("b.jpg"),)), able) == 2
    shown = source("what?")
    shown.sources["talk"] = dataclasses.replace(shown.sources["talk"], shots=3)
    assert check_pictures("talk", shown, able) == 4
    assert (
        "takes one image a text, before all of it, but a conversation behind data.sources.talk.shots=3 others has"
        in told(check_pictures, "talk", shown, unable)
    )
    for turns in (("<image> <image> what?",), ("what?", "it", "<image> so?")):
        assert told(check_pictures, "talk", source(*turns), unable) == (
            "fusion: CrossAttention takes one image a text, before all of it, but the conversation c (data.sources.talk, val) "
            "has several, or one behind the first turn of the user; choose fusion=interleaved, interleaved_resampled or prefix, "
            "or leave such rows out"
        )


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"clean": str}, "clean"), ({"template": {"conversations": "{text}!"}}, "template.conversations")],
)
def test_what_would_change_conversations_is_refused(settings, key):
    source = Source(None, {"train": ["train"]}, 1, {"conversations": 1}, **settings)
    assert told(source.check, "data.sources.talk") == (
        f"data.sources.talk.{key}: conversations are written by data.sources.talk.chat_template as they are; set it to null"
    )


def test_a_reply_has_positions_behind_an_image_and_a_conversation():
    model = toy_model("prefix")
    task = toy_task("chat", toy_dims(model))
    data = SimpleNamespace(sources={"a": SimpleNamespace(max_length=27)})
    assert task.longest(27) == 47
    assert told(check_budget, "a", data, model, [task], 17) is None
    assert "an image takes 18 positions, and a text of source 'a' up to 47" in told(
        check_budget, "a", data, model, [task], 18
    )
    assert told(check_budget, "a", data, model, [task], 8, 2) is None
    assert "2 images take 18 positions, and a text of source 'a' up to 47" in told(
        check_budget, "a", data, model, [task], 9, 2
    )
