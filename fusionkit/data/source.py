"""What a source is made of, and the splits of all sources of a run: read once, when first needed, and kept apart."""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from fusionkit.data.cleaning import PLACE, check_templates
from fusionkit.data.dataset import Augmentation
from fusionkit.data.images import missing_images
from fusionkit.data.joint import merge, read_tables
from fusionkit.data.leakage import by_photo, check_allowed, require_apart, without
from fusionkit.data.pixels.damage import Damage
from fusionkit.data.regions import Detections
from fusionkit.data.sample import Reader
from fusionkit.data.streams.base import Stream
from fusionkit.data.tables.boxes import require_boxes_of
from fusionkit.data.tables.cache import Wanted, load_tables
from fusionkit.data.tables.samples import Samples, as_samples
from fusionkit.data.tables.table import Tables
from fusionkit.data.texts.chat import PLAIN
from fusionkit.data.texts.conversations import CONVERSATIONS
from fusionkit.data.texts.word_labels import TAGGED
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.unicode import BadText


@dataclass(frozen=True)
class Source:
    """A named stream of samples.

    `splits`            by role ("train", "val", "test" and any other), the reader's names of the splits that play it.
    `batch_size`        images a step and rank.
    `texts_per_image`   by kind, texts of an image that are drawn a step; a kind that is not here, or 0, is left out.
    `max_length`        tokens of a text, special ones included; longer texts are cut.
    `clean`             changes a text before it is tokenised (`cleaning.Clean`); None: read as it is.
    `template`          by kind, what stands around each text, such as "Question: {text} Answer:" (`cleaning.filled`).
    `chat_template`     of conversations, in Jinja; None: the tokenizer's own, and where it has none `chat.PLAIN`.
    `augment`           of training images, or None for none.
    `regions`           which region features are read, where the reader's images are such (npz files); None: they have pixels.
    `stream`            how films, several images of one text, or recordings are read in place of single images (`streams.base`).
    `shuffle_window`    files (shards, folders) in a random order, and images shuffled within so many of them at a time: what is
                        read from a slow disk lies close together. None: all images are shuffled.
    `shots`             worked examples that stand before each conversation of an evaluated split (`shots.with_shots`).
    `cache`             keep all images in memory, decoded and resized: for small data sets of small images.
    """

    reader: Reader
    splits: Mapping[str, Sequence[str]]
    batch_size: int
    texts_per_image: Mapping[str, int]
    max_length: int = 40
    clean: Callable[[str], str] | None = None
    augment: Augmentation | None = None
    cache: bool = False
    regions: Detections | None = None
    template: Mapping[str, str] | None = None
    shuffle_window: int | None = None
    chat_template: str | None = None
    shots: int = 0
    stream: Stream | None = None

    def check(self, key: str) -> None:
        """Raise ConfigError for a number that cannot work; ``key`` is the source's place in the configuration."""
        for name, section in (("splits", self.splits), ("texts_per_image", self.texts_per_image)):
            if not isinstance(section, Mapping):
                raise ConfigError(f"{key}.{name} is {reprlib.repr(section)}, but has to be a section of keys")
        counts = {f"texts_per_image.{kind}": count for kind, count in self.texts_per_image.items()}
        window = {} if self.shuffle_window is None else {"shuffle_window": self.shuffle_window}
        numbers = {"batch_size": self.batch_size, "max_length": self.max_length, "shots": self.shots}
        for name, count in {**numbers, **counts, **window}.items():
            if type(count) is not int:
                raise ConfigError(f"{key}.{name} is {reprlib.repr(count)}, but has to be a whole number")
        for name, count in counts.items():
            if count < 0:
                raise ConfigError(f"{key}.{name} is {count}, but has to be a number of texts from 0 up")
        if self.batch_size < 1:
            raise ConfigError(f"{key}.batch_size is {self.batch_size}, but has to be at least 1")
        if self.shots and (self.shots < 0 or CONVERSATIONS not in self.kinds or "train" not in self.splits):
            raise ConfigError(
                f"{key}.shots is {self.shots}, but has to be a number of conversations of the role train that stand before each "
                "other one; set it to 0 where the source has none"
            )
        if self.shuffle_window is not None and self.shuffle_window < 1:
            raise ConfigError(
                f"{key}.shuffle_window is {self.shuffle_window}, but has to be a number of images, or null"
            )
        if self.max_length < 3:
            raise ConfigError(f"{key}.max_length is {self.max_length}, but has to be at least 3: [CLS], a token, [SEP]")
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise ConfigError(
                f"{key}.chat_template is {reprlib.repr(self.chat_template)}, but has to be a text in Jinja, or null"
            )
        check_templates(self.template, self.kinds, f"{key}.template")
        if CONVERSATIONS in self.kinds and (CONVERSATIONS in (self.template or {}) or self.clean is not None):
            wrong = "clean" if self.clean is not None else f"template.{CONVERSATIONS}"
            raise ConfigError(
                f"{key}.{wrong}: conversations are written by {key}.chat_template as they are; set it to null"
            )
        if TAGGED in self.kinds and TAGGED in (self.template or {}):
            raise ConfigError(
                f"{key}.template.{TAGGED}: words have labels, and those of a template have none; leave it out"
            )
        if self.regions is not None and (self.augment is not None or self.cache):
            setting = "cache" if self.cache else "augment"
            raise ConfigError(
                f"{key}.{setting} is for pixels, but {key}.regions reads features; set {key}.{setting}=null"
            )
        for name, value in (("regions", self.regions), ("augment", self.augment), ("cache", self.cache or None)):
            if self.stream is not None and value is not None:
                unset = "false" if name == "cache" else "null"
                raise ConfigError(
                    f"{key}.{name} is for single images, but {key}.stream reads streams; set {key}.{name}={unset}"
                )
        if self.stream is not None and self.shots:
            raise ConfigError(f"{key}.shots stand before single images, but {key}.stream reads streams; set it to 0")
        for role, names in self.splits.items():
            if isinstance(names, str):
                raise ConfigError(f"{key}.splits.{role} is '{names}', but has to be a list: [{names}]")
            if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"{key}.splits.{role} is {reprlib.repr(names)}, but has to be a list of names")
        if not self.kinds:
            raise ConfigError(f"{key}.texts_per_image asks for no texts; give e.g. {key}.texts_per_image.captions=1")

    @property
    def images(self) -> str:
        """What batches hold of the images: "pixel_values", "regions", or what a stream is read as."""
        if self.stream is not None:
            return self.stream.reads
        return "pixel_values" if self.regions is None else "regions"

    @property
    def kinds(self) -> list[str]:
        """The text kinds that batches hold."""
        return [kind for kind, count in self.texts_per_image.items() if count > 0]


