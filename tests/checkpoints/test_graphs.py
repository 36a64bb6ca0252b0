"""Graphs of six kinds of model, run by onnxruntime at other numbers of rows and lengths, against the model itself."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch

from fusionkit.checkpoints.graphs import describe, examples, formats, write
from fusionkit.checkpoints.graphs.examples import Example
from fusionkit.checkpoints.graphs.modules import NEXT
from fusionkit.checkpoints.graphs.nested import filled, flat
from fusionkit.data.texts.chat import PLAIN
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import SupportsInstructions
from fusionkit.fusion.layers import is_row_by_row, row_by_row
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.tasks.decoding import decoder_state_of
from fusionkit.tasks.generation import Greedy
from fusionkit.types import Tokens
from tests.toys import CLS, SEP, choices, scatter_weights, toy_dims, toy_model, toy_rows, toy_task

Arrays = dict[str, np.ndarray]
KINDS = {
    "late": ("itm", "vqa"),
    "merged_attention": ("itm", "vqa", "entailment"),
    "cross_attention": ("itm", "vqa", "grounding", "captioning"),
    "co_attention": ("ranking", "vqa"),
    "prefix": ("itm", "vqa_generative"),
    "encoder_decoder": ("vqa_generative",),
}
OTHERS = {"vqa_decoder": ("cross_attention", "questions"), "captioning": ("merged_attention", "captions")}


class World(NamedTuple):
    """A model, its tasks, and its graphs as onnxruntime runs them, each with what they were traced with."""

    model: VisionLanguageModel
    tasks: dict[str, Task[Any]]
    examples: dict[str, Example]
    sessions: dict[str, onnxruntime.InferenceSession]

    def run(self, name: str, given: Arrays) -> Arrays:
        """The outputs of a graph, which takes of what is given what it reads."""
        session = self.sessions[name]
        outputs = [port.name for port in session.get_outputs()]
        return dict(
            zip(outputs, session.run(outputs, {p.name: given[p.name] for p in session.get_inputs()}), strict=True)
        )

    def seen(self, batch: dict[str, Any], rows: torch.Tensor | None = None) -> Arrays:
        """What the graph of images makes of a batch's, a row for each of the texts that rows are the images of."""
        found = self.run("image", {"pixel_values": batch["pixel_values"].numpy()})
        return found if rows is None else {name: array[rows.numpy()] for name, array in found.items()}


def build(fusion: str, names: tuple[str, ...], folder: Path) -> World:
    torch.manual_seed(3)
    model = scatter_weights(toy_model(fusion)).eval()
    assert isinstance(model, VisionLanguageModel)
    tasks = {name: scatter_weights(toy_task(name, toy_dims(model)), seed=50).eval() for name in names}
    image = examples.image_example(model, 32, has_contrast=True)
    with row_by_row(), torch.no_grad():
        memory = model.fusion.prepare(model.encode_image(image.inputs["pixel_values"]))
    texts, images = examples.text_inputs(model, CLS, SEP), examples.seen_images(image, 32)
    made = {"image": image}
    if fusion == "late":
        made["text"] = examples.text_example(model, texts)
    pairs = {name: task for name, task in tasks.items() if hasattr(task, "pair_scores")}
    if pairs:
        made["pair"] = examples.pair_example(model, pairs, memory, images, texts)
    for task in tasks.values():
        if hasattr(task, "said"):
            made["prefill"], made["step"] = examples.said_examples(model, task, memory, images, texts)
    sessions = {}
    for name, example in made.items():
        formats.save_onnx(formats.to_onnx(name, formats.trace(name, example), example), folder / f"{name}.onnx", False)
        sessions[name] = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return World(model, tasks, made, sessions)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    found = dict[str, World]()

    def of(fusion: str) -> World:
        if fusion not in found:
            found[fusion] = build(fusion, KINDS[fusion], tmp_path_factory.mktemp(fusion))
        return found[fusion]

    return of


def batch_of(model: VisionLanguageModel, images: int, texts: int, length: int, kind: str) -> dict[str, Any]:
    """A few images with several padded texts each, the rows in no order."""
    rows = toy_rows(images, texts, length)
    rows["image_index"] = rows["image_index"][torch.randperm(images * texts)]
    return {
        "source": "toy", "image_ids": list(range(images)), "image_keys": torch.arange(images),
        "image_sizes": torch.ones(images, 2), "pixel_values": torch.randn(images, 3, 32, 32), kind: rows,
    }  # fmt: skip


