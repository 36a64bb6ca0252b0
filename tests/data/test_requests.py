"""What one asks of one's own images: from the command line, a folder, a file of JSON lines; and what cannot be asked."""

import json
from pathlib import Path

import pytest

from fusionkit.data.requests import Request, asked_text, by_image, read_requests, require_image
from fusionkit.errors import ConfigError, DataError

PIXELS, REGIONS = "pixel_values", "regions"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png", "r.npz"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_a_folder_is_asked_about_each_of_its_pictures_in_order(folder: Path) -> None:
    found = read_requests(str(folder), {"question": "what?", "caption": True}, PIXELS)
    assert [request.image.name for request in found] == ["a.jpg", "b.PNG"]
    assert {request.asks for request in found} == {("question", "caption")}
    assert [request.image.name for request in read_requests(str(folder), {"phrase": "it"}, REGIONS)] == ["r.npz"]


def test_a_line_asks_what_it_says_and_what_the_command_line_asks_of_all(folder: Path) -> None:
    (folder / "q.jsonl").write_text(
        '{"image": "a.jpg", "id": 7, "phrase": "it"}\n\n{"image": "b.PNG", "caption": false}\n'
    )
    first, second = read_requests("q.jsonl", {"text": "a thing", "caption": True}, PIXELS)
    assert first == Request(Path("a.jpg"), {"phrase": "it", "text": "a thing"}, True, {"id": 7})
    assert second.asks == ("text",)
    (folder / "below").mkdir()
    (folder / "below/q.jsonl").write_text('{"image": "c.jpg"}\n')
    assert read_requests("below/q.jsonl", {"text": "x"}, PIXELS)[0].image == Path("below/c.jpg")


def test_a_question_may_be_the_last_of_several_messages(folder: Path) -> None:
    talk = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "A dog."}]
    talk += [{"role": "user", "content": "where?"}]
    (folder / "q.jsonl").write_text(json.dumps({"image": "a.jpg", "question": talk}))
    (found,) = read_requests("q.jsonl", {}, PIXELS)
    assert (found.texts, found.asks) == ({"question": "where?"}, ("question",))
    assert found.conversation == (("user", "assistant", "user"), ("what?", "A dog.", "where?"))
    assert asked_text(tuple(talk), "question") == ("where?", found.conversation)  # of model.answer


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "nothing is asked; give a question, a phrase, a text or caption=true"),
        ({"phrase": " "}, "the phrase is ' ', but has to be words"),
        ({"caption": "a cat"}, "caption is 'a cat', but is true or false; to match a given text write text="),
    ],
)
def test_what_cannot_be_asked(folder: Path, asked: dict, words: str) -> None:
    with pytest.raises(ConfigError, match="predict: ") as caught:
        read_requests("a.jpg", asked, PIXELS)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "a.jpg", "qestion": "x"}', "line 1 of q.jsonl has a key 'qestion'; did you mean 'question'?"),
        ('{"question": "x"}', "line 1 of q.jsonl names no image"),
        ("[1]", "line 1 of q.jsonl names no image"),
        ('{"image": "a.jpg", "question": 3}', "line 1 of q.jsonl: the question is 3, but has to be words"),
        ('{"image": "a.jpg"}', "line 1 of q.jsonl: nothing is asked"),
        ('{"image": "a.jpg", "question": []}', "line 1 of q.jsonl has messages that do not end with words of the user"),
        (
            '{"image": "a.jpg", "question": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
            "line 1 of q.jsonl has messages that do not end with words of the user; end them with what is asked",
        ),
        ('{"image": "a.jpg", "question": ["x"]}', "line 1 of q.jsonl has the conversation"),
        ('{"image": "a.jpg", "phrase": []}', "line 1 of q.jsonl: the phrase is [], but has to be words"),
        ("{", "line 1 of q.jsonl is no JSON"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, line: str, words: str) -> None:
    (folder / "q.jsonl").write_text(line + "\n")
    with pytest.raises(DataError) as caught:
        read_requests("q.jsonl", {}, PIXELS)
    assert words in str(caught.value)


