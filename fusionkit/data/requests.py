"""One's own inputs: what is asked about which image, from the command line, a folder of pictures or a file of JSON lines."""

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fusionkit.data.cleaning import KINDS
from fusionkit.data.collate import Collate
from fusionkit.data.datamodule import DataModule
from fusionkit.data.dataset import NO_BOXES, EvalData, Finishing
from fusionkit.data.frames import framed
from fusionkit.data.images import Decoded, ImageFiles, has_pixels
from fusionkit.data.regions import RegionFiles, as_found
from fusionkit.data.sample import Sample, Text
from fusionkit.data.stores import is_lmdb
from fusionkit.data.streams.base import StreamFiles, finish_stream
from fusionkit.data.streams.recordings import ENDINGS
from fusionkit.data.texts.conversations import (
    USER,
    Conversation,
    pictures_named,
    read_conversation,
    require_places,
)
from fusionkit.errors import ConfigError, DataError, UserError, suggest
from fusionkit.files.plain import read_json_lines
from fusionkit.files.unicode import LongText, readable

TEXTS = ("question", "phrase", "text")
ASKED = (*TEXTS, "caption")  # a caption is asked for without words
OWN = "own"
STREAMS = ("frames", "sounds")  # what encoders of streams read


@dataclass(frozen=True)
class Request:
    """What is asked about one image, or about several in a conversation."""

    image: Path  # its file, or the name of ``picture``
    texts: Mapping[str, str]  # by TEXTS
    wants_caption: bool = False
    facts: Mapping[str, Any] | None = None  # what its reply carries along, such as an id
    size: tuple[int, int] | None = None  # width and height that boxes refer to; None: the size of the file itself
    upright: bool = True  # turned by its EXIF orientation, as its owner sees it
    picture: Image.Image | Decoded | None = None  # the image itself, where it is in memory, perhaps ``ready``
    conversation: Conversation | None = None  # what the question is the last turn of
    others: tuple[
        Path | Image.Image | Decoded, ...
    ] = ()  # the further images of a conversation, in the order of their places

    @property
    def files(self) -> list[Path | Image.Image | Decoded]:
        """All its images."""
        return [self.image if self.picture is None else self.picture, *self.others]

    @property
    def asks(self) -> tuple[str, ...]:
        """The words of ASKED."""
        return tuple(word for word in ASKED if word in self.texts or (word == "caption" and self.wants_caption))


def read_requests(image: str | Sequence[str], asked: Mapping[str, Any], reads: str) -> list[Request]:
    """The requests about a file, all pictures of a folder, or those of a .jsonl file; ``reads`` is the image encoder's.

    Several files are the pictures of one question, <image> where each is seen; or, as a folder is, one stream of frames, where
    the encoder reads these. ``asked`` is asked of each, by ASKED; a line
    of a file may ask otherwise. A line's relative path starts at its file.
    Raises DataError with the line that is wrong; an image that is not there is told when it is its turn.
    """
    is_stream = reads in STREAMS
    if isinstance(image, Sequence) and not isinstance(image, str) and len(image):
        return [_request([Path(str(name)) for name in image], asked, ConfigError, "predict", is_stream=is_stream)]
    path = Path(str(image))
    if path.is_dir() and reads == "frames":
        return [_request([path], asked, ConfigError, "predict", is_stream=True)]
    if path.is_dir():
        found = pictures_of(path, reads)
        if not found:
            raise DataError(f"image={path} holds no {kind_of(reads)}; give another folder")
        return [_request([each], asked, ConfigError, "predict") for each in found]
    if not path.is_file():
        raise DataError(
            f"image={image} does not exist; give a picture, a folder of pictures or a .jsonl file of requests"
        )
    if path.suffix != ".jsonl":
        return [_request([path], asked, ConfigError, "predict")]
    lines = enumerate(read_json_lines(path), start=1)
    return [_line(line, asked, path, f"line {number} of {path}", is_stream) for number, line in lines]


def require_image(request: Request, reads: str) -> None:
    """DataError where an image is not there, or not what the image encoder reads."""
    for image in request.files:
        is_there = not isinstance(image, Path) or image.is_file() or (reads == "frames" and image.is_dir())
        if not is_there and isinstance(image, Path) and not is_lmdb(image.parent):
            raise DataError(f"the image {image} does not exist")
        if reads in STREAMS:
            require_stream(image, reads)
            continue
        if has_pixels(image if isinstance(image, Path) else request.image) == (reads == "regions"):
            wanted = (
                "the region features of a detector: give its .npz file"
                if reads == "regions"
                else "pixels: give a picture"
            )
            shown = image if isinstance(image, Path) else request.image
            raise DataError(f"{shown} is of another kind than the checkpoint was trained on, which reads {wanted}")