def require_close(ours: np.ndarray, theirs: torch.Tensor) -> None:
    assert ours.shape == tuple(theirs.shape)
    gap = np.abs(ours - theirs.numpy())
    assert (gap <= 1e-5 * (1 + np.abs(theirs.numpy()))).all(), gap.max()


SIZES = [(1, 1, 4), (3, 2, 12), (2, 4, 20)]  # images, texts of each, longest: none as in the traced example


@pytest.mark.parametrize("fusion", KINDS)
@pytest.mark.parametrize(("images", "texts", "length"), SIZES)
def test_pairs_score_as_in_the_model(worlds, fusion: str, images: int, texts: int, length: int) -> None:
    world = worlds(fusion)
    pairs = {name: task for name, task in world.tasks.items() if hasattr(task, "pair_scores")}
    assert pairs or fusion == "encoder_decoder"
    torch.manual_seed(images)
    for name, task in pairs.items():
        batch = batch_of(world.model, images, texts, length, task.reads)
        rows = batch[task.reads]
        with torch.no_grad():
            expected = task.pair_scores(world.model, batch, world.model.encode(batch, [task.reads]))
        words = {key: rows[key].numpy() for key in ("input_ids", "attention_mask")}
        found = world.run("pair", world.seen(batch, rows["image_index"]) | words)
        assert set(found) == set(pairs)
        require_close(found[name], expected)


@pytest.mark.parametrize(("images", "texts", "length"), SIZES)
def test_features_of_contrast_are_those_of_the_model(worlds, images: int, texts: int, length: int) -> None:
    world = worlds("late")
    batch = batch_of(world.model, images, texts, length, "captions")
    with torch.no_grad():
        encoded = world.model.encode(batch, ["captions"])
    require_close(world.seen(batch)["image_feats"], encoded.image_feats)
    require_close(world.seen(batch)["image_embeds"], encoded.image.embeds)
    words = {key: batch["captions"][key].numpy() for key in ("input_ids", "attention_mask")}
    require_close(world.run("text", words)["text_feats"], encoded.text_feats["captions"])


SAYING = ["cross_attention", "prefix", "encoder_decoder"]


@pytest.mark.parametrize("fusion", SAYING)
@pytest.mark.parametrize(("images", "texts", "length"), SIZES)
def test_prefill_and_steps_say_what_the_model_says(worlds, fusion: str, images: int, texts: int, length: int) -> None:
    require_same_words(worlds(fusion), images, texts, length)


@pytest.mark.parametrize("name", OTHERS)
def test_other_ways_to_say_words(name: str, tmp_path: Path) -> None:
    """A decoder that reads fused questions, and a text that grows beside its image's tokens."""
    world = build(OTHERS[name][0], (name,), tmp_path)
    require_same_words(world, 3, 2, 12)
    assert any(port.startswith("context_") for port in world.examples["step"].inputs) == (name == "vqa_decoder")


def require_same_words(world: World, images: int, texts: int, length: int) -> None:
    """Greedy words, token by token, and the logits of each step."""
    torch.manual_seed(images)
    (task,) = (task for task in world.tasks.values() if hasattr(task, "said"))
    batch = batch_of(world.model, images, texts, length, task.reads)
    is_caption, rows = task.replies_to == "caption", batch[task.reads]
    rules = task.saying()
    with torch.no_grad():
        encoded = world.model.encode(batch, [task.reads] if task.encodes else [])
        steps = decoder_state_of(task.said(world.model, batch, encoded))
        expected = Greedy()(steps, rules).tokens
        logits, state = steps.start()
    given = world.seen(batch, None if is_caption else rows["image_index"])
    given |= {key: rows[key].numpy() for key in ("input_ids", "attention_mask")}
    given |= world.run("prefill", given)
    ended = np.zeros(len(logits), dtype=bool)
    for number, tokens in enumerate(expected.T):
        require_close(given["logits"], logits)
        restricted = rules.restrict(torch.from_numpy(given["logits"]), expected[:, :number])
        assert restricted.argmax(dim=1)[~ended].equal(tokens[~ended])
        ended |= np.isin(tokens.numpy(), rules.ends)
        if number + 1 < expected.shape[1]:
            with torch.no_grad():
                logits, state = steps.advance(tokens, state)
            found = world.run("step", given | {"tokens": tokens.numpy()})
            given |= {name.removeprefix(NEXT): array for name, array in found.items()}
    assert expected.shape[1] > 3