def test_images_that_are_not_there_or_of_another_kind(folder: Path) -> None:
    with pytest.raises(DataError, match=r"image=gone.jpg does not exist"):
        read_requests("gone.jpg", {"text": "x"}, PIXELS)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="image=empty holds no picture"):
        read_requests("empty", {"text": "x"}, PIXELS)
    for name, reads, words in (
        ("gone.jpg", PIXELS, "gone.jpg does not exist"),
        ("r.npz", PIXELS, "reads pixels: give a picture"),
        ("a.jpg", REGIONS, "reads the region features of a detector: give its .npz file"),
    ):
        with pytest.raises(DataError, match=words):
            require_image(Request(Path(name), {"text": "x"}), reads)


def test_what_is_asked_is_read_as_annotations_are(folder: Path) -> None:
    (found,) = read_requests(str(folder / "a.jpg"), {"question": "o\u0301 \udcff\0?"}, PIXELS)
    assert found.texts == {"question": "ó \ufffd\ufffd?"}
    with pytest.raises(ConfigError, match=r"predict: a text of 200,000 characters is longer than the 100,000"):
        read_requests(str(folder / "a.jpg"), {"question": "a" * 200_000}, PIXELS)


def test_a_question_may_be_about_several_images(folder: Path) -> None:
    """As a list of files, or named by its messages; each is seen from its place on."""
    (found,) = read_requests(["a.jpg", "b.PNG"], {"question": "is <image> as <image>?"}, PIXELS)
    assert (found.image, found.others, found.conversation) == (Path("a.jpg"), (Path("b.PNG"),), None)
    assert found.files == [Path("a.jpg"), Path("b.PNG")]
    shown = [{"type": "image", "image": name} for name in ("a.jpg", "b.PNG")]
    talk = [{"role": "user", "content": [shown[0], {"type": "text", "text": "what?"}]}]
    talk += [{"role": "assistant", "content": "A dog."}]
    talk += [{"role": "user", "content": [{"type": "text", "text": "and"}, shown[1], {"type": "text", "text": "?"}]}]
    lines = [
        {"question": talk},
        {"image": ["a.jpg", "b.PNG"], "question": talk},
        {"question": talk[:1], "image": "a.jpg"},
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    named, both, one = read_requests("q.jsonl", {}, PIXELS)
    assert named == both
    assert (named.files, named.texts) == ([Path("a.jpg"), Path("b.PNG")], {"question": "and <image> ?"})
    assert named.conversation.turns == ("<image> what?", "A dog.", "and <image> ?")
    assert (one.files, one.conversation.turns) == ([Path("a.jpg")], ("what?",))
    require_image(named, PIXELS)
    (folder / "b.PNG").unlink()
    with pytest.raises(DataError, match=r"the image b.PNG does not exist"):
        require_image(named, PIXELS)


TALK = [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "so?"}]}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            {"image": ["a.jpg", "b.PNG"], "question": "is <image> as it?"},
            "line 1 of q.jsonl has no <image>, or only one,",
        ),
        (
            {"image": "a.jpg", "question": "is <image> as <image>?"},
            "line 1 of q.jsonl has 2 <image> in what the user says, but 1 picture;",
        ),
        (
            {"image": "a.jpg", "question": [{"role": "user", "content": "<image> <image>?"}]},
            "has 2 <image> in what the",
        ),
        (
            {"image": ["a.jpg", "b.PNG"], "phrase": "it"},
            "line 1 of q.jsonl: several images are what a question is about",
        ),
        (
            {"image": ["a.jpg", "b.PNG"], "question": "<image> <image>?", "caption": True},
            "several images are what a question",
        ),
        (
            {"image": "b.PNG", "question": TALK},
            "line 1 of q.jsonl names pictures as its image and others in its messages",
        ),
        ({"image": ["a.jpg", 3], "question": "<image> <image>?"}, "line 1 of q.jsonl names no image"),
        ({"image": [], "question": "what?"}, "line 1 of q.jsonl names no image"),
    ],
)
def test_images_that_have_no_place_in_a_question_are_told(folder: Path, line: dict, words: str) -> None:
    (folder / "q.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError) as caught:
        read_requests("q.jsonl", {}, PIXELS)
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match="predict has no <image>, or only one"):
        read_requests(["a.jpg", "b.PNG"], {"question": "what?"}, PIXELS)


def test_requests_about_the_same_images_stand_together() -> None:
    a, b = Path("a.jpg"), Path("b.jpg")
    found = [Request(a, {}), Request(a, {}, others=(b,)), Request(a, {}), Request(a, {}, others=(b,)), Request(b, {})]
    assert by_image(found) == [[0, 2], [1, 3], [4]]
