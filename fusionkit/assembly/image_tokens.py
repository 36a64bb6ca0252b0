"""What a frozen image encoder makes of each image: computed once before training, kept on disk, read at every step."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fusionkit.assembly.digests import digest, weights_digest
from fusionkit.data.datamodule import DataModule
from fusionkit.data.pixels.stored import Table, first_boxes, is_table, new_table
from fusionkit.data.pixels.views import Views
from fusionkit.data.tables.samples import ImagePaths
from fusionkit.distributed import barrier, rank
from fusionkit.encoders.base import ImageEncoder, SupportsWeightless, states_of, tokens_of, tower_of
from fusionkit.errors import ConfigError, suggest
from fusionkit.tasks.base import Task
from fusionkit.types import Stored

OR_NOT = "or set image_tokens.folder=null, and they are computed at each step"
AT_ONCE = 16  # views that are encoded together
Place = tuple[str, str]  # source and role


class ImageTokens:
    """The tables (``data.pixels.stored``) of a run whose image encoder is frozen, in ``folder``.

    ``views``  so many augmented views of each training image are kept and drawn from; None: there must be no augmentation.

    A table is named after all that it is a function of: the weights and options of the encoder, the precision and kind of
    device that it computes in, the images, their transforms and boxes. So a wrong one is never read, and another run finds it.
    """

    def __init__(
        self, folder: Path, views: int | None, datamodule: DataModule, encoder: ImageEncoder, recipe: Mapping[str, Any]
    ) -> None:
        self.folder, self.views, self.datamodule, self.encoder = folder, views, datamodule, encoder
        if isinstance(encoder, SupportsWeightless):  # the same whether or not a checkpoint brought the weights
            recipe = encoder.weightless(recipe, encoder.sizes())
        self.recipe = sorted(recipe.items())

    def check(self, tasks: Mapping[str, Task[Any]], objectives: Mapping[str, Iterable[str]]) -> None:
        """Raise ConfigError where tokens would change while the run goes on, or a task reads more than them.

        Called while everything that any stage trains is trainable.
        """
        if self.encoder.reads != "pixel_values":
            raise ConfigError(
                f"image_tokens: {type(self.encoder).__name__} reads no pixels; set image_tokens.folder=null"
            )
        if self.datamodule.finish.fit == "keep":
            raise ConfigError(
                f"image_tokens: data.fit=keep gives images of different shapes; set data.fit=squash, {OR_NOT}"
            )
        trained = [name for name, p in tower_of(self.encoder).named_parameters() if p.requires_grad]
        if trained:
            raise ConfigError(
                f"image_tokens: the image encoder trains ({trained[0]} and {len(trained) - 1} more tensors), so that its tokens "
                f"change; set ++image_encoder.frozen=true, {OR_NOT}"
            )
        for source, row in objectives.items():
            for name in row:
                if tasks[name].reads_images:
                    raise ConfigError(
                        f"image_tokens: task '{name}' changes the images at each step; leave it out, {OR_NOT}"
                    )
            if self.datamodule.sources[source].augment is not None and self.views is None:
                raise ConfigError(
                    f"image_tokens: data.sources.{source}.augment changes the images at random; set image_tokens.views=N to "
                    f"keep N views of each and draw from them, data.sources.{source}.augment=null, {OR_NOT}"
                )

    def fill(
        self,
        places: Sequence[Place],
        device: torch.device,
        precision: str,
        convert: Callable[[Tensor], Tensor] = lambda pixels: pixels,
        computing: Callable[[], AbstractContextManager[Any]] = torch.no_grad,
    ) -> None:
        """Compute the tables that are not there yet, every rank its share, and have the data module read them.

        ``convert`` and ``computing`` are what the training does to pixels and computes within. Raises ConfigError for an encoder
        that computes otherwise while it trains.
        """

        def encode(pixels: Tensor) -> tuple[Tensor, ...]:
            return states_of(self.encoder, convert(pixels.to(device)))

        size = self.datamodule.finish.size
        with computing(), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._require_constant(convert(torch.rand(2, 3, size, size).to(device)))
            with evaluating(self.encoder):
                for place, folder in self._folders(places, device, precision):
                    self.datamodule.images.use_table(*place, None)
                    barrier()  # all see the same tables
                    if not is_table(folder):
                        self._compute(place, folder, encode)
                    self.datamodule.images.use_table(*place, Table(folder))

    def use(self, places: Sequence[Place], device: torch.device, precision: str) -> None:
        """Have the data module read the tables that are there."""
        for place, folder in self._folders(places, device, precision):
            self.datamodule.images.use_table(*place, Table(folder) if is_table(folder) else None)

    def views_of(self, source: str, role: str) -> int:
        """How many views of each image are kept."""
        return (self.views or 1) if role == "train" and self.datamodule.sources[source].augment is not None else 1

    def _folders(self, places: Sequence[Place], device: torch.device, precision: str) -> Iterator[tuple[Place, Path]]:
        how = [weights_digest(tower_of(self.encoder)), type(self.encoder).__name__, self.recipe, precision, device.type]
        for place in places:
            images = self.datamodule.view_identity(*place, self.views_of(*place))
            yield place, self.folder / digest(how, images)

    def _compute(self, place: Place, folder: Path, encode: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        started, views, data = time.monotonic(), self.views_of(*place), self.datamodule
        samples = data.samples(*place)
        images, boxes = len(ImagePaths(samples)), first_boxes(samples, data.sources[place[0]].kinds)
        loader = data.view_loader(*place, views, max(1, AT_ONCE // views))

        def encoded() -> Iterator[tuple[list[Views], list[tuple[Tensor, ...]]]]:
            for batch in loader:
                states = encode(torch.cat([each.pixel_values for each in batch]))
                yield batch, [part.to("cpu").unflatten(0, (len(batch), views)) for part in states]

        batches = encoded()
        first = next(batches, None)
        example = [part[0, 0] for part in first[1]] if first else []  # type: ignore[call-overload]
        with new_table(folder, images, views, boxes[-1], example) as table:
            for batch, states in chain([first] if first else [], batches):
                for row, each in enumerate(batch):
                    begin = boxes[each.place] if each.place < len(samples) else boxes[-1]
                    table.put(each.place, [part[row] for part in states], each.size, each.boxes, begin)
        if rank() == 0:
            size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
            note = f" in {views} views" if views > 1 else ""
            seconds = time.monotonic() - started
            print(
                f"image tokens of {'/'.join(place)}: {images:,} images{note}, {size:,.0f} MB, {seconds:.0f} s -> {folder}"
            )

    def _require_constant(self, pixels: Tensor) -> None:
        """ConfigError where the tower computes otherwise while it trains, or is not all that pixels go through."""
        before = {name: (buffer, buffer.clone()) for name, buffer in tower_of(self.encoder).named_buffers()}
        with evaluating(self.encoder):
            expected = states_of(self.encoder, pixels)
            whole, joined = self.encoder(pixels), tokens_of(self.encoder, Stored(expected))
        with evaluating(self.encoder, False):
            trained = states_of(self.encoder, pixels)
        changed = [name for name, (buffer, value) in before.items() if not torch.equal(buffer, value)]
        for buffer, value in before.values():
            buffer.copy_(value)
        if changed or not all(map(same, expected, trained)):
            why = f"{changed[0]} moves" if changed else "dropout, or statistics of the batch"
            raise ConfigError(
                f"image_tokens: the image encoder computes otherwise while it trains ({why}); set ++image_encoder.frozen=true, "
                f"{OR_NOT}"
            )
        if not (same(whole.embeds, joined.embeds) and same(whole.pooled, joined.pooled)):
            raise ConfigError(
                f"image_tokens: {type(self.encoder).__name__} does more than its 'states' and 'tokens' tell; mend it, {OR_NOT}"
            )


def image_tokens_of(config: DictConfig, datamodule: DataModule, encoder: ImageEncoder) -> ImageTokens | None:
    """What the section ``image_tokens`` asks for; None where it names no folder. Raises ConfigError for a mistake in it."""
    section: Any = OmegaConf.to_container(config, resolve=True).get("image_tokens") or {}  # type: ignore[union-attr]
    if not isinstance(section, dict):
        raise ConfigError(f"image_tokens is {section!r}, but has to be a section of keys: image_tokens.folder=FOLDER")
    for key in section:
        if key not in ("folder", "views"):
            raise ConfigError(f"image_tokens.{key}: there is no such key; {suggest(str(key), ('folder', 'views'))}")
    folder, views = section.get("folder"), section.get("views")
    if not (views is None or (type(views) is int and views >= 1)):
        raise ConfigError(f"image_tokens.views is {views!r}, but has to be a whole number from 1, or null")
    if folder is None:
        return None
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"image_tokens.folder is {folder!r}, but has to be a folder, or null")
    recipe: Any = OmegaConf.to_container(config.image_encoder, resolve=True)
    return ImageTokens(Path(folder), views, datamodule, encoder, recipe)


@contextmanager
def evaluating(encoder: ImageEncoder, is_evaluating: bool = True) -> Iterator[None]:
    """The encoder in evaluation mode, or in training mode, and afterwards in those that its parts were in."""
    assert isinstance(encoder, nn.Module)
    modes = {part: part.training for part in encoder.modules()}
    try:
        encoder.train(not is_evaluating)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to what one computation differs by from another."""
    return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4)
