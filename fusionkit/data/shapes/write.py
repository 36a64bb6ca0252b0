"""Makes the shapes world: workers draw and describe it, and it appears in its folder all at once."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

from fusionkit.data.shapes.draw import draw
from fusionkit.data.shapes.files import Records, write_files
from fusionkit.data.shapes.records import (
    IDS_PER_SPLIT,
    SPLITS,
    annotate,
    caption_records,
    image_record,
    instance_records,
    question_records,
    reference_records,
)
from fusionkit.errors import ConfigError, DataError

VERSION = 1  # of the world: raise it whenever the same seed gives other files
LIMITS = {"scenes": (1, IDS_PER_SPLIT - 1), "seed": (0, 2**63 - 1), "image_size": (48, 512)}
CHUNK = 250  # scenes that a worker makes at a time; so few in all are made without workers
MAX_WORKERS = 8
Parameters = dict[str, int]
Job = tuple[str, range]  # split and scene numbers


def make_shapes(root: str | Path, scenes: int = 5000, seed: int = 0, image_size: int = 64) -> None:
    """Make the embedded data set: ``scenes`` images to train on and fewer for the other splits (see `split_sizes`).

    A set made with the same parameters is left alone; an interrupted run leaves nothing half-made.
    Raises ConfigError for a parameter out of range, DataError where ``root`` holds something else or cannot be written.
    """
    parameters = _checked({"scenes": scenes, "seed": seed, "image_size": image_size})
    target = Path(root)
    if is_made(target, parameters):
        return
    with appearing_at_once(target, parameters) as folder:
        (folder / "images").mkdir()
        made = {split: Records() for split in SPLITS}
        jobs = [
            (split, range(start, min(start + CHUNK, size)))
            for split, size in split_sizes(scenes).items()
            for start in range(0, size, CHUNK)
        ]
        for (split, _), part in zip(jobs, _map(partial(_make, folder, seed, image_size), jobs), strict=True):
            made[split].extend(part)
        write_files(folder, made)
        counts = {split: records.counts() for split, records in made.items()}
        manifest = {"generator": "fusionkit shapes", "parameters": parameters, "counts": counts}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def split_sizes(scenes: int) -> dict[str, int]:
    """Images by split: 5,000 to train on come with 250, 500 and 250 others."""
    return dict(zip(SPLITS, (scenes, max(1, scenes // 20), max(1, scenes // 10), max(1, scenes // 20)), strict=True))


def _make(folder: Path, seed: int, image_size: int, job: Job) -> Records:
    """Draws some scenes of a split and returns their records; runs in a worker."""
    split, numbers = job
    records = Records()
    for number in numbers:
        annotated = annotate(seed, split, number)
        picture, boxes = draw(annotated.scene, image_size)
        picture.save(folder / "images" / annotated.file_name, quality=90, subsampling=0)
        questions, answers = question_records(annotated)
        records.images.append(image_record(annotated, image_size))
        records.captions += caption_records(annotated)
        records.questions += questions
        records.answers += answers
        records.instances += instance_records(annotated, boxes)
        records.refs += reference_records(annotated)
    return records


def _map(make: Callable[[Job], Records], jobs: list[Job]) -> Iterable[Records]:
    """Results in the order of the jobs, so that the number of workers changes no file."""
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    if workers == 1 or sum(len(numbers) for _, numbers in jobs) <= CHUNK:
        yield from map(make, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(make, jobs)


def _checked(parameters: Parameters) -> Parameters:
    for name, value in parameters.items():
        low, high = LIMITS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"shapes: '{name}' must be a whole number from {low} to {high}, not {value!r}.")
    return {"version": VERSION, **parameters}


def is_made(target: Path, parameters: Parameters, kind: str = "shapes") -> bool:
    """Whether the set is there already; raises where its place is taken by something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / "manifest.json").read_text())["parameters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{target}' has no readable manifest.json of a {kind} data set: choose another folder."
        ) from error
    if found == parameters:
        return True
    differing = [name for name in parameters if found.get(name) != parameters[name]]
    was, now = (", ".join(f"{name}={values.get(name)}" for name in differing) for values in (found, parameters))
    raise DataError(f"'{target}' holds {kind} made with {was}, not {now}: delete that folder or choose another.")


@contextmanager
def appearing_at_once(target: Path, parameters: Parameters, kind: str = "shapes") -> Iterator[Path]:
    """A folder beside the target that takes its place when all went well and vanishes when not."""
    folder = target.absolute().parent / f".{target.name}-{uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True)
        yield folder
        if target.exists():
            target.rmdir()  # empty, or another process was faster
        folder.rename(target)
    except OSError as error:
        if not is_made(target, parameters, kind):
            raise DataError(f"The {kind} data set cannot be written to '{target}': {error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
