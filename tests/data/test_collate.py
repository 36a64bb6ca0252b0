from pathlib import Path
from typing import Any

import pytest
import torch

from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.collate import Collate, new_counts
from fusionkit.data.dataset import Item
from fusionkit.data.images import image_key
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.conversations import Conversation
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.errors import DataError

TOKENIZER = word_tokenizer(["is it a red cat or a dog"])


def question(number: int, text: str, *answers: str, **facts) -> Text:
    return Text(number, text, {"answers": list(answers), "answer_type": "other", **facts})


SAMPLES = [
    Sample(
        7, "a", {"captions": (Text(1, "a red cat"),), "questions": (question(5, "is it red", *["red"] * 10, label=1),)}
    ),
    Sample(8, "b", {"captions": (), "questions": ()}),
    Sample(9, "c", {"captions": (Text(2, "dog"), Text(3, "a dog or a red cat")), "questions": ()}),
]


def item(sample: Sample, boxes=()) -> Item:
    return Item(sample, torch.full((3, 4, 4), float(sample.image_id)), dict(sample.texts), (40, 30), dict(boxes))


def collate(samples, items=None, kinds=("captions", "questions"), max_length=20):
    make = Collate("toy", samples, kinds, TOKENIZER, max_length, AnswerVocabulary(["cat", "red"]))
    return make(items or [item(sample) for sample in samples])


def test_texts_become_rows_that_point_at_their_image():
    batch = collate(SAMPLES)
    assert (batch["source"], batch["image_ids"]) == ("toy", [7, 8, 9])
    assert batch["image_keys"].tolist() == [image_key(sample) for sample in SAMPLES]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [7, 8, 9]
    assert batch["image_sizes"].tolist() == [[40, 30]] * 3
    rows = batch["captions"]
    assert (rows["image_index"].tolist(), rows["ids"]) == ([0, 2, 2], [1, 2, 3])
    assert rows["attention_mask"].sum(1).tolist() == [5, 3, 8]
    assert rows["word_index"].tolist()[0] == [-1, 0, 1, 2, -1, -1, -1, -1]
    assert TOKENIZER.decode(rows["input_ids"][1], skip_special_tokens=True) == "dog"


def test_long_texts_are_cut():
    rows = collate(SAMPLES, max_length=5)["captions"]
    assert rows["input_ids"].shape == (3, 5)
    assert rows["input_ids"][2, -1] == TOKENIZER.sep_token_id


def test_facts_become_targets():
    rows = collate(SAMPLES)["questions"]
    assert rows["answer_scores"].tolist() == [[0, 1]]
    assert rows["label"].tolist() == [1]
    assert "answer_type" not in rows


def test_boxes_find_their_rows():
    texts = tuple(Text(number, "a cat", {"box": (0, 0, 9, 9), "ref_id": number % 2}) for number in (3, 1))
    sample = Sample(1, "a", {"expressions": texts})
    boxes = {("expressions", 1): torch.full((4,), 0.1), ("expressions", 3): torch.full((4,), 0.3)}
    rows = collate([sample], [item(sample, boxes)], ["expressions"])["expressions"]
    assert rows["boxes"][:, 0].tolist() == pytest.approx([0.3, 0.1])
    assert rows["ref_id"].tolist() == [1, 1]


def test_a_batch_without_texts_of_a_kind_has_empty_rows_of_it():
    rows = collate(SAMPLES, [item(SAMPLES[1])])["questions"]
    shapes = {name: tuple(value.shape) for name, value in rows.items() if name != "ids"}
    assert shapes == {
        "input_ids": (0, 1), "attention_mask": (0, 1), "word_index": (0, 1), "image_index": (0,),
        "answer_scores": (0, 2), "label": (0,),
    }  # fmt: skip
    assert rows["label"].dtype == torch.long


