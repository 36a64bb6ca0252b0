"""Finds runs on disk and reads each as a ``RunRecord``: folders of training runs, of evaluations, and W&B's offline runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusionkit.assembly.trust import as_texts
from fusionkit.errors import DataError
from fusionkit.files.names import link_out_of
from fusionkit.reporting.merge_runs import home_of_run, join, named
from fusionkit.reporting.record import RunRecord, Scored
from fusionkit.reporting.run_costs import read_costs
from fusionkit.reporting.run_files import part, read_csv, read_details, read_json, read_metrics, read_rows, read_yaml
from fusionkit.reporting.wandb_offline import read_offline
from fusionkit.scoring.records import RERANKED

FILES = ("metrics.json", "config.yaml", "evaluation.yaml")  # any of them makes a folder a run
READ = (*FILES, "directions.json", "details.json", "samples.jsonl", "samples", "predictions", "attention", "logs")
WANDB_LINKS = ("debug-core.log",)  # to W&B's own log, wherever that was
STEP = ("step", "trainer/global_step", "_step")  # csv's and W&B's words


def read_runs(words: Iterable[str], costs: Path | None = None) -> list[RunRecord]:
    """The runs that these folders, globs and folders of runs name, those of one checkpoint joined, each with its own name.

    ``costs`` is the file of what was measured of them; None: the ``cost.json`` of their sweep, where it has one.
    """
    folders = dict.fromkeys(path.resolve() for word in words for path in find_runs(word))
    records = named(join(read_run(folder) for folder in folders))
    return [replace(record, costs=read_costs(home_of_run(record), costs)) for record in records]


def find_runs(word: str) -> list[Path]:
    """The run in a folder, or all below it; the same of each match of a glob. DataError where there is none."""
    matches = [word] if Path(word).exists() else sorted(glob(word, recursive=True))
    if not matches:
        raise DataError(f"runs: nothing matches {word}; name folders of runs, such as outputs/NAME or multirun/NAME")
    found = [path for match in matches for path in _below(Path(match))]
    if not found:
        raise DataError(
            f"runs: {word} is no run and holds none; a run is a folder with metrics.json or config.yaml, as train, evaluate "
            "and score write it, or W&B's offline-run-*"
        )
    return found


def _below(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif folder.is_dir():
        for child in sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name)):  # 9 before 10
            if child.is_dir() and not child.is_symlink():
                yield from _below(child)


def is_run(folder: Path) -> bool:
    """Whether these are the files of one run."""
    return any((folder / name).is_file() for name in FILES) or any(folder.glob("run-*.wandb"))


def read_run(path: Path) -> RunRecord:
    """One run; its name is its folder's. DataError where a file of it is a link that leads out of the folder."""
    places = [*(path / name for name in READ), *path.glob("run-*.wandb")]
    if (link := link_out_of(path, places, WANDB_LINKS)) is not None:
        raise DataError(f"{link} leads out of the run's folder; put the file itself there, or leave out the run")
    if any(path.glob("run-*.wandb")):
        return _offline(path)
    evaluation, details = read_yaml(path / "evaluation.yaml"), read_details(path / "details.json")
    asked = partial(part, evaluation, place=path / "evaluation.yaml")
    metrics = _numbers(read_metrics(path / "metrics.json"))
    config = _resolved(asked("run", dict) or read_yaml(path / "config.yaml"))
    settings = part(config, "evaluation", dict, path / "config.yaml") or {}
    history, role = _history(path), _first_role(evaluation, settings)
    return RunRecord(
        name=path.name,
        paths=(path,),
        config=config,
        metrics=metrics,
        directions={name: up is not False for name, up in read_json(path / "directions.json").items()},
        intervals={
            f"{about.get('prefix') or label}/{name}": (low, high)
            for label, about in details.items()
            for name, (low, high) in (about.get("intervals") or {}).items()
        },
        base=Path(asked("working_folder", str) or _base(path, part(config, "output_dir", str, path / "config.yaml"))),
        history=history,
        samples=_of_details(path, details, role) if details else _of_run(path, metrics, role),
        checkpoint=_checkpoint(path, asked("checkpoint", str), settings),
        parameters=asked("parameters", int) or _last(history, "parameters"),
        benchmarks=as_texts(asked("benchmark", dict) or {}),
    )


def _offline(path: Path) -> RunRecord:
    run = read_offline(path)
    summary = dict(sorted(_numbers(run.summary).items()))
    # the best validation of a training, if that is all, or an evaluation on the validation split
    metrics = _logged(summary, "test/", "") or _logged(summary, "val/", ".max") or _logged(summary, "val/", "")
    history = _by_step(run.history)
    name = run.name or path.name
    return RunRecord(name, (path,), run.config, metrics, history=history, parameters=_last(history, "parameters"))


