"""A mistake of the user's as one sentence, whichever library met it."""

from collections.abc import Iterator
from contextlib import contextmanager

from fusionkit.cli.error_messages import translate
from fusionkit.errors import UserError


@contextmanager
def sentences() -> Iterator[None]:
    """A mistake of the user's as one sentence, whichever library met it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (mistake := translate(error)) is None:
            raise
        raise mistake from None
