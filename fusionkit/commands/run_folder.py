"""The folder of a run: nothing that is there is lost unless the user says so, nothing is made before the run can start."""

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.parts import Parts
from fusionkit.assembly.trust import fault_of_yaml, inert, read_stored
from fusionkit.checkpoints.load import read_checkpoint
from fusionkit.checkpoints.save import BEST, LAST, PREVIOUS
from fusionkit.checkpoints.split import is_readable, remove_unnamed
from fusionkit.config import leaves
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.atomic import remove_leftovers, write_text
from fusionkit.files.names import link_out_of
from fusionkit.files.tensors import read_tensors
from fusionkit.scoring.records import require_writable

SCORES = ("metrics.json", "directions.json", "details.json", "prompts.json", "int8.json", "evaluation.yaml")
BEST_MODE = ("callbacks.best.mode", "max", "auto")  # what was the default, and is: the same, but for errors
CONTENT = (
    "checkpoints",
    "logs",
    "predictions",
    "samples",
    "curves",
    "gallery",
    "attention",
    "prompts",
    "evaluation",
    "cache",
)


def check_folder(config: DictConfig) -> None:
    """Raise where the run would replace another one, or where there is nothing to resume."""
    folder, earlier = Path(config.output_dir), checkpoints(config)
    if config.resume not in (True, False, "auto"):
        raise ConfigError(f"resume is '{config.resume}'; give true, false or auto")
    if (config.resume or config.overwrite) and (link := link_out_of(folder, _written(folder))):
        raise DataError(
            f"{link} is a link that leads out of the run's folder, and what is written or removed there would follow it; put "
            "what it leads to in its place, or give another output_dir=FOLDER"
        )
    if config.resume and config.overwrite:
        raise ConfigError("resume=true and overwrite=true contradict each other; give one of them")
    if config.resume == "auto":
        _require_same_run(config)
    elif config.resume:
        if last_checkpoint(config) is None:
            raise DataError(
                f"{folder}/checkpoints holds no last.ckpt to resume from; leave resume=true out to start anew"
            )
    elif earlier and not config.overwrite and not config.trainer.fast_dev_run:
        raise ConfigError(
            f"{folder} already holds a run ({earlier[0].name}); add resume=true to go on with it, overwrite=true to replace "
            "it, or choose another output_dir=FOLDER"
        )


def _written(folder: Path) -> list[Path]:
    """What a run writes, or removes, in its folder."""
    return [*(folder / name for name in (*CONTENT, *SCORES, "config.yaml")), *folder.glob("evaluation_*")]


def replaced(config: DictConfig) -> list[Path]:
    """What is removed from the folder, by whatever name it is there, where the run begins anew."""
    folder = Path(config.output_dir)
    if config.resume:
        return []
    if config.overwrite and checkpoints(config):
        return _written(folder)
    return [folder / name for name in (*SCORES, "config.yaml")]


def prepare_folder(config: DictConfig, last: Path | None = None) -> None:
    """Make the folder; with ``overwrite`` the files of an earlier run go first. One that goes on, from ``last``, changes nothing.

    What it changes later is in ``GoingOn``.
    """
    folder = Path(config.output_dir)
    require_writable(folder)
    remove_leftovers(folder / "checkpoints", 0)  # which no other process writes to
    remove_unnamed(folder / "checkpoints")
    if config.overwrite and checkpoints(config):
        print(f"replacing the earlier run in {folder}", flush=True)
        for path in (*(folder / name for name in CONTENT), *folder.glob("evaluation_*")):
            if path.exists():
                shutil.rmtree(path)
    if last is None:
        keep_configuration(config)


def keep_configuration(config: DictConfig) -> None:
    """Keep the configuration in the folder; scores go, since those of a run that goes on will be others."""
    folder = Path(config.output_dir)
    for name in SCORES:
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config))


class GoingOn(Callback):
    """What a run that goes on does to its folder, once a batch has been trained: until then all is as it was.

    ``is_restored`` tells whether the checkpoint could be taken up.
    """

    def __init__(self, config: DictConfig | None) -> None:
        self.config = config
        self.is_restored = False

    def on_sanity_check_start(self, *args: Any) -> None:
        self.is_restored = True

    def on_train_start(self, *args: Any) -> None:
        self.is_restored = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.is_global_zero and self.config is not None:
            keep_configuration(self.config)
            self.config = None


def keep_evaluation(folder: Path, config: DictConfig, parts: Parts) -> None:
    """Write ``evaluation.yaml``: the command, the number of parameters and, as ``run``, the checkpoint's own configuration.

    Called before anything is scored: intervals of an earlier evaluation in the folder would be taken for this one's.
    So scores say whose they are: ``fusionkit compare`` joins those of one checkpoint, also where the run itself is gone.
    """
    content: Any = OmegaConf.to_container(config, resolve=True)
    content |= {
        "checkpoint": str(Path(config.checkpoint).resolve()),
        "working_folder": str(Path.cwd()),
        "parameters": parts.parameters,
        "run": OmegaConf.to_container(parts.config, resolve=True),
    }
    if parts.int8 is not None:  # another model than the run's
        content["run"]["int8"] = content.get("int8") or True
    for name in ("details.json", "int8.json"):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "evaluation.yaml", yaml.safe_dump(content, sort_keys=False))


