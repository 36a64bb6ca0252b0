"""A checkpoint that is asked: which task replies, from which source, in batches, of pixels and of regions."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.data.collate import new_counts
from fusionkit.data.regions import Detections
from fusionkit.data.requests import Request
from fusionkit.data.source import Source
from fusionkit.data.texts.conversations import Conversation
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.data.transforms import Finish
from fusionkit.errors import ConfigError
from fusionkit.inference import answering as replies
from fusionkit.inference.answering import Predictor
from fusionkit.inference.attention_samples import spread
from fusionkit.inference.overlays import draw_reply
from tests.toys import FEATURES, toy_dims, toy_model, toy_task
from tests.visual.test_contact_sheet import samples

NAMES = ("itc", "itm", "vqa", "grounding", "grounding_gradcam", "entailment")
TEXT = "a red ring is left of it"


def oracle(fusion: str = "cross_attention", regions: bool = False, **options) -> Predictor:
    torch.manual_seed(0)
    model = toy_model(fusion, regions)
    tasks = {name: toy_task(name, toy_dims(model)) for name in NAMES}
    settings = {"reader": None, "splits": {}, "batch_size": 2, "texts_per_image": {}}
    found = Detections(min_regions=1) if regions else None
    sources = {
        "shouting": Source(**settings, clean=lambda text: text.replace("red", "ring"), regions=found),
        "plain": Source(**settings, max_length=5, regions=found),
    }
    finish, tokenizer = Finish(32, [0.5] * 3, [0.5] * 3), word_tokenizer([TEXT] * 3)
    data = SimpleNamespace(sources=sources, finish=finish, tokenizer=tokenizer, text_counts=lambda *place: new_counts())
    trained = {"shouting": ["vqa"], "plain": list(NAMES)}
    how = EvaluationOptions(quiet=True)
    return Predictor(model, tasks, trained, data, torch.device("cpu"), how, **{"batch_size": 2} | options)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draw.integers(0, 255, (40 + number, 50, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return sorted(tmp_path.glob("*.png"))


def test_replies_stand_in_the_order_of_the_requests_whatever_the_batches(images: list[Path]) -> None:
    asked = ({"question": TEXT}, {"phrase": TEXT, "text": TEXT}, {"question": TEXT, "text": "it"})
    requests = [Request(image, texts) for image in images for texts in asked]
    alone = [oracle().answer([request])[0].record for request in requests]
    together = [reply.record for reply in oracle(batch_size=4).answer(requests)]
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() & {"image", "question", "phrase", "text", "answer", "label"}:
            assert one[key] == other[key]
        for key in one.keys() & {"bbox", "match", "cosine"}:
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)
    assert {"match", "cosine", "label", "bbox"} < alone[1].keys()


def test_the_first_task_replies_or_the_one_that_is_named(images: list[Path]) -> None:
    assert list(oracle().repliers("phrase")) == ["grounding"]
    assert list(oracle(by="grounding_gradcam").repliers("phrase")) == ["grounding_gradcam"]
    assert list(oracle().repliers("text")) == ["itc", "itm", "entailment"]
    first, second = (
        oracle(by=by).answer([Request(images[0], {"phrase": TEXT})])[0] for by in (None, "grounding_gradcam")
    )
    assert first.record["bbox"] != second.record["bbox"]
    with pytest.raises(
        ConfigError, match="by=itm is no task that answers what is asked; known: grounding, grounding_gradcam"
    ):
        oracle(by="itm").answer([Request(images[0], {"phrase": TEXT})])
    with pytest.raises(ConfigError, match=r"a caption is asked for, but no task .* answers: phrase, question, text"):
        oracle().answer([Request(images[0], {}, wants_caption=True)])


def test_texts_are_read_as_those_of_the_source_that_trained_the_task(images: list[Path]) -> None:
    (reply,) = oracle(looks=True).answer([Request(images[0], {"question": TEXT, "phrase": TEXT})])
    assert reply.looks["question"].words == TEXT.replace("red", "ring").split()  # cleaned
    assert reply.looks["phrase"].words == TEXT.split()[:3]  # cut


@pytest.mark.parametrize("fusion", ["cross_attention", "merged_attention"])
def test_looks_are_maps_of_the_text_and_of_each_word(fusion: str, images: list[Path], tmp_path: Path) -> None:
    requests = [Request(image, {"phrase": text}) for image, text in zip(images, ("it", TEXT[:10], "ring"), strict=True)]
    for request, reply in zip(requests, oracle(fusion, looks=True).answer(requests), strict=True):
        look = reply.looks["phrase"]
        count = len(request.texts["phrase"].split())
        assert look.words == request.texts["phrase"].split()
        assert look.attention.shape == look.gradcam.shape == (1 + count, 4, 4)  # matching explains the phrase
        assert 0 <= look.gradcam.min() < look.gradcam.max()
    array, picture = draw_reply(reply, tmp_path / "drawn/it", is_middle=True, true_box=(3, 3, 9, 9))
    with np.load(array) as file:
        assert file["words"].tolist() == ["ring"]
        np.testing.assert_array_equal(file["gradcam"], look.gradcam)
    assert Image.open(picture).width > 900


def test_a_fusion_without_attention_cannot_look_but_answers(images: list[Path]) -> None:
    request = Request(images[0], {"question": TEXT})
    model = oracle("gated")
    assert "answer" in model.answer([request])[0].record
    with pytest.raises(ConfigError, match="has no attention of the text to the image"):
        oracle("gated", looks=True).answer([request])


def test_regions_are_asked_about_too_and_have_no_picture(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    boxes = draw.random((4, 6)) / 2
    boxes[:, 2:4] = boxes[:, :2] + boxes[:, 4:]
    parts = {"features": draw.random((4, FEATURES)), "norm_bb": boxes}
    np.savez(tmp_path / "a.npz", **parts, size=np.array([200, 100]))
    np.savez(tmp_path / "b.npz", **parts)
    requests = [Request(tmp_path / f"{name}.npz", {"phrase": TEXT}) for name in "ab"]
    good, bad = oracle(regions=True, looks=True).answer(requests)
    assert good.looks["phrase"].attention.shape == (4, 4)  # the text cut to three words, four regions
    assert [path.suffix for path in draw_reply(good, tmp_path / "out", False)] == [".npz"]
    assert "does not say how large its image is" in bad.record["error"]
    (weak, _) = oracle(regions=True, by="grounding_gradcam").answer(requests)
    own = (boxes[:, [0, 1, 4, 5]] * [200, 100, 200, 100]).tolist()
    assert min(np.abs(np.array(own) - weak.record["bbox"]).max(axis=1)) < 1e-3


def test_samples_are_spread_over_the_images_and_their_texts() -> None:
    found = spread(samples("captions", {}), "captions", 3)
    assert [(sample.image_id, text.id) for sample, text in found] == [(0, 0), (2, 5), (5, 10)]
    assert len(spread(samples("captions", {}), "captions", 99)) == 8
    assert spread(samples("captions", {}), "questions", 2) == []


class Bar:
    """What a bar was told."""

    def __init__(self, progress, title: str) -> None:
        assert title == "answering"

    def begin(self, *told: int) -> None:
        self.told.append(told)

    def advance(self, count: int) -> None:
        self.told.append(count)


@pytest.mark.parametrize(("quiet", "count", "is_hidden"), [(False, 2, True), (False, 3, False), (True, 3, True)])
def test_more_than_a_batch_shows_how_far_it_is(images, monkeypatch, quiet: bool, count: int, is_hidden: bool) -> None:
    told, asked = [], []
    monkeypatch.setattr(replies, "show_progress", lambda is_quiet: asked.append(is_quiet) or nullcontext())
    monkeypatch.setattr(replies, "Bar", Bar)
    monkeypatch.setattr(Bar, "told", told, raising=False)
    model = oracle()
    model = replace(model, options=EvaluationOptions(quiet=quiet))
    model.answer([Request(images[0], {"question": TEXT})] * count)
    assert asked == [is_hidden]
    assert told == [(count, 0), 2, *[1] * (count - 2)]


def test_batches_ask_the_same_of_each_image() -> None:
    asks = ["question", "text", "question", "question", "text", "question"]
    requests = [Request(Path("x"), {word: TEXT}) for word in asks]
    assert list(oracle()._batches(requests)) == [(0, 2), (3, 5), (1, 4)]


def test_what_an_oracle_does_unless_told() -> None:
    made = Predictor(None, {}, {}, None, None, None)
    assert made == Predictor(None, {}, {}, None, None, None, by=None, top=5, batch_size=16, looks=False, layer=None)


def test_without_looks_there_are_none_and_facts_stand_first(images: list[Path]) -> None:
    (reply,) = oracle().answer([Request(images[0], {"question": TEXT}, facts={"image_id": 7})])
    assert reply.looks == {}
    assert list(reply.record)[:3] == ["image_id", "image", "question"]
    assert (reply.record["image_id"], reply.record["image"], reply.record["question"]) == (7, str(images[0]), TEXT)


def test_top_names_so_many_answers(images: list[Path]) -> None:
    for top in (1, 3):
        (reply,) = oracle(top=top).answer([Request(images[0], {"question": TEXT})])
        assert len(reply.record["answers"]) == top


def test_an_image_that_cannot_be_read_has_an_error_and_the_others_an_answer(images: list[Path], tmp_path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [tmp_path / "bad.png", images[0], tmp_path / "missing.png"]
    found = oracle().answer([Request(path, {"question": TEXT}) for path in paths])
    assert ["error" in reply.record for reply in found] == [True, False, True]
    assert "answer" in found[1].record
    alone = oracle(looks=True).answer([Request(paths[0], {"question": TEXT})])
    assert [(reply.record.keys(), reply.looks) for reply in alone] == [({"image", "question", "error"}, {})]


def test_layers_are_the_ones_asked_for_or_the_tasks_own(images: list[Path], monkeypatch) -> None:
    taken = []
    monkeypatch.setattr(replies, "look", lambda *parts: taken.append((parts[1], parts[-1])) or ["a look"])
    model = oracle(looks=True)
    encoded = SimpleNamespace(text={"phrase": None}, image=None)
    monkeypatch.setattr(type(model.model), "images_of", lambda model, batch: None)
    own = SimpleNamespace(evidence="its evidence", layer=4)
    for given, layer, evidence in ((None, 4, own), (0, 0, own), (1, 1, own), (None, None, SimpleNamespace())):
        asked = replace(model, layer=given)
        asked._look("phrase", {"own": evidence}, {"phrase": None}, encoded)
        evidence = getattr(evidence, "evidence", model.tasks["itm"].evidence)
        assert taken.pop() == (evidence, layer if layer is not None else getattr(model.tasks["itm"], "layer", None))
    nobody = replace(model, tasks={"vqa": SimpleNamespace(replies_to="question")})
    nobody._look("phrase", {"own": SimpleNamespace()}, {"phrase": None}, encoded)
    assert taken == [(None, None)]


def test_an_image_that_is_asked_several_times_is_read_once(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [(images[0], "it"), (images[1], "ring"), (images[0], TEXT[:10]), (images[1], TEXT), (images[0], "ring")]
    requests = [Request(image, {"phrase": text, "text": text}) for image, text in asked]
    model = oracle(batch_size=5, looks=True, attention=True)
    alone = [model.answer([request])[0] for request in requests]
    rows: list[int] = []
    encode = model.model.encode_image
    monkeypatch.setattr(model.model, "encode_image", lambda pixels: rows.append(len(pixels)) or encode(pixels))
    together = model.answer(requests)
    assert rows == [2]
    for one, other in zip(alone, together, strict=True):
        assert one.record["bbox"] == pytest.approx(other.record["bbox"], rel=1e-3)
        assert one.record["match"] == pytest.approx(other.record["match"], abs=1e-5)
        assert one.looks["phrase"].words == other.looks["phrase"].words
        assert np.allclose(one.looks["text"].best, other.looks["text"].best, atol=1e-5)
        assert torch.allclose(one.attention["phrase"].weights, other.attention["phrase"].weights, atol=1e-5)
    assert together[0].record["bbox"] != pytest.approx(together[2].record["bbox"], rel=1e-3)
    broken = [Request(Path("none.png"), {"phrase": "it"}), Request(images[0], {"phrase": "it"})]
    replies = model.answer([broken[0], broken[1], broken[0]])
    assert ["error" in reply.record for reply in replies] == [True, False, True]
    assert replies[1].record["bbox"] == pytest.approx(together[0].record["bbox"], rel=1e-3)


def test_a_chat_reads_a_question_as_a_turn_and_others_refuse_several(images: list[Path]) -> None:
    asker = oracle()
    talk = Conversation(("user", "assistant", "user"), ("a red ring", "it", "left of it"))
    several = Request(images[0], {"question": "left of it"}, conversation=talk)
    with pytest.raises(
        ConfigError, match=r"the question is a list of messages, which a checkpoint answers .* task=\[chat\]"
    ):
        asker.answer([several])
    tasks = {**asker.tasks, "chat": toy_task("chat", toy_dims(asker.model))}
    source = Source(None, {}, 2, {"conversations": 1})
    asker.datamodule.sources["talk"] = source
    chatting = replace(asker, tasks=tasks, sources={**asker.sources, "talk": ["chat"]}, by="chat")
    read: list[list[int]] = []

    def predict(model, batch, encoded):
        read.extend(batch["conversations"]["prompt_ids"].tolist())
        return [{"conversation_id": id, "answer": str(id)} for id in batch["conversations"]["ids"]]

    tasks["chat"].predict = predict
    alone = Request(images[1], {"question": "it"})
    assert [reply.record["answer"] for reply in chatting.answer([several, alone])] == ["0", "1"]
    tokens = [asker.datamodule.tokenizer.decode(row).replace("[PAD]", "").strip() for row in read]
    assert tokens == [
        "[CLS] [UNK] [UNK] a red ring [UNK] [UNK] it [SEP] [UNK] [UNK] left of it [UNK] [UNK]",
        "[CLS] [UNK] [UNK] it [UNK] [UNK]",
    ]


def chatting(fusion: str) -> Predictor:
    """One that answers questions as turns of a conversation."""
    asker = oracle(fusion)
    asker.datamodule.sources["talk"] = Source(None, {}, 2, {"conversations": 1}, max_length=60)
    tasks = {"chat": toy_task("chat", toy_dims(asker.model))}
    return replace(asker, tasks=tasks, sources={"talk": ["chat"]})


@pytest.mark.parametrize("fusion", ["interleaved", "prefix"])
def test_a_question_about_several_images_is_answered_by_all_of_them(fusion: str, images: list[Path]) -> None:
    """Each stands at its place; a request in a batch is answered as alone, and files of one image as ever."""
    asker, rows = chatting(fusion), []
    first, second, third = images
    picture = Image.open(third)
    requests = [
        Request(first, {"question": "<image> it <image> left"}, others=(second,)),
        Request(first, {"question": "it"}),
        Request(first, {"question": "<image> it <image> left"}, others=(picture,)),
    ]
    predict = asker.tasks["chat"].predict

    def watched(model, batch, encoded):
        rows.append(batch["conversations"])
        return predict(model, batch, encoded)

    asker.tasks["chat"].predict = watched
    together = replace(asker, batch_size=3).answer(requests)
    assert rows[0]["prompt_images"][..., 0].tolist() == [[0, 3], [1, -1], [2, 4]]
    assert rows[0]["ids"] == [0, 1, 2]
    alone = [asker.answer([request])[0].record for request in requests]
    assert [reply.record for reply in together] == alone
    assert together[0].record["image"] == [str(first), str(second)]
    assert together[1].record["image"] == str(first)
    (missing,) = asker.answer([replace(requests[0], others=(Path("gone.png"),))])
    assert missing.record["error"] == "the image gone.png does not exist"
    with pytest.raises(ConfigError, match="attention: maps are drawn of one image, but a question holds several"):
        replace(asker, looks=True).answer(requests[:1])


def test_several_images_want_a_chat_and_a_fusion_that_takes_them(images: list[Path]) -> None:
    request = Request(images[0], {"question": "<image> it <image>"}, others=(images[1],))
    with pytest.raises(ConfigError, match=r"the question is about several images, which a checkpoint answers that was"):
        oracle().answer([request])
    with pytest.raises(ConfigError, match="CrossAttention takes one image a text, before all of it"):
        chatting("cross_attention").answer([request])