class Splits:
    """The samples of every source by role; training, validation and test show different images (``leakage``).

    `drop_overlap`   sources that do not train on images which a held-out role of any source shows.
    `allow_overlap`  pairs of "source/role" that may share images.
    `damage`         what is done about images that are missing or damaged.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        drop_overlap: Sequence[str] = (),
        allow_overlap: Sequence[Sequence[str]] = (),
        damage: Damage | None = None,
    ) -> None:
        self.damage = damage or Damage()
        self.left_out: dict[tuple[str, str], int] = {}  # by source and role, images that are missing or damaged
        self.sources, self.drop_overlap, self.allow_overlap = sources, list(drop_overlap), list(allow_overlap)
        self._read: dict[tuple[str, str], Samples] = {}
        for name in self.drop_overlap:
            if name not in sources:
                raise ConfigError(f"data.drop_overlap names '{name}', which is no source; {suggest(name, sources)}")
        check_allowed(self.allow_overlap, [f"{name}/{role}" for name, role in self._places])

    def samples(self, source: str, role: str) -> Samples:
        """Raises ConfigError where there is no such source or role, DataError where its files are wrong."""
        if source not in self.sources:
            raise ConfigError(f"data.sources has no source '{source}'; {suggest(source, self.sources)}")
        roles = self.sources[source].splits
        if role not in roles:
            raise ConfigError(f"data.sources.{source}.splits has no role '{role}'; {suggest(role, roles)}")
        return self.training[source] if role == "train" else self._all(source, role)

    @cached_property
    def training(self) -> dict[str, Samples]:
        """By source that trains, its training images, once it is sure that no held-out split of any source shows them.

        Raises DataError where one does, and where validation and test share an image.
        """
        self._read_all(self._places)
        held_out = {place: self._all(*place) for place in self._places if place[1] != "train"}
        shown, kept = by_photo(held_out.values()), {}
        for name in (name for name, role in self._places if role == "train"):
            samples = self._all(name, "train")
            kept[name] = without(samples, shown) if name in self.drop_overlap else samples
            if samples and not kept[name]:
                raise DataError(
                    f"all {len(samples)} training images of source '{name}' are in held-out splits of the run too; "
                    f"correct data.sources.{name}.splits"
                )
        streams = {f"{name}/train": samples for name, samples in kept.items()}
        require_apart(streams | {"/".join(place): found for place, found in held_out.items()}, self.allow_overlap)
        return kept

    @property
    def _places(self) -> list[tuple[str, str]]:
        """Every source with each of its roles."""
        return [(name, role) for name, source in self.sources.items() for role in source.splits]

    def require_images(self, places: Sequence[tuple[str, str]]) -> None:
        """Raise DataError for a source and role that has a missing or damaged image, unless such are left out."""
        if self.damage.rule == "error":
            for name, role in places:
                self.damage.require_none(self.samples(name, role), f"source {name}, {role}", role != "train")

    @property
    def dropped(self) -> dict[str, int]:
        """By source that trains, how many images it lost."""
        return {name: len(self._all(name, "train")) - len(kept) for name, kept in self.training.items()}

    def training_strings(self) -> Iterator[str]:
        """All texts of the kinds that the sources train on."""
        for name, samples in self.training.items():
            for kind in self.sources[name].kinds:
                yield from as_samples(samples).strings(kind)

    def training_facts(self, name: str) -> Iterator[Any]:
        """A fact of those of these texts that have it."""
        for source, samples in self.training.items():
            for kind in self.sources[source].kinds:
                yield from as_samples(samples).facts(kind, name)

    def template_words(self) -> Iterator[str]:
        """What stands around the texts of the sources."""
        for source in self.sources.values():
            yield from (template.replace(PLACE, " ") for template in (source.template or {}).values())
            if CONVERSATIONS in source.kinds:  # the words of a template that ours stands in for
                yield re.sub(r"{[{%].*?[%}]}", " ", source.chat_template or PLAIN)

    def _all(self, name: str, role: str) -> Samples:
        """The images that have texts of the source's kinds."""
        if (name, role) not in self._read:
            self._read_all([(name, role)])
        return self._read[name, role]

    def _read_all(self, places: Sequence[tuple[str, str]]) -> None:
        """Read what has not been read yet, all at once: a file of several splits is then parsed once."""
        places = [place for place in places if place not in self._read]
        wanted = [
            Wanted(
                source.reader,
                tuple(source.splits[role]),
                partial(_read, name, source, role, self.damage.rule == "skip"),
                self.damage.rule if self.damage.rule == "skip" else "",
            )
            for name, role in places
            for source in [self.sources[name]]
        ]
        for (name, role), tables in zip(places, load_tables(wanted), strict=True):
            samples = Samples(tables)
            kinds = self.sources[name].kinds
            for kind in kinds:
                if kind not in samples.kinds:
                    raise ConfigError(
                        f"data.sources.{name}.texts_per_image.{kind}: the reader gives none; {suggest(kind, samples.kinds)}"
                    )
            samples = samples.where(np.any([samples.counts(kind) > 0 for kind in kinds], axis=0))
            if self.damage.rule == "skip":
                count = len(samples)
                samples = self.damage.without(samples, f"source {name}, {role}", role != "train")
                self.left_out[name, role] = count - len(samples)
            self._read[name, role] = samples


def _read(name: str, source: Source, role: str, missing_may_be: bool = False) -> Tables:
    """The columns of a role, merged by image and checked."""
    try:
        with missing_images() if missing_may_be else nullcontext():
            tables = merge([(split, read_tables(source.reader, split)) for split in source.splits[role]])
    except BadText as error:  # of one's own reader, which names no file
        raise DataError(f"source {name}: {error}") from error
    for kind in tables.texts:
        require_boxes_of(tables, kind, f"source {name}")
    return tables
