"""``fusionkit alt-text``: captions of all pictures of a folder, as texts beside them or as one table."""

from pathlib import Path

from lightning import seed_everything
from omegaconf import DictConfig

from fusionkit.checkpoints.load import load_parts
from fusionkit.cli.main import STORED
from fusionkit.commands.evaluation_setup import device_of
from fusionkit.commands.predict_images import predictor_of
from fusionkit.errors import ConfigError, DataError, clean
from fusionkit.inference.alt_text import AltTextFiles, matchers, write_alt_texts
from fusionkit.inference.answering import Predictor
from fusionkit.scoring.records import Record, require_writable


def alt_text(config: DictConfig) -> None:
    """Caption the pictures of ``config.folder``.

    Raises DataError at the end, when all others are captioned, where a picture could not be read.
    """
    folders = [config.folder] if isinstance(config.folder, str) else list(config.folder)
    if len(folders) != 1:
        raise ConfigError(f"{len(folders)} folders are named; give one: fusionkit alt-text FOLDER checkpoint=PATH")
    if config.batch_size < 1:
        raise ConfigError(f"batch_size is {config.batch_size}, but has to be at least 1")
    parts = load_parts(config.checkpoint, {name: config[name] for name in STORED}, False, config.trust)
    seed_everything(parts.config.seed, workers=True, verbose=False)
    predictor = predictor_of(parts, device_of(parts), by=config.by, batch_size=config.batch_size)
    output_dir, output = (None if name is None else Path(name) for name in (config.output_dir, config.output))
    files, said = caption_folder(predictor, Path(folders[0]), output_dir, output, config.overwrite)
    errors = [record["error"] for record in said if "error" in record]
    print(
        f"{len(files.pictures):,} pictures: {len(said) - len(errors):,} captioned, {len(files.pictures) - len(said):,} had a "
        f"caption, {len(errors):,} could not be read"
    )
    texts = "" if files.home is None else f"texts: {files.home}   "
    by = "".join(f", {column} by {name}" for column, name in matchers(predictor).items())
    print(f"{texts}scores: {files.table} (caption_score: mean log-probability of a caption's tokens{by})")
    for error in errors[1:]:
        print(f"not read: {clean(error)}")
    if errors:
        others = f"; of {len(files.pictures)} pictures {len(errors)} could not be captioned"
        raise DataError(f"{errors[0]}{others if len(files.pictures) > 1 else ''}")


def caption_folder(
    predictor: Predictor, folder: Path, output_dir: Path | None, output: Path | None, overwrite: bool
) -> tuple[AltTextFiles, list[Record]]:
    """Caption the pictures of a folder; gives where the captions are, and what was said this time."""
    predictor.repliers("caption")  # a checkpoint that says none writes nothing
    reads = predictor.model.image_encoder.reads
    files = AltTextFiles(folder, reads, matchers(predictor), output_dir, output, overwrite)
    if output is None:
        require_writable(output_dir or folder)
    else:
        require_writable(output.parent, "output")
    return files, write_alt_texts(predictor, files)