def test_a_step_is_not_given_back_what_it_does_not_change(worlds) -> None:
    step = worlds("encoder_decoder").examples["step"]
    returned = {name.removeprefix(NEXT) for name in step.outputs}
    kept = {name for name in step.inputs if name.startswith("past_")} - returned
    assert kept  # what the encoder read
    assert any(name.startswith("past_") for name in returned)


def test_shapes_say_which_dimensions_are_free(worlds) -> None:
    world = worlds("prefix")
    pair, step = world.examples["pair"], world.examples["step"]
    assert pair.shape("input_ids") == ["batch", "length"]
    assert pair.shape("itm") == ["batch", 2]
    assert step.shape("tokens") == ["batch"]
    layers = [step.shape(name)[2] for name in step.inputs if name.startswith("past_")]
    assert len(set(layers)) == 1
    assert isinstance(layers[0], str)
    assert {port.shape[0] for session in world.sessions.values() for port in session.get_inputs()} == {"batch"}


def test_a_graph_asks_for_no_more_than_it_reads(worlds) -> None:
    inputs = {port.name for port in worlds("late").sessions["pair"].get_inputs()}
    assert inputs == {"input_ids", "attention_mask", "memory_0"}


def test_row_by_row_ends_with_its_block() -> None:
    def fails() -> None:
        with row_by_row():
            assert is_row_by_row()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not is_row_by_row()


@pytest.mark.parametrize("name", ["itm", "ranking", "vqa", "entailment"])
def test_labels_mean_what_replies_say(name: str) -> None:
    """Without a graph: of the same numbers, read by the labels."""
    torch.manual_seed(0)
    model = toy_model("merged_attention").eval()
    task = toy_task(name, toy_dims(model)).eval()
    batch = batch_of(model, 3, 2, 12, task.reads)
    with torch.no_grad():
        encoded = model.encode(batch, [task.reads])
        numbers, replies = task.pair_scores(model, batch, encoded), task.reply(model, batch, encoded, 4)
    told = task.meaning()
    shares = {"softmax": numbers.softmax(dim=1), "sigmoid": numbers.sigmoid()}[str(told.activation)]
    assert numbers.shape == (6, len(told.labels))
    for row, reply in zip(shares, replies, strict=True):
        if told.reply == "match":
            assert reply["match"] == pytest.approx(row[told.labels.index("match")].item())
        else:
            assert reply[told.reply] == told.labels[int(row.argmax())]
    if name == "entailment":
        assert [list(reply["labels"].values()) for reply in replies] == [pytest.approx(row.tolist()) for row in shares]
        assert [list(reply["labels"]) for reply in replies] == [list(told.labels)] * 6


def test_rules_of_what_may_be_said_are_those_of_the_search() -> None:
    model = toy_model("cross_attention")
    ranked = toy_task("vqa_generative", toy_dims(model))
    assert ranked.saying().max_length == 4  # the longest known answer, with its end
    assert ranked.saying().ends == (SEP,)
    said = toy_task("vqa_open", toy_dims(model))
    assert said.saying().max_length == 10
    assert said.saying().min_length == 1
    assert toy_task("captioning", toy_dims(model)).saying().max_length == 20


@pytest.mark.slow
@pytest.mark.parametrize("fusion", choices("fusion"))
def test_every_fusion_of_pairs_has_a_graph(fusion: str) -> None:
    """Traced by torch, and run at other sizes; those that read two tokenizers are refused before."""
    torch.manual_seed(3)
    model: Any = scatter_weights(toy_model(fusion)).eval()
    if isinstance(model.fusion, SupportsInstructions):
        assert "instructed" in fusion
        return
    task = scatter_weights(toy_task("itm", toy_dims(model)), seed=50).eval()
    image = examples.image_example(model, 32, has_contrast=False)
    with row_by_row(), torch.no_grad():
        memory = model.fusion.prepare(model.encode_image(image.inputs["pixel_values"]))
    texts, images = examples.text_inputs(model, CLS, SEP), examples.seen_images(image, 32)
    pair = examples.pair_example(model, {"itm": task}, memory, images, texts)
    programs = {name: formats.trace(name, each).module() for name, each in (("image", image), ("pair", pair))}
    batch = batch_of(model, 2, 3, 12, "captions")
    rows = batch["captions"]
    with torch.no_grad():
        expected = task.pair_scores(model, batch, model.encode(batch, ["captions"]))
        seen = programs["image"](batch["pixel_values"])
        given = {name: tensor[rows["image_index"]] for name, tensor in seen.items()} | rows
        found = programs["pair"](*(given[name] for name in pair.graph.names))["itm"]
    require_close(found.numpy(), expected)


