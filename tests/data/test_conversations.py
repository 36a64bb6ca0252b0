"""Conversations as data sets write them: LLaVA's turns, messages of words and of parts, and what is refused."""

from pathlib import Path

import pytest

from fusionkit.data.readers.dialogues import Dialogues
from fusionkit.data.sample import WEIGHT, Sample, Text
from fusionkit.data.texts.conversations import Conversation, pictures_named, read_conversation, require_places
from fusionkit.errors import ConfigError, DataError

TALK = Conversation(("user", "assistant", "user", "assistant"), ("what?", "A dog.", "where?", "There."))
PICTURE = {"type": "image", "index": 0, "text": None}


def llava(*said):
    return [{"from": "human" if n % 2 == 0 else "gpt", "value": words} for n, words in enumerate(said)]


def messages(*said):
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": words} for n, words in enumerate(said)]


def words(text):
    return {"type": "text", "text": text, "index": None}


@pytest.mark.parametrize(
    "given",
    [
        llava("<image>\nwhat?", "A dog.", "where?", "There."),
        llava("what?\n<image>", " A dog.\n", "where?", "There."),
        messages("what?", "A dog.", "where?", "There."),
        messages([PICTURE, words("what?")], [words("A dog.")], [words("where?")], "There."),
        messages([words("what?"), {"type": "image_url", "image_url": {"url": "a.jpg"}}], "A dog.", "where?", "There."),
        [*llava("what?", "A dog."), *messages("where?", "There.")],
        [{"from": "gpt", "value": "Welcome!"}, *llava("<image>what?", "A dog.", "where?", "There.")],
        [*llava("what?", "A dog."), {"from": "human", "value": "where?"}, *llava("", "There.")],
    ],
    ids=["llava", "behind", "messages", "parts", "url", "both", "greeting", "neighbours"],
)
def test_every_layout_is_the_same_conversation(given):
    assert read_conversation(given, "row 1 of t.json") == TALK


def test_a_system_turn_and_several_lines_of_one_speaker_stay():
    given = [
        {"from": "system", "value": "Be short."},
        *llava("<image>"),
        *llava("what?\nwhere?", "A dog,"),
        *llava("", ""),
    ]
    assert read_conversation(given, "row 1")[:2] == (
        ("system", "user", "assistant", "user", "assistant"),
        ("Be short.", "what?\nwhere?", "A dog,", "", ""),
    )
    assert read_conversation([], "row 1").roles == ()
    assert read_conversation(messages([words("a"), words("e\u0301")]), "row 1").turns == ("a\n\u00e9",)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("what?", r"row 7 of t.json has the conversation 'what\?', but a conversation is a list of turns"),
        (["what?"], "but a conversation is a list of turns, each saying who says what"),
        ([{"from": "tool", "value": "x"}], r"row 7 of t.json has a turn of 'tool'; .*assistant"),
        ([{"said": "x"}], "has a turn of 'None'"),
        (messages(None), "has a turn that says .*None.*, which is neither words nor a picture"),
        (messages([{"type": "video"}]), "has a turn that says .*video"),
        (llava("what?", "<image>"), "has <image> in a turn of the assistant, but pictures are shown by the user"),
        ([{"role": "system", "content": "<image>"}], "has <image> in a turn of the system"),
        ([{"from": "gpt", "value": "<image>"}, *llava("what?", "A dog.")], "has <image> in a turn of the assistant"),
    ],
)
def test_what_is_no_conversation_about_pictures_is_told(given, told):
    with pytest.raises(DataError, match=told):
        read_conversation(given, "row 7 of t.json")


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        (llava("what?", "A dog.", "<image>and here?"), ("what?", "A dog.", "<image> and here?")),
        (llava("<image>\n<image> same?", "no"), ("<image> <image> same?", "no")),
        (messages([PICTURE, words("and"), PICTURE], "no"), ("<image> and <image>", "no")),
        (messages([PICTURE, PICTURE, words("same?")], "no", [words("and"), PICTURE]), None),
        ([*llava("<image> what?"), *llava("<image>", "A dog.")], ("<image> what? <image>", "A dog.")),
        ([{"from": "system", "value": "Look."}, *llava("hi", "hi", "<image>?")], ("Look.", "hi", "hi", "<image> ?")),
    ],
)
def test_pictures_stand_where_they_are_shown(given, turns):
    found = read_conversation(given, "row 1")
    assert found.turns == (turns or ("<image> <image> same?", "no", "and <image>"))
    assert found.places == sum(said.count("<image>") for said in found.turns)
    assert found.read_first() == found


def test_a_picture_that_is_alone_and_shown_first_is_read_before_all():
    found = read_conversation([{"from": "system", "value": "Look."}, *llava("here: <image> what?", "A dog.")], "row 1")
    assert (found.places, found.turns) == (0, ("Look.", "here: what?", "A dog."))
    assert Conversation(("assistant", "user"), ("<image>", "what?")).places == 0


