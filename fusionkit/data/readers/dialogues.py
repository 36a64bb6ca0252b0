"""Captions and questions as conversations, as LLaVA 1.5 was taught by them."""

from collections import Counter
from collections.abc import Sequence

from fusionkit.data.joint import Joint
from fusionkit.data.sample import Reader, Sample, Text
from fusionkit.data.texts.conversations import ASSISTANT, CONVERSATIONS, USER, Conversation
from fusionkit.errors import ConfigError


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
        said = [(self.question_prompt.replace("{text}", text.text), _answer(text)) for text in answered]
        parts = [said[start : start + self.turns] for start in range(0, len(said), self.turns)]
        if self.caption_prompt is not None and (captions := sample.texts.get("captions")):
            parts.append([(self.caption_prompt, captions[0].text)])
        return tuple(
            Conversation((USER, ASSISTANT) * len(part), tuple(words for pair in part for words in pair)).text(
                f"{sample.image_id}/{number}"
            )
            for number, part in enumerate(parts)
        )


def _answer(question: Text) -> str:
    given = question.facts.get("multiple_choice_answer")
    return str(given if given is not None else Counter(question.facts["answers"]).most_common(1)[0][0])
