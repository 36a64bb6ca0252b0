"""What a notebook imports: ``import fusionkit as fk``. The commands of the terminal do their work by the same functions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionkit.assembly.objectives import active_objectives
from fusionkit.assembly.parts import Parts, evaluation_options
from fusionkit.assembly.trust import packages, targets
from fusionkit.checkpoints.load import load_parts
from fusionkit.checkpoints.source import local
from fusionkit.cli.app import composed
from fusionkit.cli.error_messages import translate
from fusionkit.commands import evaluate as evaluating_command
from fusionkit.commands import train as training_command
from fusionkit.commands.evaluation_setup import output_folder
from fusionkit.commands.predict_images import predictor_of
from fusionkit.commands.run_folder import checkpoints
from fusionkit.data.collate import Collate
from fusionkit.data.images import CorruptImage
from fusionkit.data.requests import (
    ASKED,
    Request,
    asked_text,
    own_collate,
    own_data,
    readable_text,
    require_image,
    require_pictures,
)
from fusionkit.errors import ConfigError, DataError, UserError
from fusionkit.inference.answering import Answer
from fusionkit.inference.prediction import evaluating, moved
from fusionkit.reporting.reading import read_run
from fusionkit.scoring.bootstrap import RESAMPLES, intervals
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row
from fusionkit.types import Batch, Tokens

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, or uint8 numbers: an array (H, W) or (H, W, 3), a tensor (3, H, W)."""
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
        found, is_one = _several(images, "image")
        tokens = _padded(list(self._map_images(found, self._image_tokens)))
        return _first(tokens) if is_one else tokens

    def encode_text(self, texts: str | Sequence[str]) -> Tokens:
        """The text encoder's states before they meet an image: ``embeds`` (T, L, D), ``mask`` (T, L), ``pooled`` (T, D)."""
        found, is_one = _several(texts, "text")
        tokens = _padded(list(self._map_texts(found, lambda tokens: tokens)))
        return _first(tokens) if is_one else tokens

    def embed(
        self, images: Picture | Sequence[Picture] | None = None, texts: str | Sequence[str] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Vectors (I, E) of images, (T, E) of texts, or both, of length 1: a product of two is their cosine.

        Raises ConfigError where no objective trained them.
        """
        if not any("feats" in self.parts.tasks[name].needs for name in self.tasks):
            raise ConfigError(
                f"{self._name} was trained without contrast, so that its embeddings say nothing; it was trained by "
                f"{', '.join(self.tasks)}: use match, or train with task itc"
            )
        model, found = self.parts.model, list[Tensor]()
        if images is not None:
            pictures, is_one = _several(images, "image")
            vectors = self._map_images(pictures, lambda batch: model.project_image(self._image_tokens(batch)))
            found.append(_rows(vectors, is_one))
        if texts is not None:
            words, is_one = _several(texts, "text")
            found.append(_rows(self._map_texts(words, model.project_text), is_one))
        if not found:
            raise ConfigError("embed: nothing is given; give images=..., texts=... or both")
        return found[0] if len(found) == 1 else (found[0], found[1])

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
        found, is_one = _several(images, "image")
        requests = [replace(request, wants_caption=True) for request in _requests(found)]
        captions = [self._value(reply, "caption") for reply in self._answers(requests, by=by)]
        return captions[0] if is_one else captions

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
        found, is_one = _several(images, "image")
        said = {"question": question, "phrase": phrase, "text": text}
        asked = {name: asked_text(value, name) for name, value in said.items() if value is not None}
        words, (_, turns) = {name: text for name, (text, _) in asked.items()}, asked.get("question", ("", None))
        if not words and not caption:
            raise ConfigError(f"ask: nothing is asked; give one of {', '.join(ASKED)}")
        requests = [
            replace(request, texts=words, wants_caption=caption, conversation=turns)
            for request in _requests(found, may_be_several=True)
        ]
        for request in requests:
            require_pictures(request)
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
        (pictures, one_image), (words, one_text) = _several(images, "image"), _several(texts, word)
        pairs = _paired(_requests(pictures, may_be_several=True), words, word)
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
    def _source(self) -> str:
        """The source as whose inputs one's own are read: of a contrastive objective, if there is one."""
        tasks = self.parts.tasks
        contrastive = (s for s, names in self.objectives.items() if any("feats" in tasks[name].needs for name in names))
        return next(contrastive, next(iter(self.objectives)))

    def _map_images(self, images: Sequence[Picture], compute: Callable[[Batch], Any]) -> Iterator[Any]:
        """What is computed of the images, batch by batch, on the CPU."""
        requests = _requests(images)
        for start in range(0, len(requests), self.batch_size):
            chosen = requests[start : start + self.batch_size]
            data, collate = own_data(self.parts.datamodule, self._source, chosen, (), is_grouped=False)
            items = []
            for place, request in enumerate(chosen):
                try:
                    require_image(request, self.parts.model.image_encoder.reads)
                    items.append(data.item(place))
                except CorruptImage as error:
                    raise DataError(str(error)) from None
            batch = collate(items)
            if isinstance(batch, DataError):
                raise batch
            with self._evaluating():
                found = moved(compute(moved(batch, self.device)), torch.device("cpu"))
            yield found

    def _map_texts(self, texts: Sequence[str], compute: Callable[[Tokens], Any]) -> Iterator[Any]:
        collate: Collate = own_collate(self.parts.datamodule, self._source)
        for start in range(0, len(texts), 4 * self.batch_size):
            chosen = [readable_text(text, "text") for text in texts[start : start + 4 * self.batch_size]]
            rows = moved(collate.tokenize(chosen), self.device)
            with self._evaluating():
                tokens = self.parts.model.encode_text(rows["input_ids"], rows["attention_mask"])
                found = moved(compute(tokens), torch.device("cpu"))
            yield found

    def _image_tokens(self, batch: Batch) -> Tokens:
        return self.parts.model.encode_image(self.parts.model.images_of(batch))

    def _evaluating(self) -> Any:
        options = evaluation_options(self.parts.config)
        return evaluating(self.parts.model, self.parts.tasks.values(), self.device, options)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    ``folder``   where it wrote records, rows, tables and pictures.
    ``metrics``  ``<source>/<metric>`` or ``<benchmark>/<metric>`` to a number, in % unless its name says otherwise.
    """

    folder: Path
    metrics: Mapping[str, float]

    @cached_property
    def rows(self) -> Mapping[str, Sequence[Row]]:
        """What each sample scored, by source or benchmark and task."""
        return {name: scored.rows for name, scored in read_run(self.folder).samples.items()}

    def intervals(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, tuple[float, float]]:
        """The 95% interval of each metric that is computed from rows, by the bootstrap over images."""
        found: dict[str, tuple[float, float]] = {}
        for scored in read_run(self.folder).samples.values():
            drawn = intervals(scored.rows, resamples, seed) if scored.rows else {}
            found |= {f"{scored.prefix}/{name}": interval for name, interval in drawn.items()}
        return found


@dataclass(frozen=True)
class TrainedRun:
    """What ``train`` gives: the model as it was scored, or, where it was interrupted, as it was then.

    ``scores`` and ``metrics`` are those of the evaluation that ends a run; none where it was interrupted.
    """

    folder: Path
    model: Model
    metrics: Mapping[str, float]
    is_interrupted: bool = False

    @property
    def scores(self) -> Scores:
        """The metrics with what they were computed from."""
        return Scores(self.folder, self.metrics)

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """What was logged while it trained, a map a step, each with its ``step``."""
        return read_run(self.folder).history


def load(path: str | Path, device: str | torch.device | None = None, trust: str | Sequence[str] = ()) -> Model:
    """A checkpoint, or the best one of a run's folder, as a model that can be asked; its data are not needed.

    ``path`` may name a model of the Hugging Face hub, OWNER/NAME. ``device`` None is the first GPU, else the CPU.
    ``trust`` names packages whose parts the checkpoint may name beside fusionkit's own: their code is run.
    """
    with sentences():
        place, chosen = _checkpoint(local(path)), _device(device)
        accelerator = ACCELERATORS.get(chosen.type, chosen.type)
        overrides: dict[str, Any] = {"data": {}, "evaluation": {}, "trainer": {"accelerator": accelerator}}
        trusted = [trust] if isinstance(trust, str) else list(trust)
        return Model(load_parts(place, overrides, has_data=False, trust=trusted), chosen, place)


def compose(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """The configuration of a training run: ``compose("experiment=quickstart", "fusion=late")``, as on the command line.

    But for the loggers: csv alone, where nothing is said, since W&B starts a process. ``config_dir`` is a folder of the
    user's own choices of groups.
    """
    is_said = any(text.lstrip("+~").startswith("logger") for text in overrides)
    return composed("train", overrides if is_said else ["logger=csv", *overrides], config_dir)


def train(*config: str | DictConfig, config_dir: str | Path | None = None, processes: bool = False) -> TrainedRun:
    """Train, evaluate and give the model, as ``fusionkit train`` does, but in this process.

    Takes overrides, or one configuration of ``compose``. Where that asks for several devices, training takes one of them, and
    says so; ``processes=True`` starts a process for each. A Ctrl-C ends the training and gives the model so far.
    """
    if len(config) == 1 and isinstance(config[0], DictConfig):
        composition = config[0].copy()
    elif all(isinstance(each, str) for each in config):
        composition = compose(*config, config_dir=config_dir)  # type: ignore[arg-type]
    else:
        raise ConfigError("train takes overrides, or one configuration of compose and nothing else")
    with sentences():
        if not processes:
            composition = one_process(composition)
        trained = training_command.train_here(composition)
        folder = Path(composition.output_dir)
        if not isinstance(trained, training_command.Trained):  # by other processes, or before
            if not checkpoints(composition):
                raise DataError(
                    f"train: {folder} holds no checkpoint to give as a model; nothing was trained, or saved, there"
                )
            plain = OmegaConf.to_container(composition, resolve=False)  # what the user composed is trusted
            named = {name.partition(".")[0] for _, name in targets(plain) if isinstance(name, str)} - {"fusionkit"}
            return TrainedRun(folder, load(folder, trust=sorted(named)), read_run(folder).metrics)
        kept = {path.stem: path for path in checkpoints(composition)}
        path = None if trained.is_interrupted else kept.get(composition.evaluation.checkpoint, kept.get("last"))
        model = Model(trained.parts, trained.device, path)
        return TrainedRun(folder, model, trained.metrics, trained.is_interrupted)


def evaluate(
    model: str | Path | Model,
    *overrides: str,
    trust: str | Sequence[str] = (),
    config_dir: str | Path | None = None,
) -> Scores:
    """Score a checkpoint on data: ``evaluate(path, "split=test", "data.root=FOLDER")``, as on the command line.

    A model is scored by its checkpoint; one whose weights are others by now is refused with a ConfigError.
    """
    with sentences():
        config = composed("evaluate", overrides, config_dir)
        path = model.path if isinstance(model, Model) else _checkpoint(local(model))
        if path is None:
            raise ConfigError("evaluate: the model is not saved, since its training was interrupted; load a checkpoint")
        if isinstance(model, Model):
            _require_same(model, path, trust)
        given = [trust] if isinstance(trust, str) else list(trust)
        config.checkpoint, config.trust = str(path), [*packages(config.trust), *given]
        folder = output_folder(config)
        evaluating_command.evaluate(config)
        return Scores(folder, read_run(folder).metrics)


def one_process(config: DictConfig) -> DictConfig:
    """A configuration that trains on one device, in this process; what is left out for it is printed."""
    trainer, found = config.trainer, config.copy()
    devices = trainer.devices
    is_one = devices in (1, "1") or (OmegaConf.is_list(devices) and len(devices) == 1)
    if is_one and trainer.get("num_nodes", 1) == 1 and trainer.strategy == "auto":
        return found
    if not is_one:
        found.trainer.devices = [devices[0]] if OmegaConf.is_list(devices) else 1
    if "num_nodes" in trainer:
        found.trainer.num_nodes = 1
    found.trainer.strategy = "auto"
    print(
        f"training in this process, on one device: trainer.devices={devices} and trainer.strategy={trainer.strategy} are left "
        "out, and a step sees the images of one rank; processes=True starts them",
        flush=True,
    )
    return found


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


def _several(given: Any, what: str) -> tuple[list[Any], bool]:
    """A list of what was given, and whether it was one."""
    is_batch = isinstance(given, np.ndarray | Tensor) and given.ndim == 4
    is_conversation = isinstance(given, list | tuple) and any(isinstance(each, dict) for each in given)
    if is_conversation or not (is_batch or isinstance(given, list | tuple)):
        return [given], True
    if not len(given):
        raise ConfigError(f"no {what} is given; give one, or a list of at least one")
    return list(given), False


def _paired(requests: Sequence[Request], texts: Sequence[str], word: str) -> Iterator[tuple[Request, str]]:
    """Each text with its image; one of either goes with all of the other."""
    if len(requests) != len(texts) and 1 not in (len(requests), len(texts)):
        raise ConfigError(
            f"{len(requests)} images and {len(texts)} texts ({word}) are given; give as many of one as of the other, or one"
        )
    count = max(len(requests), len(texts))
    yield from zip(_repeated(requests, count), _repeated(texts, count), strict=True)


def _repeated(values: Sequence[Any], count: int) -> Sequence[Any]:
    return list(values) * count if len(values) == 1 else values


def _requests(images: Sequence[Any], may_be_several: bool = False) -> list[Request]:
    """Requests without words, one an image, or, where there may be, a list of several that one conversation is about."""
    found = []
    for number, given in enumerate(images):
        several = given if may_be_several and isinstance(given, list | tuple) and len(given) else [given]
        files = [
            Path(each).expanduser() if isinstance(each, str | Path) else _picture(each, number) for each in several
        ]
        named = files[0] if isinstance(files[0], Path) else Path(f"image {number}")
        picture = None if isinstance(files[0], Path) else files[0]
        found.append(Request(named, {}, picture=picture, others=tuple(files[1:])))
    return found


def _picture(image: Any, number: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).cpu().numpy()
    is_picture = isinstance(image, np.ndarray) and image.dtype == np.uint8 and min(image.shape, default=0) > 0
    if not is_picture or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        shown = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ConfigError(
            f"image {number} is {shown}; give a path, a PIL image, or uint8 numbers: an array (H, W) or (H, W, 3), or a "
            "tensor (3, H, W)"
        )
    return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def _padded(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of several batches as one; masks are left out where no batch has one."""
    embeds = [row for part in parts for row in part.embeds]
    masks = [
        torch.ones(len(row), dtype=torch.long) if part.mask is None else part.mask[place]
        for part in parts
        for place, row in enumerate(part.embeds)
    ]
    has_mask = any(part.mask is not None for part in parts) or len({len(row) for row in embeds}) > 1
    mask = pad_sequence(masks, batch_first=True) if has_mask else None
    return Tokens(pad_sequence(embeds, batch_first=True), mask, torch.cat([part.pooled for part in parts]))


def _first(tokens: Tokens) -> Tokens:
    return Tokens(tokens.embeds[0], None if tokens.mask is None else tokens.mask[0], tokens.pooled[0])


def _rows(parts: Iterable[Tensor], is_one: bool) -> Tensor:
    """All rows of the parts, or the only one."""
    rows = torch.cat(list(parts))
    return rows[0] if is_one else rows


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name} cannot be used ({str(error).splitlines()[0]}); give cpu, or cuda:NUMBER"
        ) from None
    return device


def _checkpoint(path: Path) -> Path:
    """The file itself, or of a run's folder the best one, else the last."""
    folder = path / "checkpoints"
    found = (folder / f"{name}.ckpt" for name in ("best", "last"))
    return next((file for file in found if file.is_file()), path)


def _require_same(model: Model, path: Path, trust: str | Sequence[str]) -> None:
    kept = load(path, "cpu", trust).parts
    own = model.parts
    for name, part in {"model": own.model, **own.tasks}.items():
        other = kept.model if name == "model" else kept.tasks[name]
        state = other.state_dict()
        if any(not tensor.cpu().equal(state[key]) for key, tensor in part.state_dict().items()):
            raise ConfigError(
                f"evaluate: the model's weights are not those of {path} any more; evaluate a checkpoint of it"
            )
