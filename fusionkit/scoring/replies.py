"""Replies: how near is what a model says last in a conversation to what the assistant said?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.conversations import CONVERSATIONS, Conversation
from fusionkit.data.vqa_answers import answer_key
from fusionkit.files.unicode import readable
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.captioning import bleu_counts, rouge
from fusionkit.scoring.examples import Example
from fusionkit.scoring.ptb_tokenizer import tokenize as ptb_tokenize
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import Majority, guesses


class Replies(BaseScorer):
    """ROUGE-L and BLEU of each last reply against the true one, and the share that is it but for its spelling, in percent.

    Spellings are one as for VQA's answers (``answer_key``). A conversation without a record counts as an empty reply; one in
    which the user has the last word is left out. A reply's own score is its ROUGE-L.
    """

    schema = (RecordSchema(CONVERSATIONS, "conversation_id", "answer", "a text", is_text),)
    metrics: Mapping[str, bool] = MappingProxyType(
        dict.fromkeys(("chat_rouge_l", "chat_exact_match", "chat_bleu_4"), True)
    )
    headlines = ("chat_rouge_l", "chat_exact_match")

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a conversation."""
        asked = list(_asked(samples))
        given = index_records(records, "conversation_id", {text.id for _, text, _ in asked} | _unanswered(samples))
        said = [readable(given[text.id]["answer"]) if text.id in given else "" for _, text, _ in asked]
        wanted = [reply for _, _, reply in asked]
        if not asked:
            return SampleScores([])
        words, references = ptb_tokenize(said), [[text] for text in ptb_tokenize(wanted)]
        shares, counts = rouge(words, references), bleu_counts(words, references)
        return SampleScores(
            [
                {
                    "id": text.id,
                    "score": shares[at],
                    "image_id": sample.image_id,
                    "values": {
                        "chat_rouge_l": shares[at],
                        "chat_exact_match": 100.0 * (answer_key(said[at]) == answer_key(wanted[at])),
                    },
                    "sums": {"chat_bleu": counts[at]},
                }
                for at, (sample, text, _) in enumerate(asked)
            ]
        )

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each with the last question as its text, and the true reply beside the given one."""
        shown = [
            replace(
                sample, texts={CONVERSATIONS: tuple(_question(text) for text in sample.texts.get(CONVERSATIONS, ()))}
            )
            for sample in samples
        ]
        return super().examples(records, shown, rows, limit)

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The commonest training reply to the same last question, backing off to any; and the commonest of all."""
        known = [(text, reply) for _, text, reply in _asked(train)]
        majority = Majority((context, reply) for text, reply in known for context in _contexts(text))
        if not majority.counts:
            return {}
        asked = [text for _, text, _ in _asked(samples)]
        by_text = [{"conversation_id": text.id, "answer": majority(_contexts(text))} for text in asked]
        commonest = majority([""])
        by_chance = [{"conversation_id": text.id, "answer": commonest} for text in asked]
        return guesses(score(by_text, samples), score(by_chance, samples))


def _asked(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Text, str]]:
    """The conversations whose last reply is known, with it."""
    for sample in samples:
        for text in sample.texts.get(CONVERSATIONS, ()):
            if (reply := Conversation.of(text).reply) is not None:
                yield sample, text, reply


def _unanswered(samples: Sequence[Sample]) -> set[int | str]:
    texts = (text for sample in samples for text in sample.texts.get(CONVERSATIONS, ()))
    return {text.id for text in texts if Conversation.of(text).reply is None}


def _question(text: Text) -> Text:
    """The last question, which is what there is room for in a gallery, and the last reply as its answer."""
    conversation = Conversation.of(text)
    *before, asked = conversation.before_reply.turns
    facts = {} if conversation.reply is None else {"answers": [conversation.reply]}
    return Text(text.id, f"(after {len(before)} turns) {asked}" if before else asked, facts)


def _contexts(text: Text) -> tuple[str, str]:
    """The last question, marked as one, and nothing."""
    return f"? {Conversation.of(text).before_reply.turns[-1].lower()}", ""