def require_stream(file: Path | Image.Image | Decoded, reads: str) -> None:
    """DataError for what an encoder of streams cannot read: a picture in memory, or of pictures and recordings the other."""
    if not isinstance(file, Path):
        raise DataError(f"the checkpoint reads {reads}, which are files; give the path of one")
    if (file.suffix.lower() in ENDINGS) != (reads == "sounds"):
        wanted = (
            "a recording (WAV)"
            if reads == "sounds"
            else "pictures: a folder, an animated GIF or WebP, or several files"
        )
        raise DataError(
            f"{file} is of another kind than the checkpoint was trained on, which reads {reads}: give {wanted}"
        )


def own_data(
    datamodule: DataModule,
    source: str,
    requests: Sequence[Request],
    words: Sequence[str],
    is_grouped: bool = True,
    chats: Container[str] = (),
) -> tuple[EvalData, Collate]:
    """Images and their texts by word, read as those of a source are; those of the words ``chats`` are turns of conversations.

    An image is there once, however many requests are about it, unless they are not grouped: ``image_id`` is the number of
    the first, and the id of a text that of its request.
    """
    settings = datamodule.sources[source]
    groups = by_image(requests) if is_grouped else [[number] for number in range(len(requests))]
    firsts = [requests[numbers[0]] for numbers in groups]
    samples = [
        Sample(
            *(
                numbers[0],
                first.image,
                {word: tuple(_text(n, requests[n], word, word in chats) for n in numbers) for word in words},
            ),
            size=first.size,
            collection=OWN,
            others=tuple(
                other if settings.stream is not None and isinstance(other, Path) else Path(f"{first.image}/{place}")
                for place, other in enumerate(first.others, start=1)
            ),
            upright=first.upright,
        )
        for first, numbers in zip(firsts, groups, strict=True)
    ]
    if settings.stream is not None:
        streams = StreamFiles(samples, settings.stream, datamodule.finish.decode_side)
        data = EvalData(samples, streams, words, partial(finish_stream, datamodule.finish))
        return data, own_collate(datamodule, source, samples, words)
    finish: Finishing = partial(_finished, datamodule.finish) if settings.regions is None else as_found
    files = [first.files[0] for first in firsts] + [other for first in firsts for other in first.others]
    images = (
        ImageFiles(files, datamodule.finish.decode_side)
        if settings.regions is None
        else RegionFiles([file for file in files if isinstance(file, Path)], settings.regions)
    )
    return EvalData(samples, images, words, finish), own_collate(datamodule, source, samples, words)


@dataclass(frozen=True)
class ReadyImage:
    """An image as the model reads it, in place of one that is yet to be resized: ``pixel_values`` (3, H, W)."""

    pixel_values: Tensor
    width: int
    height: int
    info: Mapping[str, Any] = field(default_factory=dict)


def ready(datamodule: DataModule, found: Decoded) -> Decoded:
    """A decoded picture turned upright and finished, so that a request about it has no work left but the model's."""
    image, size = framed(found, None, upright=True)
    pixel_values, _ = datamodule.finish(image, NO_BOXES)
    return Decoded(ReadyImage(pixel_values, image.width, image.height), size)


def _finished(finish: Finishing, image: Any, boxes: Tensor) -> tuple[Any, Tensor]:
    return (image.pixel_values, boxes) if isinstance(image, ReadyImage) else finish(image, boxes)


def _text(number: int, request: Request, word: str, is_chat: bool) -> Text:
    said = request.texts[word]
    return (request.conversation or asked_in_words(said)).text(number) if is_chat else Text(number, said)


def asked_in_words(said: str) -> Conversation:
    """A question as the one turn of a conversation."""
    return Conversation((USER,), (said,)).read_first()


def by_image(requests: Sequence[Request]) -> list[list[int]]:
    """The numbers of the requests about each image, in the order in which images are first asked about."""
    groups: dict[Any, list[int]] = {}
    for number, each in enumerate(requests):
        shown = tuple(file if isinstance(file, Path) else id(file) for file in each.files)
        groups.setdefault((shown, each.size, each.upright), []).append(number)
    return list(groups.values())


def own_collate(
    datamodule: DataModule, source: str, samples: Sequence[Sample] = (), words: Sequence[str] = ()
) -> Collate:
    """What makes batches of one's own inputs, read as those of a source are."""
    settings, counts = datamodule.sources[source], datamodule.text_counts(source, OWN)
    templates = {word: (settings.template or {}).get(kind) for word, kind in KINDS.items()}
    given = {word: template for word, template in templates.items() if template is not None}
    made = (datamodule.tokenizer, settings.max_length, None, settings.clean, counts, given, settings.chat_template)
    return Collate(OWN, samples, words, *made)


