"""The bytes of a request as what is asked: a mistake in them is one sentence, which repeats none of their words at length."""

import json
import math
from typing import Any, TypeVar

from pydantic import ValidationError

from fusionkit.errors import clean, suggest
from fusionkit.serving.limits import Limits
from fusionkit.serving.problems import Problem
from fusionkit.serving.schemas import Asked

DIGITS = 15  # of a whole number: more than any field needs, and few enough to be a float too
SHOWN = 60  # characters of a field's name
A = TypeVar("A", bound=Asked)


def read_asked(body: bytes, schema: type[A], limits: Limits) -> A:
    """The request of a body in JSON. Raises Problem."""
    value = read_json(body, limits)
    if not isinstance(value, dict):
        raise Problem(422, f"a request is an object of JSON, but this one is {_kind(value)}")
    try:
        asked = schema.model_validate(value)
    except ValidationError as error:
        raise Problem(422, _sentence(error, schema)) from None
    _require_small(asked, limits)
    return asked


def read_json(body: bytes, limits: Limits) -> Any:
    """A value of JSON, without numbers that are none or have more digits than anybody needs. Raises Problem."""
    if sum(map(body.count, (b",", b"[", b"{"))) > limits.parts:
        raise Problem(413, f"the request has more parts than {limits.parts:,}; ask less at once")
    try:
        return json.loads(body.decode("utf-8"), parse_int=_whole, parse_float=_real, parse_constant=_constant)
    except Problem:
        raise
    except UnicodeDecodeError:
        raise Problem(400, "the request is no text in UTF-8") from None
    except RecursionError:
        raise Problem(400, "the request is nested more deeply than any request is") from None
    except ValueError as error:  # of JSON's own, which repeats none of the text
        raise Problem(400, f"the request is no JSON ({str(error)[:100]})") from None


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise Problem(422, f"the request has a number of {len(digits):,} digits; none has more than {DIGITS}")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > 100 or not math.isfinite(value := float(digits)):
        raise Problem(422, "the request has a number that is too large or too long")
    return value


def _constant(name: str) -> float:
    raise Problem(422, f"the request has {name} in the place of a number")


def _sentence(error: ValidationError, schema: type[Asked]) -> str:
    """The first of the mistakes, those in names before others."""
    found = sorted(
        error.errors(include_url=False, include_input=False), key=lambda each: each["type"] != "extra_forbidden"
    )
    first = found[0]
    place = ".".join(str(part) for part in first["loc"])[:SHOWN]
    if first["type"] == "extra_forbidden":
        name = clean(str(first["loc"][-1]))[:SHOWN]
        known = schema.model_fields if len(first["loc"]) == 1 else ("role", "content")
        return f"the request has a field '{name}' that is not known; {suggest(name, known)}"
    if first["type"] == "missing":
        return f"the request has no '{place}'; add it"
    return f"'{clean(place)}' of the request is wrong: {first['msg']}"


def _require_small(asked: Asked, limits: Limits) -> None:
    """Raise Problem for more words, pictures or turns than a request may have."""
    images, messages = getattr(asked, "images", None) or (), getattr(asked, "messages", None) or ()
    for name, given, most in (("images", images, limits.max_images), ("messages", messages, limits.max_turns)):
        if len(given) > most:
            raise Problem(422, f"the request has {len(given):,} {name}, but may have {most}")
    texts = [getattr(asked, word, None) or "" for word in ("text", "phrase", "question")]
    count = sum(map(len, [*texts, *(message.content for message in messages)]))
    if count > limits.max_characters:
        raise Problem(422, f"the request has {count:,} characters of words, but may have {limits.max_characters:,}")
    for name in ("top", "k"):
        if name in asked.model_fields_set and getattr(asked, name) > limits.max_top:
            raise Problem(422, f"{name} is {getattr(asked, name)}, but is at most {limits.max_top}")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
