"""What a request is refused with: a status of HTTP and one sentence."""

from collections.abc import Mapping

from fusionkit.errors import clean

LONGEST = 500  # characters of a sentence, in which another's words may stand


class Problem(Exception):
    """A request is not answered: ``status`` (4xx where the request is at fault) and one ``sentence``."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})
        text = clean(" ".join(str(sentence).split()))
        self.sentence = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


class Gone(Problem):
    """Whoever asked is not there any more: nobody reads what is said."""

    def __init__(self) -> None:
        super().__init__(499, "the client has closed the connection")


def too_many(sentence: str) -> Problem:
    """Refused for now: another time may be better."""
    return Problem(429, sentence, {"Retry-After": "1"})
