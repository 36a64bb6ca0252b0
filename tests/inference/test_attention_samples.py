"""The texts of a run that are drawn with where they look: which ones, of which tasks, under which names."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.conversations import Conversation
from fusionkit.inference import attention_samples as attention
from fusionkit.inference.answering import Answer, Predictor
from fusionkit.inference.attention_samples import draw_attention, spread
from fusionkit.scoring.records import read_records


def task(replies_to, reads, **more):
    return SimpleNamespace(replies_to=replies_to, reads=reads, **more)


TASKS = {
    "vqa": task("question", "questions"),
    "itm": task("text", "captions", evidence=len),
    "itc": task("text", "captions"),  # no one number to explain
    "captioning": task("caption", "captions"),
    "mlm": task(None, "captions"),
    "grounding": task("phrase", "expressions"),
    "entailment": task("text", "hypotheses", evidence=len),  # which no sample has
    "other": task("question", "questions"),
}


@pytest.fixture
def asked(monkeypatch):
    """The requests and the oracle of each task; a picture of each reply is only named."""
    found = {}

    def answer(oracle, requests):
        found[oracle.by] = (oracle, list(requests))
        return [Answer(request, {"image_id": request.facts["image_id"]}) for request in requests]

    def draw(reply, stem, is_middle, true_box):
        found.setdefault("drawn", []).append((stem.name, is_middle, true_box))
        return [stem.with_name(f"{stem.name}.npz"), stem.with_name(f"{stem.name}.png")]

    monkeypatch.setattr(Predictor, "answer", answer)
    monkeypatch.setattr(attention, "draw_reply", draw)
    return found


def samples():
    kinds = {"questions": {}, "captions": {}, "expressions": {"box": (1, 2, 3, 4)}}
    return [
        Sample(
            at,
            Path(f"{at}.png"),
            {
                kind: tuple(Text(f"{kind[0]}{at}{n}", f"{kind} {n}", facts) for n in (0, 1))
                for kind, facts in kinds.items()
            },
            size=(8, 6),
            upright=at == 2,
        )
        for at in range(4)
    ]


@pytest.mark.parametrize(("fit", "is_middle"), [("crop", True), ("squash", False)])
def test_the_tasks_that_are_drawn_and_what_is_asked_of_them(asked, tmp_path, fit, is_middle):
    data = SimpleNamespace(finish=SimpleNamespace(fit=fit))
    sources = {"toy": ["vqa"], "more": ["vqa"]}
    oracle = Predictor(None, TASKS, sources, data, None, None)
    draw_attention(oracle, "toy", [name for name in TASKS if name != "other"], samples(), 2, tmp_path / "out" / "toy")
    drawn = asked.pop("drawn")
    assert drawn == [
        *((f"toy_{name}_{at}", is_middle, None) for name in ("vqa", "itm") for at in (0, 1)),
        *((f"toy_grounding_{at}", is_middle, (1, 2, 3, 4)) for at in (0, 1)),
    ]
    assert asked.keys() == {"vqa", "itm", "grounding"}
    for name, (used, requests) in asked.items():
        assert (used.by, used.looks, used.sources) == (name, True, {"toy": ["vqa"]})
        word, kind = TASKS[name].replies_to, TASKS[name].reads
        assert [dict(request.texts) for request in requests] == [{word: f"{kind} 0"}, {word: f"{kind} 1"}]
        assert [request.facts for request in requests] == [
            {"image_id": 0, "text_id": f"{kind[0]}00"},
            {"image_id": 2, "text_id": f"{kind[0]}21"},
        ]
        assert [(request.image, request.size, request.upright) for request in requests] == [
            (Path("0.png"), (8, 6), False),
            (Path("2.png"), (8, 6), True),
        ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"toy_{name}.jsonl" for name in asked}
    assert read_records(tmp_path / "out" / "toy_grounding.jsonl") == [
        {"image_id": 2 * at, "true_bbox": [1, 2, 3, 4], "files": [f"toy_grounding_{at}.npz", f"toy_grounding_{at}.png"]}
        for at in (0, 1)
    ]
    assert "true_bbox" not in read_records(tmp_path / "out" / "toy_itm.jsonl")[0]


def test_texts_are_taken_evenly_and_in_turn():
    found = [(sample.image_id, text.id) for sample, text in spread(samples(), "captions", 3)]
    assert found == [(0, "c00"), (1, "c11"), (2, "c20")]
    assert [text.id for _, text in spread(samples(), "captions", 4)] == ["c00", "c11", "c20", "c31"]


def test_of_conversations_the_last_reply_is_asked_for_and_those_with_places_are_left_out(asked, tmp_path):
    talks = [
        Conversation(("user", "assistant") * 2, ("what?", "A cat.", "where?", "There.")),
        Conversation(("user", "assistant"), ("<image> or <image>?", "The first.")),
        Conversation(("user",), ("<image> what?",)),  # the place of one
    ]
    told = [Sample(at, Path(f"{at}.png"), {"conversations": (talk.text(at),)}) for at, talk in enumerate(talks)]
    tasks = {"chat": task("question", "conversations"), "vqa": TASKS["vqa"]}
    oracle = Predictor(
        None, tasks, {"toy": ["chat"]}, SimpleNamespace(finish=SimpleNamespace(fit="squash")), None, None
    )
    draw_attention(oracle, "toy", ["chat", "vqa"], told, 3, tmp_path / "test")
    draw_attention(oracle, "toy", ["chat"], told[1:], 3, tmp_path / "none")
    assert set(asked) == {"chat", "drawn"}
    (request,) = asked["chat"][1]
    assert (request.image, request.texts) == (Path("0.png"), {"question": "where?"})
    assert request.conversation == talks[0].before_reply
    assert len(asked["drawn"]) == 1