def test_a_fact_that_some_texts_lack_is_told():
    lacking = Sample(4, "d", {"questions": (question(6, "is it", "red"),), "captions": ()})
    error = collate([SAMPLES[0], lacking])
    assert isinstance(error, DataError)
    assert "text 6 of kind 'questions' has no 'label'" in str(error)


def test_texts_are_counted_that_are_read_and_cut():
    counts = new_counts()
    make = Collate("toy", SAMPLES, ("captions",), TOKENIZER, 5, None, counts=counts)
    make([item(sample) for sample in SAMPLES])  # of 5, 3 and 8 tokens
    assert counts.sum(dim=0).tolist() == counts[0].tolist() == [3, 1, 0]
    make([item(SAMPLES[0])])
    assert counts.sum(dim=0).tolist() == [4, 1, 0]


def test_images_of_different_shapes_stand_on_canvases():
    shapes = [(4, 8), (8, 4), (4, 4)]
    items = [
        item(sample)._replace(pixel_values=torch.ones(3, *shape)) for sample, shape in zip(SAMPLES, shapes, strict=True)
    ]
    batch = collate(SAMPLES, items)
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert batch["pixel_mask"].dtype == torch.bool
    for row, (height, width) in enumerate(shapes):
        assert batch["pixel_mask"][row, :height, :width].all()
        assert batch["pixel_mask"][row].sum() == height * width
        assert batch["pixel_values"][row].equal(batch["pixel_mask"][row].float().expand(3, -1, -1))
    assert "pixel_mask" not in collate(SAMPLES)


def test_a_weight_that_some_texts_have_is_none_of_their_facts():
    samples = [
        Sample(1, "a", {"captions": (Text(1, "a red cat", {"sample_weight": 2.0}),)}),
        Sample(2, "b", {"captions": (Text(2, "a dog"),)}),
    ]
    rows = collate(samples, kinds=("captions",))["captions"]
    assert rows["ids"] == [1, 2]
    assert "sample_weight" not in rows


def chat_item(number: int, others: int, *turns: tuple[str, ...]) -> Item:
    texts = tuple(
        Conversation(("user", "assistant", "user")[: len(said)], said).text(f"{number}/{n}")
        for n, said in enumerate(turns)
    )
    sample = Sample(number, Path(f"{number}"), {"conversations": texts}, others=tuple(map(Path, "xyz"[:others])))
    pixels = [torch.full((3, 4, 4), number + place / 10) for place in range(1 + others)]
    return Item(sample, pixels[0], dict(sample.texts), (40, 30), {}, pixels[1:])


def collate_chats(*items: Item) -> Any:
    return collate([item.sample for item in items], list(items), ["conversations"], 60)


def test_conversations_name_the_rows_of_their_pictures_and_the_tokens_that_see_them():
    items = (
        chat_item(1, 1, ("<image> red <image>", "cat"), ("<image> dog <image>",)),
        chat_item(2, 0, ("is it",), ("is it", "red", "a <image> dog")),
        chat_item(3, 2, ("<image> <image> <image>", "dog")),
    )
    batch = collate_chats(*items)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == pytest.approx([1, 2, 3, 1.1, 3.1, 3.2])
    assert batch["image_ids"] == [1, 2, 3, 1, 3, 3]
    rows = batch["conversations"]
    assert rows["image_index"].tolist() == [0, 0, 1, 1, 2]
    assert rows["images"].shape == rows["prompt_images"].shape == (5, 3, 2)
    assert rows["images"][..., 0].tolist() == [[0, 3, -1], [0, 3, -1], [1, -1, -1], [1, -1, -1], [2, 4, 5]]
    assert torch.equal(rows["images"], rows["prompt_images"])
    words = [TOKENIZER.convert_ids_to_tokens(row) for row in rows["input_ids"].tolist()]
    for row, (first, second) in {0: ("red", "assistant"), 3: ("dog", None)}.items():
        seen = [words[row][token] for token in rows["images"][row, :2, 1].tolist()]
        assert seen[0] == first
        assert second is None or rows["images"][row, 1, 1] > rows["images"][row, 0, 1]
    assert rows["images"][2, 0].tolist() == [1, 0]
    assert "other_index" not in rows


