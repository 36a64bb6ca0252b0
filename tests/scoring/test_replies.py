from pathlib import Path

import pytest

from fusionkit.data.sample import Sample
from fusionkit.data.texts.conversations import Conversation
from fusionkit.errors import DataError
from fusionkit.scoring.scorers import REPLIES


def talk(id, *said):
    roles = tuple("user" if n % 2 == 0 else "assistant" for n in range(len(said)))
    return Conversation(roles, said).text(id)


SAMPLES = [
    Sample(1, Path("a.jpg"), {"conversations": (talk("a", "what?", "a dog", "where?", "on the left side"),)}),
    Sample(2, Path("b.jpg"), {"conversations": (talk("b", "what?", "Yes."), talk("c", "and?"))}),
    Sample(3, Path("c.jpg"), {"conversations": (talk("d", "What?", "yes"),)}),
]


def said(**answers):
    return [{"conversation_id": id, "answer": answer} for id, answer in answers.items()]


def test_the_last_reply_is_compared_with_the_true_one():
    judged = REPLIES.rows(said(a="on the left side", b="yes", c="anything"), SAMPLES)
    assert [(row["id"], row["image_id"], row["score"]) for row in judged.rows] == [
        ("a", 1, 100),
        ("b", 2, 100),
        ("d", 3, 0),
    ]
    scores = REPLIES(said(a="on the left side", b="yes", c="anything"), SAMPLES)
    assert scores == {
        "chat_rouge_l": pytest.approx(200 / 3),
        "chat_exact_match": pytest.approx(200 / 3),
        "chat_bleu_4": pytest.approx(scores["chat_bleu_4"]),
    }
    near = REPLIES(said(a="the left side", b="no", d="yes"), SAMPLES)
    assert near["chat_exact_match"] == pytest.approx(100 / 3)
    assert 100 / 3 < near["chat_rouge_l"] < 200 / 3
    assert REPLIES([], SAMPLES[1:2]) == {"chat_rouge_l": 0.0, "chat_exact_match": 0.0, "chat_bleu_4": 0.0}
    assert REPLIES([], []) == {}
    with pytest.raises(DataError, match="unknown conversation_id 'z'"):
        REPLIES(said(z="no"), SAMPLES)


def test_guessers_know_the_question_or_nothing():
    scores = REPLIES.baselines(SAMPLES, SAMPLES, [], str.split, REPLIES)
    assert scores["chat_exact_match_baseline"] == 100.0
    assert scores["chat_exact_match_chance"] == pytest.approx(100 / 3)  # of three replies, all different, the first
    assert REPLIES.baselines([], SAMPLES, [], str.split, REPLIES) == {}


def test_galleries_show_the_last_question_with_both_replies():
    records = said(a="right", b="yes")
    rows = REPLIES.rows(records, SAMPLES).rows
    shown = REPLIES.examples(records, SAMPLES, rows, None)
    assert [(each.text, each.given, each.true) for each in shown] == [
        ("(after 2 turns) where?", "right", "on the left side"),
        ("what?", "yes", "Yes."),
        ("What?", None, "yes"),
    ]
    assert len(REPLIES.sheet(records, SAMPLES, rows).panels) == 3
