"""``fusionkit search``: an index of a folder's images, made, brought up to date and searched by a text, an image or both."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.digests import digest, weights_digest
from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.load import load_parts
from fusionkit.cli.main import STORED
from fusionkit.commands.evaluation_setup import device_of
from fusionkit.commands.predict_images import predictor_of
from fusionkit.data.requests import Request, readable_text
from fusionkit.encoders.base import SupportsWeightless
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference.answering import Predictor
from fusionkit.inference.embedding import Embedder
from fusionkit.inference.image_index import ImageIndex, Maker
from fusionkit.inference.image_search import ImageSearch, Query, Ways, require_threshold
from fusionkit.inference.index_update import update_index
from fusionkit.reporting.search_results import one_line, print_groups, require_ending, write_sheet
from fusionkit.scoring.records import Record, require_writable, write_records

TOLD = 5  # files that cannot be read, by name


def search(config: DictConfig) -> None:
    """Make an index of ``config.images``, and print what ``config.query`` and ``config.image`` find in it.

    Raises DataError at the end, when all else is told, where a picture that was found cannot be read any more.
    """
    queries = _queries(config)
    _check(config, queries)
    ways = Ways(config.top, config.k, config.weight)
    parts = load_parts(config.checkpoint, {name: config[name] for name in STORED}, False, config.trust)
    seed_everything(parts.config.seed, workers=True, verbose=False)
    predictor = predictor_of(parts, device_of(parts), batch_size=config.batch_size)
    images = None if config.images is None else Path(config.images)
    found = open_index(parts, predictor, f"checkpoint={config.checkpoint}", Path(config.index), images)
    _require_apart(config, found.index.images)
    done = f" of {found.index.images}" if found.update is None else f": {found.update}"
    print(f"index={config.index}: {len(found.index):,} images{done}")
    if found.update is not None:
        faults = list(found.update.faults.values())
        for fault in faults[:TOLD]:
            print(f"not read: {one_line(fault)}")
        if len(faults) > TOLD:
            print(f"not read: {len(faults) - TOLD:,} more")
    if config.duplicates:
        every = found.duplicates(config.threshold)
        names = [f"group {number}" for number in range(1, len(every) + 1)]
        said: list[Record] = [{"group": number} for number in range(1, len(every) + 1)]
        print(f"{len(every):,} groups of pictures of a cosine from {config.threshold} on, or of the same bytes")
    elif queries:
        every = found.search(queries, ways)
        said = [_said(query) for query in queries]
        names = [" + ".join(each.values()) for each in said]
        print(f"rank    score  image   ({_score_of(found, queries, ways)})")
    else:
        return
    groups = [(name, [each for each in group if "error" not in each]) for name, group in zip(names, every, strict=True)]
    print_groups(groups, has_headings=len(groups) > 1 or config.duplicates)
    records = [about | record for about, group in zip(said, every, strict=True) for record in group]
    if config.output:
        write_records(Path(config.output), records)
    if config.sheet:
        write_sheet(Path(config.sheet), str(found.index.images), found.index.images, groups)
    if told := [f"{key}: {config[key]}" for key in ("output", "sheet") if config[key]]:
        print("   ".join(told))
    errors = [record["error"] for record in records if "error" in record]
    if errors:
        raise DataError(f"{errors[0]}{f' (and {len(errors) - 1:,} more)' if len(errors) > 1 else ''}")


def open_index(parts: Parts, predictor: Predictor, name: str, folder: Path, images: Path | None) -> ImageSearch:
    """The index in a folder, with ``images`` brought up to date, for the checkpoint that is called ``name``."""
    embedder = Embedder(predictor)
    embedder.require_contrast(name)
    maker, width, update = maker_of(parts, name, str(predictor.options.precision)), parts.model.embed_size, None
    if images is not None:
        update = update_index(
            *(folder, images, parts.model.image_encoder.reads, maker, width),
            lambda files: embedder.images([Request(file, {}) for file in files]),
            predictor.options.quiet,
        )
    return ImageSearch(predictor, ImageIndex(folder, maker, width), update)


def maker_of(parts: Parts, name: str, precision: str) -> Maker:
    """What the vectors of a checkpoint's images are a function of."""
    encoder, data = parts.model.image_encoder, parts.datamodule
    recipe: Any = OmegaConf.to_container(parts.config.image_encoder, resolve=True)
    if isinstance(encoder, SupportsWeightless):  # the same wherever its files lay
        recipe = encoder.weightless(recipe, encoder.sizes())
    finish, regions = data.finish, [settings.regions for settings in data.sources.values()]
    pixels = (finish.size, finish.fit, finish.multiple, finish.resample, finish.scale.tolist(), finish.shift.tolist())
    weights = weights_digest(encoder, parts.model.image_projection, has_versions=False)  # type: ignore[arg-type]
    adapters = parts.config.get("adapters")
    return Maker(name, digest([weights, sorted(recipe.items()), adapters]), digest(pixels, regions), precision)