def parts_of(**changes: Any) -> Any:
    fusion, encoder = SimpleNamespace(), SimpleNamespace(reads=changes.get("reads", "pixel_values"))
    model = SimpleNamespace(image_encoder=encoder, fusion=changes.get("fusion", fusion))
    finish = SimpleNamespace(fit=changes.get("fit", "squash"))
    return SimpleNamespace(model=model, datamodule=SimpleNamespace(finish=finish))


class Instructed:
    instruction_size = 3

    def instruct(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reads": "regions"}, "SimpleNamespace reads regions, whose number hangs on the image"),
        ({"fit": "keep"}, "data.fit is keep, with which each image has a shape of its own"),
        ({"fusion": Instructed()}, "Instructed reads each text twice, by two tokenizers"),
    ],
)
def test_images_that_are_no_plain_tensors_are_refused(changes: dict[str, Any], words: str) -> None:
    write.require_plain(parts_of())
    write.require_plain(parts_of(fit="crop"))
    with pytest.raises(ConfigError, match=rf"cannot be put in a graph: {words}; export without layout"):
        write.require_plain(parts_of(**changes))


def test_why_a_task_has_no_graph() -> None:
    model: Any = toy_model("cross_attention")
    tasks = {name: toy_task(name, toy_dims(model)) for name in ("itc", "itm", "captioning", "likelihood", "nlvr2")}
    faults = {name: write.fault_of(task, model) for name, task in tasks.items()}
    assert faults.pop("likelihood") == "what Likelihood replies is not read off one row of numbers a pair"
    assert faults.pop("nlvr2") == "what NLVR2 replies is not read off one row of numbers a pair"
    assert faults == {"itc": None, "itm": None, "captioning": None}
    slow = SimpleNamespace(is_incremental=False)
    assert write.fault_of(tasks["captioning"], slow) == (
        "its words are not said from keys and values, but each by the whole text anew"
    )
    assert write.fault_of(tasks["itm"], slow) is None


def test_nested_tensors_come_back_in_their_structure() -> None:
    one, two, three = (torch.full((1,), float(number)) for number in range(3))
    memory = [Tokens(one, None, two), (three, None), []]
    assert all(found is given for found, given in zip(flat(memory), (one, two, three), strict=True))
    again = filled(memory, [three, two, one])
    assert isinstance(again[0], Tokens)
    assert again[0].embeds is three
    assert again[0].mask is None
    assert again[0].pooled is two
    assert again[1][0] is one
    assert isinstance(again[1], tuple)
    assert again[1][1] is None
    assert again[2] == []


@pytest.mark.parametrize("name", ['a"b', "a b", "é", "a/b", "input_ids", "attention_mask", "image_embeds", "memory_0"])
def test_names_that_are_no_names_of_files_and_ports_are_refused(name: str) -> None:
    assert write.fault_of_name(name) is not None


def test_plain_names_are_taken() -> None:
    assert not any(map(write.fault_of_name, ("vqa", "vqa-2", "my_Task", "memory_of_words", "image_text")))


def test_a_reply_of_a_chat_ends_where_its_turn_ends() -> None:
    """By the template's own token, of which the task alone knows nothing; a template that nobody gave is told too."""
    task = toy_task("chat", toy_dims(toy_model("cross_attention")))
    step: Any = SimpleNamespace(outputs={"logits": None, "next_past_0": None})
    turn = next(token for token in task.saying().banned if token not in task.saying().ends)
    assert describe.said_of(task, step)["ends"] == [SEP]
    told = describe.said_of(task, step, SimpleNamespace(end=turn))  # type: ignore[arg-type]
    assert told["ends"] == [turn, SEP]
    assert turn not in told["banned"]
    assert told["carried"] == {"next_past_0": "past_0"}
    tokenizer = word_tokenizer(["a b"])
    source = SimpleNamespace(max_length=9, template=None, chat_template=None)
    parts: Any = SimpleNamespace(
        datamodule=SimpleNamespace(sources={"mine": source}, tokenizer=tokenizer),
        config=SimpleNamespace(data=SimpleNamespace(sources={"mine": {}})),
    )
    assert describe.reading_texts(parts, "mine", task)["chat_template"] == PLAIN
