import io

from rich.console import Console

from fusionkit.visual.answer_text import print_replies, replies_table


def cells(records):
    table = replies_table(records)
    return list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))


def test_each_reply_has_a_row_and_its_image_is_named_once():
    record = {
        "image": "cat.png",
        "question": "what",
        "answer": "a cat",
        "answers": [{"answer": "a cat", "probability": 0.75}, {"answer": "a dog"}],
        "phrase": "the cat",
        "bbox": [1.4, 2.6, 30, 40.5001],
        "text": "a cat sits",
        "match": 0.981,
        "cosine": 0.1236,
        "labels": {"neutral": 0.5, "entailment": None},
        "caption": "a cat on a mat",
    }
    assert cells([record, {"image": "b.png", "question": "who", "answer": "he"}]) == [
        ("cat.png", "question: what", "a cat 0.75   a dog"),
        ("", "phrase: the cat", "box 1 3 30 41 (x y width height)"),
        ("", "text: a cat sits", "match 98.1%   cosine 0.124   neutral 50.0%   entailment"),
        ("", "caption", "a cat on a mat"),
        ("b.png", "question: who", "he"),
    ]
    assert cells([{"image": "c.png", "text": "it", "match": 0.5}]) == [("c.png", "text: it", "match 50.0%")]


def test_percentages_are_of_a_whole():
    """A VQA head scores each answer alone: 93% and 81% would be read as parts of 100%."""
    alone = {"image": "a.png", "question": "what", "answers": [{"answer": "cat", "probability": 0.93}]}
    alone["answers"].append({"answer": "dog", "probability": 0.81})
    shares = {"image": "b.png", "question": "what", "answers": [{"answer": "cat", "probability": 0.602}]}
    shares["answers"].append({"answer": "dog", "probability": 0.398})
    none = {"image": "c.png", "question": "what", "answer": "cat"}
    assert [reply for *_, reply in cells([alone, shares, none])] == [
        "cat 0.93   dog 0.81",
        "cat 60.2%   dog 39.8%",
        "cat",
    ]
    assert replies_table([alone, shares]).caption == "the score of an answer, from 0 to 1, is of that answer alone"
    assert replies_table([shares, none]).caption is None


def test_a_reply_of_a_task_of_ones_own_is_told_by_its_names():
    record = {
        "id": 3,
        "image": "a.png",
        "text": "nice",
        "sentiment": "happy",
        "arousal": 0.123456,
        "files": ["a_text.png"],
    }
    assert cells([record]) == [("a.png", "text: nice", "sentiment happy   arousal 0.1235")]
    for word in ("question", "phrase"):
        assert cells([{"image": "a.png", word: "how many", "count": 3}]) == [("a.png", f"{word}: how many", "count 3")]


def test_an_error_is_told_with_all_that_was_asked():
    record = {"image": "x.png", "question": "what", "text": "it", "error": "no such file"}
    assert cells([record]) == [("x.png", "question: what   text: it", "error: no such file")]


def test_the_table_is_printed_as_it_is():
    console = Console(width=100, record=True, file=io.StringIO())
    print_replies([{"image": "x.png", "question": "[bold]what", "answer": "it"}], console)
    shown = console.export_text()
    assert "question: [bold]what" in shown
    assert all(title in shown.splitlines()[1] for title in ("image", "asked", "reply"))