def _base(path: Path, output_dir: str | None) -> Path:
    """Where a run was started whose folder is now ``path``."""
    if output_dir and path.as_posix().endswith(f"/{output_dir}"):
        return Path(path.as_posix().removesuffix(output_dir))
    return Path.cwd()


def _logged(summary: Mapping[str, float], prefix: str, suffix: str) -> dict[str, float]:
    named = {name: value for name, value in summary.items() if name.startswith(prefix) and name.endswith(suffix)}
    return {name.removeprefix(prefix).removesuffix(suffix): value for name, value in named.items()}


def _checkpoint(path: Path, scored: str | None, settings: Mapping[str, Any]) -> Path | None:
    """What was scored: of a training the one that its configuration names, else the last."""
    if scored:
        return Path(scored)
    named = settings.get("checkpoint", "best")
    found = (path / "checkpoints" / f"{name}.ckpt" for name in (named, "last"))
    return next((checkpoint for checkpoint in found if checkpoint.exists()), None)


def _of_details(path: Path, details: Mapping[str, Any], role: str | None) -> dict[str, Scored]:
    """``samples/<label>.jsonl`` of each score; of a single one of a benchmark ``samples.jsonl``.

    What has a prefix of its own is scored on the run's data, whose splits are the ``role`` that was evaluated first, and others.
    """
    found = {}
    for label, about in details.items():
        name, prefix = label.replace("/", "_"), about.get("prefix")
        is_single = len(details) == 1 and prefix is None
        rows = path / "samples.jsonl" if is_single else path / "samples" / f"{name}.jsonl"
        if rows.exists():
            files = [path / "predictions" / f"{name}{suffix}.jsonl" for suffix in (RERANKED, "")]
            predictions = next((file for file in files if file.exists()), None)
            split = about.get("split") if prefix is None else None
            found[label] = Scored(
                prefix or label, read_rows(rows), predictions, split, role if prefix is not None else None
            )
    return found


def _first_role(evaluation: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """What ``split=`` of the command named first, else the run's own first role."""
    roles = evaluation.get("split") or settings.get("roles")
    return roles[0] if isinstance(roles, list) and roles else roles if isinstance(roles, str) else None


def _of_run(path: Path, metrics: Iterable[str], role: str | None) -> dict[str, Scored]:
    """``samples/<source>_<task>.jsonl``; a source may have underscores, but its metrics tell it."""
    sources, found = {name.partition("/")[0] for name in metrics}, {}
    for rows in sorted((path / "samples").glob("[!.]*.jsonl")):
        source = max((name for name in sources if rows.stem.startswith(f"{name}_")), key=len, default=None)
        if source is not None:
            files = [path / "predictions" / f"{rows.stem}{suffix}.jsonl" for suffix in (RERANKED, "")]
            predictions = next((file for file in files if file.exists()), None)
            found[rows.stem] = Scored(source, read_rows(rows), predictions, role=role)
    return found


def _history(path: Path) -> list[dict[str, float]]:
    """What Lightning's csv logger kept, else W&B's own file in the same folder; a run that was resumed has several."""
    rows: list[dict[str, Any]] = []
    for file in sorted(path.glob("logs/csv/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime):
        rows += read_csv(file)
    if not rows:
        for folder in sorted(path.glob("logs/wandb/offline-run-*")):
            rows += read_offline(folder).history
    return _by_step(rows)


def _by_step(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One map a step: what is logged in several rows of one step is put together, the later value counts."""
    steps: dict[float, dict[str, float]] = {}
    for row in rows:
        numbers = _numbers(row)
        step = next((numbers[name] for name in STEP if name in numbers), None)
        if step is not None:
            steps.setdefault(step, {}).update(numbers, step=step)
    return [steps[step] for step in sorted(steps)]


def _last(history: Sequence[Mapping[str, float]], name: str) -> float | None:
    return next((row[name] for row in reversed(history) if name in row), None)


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a map, and the texts that are such numbers, as csv has them."""
    found = {}
    for name, value in content.items():
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if not isinstance(value, bool) and abs(number) < float("inf"):
            found[name] = number
    return found


def _resolved(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With references filled in, as W&B has them; as it stands where one needs what this machine lacks.

    What asks for anything of this machine, such as its environment, stays text: the page may go to others.
    """
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create(as_texts(dict(config))), resolve=True)
    except OmegaConfBaseException:
        return config
    assert isinstance(resolved, dict)
    return resolved
