"""What a text is about where that is not one image: a stream, such as a film, several images or a recording."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Protocol

from torch import Tensor

from fusionkit.data.images import Decoded
from fusionkit.data.sample import Sample

Finishing = Callable[[Any, Tensor], tuple[Any, Tensor]]


class Streamed(Protocol):
    """The stream of one sample, as it comes into a batch. Texts have no boxes on it."""

    width: int
    height: int

    def finished(self, finish: Finishing) -> "Streamed":
        """Ready for ``pad``; ``finish`` is what makes a picture ready."""
        ...

    def pad(self, streams: Sequence[Any]) -> Any:
        """One batch of streams of this kind."""
        ...


class Stream(Protocol):
    """How the streams of a source are read."""

    reads: ClassVar[str]
    """The key of a batch: "frames" or "sounds"."""
    length: int
    """Frames, or steps in time, of a stream at most."""

    def load(self, files: Sequence[Path], side: int, rng: Random | None) -> Streamed:
        """The stream of these files, of pictures of ``side`` pixels at least; in training ``rng`` chooses what is random.

        Raises CorruptImage, and DataError for a file of another kind.
        """
        ...


class StreamFiles:
    """The streams of some samples, read anew each time: a sample's file and its others are one stream."""

    def __init__(self, samples: Sequence[Sample], stream: Stream, side: int) -> None:
        self.samples, self.stream, self.side = samples, stream, side

    def load(self, index: int) -> Decoded:
        """As an evaluation reads it. Raises CorruptImage."""
        return self.of(self.samples[index], None)

    def of(self, sample: Sample, rng: Random | None) -> Decoded:
        """The stream of a sample, as the image of ``Decoded``, of a size that is not known. Raises CorruptImage."""
        return Decoded(self.stream.load((sample.image, *sample.others), self.side, rng), (0, 0))


def finish_stream(finish: Finishing, stream: Streamed, boxes: Tensor) -> tuple[Streamed, Tensor]:
    """What ``transforms.Finish`` is to an image."""
    return stream.finished(finish), boxes