def _queries(config: DictConfig) -> list[Query]:
    """What is looked for: each text, with the image if there is one, or the image alone."""
    image = None if config.image is None else Request(Path(config.image), {})
    given = config.query
    if isinstance(given, str) and given.startswith("[") and given.endswith("]"):  # words are not read as a list before
        try:
            given = yaml.load(given, yaml.BaseLoader)  # texts stay texts: [no, yes]
        except yaml.YAMLError:
            raise ConfigError(f"query={given} is no list of texts; write query='[a dog, a cat]'") from None
    texts = list(given) if isinstance(given, list) or OmegaConf.is_list(given) else [] if given is None else [given]
    if not texts and given is not None:
        raise ConfigError("query is an empty list; name what is looked for")
    words = [readable_text(text, "query") for text in texts]
    return [Query(text, image) for text in words] or ([] if image is None else [Query(None, image)])


def _check(config: DictConfig, queries: Sequence[Query]) -> None:
    """Raise ConfigError or DataError for what can be told without the checkpoint."""
    if config.batch_size < 1:
        raise ConfigError(f"batch_size is {config.batch_size}, but has to be at least 1")
    require_threshold(config.threshold)
    if queries and config.duplicates:
        raise ConfigError("duplicates=true is about the images of the index alone; leave out query and image")
    if not queries and not config.duplicates:
        if config.images is None:
            raise ConfigError("nothing is asked for; give images=FOLDER, query=TEXT, image=FILE or duplicates=true")
        if config.output or config.sheet:
            raise ConfigError("output and sheet are of what is found; give query=TEXT, image=FILE or duplicates=true")
    if config.sheet:
        require_ending(Path(config.sheet))
    for key in ("output", "sheet"):
        if config[key] and Path(config[key]).is_dir():
            raise DataError(f"{key}={config[key]} is a folder; name a file in it")
        if config[key]:
            require_writable(Path(config[key]).parent, key)
    if config.images is not None:
        _require_apart(config, Path(config.images))


def _require_apart(config: DictConfig, images: Path) -> None:
    """Raise ConfigError for results that would replace a picture, or be taken for one the next time."""
    home, shown = Path(os.path.realpath(images)), config.image and os.path.realpath(config.image)
    for key in ("output", "sheet"):
        path = Path(os.path.realpath(config[key])) if config[key] else None
        if path is not None and (path.is_relative_to(home) or str(path) == shown):
            where = "the picture that is looked for" if str(path) == shown else f"in the folder of images, {images}"
            raise ConfigError(f"{key}={config[key]} is {where}; name a file elsewhere")


def _score_of(found: ImageSearch, queries: Sequence[Query], ways: Ways) -> str:
    if not any(found.matches(query, ways.k) for query in queries):
        return "score: cosine"
    rule = found.predictor.options.reranking.rule
    return f"score: {rule}, of the {min(len(found.index), max(ways.k, ways.top)):,} nearest, by matching"


def _said(query: Query) -> Record:
    said = {"query": query.text, "query_image": None if query.image is None else str(query.image.image)}
    return {name: value for name, value in said.items() if value is not None}
