"""Captions and questions as conversations, as LLaVA 1.5 was taught by them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fusionkit.data.joint import Joint
from fusionkit.data.sample import WEIGHT, Reader, Sample, Text
from fusionkit.data.texts.conversations import ASSISTANT, CONVERSATIONS, USER, Conversation
from fusionkit.errors import ConfigError, DataError


class Dialogues:
    """Reader of "conversations" made of what others have of each image: of its answered questions, and one of its captions.

    ``caption_prompt``  what the user says to hear the first caption; None: captions are left out.
    ``question_prompt`` what stands around a question, with ``{text}`` in its place.
    ``turns``           questions of a conversation, at most; the answer to each is the commonest one.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        caption_prompt: str | None = "Describe the image.",
        question_prompt: str = "{text}",
        turns: int = 6,
    ) -> None:
        if turns < 1 or question_prompt.count("{text}") != 1:
            raise ConfigError(
                f"reader: turns is {turns} and question_prompt {question_prompt!r}; give 1 turn or more, and {{text}} once"
            )
        self.joint, self.turns = Joint(readers), turns
        self.caption_prompt, self.question_prompt = caption_prompt, question_prompt

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have captions or answered questions. Raises DataError."""
        found = []
        for sample in self.joint.read(split):
            if sample.others:
                raise DataError(
                    f"image {sample.image_id} comes with others, but a conversation is about one; leave its reader out"
                )
            if texts := self._texts(sample):
                found.append(
                    Sample(
                        *(sample.image_id, sample.image, {CONVERSATIONS: texts}, sample.size, sample.collection),
                        photo=sample.photo,
                        upright=sample.upright,
                    )
                )
        return found

    def _texts(self, sample: Sample) -> tuple[Text, ...]:
        answered = [text for text in sample.texts.get("questions", ()) if text.facts.get("answers")]
        said = [(self.question_prompt.replace("{text}", text.text), _answer(text), text) for text in answered]
        parts = [said[start : start + self.turns] for start in range(0, len(said), self.turns)]
        if self.caption_prompt is not None and (captions := sample.texts.get("captions")):
            parts.append([(self.caption_prompt, captions[0].text, captions[0])])
        found = []
        for number, part in enumerate(parts):
            words = tuple(each for prompt, reply, _ in part for each in (prompt, reply))
            text = Conversation((USER, ASSISTANT) * len(part), words).text(f"{sample.image_id}/{number}")
            found.append(replace(text, facts={**text.facts, **_weight([of for _, _, of in part])}))
        return tuple(found)


def _weight(texts: Sequence[Text]) -> dict[str, float]:
    """The mean weight of the texts that a conversation is made of, 1 of those that say none; nothing where none does."""
    said = [float(text.facts.get(WEIGHT, 1)) for text in texts]
    return {WEIGHT: sum(said) / len(said)} if any(WEIGHT in text.facts for text in texts) else {}


def _answer(question: Text) -> str:
    given = question.facts.get("multiple_choice_answer")
    return str(given if given is not None else Counter(question.facts["answers"]).most_common(1)[0][0])
