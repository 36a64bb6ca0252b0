"""The one data module: any number of sources, read when first needed, mixed in every training step."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.collate import Collate, new_counts, told_cuts
from fusionkit.data.dataset import EvalData, TrainData
from fusionkit.data.loader import Loader, check_workers, workers_of
from fusionkit.data.pixels.bitmap import chosen_decoder
from fusionkit.data.pixels.damage import Damage
from fusionkit.data.pixels.roles import RoleImages
from fusionkit.data.pixels.stored import DrawView
from fusionkit.data.pixels.views import ViewsData, own_batches, unchanged
from fusionkit.data.pixels.views import identity as identity_of_views
from fusionkit.data.sample import Sample
from fusionkit.data.sampler import ShardBatches, Stream, StreamBatches
from fusionkit.data.source import Source, Splits
from fusionkit.data.stores import stamp_of
from fusionkit.data.tables.order import PROCESSES, SIZE, begin_of, require_same_on_ranks, warn_of_other_order
from fusionkit.data.tables.samples import Samples
from fusionkit.data.texts.shots import with_shots
from fusionkit.data.tokenizer import load_tokenizer, rules_of, word_tokenizer, wrapped
from fusionkit.data.transforms import Finish
from fusionkit.distributed import gather_objects
from fusionkit.errors import ConfigError, DataError

BuildAnswers = Callable[[Iterable[str]], AnswerVocabulary]


class DataModule(LightningDataModule):
    """Sources to batches.

    `prepare`          makes the data where `root` does not exist.
    `tokenizer`        a folder, a hub name, a tokenizer, or None for one of the words of the training texts.
    `answers`          a vocabulary, the path of a published list, or the rule to build one from training answers.
    `steps_per_epoch`  None: as many as the longest source needs to show each of its images.
    `spell_answers`    a tokenizer that is built here knows the words of the answers too, for tasks that say them.
    `drop_overlap`     sources that do not train on images which held-out splits of the run show.
    `allow_overlap`    pairs of "source/role" that may share images, * for any; all others must not.
    `missing`          "error" where an image is missing or damaged, told before training; or "skip": it is left out and counted.
    `max_missing`      the share of the images of a source and role that may be left out so.
    `resample`         how images are resized (`transforms.Finish`), unless a random crop has them at their size already.
    `decoder`          of training images that are cropped at random (`pixels.bitmap.DECODERS`); all others are Pillow's.

    Files are read when first asked for, so that evaluating one split needs only the files of this split.
    """

    def __init__(
        self,
        root: str,
        sources: Mapping[str, Source],
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        image_size: int = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        fit: str = "squash",
        multiple: int = 32,
        answers: AnswerVocabulary | str | BuildAnswers = AnswerVocabulary.build,
        num_workers: int | str = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        prepare: Callable[[], Any] | None = None,
        drop_overlap: Sequence[str] = (),
        allow_overlap: Sequence[Sequence[str]] = (),
        spell_answers: bool = False,
        missing: str = "error",
        max_missing: float = 0.01,
        decoder: str = "pillow",
        resample: str = "bicubic",
    ) -> None:
        super().__init__()
        self.root, self.sources, self.prepare = Path(root), dict(sources), prepare
        self.num_workers, self.seed, self.steps_per_epoch = num_workers, seed, steps_per_epoch
        self._splits = Splits(self.sources, drop_overlap, allow_overlap, Damage(missing, max_missing))
        self.finish = Finish(image_size, mean, std, fit, multiple, resample)
        self._tokenizer, self._answers, self.spell_answers = tokenizer, answers, spell_answers
        self.images = RoleImages(self.sources, self.finish, chosen_decoder(decoder), self.samples, self._evaluated)
        self._shown: dict[tuple[str, str], Samples] = {}
        self._training: dict[str, TrainData] = {}
        self._loaders: dict[str, Loader] = {}
        self._counts: dict[tuple[str, str], Tensor] = {}
        self._resumed: dict[str, Any] = {"batches": 0}
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ConfigError(f"data.steps_per_epoch is {steps_per_epoch}, but has to be at least 1, or null")
        check_workers(num_workers)
        if image_size < 1:
            raise ConfigError(f"data.image_size is {image_size}, but has to be a number of pixels")
        for name, source in self.sources.items():
            source.check(f"data.sources.{name}")
            options = ("fit", fit, "squash", "squashed"), ("resample", resample, "bicubic", "resized bicubically")
            for key, value, usual, held in options:
                if source.cache and value != usual:
                    raise ConfigError(
                        f"data.sources.{name}.cache holds images {held}, which data.{key}={value} must not be; set it to false"
                    )

    def prepare_data(self) -> None:
        """Make the data, if they are to be made and are not there yet."""
        if self.prepare is not None and not self.root.exists():
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Nothing is read here, and nothing is done twice. Raises DataError where there is no data folder."""
        if not self.root.is_dir():
            raise DataError(
                f"the data folder {self.root} does not exist; give the folder that holds the data as data.root=FOLDER"
            )

    def samples(self, source: str, role: str) -> Samples:
        """The images of a role; of "train" those that are trained on (``Splits.training``)."""
        return self._splits.samples(source, role)

    def require_apart(self) -> None:
        """Raise DataError where training, validation and test share an image that they must not share."""
        _ = self._splits.training

    @property
    def dropped(self) -> dict[str, int]:
        """How many training images each source lost to the held-out splits."""
        return self._splits.dropped

    def require_images(self, places: Sequence[tuple[str, str]]) -> None:
        """Raise DataError where an image of these sources and roles is missing or damaged, unless such are left out."""
        self._splits.require_images(places)

    def told_missing(self, source: str, role: str) -> list[str]:
        """A sentence about the images of a role that are missing or damaged, and so left out; none where there are none."""
        there = len(self.samples(source, role))
        count = self._splits.left_out.get((source, role), 0)
        return [f"{count:,} missing or damaged images left out, {there:,} are there"] if count else []

    def skipped(self) -> dict[str, int]:
        """How many corrupt training images each source has met so far, in this rank."""
        return {source: int(data.corrupt.sum()) for source, data in self._training.items()}

    def cut_texts(self, source: str, role: str) -> tuple[int, int, int]:
        """How many texts of a role were read so far, how many were cut at ``max_length``, and how many teach nothing.

        Over all ranks, each of which has to ask.
        """
        found = gather_objects([self.text_counts(source, role).sum(dim=0)])
        read, cut, silent = torch.stack(found).sum(dim=0).tolist()
        return read, cut, silent

    def told_cuts(self, source: str, role: str) -> list[str]:
        """A sentence about the texts of a role that were cut; none where all were read to their end."""
        read, cut, silent = self.cut_texts(source, role)
        is_news = cut or (silent and role == "train")  # elsewhere a conversation without a reply is asked about
        return [told_cuts(source, read, cut, silent, self.sources[source].max_length)] if is_news else []

    def text_counts(self, source: str, role: str) -> Tensor:
        """Where this rank's ``Collate`` counts the texts of a role."""
        return self._counts.setdefault((source, role), new_counts())

    def tokens_of(self, source: str, kind: str) -> Callable[[str], list[str]]:
        """What gives the tokens of a text of a kind as those of a source are read (``Collate.tokens``)."""
        return partial(self._collate(source, "tokens", ()).tokens, kind=kind)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What turns texts into token ids."""
        if self._tokenizer is None:
            answers = self.answers.answers if self.spell_answers and self.answers else []
            return word_tokenizer(chain(self.training_strings(), answers, self._splits.template_words()))
        return load_tokenizer(self._tokenizer) if isinstance(self._tokenizer, str | Path) else wrapped(self._tokenizer)

    @cached_property
    def answers(self) -> AnswerVocabulary | None:
        """The answers that questions are classified into; None where no source asks any."""
        if not any("questions" in source.kinds for source in self.sources.values()):
            return None
        if isinstance(self._answers, AnswerVocabulary):
            return self._answers
        if isinstance(self._answers, str | Path):
            return AnswerVocabulary.load(self._answers)
        return self._given_answers(self._answers)

    def training_strings(self) -> Iterator[str]:
        """All texts that the sources train on."""
        return self._splits.training_strings()

    def frequent_answers(self, rule: BuildAnswers) -> list[str]:
        """The answers that a rule makes of the training questions, whatever the run's own are; none where it makes none."""
        try:
            return self._given_answers(rule).answers
        except ConfigError:
            return []

    def _given_answers(self, rule: BuildAnswers) -> AnswerVocabulary:
        given = self._splits.training_facts("multiple_choice_answer")
        return rule(answer for answer in given if answer is not None)

    def train_dataloader(self) -> CombinedLoader:
        """A batch of every source a step: `dict[source, Batch]`; after a resume, the next ones."""
        loaders = {name: self._train_loader(name) for name in self._splits.training}
        if not loaders:
            raise ConfigError(
                "no source of data.sources has a 'train' role in its splits, so there is nothing to train on"
            )
        warn_of_other_order(self._resumed.get("order", {}), self._order())
        require_same_on_ranks(self.sources, self._splits.training)
        return CombinedLoader(loaders, mode="min_size")

    def val_dataloader(self) -> list[Loader]:
        """One loader for each source that has a "val" role."""
        return [self.eval_loader(name, "val") for name, source in self.sources.items() if "val" in source.splits]

    def eval_loader(self, source: str, role: str, numbers: Sequence[int] | None = None) -> Loader:
        """Every text of every image of a role over all ranks, in order, not augmented; or its batches of these numbers.

        Each once, but for those of the last image where there are fewer images than ranks.
        """
        samples = self._evaluated(source, role)
        settings = self.sources[source]
        images = self.images.images(source, role, self.finish.decode_side, is_augmented=False)
        data = EvalData(samples, images, settings.kinds, self.images.finishing(source, role, is_augmented=False))
        batches: Any = ShardBatches(len(samples), settings.batch_size, *self._place)
        if numbers is not None:
            every = list(batches)
            batches = [every[number] for number in numbers]
        return Loader(
            data, batches, self._collate(source, role, samples), workers_of(self.num_workers, 1), persistent=False
        )

    def _evaluated(self, source: str, role: str) -> Samples:
        """The samples of a role, behind worked examples where the source has such."""
        samples, shots = self.samples(source, role), self.sources[source].shots
        if not shots:
            return samples
        if (source, role) not in self._shown:
            self._shown[source, role] = with_shots(samples, self.samples(source, "train"), shots, source, self.seed)
        return self._shown[source, role]

    def view_loader(self, source: str, role: str, count: int, size: int) -> Loader:
        """This rank's share of the images of a role, ``size`` at a time in ``count`` views each: lists of ``Views``.

        The views of training images are augmented; of other roles, and where nothing is augmented, there is one.
        """
        settings, augment = self.sources[source], self.images.augmentation(source, role)
        images = self.images.images(source, role, self.images.decode_side(augment))
        where = f"{self.seed}/{source}"
        samples, kinds, side = self.samples(source, role), settings.kinds, self.finish.size
        data = ViewsData(where, samples, images, kinds, self.finish, side, augment, count)
        return Loader(data, own_batches(len(data), size), unchanged, workers_of(self.num_workers, 1), persistent=False)

    def view_identity(self, source: str, role: str, count: int) -> Iterator[str]:
        """What these views and the boxes on them are a function of, in words."""
        yield from self.images.identity(source, role)
        augment, samples = self.images.augmentation(source, role), self.samples(source, role)
        yield from identity_of_views(f"{self.seed}/{source}", samples, self.sources[source].kinds, augment, count)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Pixels that come as uint8 are normalised where they are, and in the precision of the run."""
        for part in batch.values() if isinstance(batch, dict) else ():
            if isinstance(part, dict) and getattr(part.get("pixel_values"), "dtype", None) == torch.uint8:
                pixels = {"pixel_values": self.finish.normalize(part["pixel_values"])}
                part |= pixels if self.trainer is None else self.trainer.precision_plugin.convert_input(pixels)
        return batch

    def identity(self, source: str, role: str) -> Iterator[str]:
        """What the batches of ``eval_loader`` are a function of, in words: texts, image files, sizes and the tokenizer."""
        settings, finish = self.sources[source], self.finish
        yield f"{source} {role} {settings.kinds} {settings.batch_size} {settings.max_length}"
        yield f"{dict(settings.template or {})} {settings.clean!r} {settings.chat_template!r}"
        yield f"{finish.size} {finish.fit} {finish.multiple} {finish.resample} {finish.scale.tolist()} {finish.shift.tolist()}"
        yield json.dumps(rules_of(self.tokenizer), sort_keys=True)
        for sample in self._evaluated(source, role):
            yield f"{sample} {[stamp_of(path) for path in (sample.image, *sample.others)]}"

    def state_dict(self) -> dict[str, Any]:
        """How many batches were trained on and are in an epoch, what their order depends on, where those of this size began."""
        order = self._order()
        begin = {name: list(begin_of(name, size, self._resumed)) for name, size in order[SIZE].items()}
        return {"batches": self._progress()[0], "order": order, "begin": begin, "steps": self.epoch_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the batch after those."""
        self._resumed = state_dict

    def is_resized(self, state: Mapping[str, Any]) -> bool:
        """Whether the batches of all processes together are of other sizes than those of a state."""
        return bool(self._order()[SIZE] != state["order"].get(SIZE, self._order()[SIZE]))

    @property
    def steps(self) -> int:
        """Batches of each source in an epoch."""
        world_size = self._place[1]
        needed = [
            -(-len(samples) // (self.sources[name].batch_size * world_size))
            for name, samples in self._splits.training.items()
        ]
        return self.steps_per_epoch or max(needed)

    @property
    def epoch_steps(self) -> int:
        """Batches of each source in an epoch of the run, which ``trainer.limit_train_batches`` may end sooner."""
        limit: int | float = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(self.steps, limit) if isinstance(limit, int) else int(self.steps * limit)

    def _train_loader(self, name: str) -> Loader:
        source, samples = self.sources[name], self._splits.training[name]
        side = self.images.decode_side(source.augment)
        counts = {kind: source.texts_per_image[kind] for kind in source.kinds}
        images, finish = self.images.images(name, "train", side), self.images.finishing(name, "train")
        if self.trainer is not None and finish is self.finish and self.finish.fit != "keep":
            finish = self.finish.raw  # ``on_after_batch_transfer`` does the rest on the device
        augment: Any = source.augment
        if table := self.images.table(name, "train"):
            augment = DrawView() if table.views > 1 else None
        weights = _weights(name, samples)
        data = TrainData(name, samples, images, counts, finish, self.finish.size, augment, weights)
        self._training[name] = data
        groups = None if source.shuffle_window is None else samples.folders
        stream = Stream(len(samples), self.seed, name, weights, groups, source.shuffle_window or 0)
        begin = begin_of(name, source.batch_size * self._place[1], {} if self._is_overfitting else self._resumed)
        batches = StreamBatches(stream, source.batch_size, self.steps, self._window, *self._place, begin)
        workers = workers_of(self.num_workers, len(self._splits.training))
        self._loaders[name] = Loader(data, batches, self._collate(name, "train", samples), workers, persistent=True)
        return self._loaders[name]

    def seconds_waited(self) -> float:
        """How long the training has waited for batches on this rank so far."""
        return sum(loader.waited for loader in self._loaders.values())

    def _collate(self, source: str, role: str, samples: Sequence[Sample]) -> Collate:
        settings = self.sources[source]
        counts = self.text_counts(source, role)
        return Collate(
            source,
            samples,
            settings.kinds,
            self.tokenizer,
            settings.max_length,
            self.answers,
            settings.clean,
            counts,
            settings.template,
            settings.chat_template,
        )

    @property
    def _place(self) -> tuple[int, int]:
        """Rank and world size."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _progress(self) -> tuple[int, int]:
        """Batches trained on, since training began and in the epoch that is under way.

        Lightning counts a batch as processed once its backward pass is done, before a callback may save a checkpoint,
        and restores the count before it asks the loaders for batches. Under gradient accumulation a checkpoint between
        two optimiser steps loses the gradients since the first, here as everywhere in Lightning.
        """
        if self.trainer is None:
            return self._resumed["batches"], self._resumed["batches"] % self.steps
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        counts: Any = progress.total, progress.current  # typed as their base class, which lacks `processed`
        return counts[0].processed, counts[1].processed

    def _window(self) -> tuple[int, int]:
        """For the epoch about to start, the number of its next batch since training began, and how many are left."""
        steps, (total, current) = self.epoch_steps, self._progress()
        return 0 if self._is_overfitting else total, steps - current % max(steps, 1)

    @property
    def _is_overfitting(self) -> bool:
        """Whether every epoch is the first one."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def _order(self) -> dict[str, Any]:
        """What the order of training samples is a function of."""
        images = {name: len(samples) for name, samples in self._splits.training.items()}
        batches = {name: self.sources[name].batch_size * self._place[1] for name in images}
        windows = {name: window for name in images if (window := self.sources[name].shuffle_window) is not None}
        order = {"seed": self.seed, "images": images, SIZE: batches, "shuffle_window": windows}
        return {**order, PROCESSES: self._place[1]}


def _weights(source: str, samples: Samples) -> NDArray[np.float64] | None:
    """The weights of the samples. Raises DataError where nothing can be drawn by them."""
    weights = samples.weights
    if weights is not None and not weights.any():
        raise DataError(
            f"all images of source '{source}' have the sample_weight 0; leave the column out, or correct it"
        )
    return weights