def evaluation_folder(home: Path, config: DictConfig) -> Path:
    """``evaluation`` in the run's folder or, where that holds scores of something else, evaluation_2 and so on."""
    asked = _asked(OmegaConf.to_container(config, resolve=True))
    folders = (home / ("evaluation" if number == 1 else f"evaluation_{number}") for number in count(1))
    return next(folder for folder in folders if _kept(folder) in (None, asked))


def unrounded_folder(home: Path, config: DictConfig) -> Path | None:
    """Where the scores of the same lie that the checkpoint has with its weights as they are; None where there are none."""
    asked = _asked({**OmegaConf.to_container(config, resolve=True), "int8": None})  # type: ignore[dict-item]
    is_own = not any(asked[key] for key in ("split", "sources", "data", "benchmark"))
    own = _kept(home) or {**asked, "evaluation": None}  # the training's own
    folders = ([home] if own == asked else []) if is_own else [p for p in home.glob("evaluation*") if _kept(p) == asked]
    return next((folder for folder in folders if (folder / "metrics.json").is_file()), None)


def _kept(folder: Path) -> dict[str, Any] | None:
    path = folder / "evaluation.yaml"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = {} if fault_of_yaml(text) else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        content = {}
    return _asked(
        content if isinstance(content, dict) else {}
    )  # of what is none of ours no new scores are written there


def _asked(evaluation: Any) -> dict[str, Any]:
    """What an evaluation scores, of its configuration."""
    return {
        "checkpoint": Path(str(evaluation.get("checkpoint"))).name,
        **{key: evaluation.get(key) or None for key in ("split", "sources", "benchmark", "data", "evaluation", "int8")},
    }


def is_finished(config: DictConfig) -> bool:
    """Whether the folder holds this very run, evaluated; raises ConfigError where it holds another one."""
    _require_same_run(config)
    return (Path(config.output_dir) / "metrics.json").exists()


def _require_same_run(config: DictConfig) -> None:
    path = Path(config.output_dir) / "config.yaml"
    if not path.exists():
        return
    kept, config = read_stored(path.read_text(encoding="utf-8", errors="replace"), path), inert(config)
    OmegaConf.update(kept, "output_dir", config.output_dir)  # the folder may have moved, and what lies in it with it
    here, there, asked = _choices(config), _choices(kept), _choices(config, resolve=False)
    told = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
    new = _choices(training_config(), resolve=False) if any(key not in there for key in told) else {}
    for key in sorted(told, key=lambda key: ("${" in str(asked.get(key)), key)):  # causes first
        # by a later version, and left as it comes; a key that is not asked for is a copy of another
        is_added = key not in there and (key not in asked or (key in new and new[key] == asked[key]))
        if not is_added and (key, there.get(key), here.get(key)) != BEST_MODE:
            raise ConfigError(
                f"resume=auto: {path} is of another run ({key} was {there.get(key)}, is {here.get(key)}); choose another "
                "output_dir=FOLDER, go on with it as it is now by resume=true, or remove the folder"
            )


def _choices(config: Any, resolve: bool = True) -> dict[str, Any]:
    """All values of a run by key, but for how it is begun and the sizes, to which other keys refer: their values count."""
    values = leaves(OmegaConf.to_container(config, resolve=resolve))
    begun = ("resume", "overwrite", "trainer.slurm", "trainer.strategy.save")
    return {key: value for key, value in values if key not in begun and not key.startswith(("size.", "trainer.slurm."))}


def checkpoints(config: DictConfig) -> list[Path]:
    """The checkpoints that are in the folder of the run, by name."""
    return sorted((Path(config.output_dir) / "checkpoints").glob("*.ckpt"))


def last_checkpoint(config: DictConfig) -> Path | None:
    """Where to resume: the newest checkpoint that reads. DataError where there are some, and none does."""
    folder = Path(config.output_dir) / "checkpoints"
    found = [path for name in (LAST, PREVIOUS, BEST) if (path := folder / name).is_file()]
    if not found or (found[0].name == LAST and is_readable(found[0])):
        return found[0] if found else None
    readable = [path for path in found if is_readable(path)]
    if not readable:
        read_checkpoint(found[0])  # says what is wrong with it
    return max(readable, key=lambda path: read_tensors(path, mmap=True).get("global_step", 0))


def resume_from(config: DictConfig) -> Path | None:
    """The checkpoint that the run goes on from, None for a new run."""
    return last_checkpoint(config) if config.resume else None
