"""The bounds of a service: of what one request may hold, of how many there are at once, and of how long each may take."""

import math
from dataclasses import dataclass, fields

from fusionkit.errors import ConfigError

MIB = 2**20
HUGE = 10**9  # no bound is larger: numbers that are multiplied below stay numbers


@dataclass(frozen=True)
class Limits:
    """Each is a key of ``conf/serve.yaml``, which says what it bounds. Raises ConfigError for what is no bound."""

    max_batch: int = 16
    wait_ms: float = 4.0
    max_queue: int = 64
    timeout_seconds: float = 30.0
    max_body_mb: float = 12.0
    max_megapixels: float = 25.0
    max_characters: int = 4000
    max_images: int = 8
    max_turns: int = 32
    max_top: int = 100
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    drain_seconds: float = 20.0
    readers: int = 2

    def __post_init__(self) -> None:
        for each in fields(self):
            value, kind = getattr(self, each.name), each.type
            least = 1 if kind is int else 0
            is_number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
            if not is_number or not least <= value <= HUGE or (value == 0 and each.name.startswith("max_")):
                wanted = "a whole number from 1" if kind is int else "a number of at least 0, and more for a max_"
                raise ConfigError(f"{each.name} is {value!r}, but has to be {wanted} (up to {HUGE:,})")

    @property
    def body_bytes(self) -> int:
        """Of one request."""
        return int(self.max_body_mb * MIB)

    @property
    def held_bytes(self) -> int:
        """Of the bodies of all requests that are open."""
        return 16 * self.body_bytes

    @property
    def pixels(self) -> int:
        """Of one picture."""
        return int(self.max_megapixels * 1e6)

    @property
    def open_requests(self) -> int:
        """From so many on a request is refused before its body is read: those that wait, those that are read or answered."""
        return 2 * self.max_queue + self.max_batch

    @property
    def parts(self) -> int:
        """Commas and brackets of a request: no more than its words may have characters, and what holds them together."""
        return self.max_characters + 2000
