"""Where the images of each source and role come from, and how they are finished: pixels, regions, or tables of their states."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from fusionkit.data.dataset import Augmentation, Finishing, Images
from fusionkit.data.images import CachedImages, CorruptImage, ImageFiles, has_pixels
from fusionkit.data.pixels.bitmap import FastImages
from fusionkit.data.pixels.stored import StoredImages, Table, as_stored
from fusionkit.data.regions import RegionFiles, as_found
from fusionkit.data.source import Source
from fusionkit.data.streams.base import StreamFiles, finish_stream
from fusionkit.data.tables.samples import ImagePaths, Samples
from fusionkit.data.transforms import Augment, Finish
from fusionkit.errors import DataError

SamplesOf = Callable[[str, str], Samples]  # of a source and role


class RoleImages:
    """The images of every source and role.

    ``samples``    gives those of a role, ``evaluated`` those behind worked examples where the source has such.
    ``decoder``    of training images that are cropped at random; all others are Pillow's.
    """

    def __init__(
        self, sources: Mapping[str, Source], finish: Finish, decoder: str, samples: SamplesOf, evaluated: SamplesOf
    ) -> None:
        self.sources, self.finish, self.decoder = sources, finish, decoder
        self._samples, self._evaluated = samples, evaluated
        self._cached: dict[tuple[str, str, bool], Images] = {}  # of a source and role, with worked examples or without
        self._tables: dict[tuple[str, str], Table] = {}

    def images(self, source: str, role: str, side: int, is_augmented: bool = True) -> Images:
        """The images of a role, of ``side`` pixels at least where they are decoded; not augmented: as evaluations see them."""
        samples = self._samples(source, role) if is_augmented else self._evaluated(source, role)
        paths, settings = ImagePaths(samples), self.sources[source]
        if settings.stream is not None:
            return StreamFiles(samples, settings.stream, side)
        if has_pixels(paths[0]) == (settings.images == "regions"):
            raise DataError(
                f"the images of source '{source}' are {'files' if has_pixels(paths[0]) else 'region features'} such as "
                f"{paths[0]}, but data.sources.{source}.regions is {'set' if settings.regions else 'not set'}; "
                "point the reader's 'images' at the others, or change it"
            )
        if settings.regions is not None:
            return RegionFiles(paths, settings.regions)
        if (table := self.table(source, role, is_augmented)) is not None:
            return StoredImages(table, self._samples(source, role), settings.kinds)
        if not settings.cache:
            is_fast = is_augmented and self._is_fast(source, role)
            return FastImages(paths, side, self.decoder) if is_fast else ImageFiles(paths, side)
        place = (source, role, settings.shots > 0 and not is_augmented)
        if place not in self._cached:
            self._cached[place] = CachedImages(paths, self.finish.size)
        return self._cached[place]

    def finishing(self, source: str, role: str, is_augmented: bool = True) -> Finishing:
        """What makes an image ready for a batch."""
        if self.table(source, role, is_augmented) is not None:
            return as_stored
        if self.sources[source].stream is not None:
            return partial(finish_stream, self.finish)
        return self.finish if self.sources[source].regions is None else as_found

    def augmentation(self, source: str, role: str) -> Augmentation | None:
        """How training images are changed at random."""
        return self.sources[source].augment if role == "train" else None

    def decode_side(self, augment: Augmentation | None) -> int:
        """Of how many pixels an image has to be, at least, where it is decoded."""
        side = self.finish.decode_side
        return side if augment is None else max(side, augment.decode_side(self.finish.size))

    def use_table(self, source: str, role: str, table: Table | None) -> None:
        """Give batches of a role the states of a table in place of pixels; None: pixels again."""
        self._tables.pop((source, role), None)
        if table is not None:
            self._tables[source, role] = table

    def table(self, source: str, role: str, is_augmented: bool = True) -> Table | None:
        """The table of a role's image tokens; none of augmented images where they are to be as they are."""
        has_shots = self.sources[source].shots > 0
        is_other = not is_augmented and (has_shots or self.augmentation(source, role) is not None)
        return None if is_other else self._tables.get((source, role))

    def feature_size(self, source: str, role: str) -> int | None:
        """The width of a role's region features, read off its first image; None for pixels, and where that image is corrupt."""
        if self.sources[source].regions is None:
            return None
        try:
            size: int = self.images(source, role, 0).load(0).image.features.shape[1]
            return size
        except CorruptImage:  # the data set replaces it, or says so
            return None

    def identity(self, source: str, role: str) -> Iterator[str]:
        """What the pixels of a role are a function of beside files and draws, in words."""
        finish = self.finish
        numbers = f"{finish.scale.tolist()} {finish.shift.tolist()}"
        yield f"{finish.size} {finish.fit} {finish.resample} {numbers} {self.sources[source].cache}"
        if (stream := self.sources[source].stream) is not None:
            yield repr(stream)
        yield self.decoder if self._is_fast(source, role) else "pillow"

    def _is_fast(self, source: str, role: str) -> bool:
        augment = self.augmentation(source, role)
        return self.decoder != "pillow" and type(augment) is Augment and augment.crop_scale is not None
