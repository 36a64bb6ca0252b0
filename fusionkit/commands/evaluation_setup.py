"""What ``evaluate`` and ``predict`` work on: a checkpoint, the sources and roles that were named, a device, the processes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.config_checks import check_top_level
from fusionkit.assembly.objectives import active_objectives
from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.load import load_parts
from fusionkit.cli.main import STORED, load
from fusionkit.cli.schemas import EvaluateConfig
from fusionkit.commands.run_folder import CONTENT, SCORES, evaluation_folder
from fusionkit.commands.worker import run_in_ranks
from fusionkit.config import home_of
from fusionkit.distributed import join, rank, world_size
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.names import link_out_of
from fusionkit.inference.evaluate import splits_of
from fusionkit.scoring.records import require_writable
from fusionkit.training.trainer import bare_trainer

WRITTEN = [name for name in CONTENT if name not in ("checkpoints", "cache", "evaluation")]  # beside the scores


def share(job: str, config: DictConfig) -> None:
    """Do a job ("module:function") on the configuration, here or in several processes that share it."""
    if not isinstance(config.devices, int) or config.devices < 1:
        raise ConfigError(f"devices is {config.devices}, but has to be a number of processes from 1 up")
    if config.devices == 1:
        load(job)(config)
    else:
        run_in_ranks(job, config, config.devices)


def restore(config: DictConfig, schema: type = EvaluateConfig) -> tuple[Parts, Path]:
    """The parts of ``config.checkpoint``, and where what is made of them goes."""
    check_top_level(config, schema)
    overrides = {name: config[name] for name in STORED}
    if config.get("benchmark"):
        for key in ("split", "sources"):
            if config[key] is not None:
                raise ConfigError(
                    f"{key} is about the run's own data, and benchmark about published data; give one of them "
                    "(a benchmark's own splits: benchmark.NAME.splits=[SPLIT])"
                )
        overrides["data"] = {"root": "."} | dict(config.data)  # nothing of the run's own data is read
    join()
    parts = load_parts(config.checkpoint, overrides, trust=config.trust, int8=config.int8)
    if parts.int8 is not None and rank() == 0:
        print(parts.int8)
    seed_everything(parts.config.seed, workers=True, verbose=False)
    home, folder = home_of(Path(config.checkpoint)), output_folder(config)
    if not config.output_dir:
        require_no_links(home, [folder, *(folder / name for name in (*SCORES, *WRITTEN))])
    require_writable(folder)
    options = parts.config.evaluation.options
    if options.get("cache") is None:
        require_no_links(home, [home / "cache"])
        OmegaConf.update(options, "cache", str(home / "cache"), force_add=True)
    return parts, folder


def output_folder(config: DictConfig) -> Path:
    """Where an evaluation writes: what the run itself would write goes to its folder, anything else to one in it."""
    if config.output_dir:
        return Path(config.output_dir)
    home = home_of(Path(config.checkpoint))
    changed = ("split", "sources", "data", "benchmark", "int8")
    is_own = not any(config.get(key) for key in changed)
    return home if is_own else evaluation_folder(home, config)


def require_no_links(home: Path, paths: Iterable[Path]) -> None:
    """DataError where what is written into the folder of a run, which may be another's, would be written elsewhere."""
    if (link := link_out_of(home, paths)) is not None:
        raise DataError(
            f"{link} is a link that leads out of the run's folder, and what is written there would follow it; remove it, or "
            "choose another output_dir=FOLDER and evaluation.options.cache=FOLDER"
        )


def chosen(config: DictConfig, parts: Parts) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The objectives of ``config.sources`` and the roles of ``config.split``, each one or a list; None: those of the run.

    All their annotations are read, so that what is missing is told before anything is predicted.
    """
    for source in (sources := _listed(config.sources) or list(parts.objectives)):
        if source not in parts.objectives:
            raise ConfigError(f"sources: the checkpoint has no source '{source}'; {suggest(source, parts.objectives)}")
    objectives = active_objectives({source: parts.objectives[source] for source in sources}, parts.tasks)
    roles = _listed(config.split) or list(parts.config.evaluation.roles)
    if not roles:
        known = {role for source in sources for role in parts.datamodule.sources[source].splits}
        raise ConfigError(f"split: the run evaluates no role (evaluation.roles=[]); {suggest('', known)}")
    check_files(parts, objectives, roles)
    return objectives, roles


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def check_files(parts: Parts, objectives: Mapping[str, Iterable[str]], roles: Sequence[str]) -> None:
    """Read the annotations of every source and role; a folder may lack the files of one of several sources."""
    for role, source in splits_of(parts.datamodule, objectives, roles):
        try:
            parts.datamodule.samples(source, role)
        except DataError as error:
            others = [name for name in objectives if name != source]
            hint = f"; to evaluate without source {source}: sources=[{','.join(others)}]" if others else ""
            raise DataError(f"source {source}: {error}{hint}") from error


def device_of(parts: Parts) -> torch.device:
    """The device that the checkpoint's trainer, or the command line's, would use; of several GPUs each process has one."""
    # not its profiler, plugins and folders, which were another machine's
    kept = {"trainer": {key: parts.config.trainer[key] for key in ("_target_", "accelerator", "precision")}}
    device = bare_trainer(OmegaConf.create(kept), devices=1, num_nodes=1, strategy="auto").strategy.root_device
    if device.type != "cuda":
        return device
    if rank() >= torch.cuda.device_count():
        raise ConfigError(
            f"devices={world_size()}, but there are {torch.cuda.device_count()} GPUs; give devices=that many"
        )
    return torch.device("cuda", rank())
