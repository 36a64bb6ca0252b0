"""Training and evaluation from Python, by the functions that the commands of the terminal call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fusionkit.api.mistakes import sentences
from fusionkit.api.model import Model, load
from fusionkit.assembly.trust import packages, targets
from fusionkit.checkpoints.source import local
from fusionkit.cli.app import composed
from fusionkit.commands import evaluate as evaluating_command
from fusionkit.commands import train as training_command
from fusionkit.commands.evaluation_setup import output_folder
from fusionkit.commands.run_folder import checkpoints
from fusionkit.config import saved
from fusionkit.errors import ConfigError, DataError
from fusionkit.reporting.reading import read_run
from fusionkit.scoring.bootstrap import RESAMPLES, intervals
from fusionkit.scoring.sample_scores import Row


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
        elif composition.trainer.get("slurm"):
            raise ConfigError(
                "train: trainer=slurm submits a job, of which there is no model to give; submit it by fusionkit train, or choose "
                "another trainer"
            )
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
        path = model.path if isinstance(model, Model) else saved(local(model))
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
    if trainer.get("slurm"):
        found.trainer.slurm = None
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