def test_conversations_about_one_picture_that_is_read_first_are_rows_of_it_alone():
    rows = collate_chats(chat_item(1, 0, ("is it", "red")), chat_item(2, 0, ("dog",)))["conversations"]
    assert rows["image_index"].tolist() == [0, 1]
    assert not {"images", "prompt_images", "other_index"} & rows.keys()
    none = collate([chat_item(1, 1, ("<image> <image>",)).sample], [chat_item(2, 0)], ["conversations"])[
        "conversations"
    ]
    assert len(none["input_ids"]) == 0
    assert "images" not in none


def test_a_conversation_has_a_place_for_each_picture():
    with pytest.raises(
        DataError, match=r"the conversation 1/0 of source toy has no <image>, or only one, .* but 2 pictures"
    ):
        raise collate_chats(chat_item(1, 1, ("is it", "red")))


def test_texts_are_spelt_for_what_looks_at_images_too():
    words = word_tokenizer(["is it a red cat or a dog"])
    words.companion = word_tokenizer(["red", "Q : A"])
    make = Collate("toy", SAMPLES, ("captions", "questions"), words, 9, None, templates={"captions": "Q: {text} A:"})
    rows = make([item(sample) for sample in SAMPLES])["captions"]
    spelt = [words.companion.convert_ids_to_tokens(row) for row in rows["instruction_ids"]]
    assert spelt[1] == ["[CLS]", "q", ":", "[UNK]", "a", ":", "[SEP]", *["[PAD]"] * (len(spelt[1]) - 7)]
    assert rows["instruction_mask"].sum(dim=1).tolist()[1] == 7
    cut = Collate("toy", SAMPLES, ("captions", "questions"), words, 5, None)([item(SAMPLES[2])])["captions"]
    assert (cut["input_ids"].shape, cut["instruction_ids"].shape) == ((2, 5), (2, 8))
    nothing = make([item(SAMPLES[1])])["questions"]
    assert {
        name: nothing[name].shape for name in ("instruction_ids", "instruction_mask", "input_ids")
    } == dict.fromkeys(("instruction_ids", "instruction_mask", "input_ids"), (0, 1))
    assert "instruction_ids" not in collate(SAMPLES)["captions"]
    assert "instruction_ids" not in collate(SAMPLES, [item(SAMPLES[1])])["captions"]


def test_captions_of_one_image_stand_beside_conversations_about_several():
    talk = Conversation(("user", "assistant"), ("<image> or <image>?", "the cat")).text("t")
    pair = Sample(1, Path("1.jpg"), {"conversations": (talk,), "captions": ()}, others=(Path("x.jpg"),))
    single = Sample(2, Path("2.jpg"), {"captions": (Text("c", "a cat"),), "conversations": ()})
    items = [item(pair)._replace(others=(torch.zeros(3, 4, 4),)), item(single)]
    kinds = ("captions", "conversations")
    batch = collate([pair, single], items, kinds)
    assert batch["image_ids"] == [1, 2, 1]
    assert batch["captions"]["image_index"].tolist() == [1]
    assert "other_index" not in batch["captions"]
    assert batch["conversations"]["images"][0, :, 0].tolist() == [0, 2]
    both = Sample(3, Path("3.jpg"), {"captions": (Text("d", "a cat"),)}, others=(Path("y.jpg"),))
    told = collate([both, single], items, kinds)  # captions of pairs too
    assert "image 2 has no second image, as others of its source have" in str(told)
    silent = item(Sample(4, Path("4.jpg"), {"captions": (), "conversations": ()}))
    shown = item(both)._replace(others=(torch.zeros(3, 4, 4),))
    assert collate([both], [silent, shown], ("captions",))["captions"]["other_index"].tolist() == [2]