def readable_text(text: Any, word: str, mistake: type[UserError] = ConfigError, place: str = "") -> str:
    """What is asked as models read it; the mistake where it is not in words."""
    prefix = f"{place}: " if place else ""
    if not isinstance(text, str) or not text.strip():
        raise mistake(f"{prefix}the {word} is {text!r}, but has to be words; write it, or leave it out")
    try:
        return readable(text)
    except LongText as error:
        raise mistake(f"{prefix}{error}") from None


def asked_text(
    text: Any, word: str, mistake: type[UserError] = ConfigError, place: str = ""
) -> tuple[str, Conversation | None]:
    """What is asked, and the conversation that a question ends, where it is a list or tuple of messages ({"role", "content"})."""
    if word != "question" or not isinstance(text, list | tuple):
        return readable_text(text, word, mistake, place), None
    where = place or "the question"
    try:
        conversation = read_conversation(text, where)
    except DataError as error:
        raise mistake(str(error)) from None
    if conversation.roles[-1:] != (USER,) or not conversation.turns[-1]:
        raise mistake(f"{where} has messages that do not end with words of the user; end them with what is asked")
    return conversation.turns[-1], conversation


def pictures_of(folder: Path, reads: str, is_deep: bool = False) -> list[Path]:
    """The files in a folder that an image encoder of this kind reads, in order; hidden ones are left out.

    ``is_deep``: also those of the folders in it, but for links to folders.
    """
    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    endings = {"regions": {".npz"}, "sounds": set(ENDINGS)}.get(reads, readable)
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if is_deep else []
        kept = (name for name in sorted(names) if not name.startswith("."))
        found += [Path(place, name) for name in kept if os.path.splitext(name)[1].lower() in endings]
    return found


def kind_of(reads: str) -> str:
    """What an image is called to the user."""
    return {"regions": ".npz file", "sounds": "recording (WAV)"}.get(reads, "picture")


def _line(line: Any, asked: Mapping[str, Any], path: Path, place: str, is_stream: bool = False) -> Request:
    names = _images_of(line, place) if isinstance(line, dict) else []
    if not names:
        raise DataError(f'{place} names no image; a line is {{"image": "a.jpg", "question": "what is it?"}}')
    for key in line:
        if key not in (*ASKED, "image", "id"):
            raise DataError(f"{place} has a key '{key}'; {suggest(key, (*ASKED, 'image', 'id'))}")
    facts = {"id": line["id"]} if "id" in line else None
    return _request([path.parent / name for name in names], {**asked, **line}, DataError, place, facts, is_stream)


def _images_of(line: Mapping[str, Any], place: str) -> list[str]:
    """What a line names: one image, or several; or, where it names none, those that its messages name. Raises DataError."""
    question = line.get("question")
    named = pictures_named(question, place) if isinstance(question, list) else []
    given = line.get("image", named)
    names = given if isinstance(given, list) else [given]
    if named and names != named:
        raise DataError(f"{place} names pictures as its image and others in its messages; name them in one of the two")
    return names if all(isinstance(name, str) for name in names) else []


def _request(
    images: Sequence[Path],
    asked: Mapping[str, Any],
    mistake: type[UserError],
    place: str,
    facts: Mapping[str, Any] | None = None,
    is_stream: bool = False,
) -> Request:
    given = {word: asked_text(asked[word], word, mistake, place) for word in TEXTS if asked.get(word) is not None}
    texts, conversation = {word: said for word, (said, _) in given.items()}, given.get("question", ("", None))[1]
    if (caption := asked.get("caption")) not in (None, True, False):
        raise mistake(f"{place}: caption is {caption!r}, but is true or false; to match a given text write text=...")
    if not texts and not caption:
        raise mistake(f"{place}: nothing is asked; give a question, a phrase, a text or caption=true")
    request = Request(images[0], texts, bool(caption), facts, conversation=conversation, others=tuple(images[1:]))
    if not is_stream:
        require_pictures(request, mistake, place)
    return request


def require_pictures(request: Request, mistake: type[UserError] = ConfigError, place: str = "the question") -> None:
    """Raise the mistake unless each image has its place in the question, the one text that has places; one alone needs none."""
    if request.others and request.asks != ("question",):
        raise mistake(
            f"{place}: several images are what a question is about, with <image> where each is seen; ask of one else"
        )
    if "question" not in request.texts:
        return
    try:
        conversation = request.conversation or asked_in_words(request.texts["question"])
        require_places(conversation, len(request.files), place)
    except DataError as error:
        raise mistake(str(error)) from None
