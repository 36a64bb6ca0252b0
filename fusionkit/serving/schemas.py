"""What may stand in a request, by its kind: fields, types and bounds, from which the page about the API is made too."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Picture = Annotated[
    str, Field(min_length=1, description="the bytes of a JPEG, PNG, WebP or GIF in base64; no path, no URL")
]
Words = Annotated[str, Field(min_length=1)]


class Asked(BaseModel):
    """What all requests may say."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    model: str | None = Field(
        None, max_length=200, description="a name of GET /v1/models; the first where none is given"
    )


class ByTask(Asked):
    by: str | None = Field(None, max_length=200, description="the task that replies, where several can")


class Match(ByTask):
    """How well a text suits a picture."""

    image: Picture
    text: Words
    look: bool = Field(False, description="also where the text and each of its words look")


class Ground(ByTask):
    """The box of a phrase: left, top, width and height in pixels of the picture as it is seen upright."""

    image: Picture
    phrase: Words
    look: bool = Field(False, description="also where the phrase and each of its words look")


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    role: str = Field(max_length=20, description="system, user or assistant")
    content: Words


class Answer(ByTask):
    """The answer to a question, or to the last of the messages of a conversation where the model was trained to chat."""

    image: Picture | None = None
    images: list[Picture] | None = Field(
        None, min_length=1, description="several pictures, <image> in the question where each is seen"
    )
    question: Words | None = None
    messages: list[Message] | None = Field(None, min_length=1, description="a conversation, in place of a question")
    top: int = Field(5, ge=1, description="how many answers to name where the task knows several")
    look: bool = Field(False, description="also where the question and each of its words look")


class Caption(ByTask):
    """What a picture shows, in a sentence."""

    image: Picture
    stream: bool = Field(
        False,
        description='as events (text/event-stream): {"draft": the text so far}, whose end may still change, then the whole '
        "answer",
    )


class Embed(Asked):
    """Vectors of length 1 of a picture, a text or both: a product of two is their cosine."""

    image: Picture | None = None
    text: Words | None = None


class Search(Asked):
    """The best pictures of the service's index for a text, a picture or both."""

    text: Words | None = None
    image: Picture | None = None
    top: int = Field(10, ge=1, description="how many pictures to name")
    k: int = Field(64, ge=0, description="how many of the nearest to a text are ranked again by matching; 0: none")
    weight: float = Field(0.5, ge=0, le=1, description="the picture's part, where there is a text too")


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """As OpenAPI wants it, without references."""
    found: dict[str, Any] = model.model_json_schema()
    parts = found.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(parts[value["$ref"].rpartition("/")[2]])
            return {key: inlined(each) for key, each in value.items()}
        return [inlined(each) for each in value] if isinstance(value, list) else value

    return dict(inlined(found))