@pytest.mark.parametrize(
    ("turns", "pictures", "told"),
    [
        (
            ("what?",),
            2,
            "row 7 has no <image>, or only one, in what the user says, but 2 pictures; write <image> once where",
        ),
        (("<image> and <image>",), 1, "row 7 has 2 <image> in what the user says, but 1 picture; write"),
        (("<image>", "a", "<image>"), 3, "row 7 has 2 <image> in what the user says, but 3 pictures"),
    ],
)
def test_pictures_without_a_place_and_places_without_a_picture_are_told(turns, pictures, told):
    conversation = Conversation(("user", "assistant", "user")[: len(turns)], turns)
    with pytest.raises(DataError, match=told):
        require_places(conversation, pictures, "row 7")
    require_places(conversation, conversation.places or 1, "row 7")
    require_places(Conversation(("user",), ("what?",)), 0, "row 7")


def test_messages_name_their_pictures():
    parts = [
        {"type": "image", "image": "a.jpg"},
        words("and"),
        {"type": "image", "path": "b.jpg"},
        {"type": "image_url", "image_url": {"url": "c.jpg"}},
        {"type": "image", "url": "d.jpg"},
        PICTURE,
    ]
    assert pictures_named(messages(parts, "no", "what?"), "row 1") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    with pytest.raises(DataError, match="row 1 has the conversation"):
        pictures_named("what?", "row 1")


def test_the_last_reply_and_what_it_is_to():
    assert (TALK.reply, TALK.before_reply.turns) == ("There.", ("what?", "A dog.", "where?"))
    assert (TALK.before_reply.reply, TALK.before_reply.before_reply) == (None, TALK.before_reply)
    assert TALK.without_oldest().turns == ("where?", "There.")
    assert TALK.without_oldest().without_oldest() == TALK.without_oldest()
    with_system = Conversation(("system", *TALK.roles), ("Be short.", *TALK.turns))
    assert with_system.without_oldest() == (("system", "user", "assistant"), ("Be short.", "where?", "There."))
    text = TALK.text("a")
    assert (text.id, Conversation.of(text)) == ("a", TALK)
    assert text.text == "user: what?\nassistant: A dog.\nuser: where?\nassistant: There."


class Fixed:
    """Two images, one of which nothing is known about that is said."""

    def read(self, split):
        questions = [Text(n, f"{n}?", {"answers": ["x", "y", "y"]} if n < 4 else {}) for n in range(5)]
        questions[0] = Text(0, "0?", {"answers": ["x"], "multiple_choice_answer": "z"})
        known = {"captions": (Text("c", "a dog"), Text("d", "it")), "questions": tuple(questions)}
        return [
            Sample(1, Path("a.jpg"), known, (4, 5), "coco"),
            Sample(2, Path("b.jpg"), {"questions": (Text(9, "9?"),)}, (4, 5), "coco"),
        ]


def test_questions_and_captions_are_conversations():
    (sample,) = Dialogues([Fixed()], "Say it.", "{text} In a word.", turns=3).read("train")
    assert (sample.image_id, sample.image, sample.collection, sample.size) == (1, Path("a.jpg"), "coco", (4, 5))
    assert [(text.id, Conversation.of(text)) for text in sample.texts["conversations"]] == [
        (
            "1/0",
            (TALK.roles + TALK.roles[:2], ("0? In a word.", "z", "1? In a word.", "y", "2? In a word.", "y")),
        ),
        ("1/1", (TALK.roles[:2], ("3? In a word.", "y"))),
        ("1/2", (TALK.roles[:2], ("Say it.", "a dog"))),
    ]
    (sample,) = Dialogues([Fixed()], None).read("train")
    assert [text.facts["turns"][::2] for text in sample.texts["conversations"]] == [["0?", "1?", "2?", "3?"]]
    with pytest.raises(ConfigError, match="turns is 0"):
        Dialogues([Fixed()], turns=0)
    with pytest.raises(ConfigError, match="question_prompt 'no'"):
        Dialogues([Fixed()], question_prompt="no")


def test_conversations_keep_the_weight_of_what_they_are_made_of():
    class Weighted:
        def read(self, split):
            facts = [{"answers": ["x"], WEIGHT: 3.0}, {"answers": ["x"]}, {"answers": ["x"]}]
            known = {"captions": (Text("c", "a dog"),), "questions": tuple(Text(n, "?", facts[n]) for n in range(3))}
            others = (Path("b.jpg"),) if split == "pairs" else ()
            return [Sample(1, Path("a.jpg"), known, others=others)]

    (sample,) = Dialogues([Weighted()], turns=2).read("train")
    assert [text.facts.get(WEIGHT) for text in sample.texts["conversations"]] == [2.0, None, None]
    with pytest.raises(DataError, match="image 1 comes with others, but a conversation is about one"):
        Dialogues([Weighted()]).read("pairs")
