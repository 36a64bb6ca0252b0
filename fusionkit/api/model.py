"""A trained model that can be asked in Python."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from fusionkit.api.index import Index
from fusionkit.api.inputs import Picture, device_named, first_row, image_requests, joined, padded, paired, several
from fusionkit.api.mistakes import sentences
from fusionkit.assembly.objectives import active_objectives
from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.directory import bytes_of
from fusionkit.checkpoints.load import load_parts
from fusionkit.checkpoints.source import local
from fusionkit.checkpoints.write import push_to_hub
from fusionkit.commands.alt_text import caption_folder
from fusionkit.commands.predict_images import predictor_of
from fusionkit.commands.search import open_index
from fusionkit.config import saved
from fusionkit.data.requests import ASKED, Request, asked_text, readable_text, require_pictures
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference.answering import Answer
from fusionkit.inference.embedding import Embedder
from fusionkit.scoring.records import Record
from fusionkit.types import Tokens

ACCELERATORS = {"cuda": "gpu"}  # Lightning's names where they are others than torch's


class Model:
    """A trained model with its tasks: what can be asked of it, and its encodings, of images and texts as they are.

    Everything takes one or a list, and gives one or a list; tensors are on the CPU. Of images and texts there are as many of
    one as of the other, or one of either, which then goes with all. Images are read ``batch_size`` at a time.
    """

    def __init__(self, parts: Parts, device: torch.device, path: Path | None = None, batch_size: int = 32) -> None:
        self.parts, self.device, self.path, self.batch_size = parts, device, path, batch_size
        self.objectives = active_objectives(parts.objectives, parts.tasks)

    def __repr__(self) -> str:
        fusion = type(self.parts.model.fusion).__name__
        return f"Model({fusion}; tasks: {', '.join(self.tasks)}; on {self.device}; {self.path or 'not saved'})"

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that were trained."""
        return list(dict.fromkeys(name for names in self.objectives.values() for name in names))

    @property
    def config(self) -> DictConfig:
        """The configuration that it was trained with."""
        return self.parts.config

    def encode_image(self, images: Picture | Sequence[Picture]) -> Tokens:
        """The image encoder's states: ``embeds`` (I, N, D), ``mask`` (I, N) or None, ``pooled`` (I, D); of one image its row."""
        found, is_one = several(images, "image")
        embedder = self._embedder
        tokens = padded(list(embedder.map_images(image_requests(found), embedder.image_tokens)))
        return first_row(tokens) if is_one else tokens

    def encode_text(self, texts: str | Sequence[str]) -> Tokens:
        """The text encoder's states before they meet an image: ``embeds`` (T, L, D), ``mask`` (T, L), ``pooled`` (T, D)."""
        found, is_one = several(texts, "text")
        words = [readable_text(text, "text") for text in found]
        tokens = padded(list(self._embedder.map_texts(words, lambda tokens: tokens)))
        return first_row(tokens) if is_one else tokens

    def embed(
        self, images: Picture | Sequence[Picture] | None = None, texts: str | Sequence[str] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Vectors (I, E) of images, (T, E) of texts, or both, of length 1: a product of two is their cosine.

        Texts are read as captions. Raises ConfigError where no objective trained the vectors.
        """
        embedder, found = self._embedder, list[Tensor]()
        embedder.require_contrast(self._name)
        if images is not None:
            pictures, is_one = several(images, "image")
            vectors = embedder.map_images(image_requests(pictures), embedder.project_images)
            found.append(joined(vectors, is_one))
        if texts is not None:
            words, is_one = several(texts, "text")
            found.append(joined([embedder.texts([readable_text(text, "text") for text in words])], is_one))
        if not found:
            raise ConfigError("embed: nothing is given; give images=..., texts=... or both")
        return found[0] if len(found) == 1 else (found[0], found[1])

    def index(self, folder: str | Path, images: str | Path | None = None) -> Index:
        """The index in a folder, to be searched as ``fusionkit search`` does; with ``images`` it is made, or brought up to date.

        It holds all pictures of that folder and of those in it. What is new or has changed is embedded, the rest is kept.
        """
        with sentences():
            predictor = predictor_of(self.parts, self.device, batch_size=self.batch_size)
            pictures = None if images is None else Path(images).expanduser()
            return Index(open_index(self.parts, predictor, self._name, Path(folder).expanduser(), pictures))

    def match(
        self,
        images: Picture | Sequence[Picture],
        texts: str | Sequence[str],
        by: str | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The probability that each text describes its image, a tensor (T,) or one number."""
        return self._values("text", "match", images, texts, by, return_attention, torch.tensor)

    def answer(
        self,
        images: Picture | Sequence[Picture],
        questions: str | Sequence[Any],
        by: str | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The answer to each question; ``ask`` also gives the next best ones with their probabilities.

        A model that was trained to chat answers conversations too: lists of messages, {"role", "content"}, that end with a
        question. One about several images has them as a list within ``images``, and ``<image>`` where each is seen.
        """
        return self._values("question", "answer", images, questions, by, return_attention, list)

    def ground(
        self,
        images: Picture | Sequence[Picture],
        phrases: str | Sequence[str],
        by: str | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The box of each phrase, (T, 4) or (4,): left, top, width, height in pixels of its image."""
        return self._values("phrase", "bbox", images, phrases, by, return_attention, torch.tensor)

    def caption(self, images: Picture | Sequence[Picture], by: str | None = None) -> Any:
        """A sentence about each image."""
        found, is_one = several(images, "image")
        requests = [replace(request, wants_caption=True) for request in image_requests(found)]
        captions = [self._value(reply, "caption") for reply in self._answers(requests, by=by)]
        return captions[0] if is_one else captions

    def alt_text(
        self,
        folder: str | Path,
        output_dir: str | Path | None = None,
        output: str | Path | None = None,
        overwrite: bool = False,
        by: str | None = None,
    ) -> list[Record]:
        """Caption all pictures of a folder and of those in it, as ``fusionkit alt-text`` does: a text beside each, or one table.

        Gives what was said this time, {"image", "caption", "caption_score"} and how well it fits where that is known; of a
        picture that cannot be read {"image", "error"}. What has a caption already keeps it, unless ``overwrite``.
        """
        home, table = (None if place is None else Path(place).expanduser() for place in (output_dir, output))
        with sentences():
            predictor = predictor_of(self.parts, self.device, batch_size=self.batch_size, by=by)
            return caption_folder(predictor, Path(folder).expanduser(), home, table, overwrite)[1]

    def push_to_hub(
        self,
        repository: str,
        license: str | None = None,
        licences: Mapping[str, str] | None = None,
        trust: str | Sequence[str] = (),
        max_shard_size: str | None = "5GB",
    ) -> str:
        """Upload the checkpoint to the Hugging Face hub as OWNER/NAME, as ``fusionkit export hub=`` does; gives its address.

        ``license`` is the model's own, for its card, ``licences`` those of what it was made of, by source of data or part.
        """
        if self.path is None:
            raise ConfigError("push_to_hub: the model is not saved; train it to a folder, and load that")
        trusted = [trust] if isinstance(trust, str) else list(trust)
        with sentences():
            return push_to_hub(self.path, repository, trusted, license, licences, bytes_of(max_shard_size))

    def ask(
        self,
        images: Picture | Sequence[Picture],
        question: str | Sequence[Mapping[str, Any]] | None = None,
        phrase: str | None = None,
        text: str | None = None,
        caption: bool = False,
        by: str | None = None,
        top: int = 5,
    ) -> Record | list[Record]:
        """All that the tasks say to these words about each image, as ``fusionkit predict image=...`` writes it.

        ``by`` names the task that replies where several can, ``top`` is how many answers to name.
        """
        found, is_one = several(images, "image")
        said = {"question": question, "phrase": phrase, "text": text}
        asked = {name: asked_text(value, name) for name, value in said.items() if value is not None}
        words, (_, turns) = {name: text for name, (text, _) in asked.items()}, asked.get("question", ("", None))
        if not words and not caption:
            raise ConfigError(f"ask: nothing is asked; give one of {', '.join(ASKED)}")
        requests = [
            replace(request, texts=words, wants_caption=caption, conversation=turns)
            for request in image_requests(found)
        ]
        records = [reply.record for reply in self._answers(requests, by=by, top=top)]
        return records[0] if is_one else records

    def _values(
        self,
        word: str,
        key: str,
        images: Any,
        texts: Any,
        by: str | None,
        return_attention: bool,
        collect: Callable[[list[Any]], Any],
    ) -> Any:
        """What the replies to texts of a word have under a key, and on request the attention of each."""
        (pictures, one_image), (words, one_text) = several(images, "image"), several(texts, word)
        pairs = paired(image_requests(pictures, may_be_several=True), words, word)
        asked = [(request, asked_text(text, word)) for request, text in pairs]
        requests = [replace(request, texts={word: text}, conversation=turns) for request, (text, turns) in asked]
        for request in requests:
            require_pictures(request)
        replies = self._answers(requests, by=by, attention=return_attention)
        values = [self._value(reply, key) for reply in replies]
        attention = [reply.attention[word] for reply in replies] if return_attention else []
        if one_image and one_text:
            value = values[0] if collect is list or not isinstance(values[0], list) else collect(values[0])
            return (value, attention[0]) if return_attention else value
        return (collect(values), attention) if return_attention else collect(values)

    def _answers(self, requests: Sequence[Request], **options: Any) -> list[Answer]:
        """Raises DataError where an image cannot be read."""
        with sentences():
            replies = predictor_of(self.parts, self.device, batch_size=self.batch_size, **options).answer(requests)
        for reply in replies:
            if "error" in reply.record:
                raise DataError(reply.record["error"])
        return replies

    def _value(self, reply: Answer, key: str) -> Any:
        if key not in reply.record:
            wanted = {"match": "train with task itm, or compare by embed (task itc)"}.get(key, "ask gives all it says")
            raise ConfigError(
                f"{self._name} gives no '{key}' for this, its tasks are {', '.join(self.tasks)}; {wanted}"
            )
        return reply.record[key]

    @property
    def _name(self) -> str:
        return f"the model of {self.path}" if self.path else "the model"

    @property
    def _embedder(self) -> Embedder:
        return Embedder(predictor_of(self.parts, self.device, batch_size=self.batch_size))


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    trust: str | Sequence[str] = (),
    int8: bool | str | Sequence[str] = False,
) -> Model:
    """A checkpoint, or the best one of a run's folder, as a model that can be asked; its data are not needed.

    ``path`` may name a model of the Hugging Face hub, OWNER/NAME. ``device`` None is the first GPU, else the CPU.
    ``trust`` names packages whose parts the checkpoint may name beside fusionkit's own: their code is run. ``int8`` True, or
    parts of ("image_encoder", "text_encoder", "fusion", "task"): their linear layers have weights of 8 bits, by torchao.
    """
    with sentences():
        place, chosen = saved(local(path)), device_named(device)
        accelerator = ACCELERATORS.get(chosen.type, chosen.type)
        overrides: dict[str, Any] = {"data": {}, "evaluation": {}, "trainer": {"accelerator": accelerator}}
        trusted = [trust] if isinstance(trust, str) else list(trust)
        return Model(load_parts(place, overrides, has_data=False, trust=trusted, int8=int8), chosen, place)
