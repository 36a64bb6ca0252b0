"""``fusionkit serve``: trained checkpoints over HTTP."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.load import load_parts
from fusionkit.checkpoints.source import local
from fusionkit.cli.main import STORED
from fusionkit.commands.evaluation_setup import device_of
from fusionkit.commands.predict_images import predictor_of
from fusionkit.commands.search import open_index
from fusionkit.config import home_of, saved
from fusionkit.errors import ConfigError, install_extra
from fusionkit.inference.answering import Predictor

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(config: DictConfig) -> None:
    """Serve the checkpoints until a signal ends it. Raises DataError where it ends by itself."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"fusionkit serve needs the package {missing[0]}: {install_extra('serve')}")
    # only who serves needs them
    from fusionkit.serving.app import Service
    from fusionkit.serving.guard import LOOPBACK
    from fusionkit.serving.limits import Limits
    from fusionkit.serving.pictures import quiet_bombs
    from fusionkit.serving.served import Served, require_pixels
    from fusionkit.serving.server import Process, bound_socket, hosts_of

    limits = Limits(**{each.name: config[each.name] for each in fields(Limits)})
    hosts = hosts_of(str(config.host), _listed(config.hosts), LOOPBACK)
    rule = None if config.filter is None else instantiate(config.filter)
    if rule is not None and not callable(rule):
        raise ConfigError("filter is built, but cannot be called; name a class whose objects are called (kind, text)")
    places = named_checkpoints(config.checkpoint)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("fusionkit.serving").setLevel(logging.INFO)
    quiet_bombs()
    with bound_socket(str(config.host), config.port) as listening:
        loaded = {name: _loaded(config, path, limits.max_batch) for name, path in places.items()}
        for name, (_, predictor) in loaded.items():
            require_pixels(name, predictor)
        found = _index(config, loaded)
        models = []
        for name, (_, predictor) in loaded.items():
            search = found[1] if found is not None and found[0] == name else None
            rows = {} if search is None else {search.index.name(row): row for row in range(len(search.index))}
            models.append(Served(name, predictor, search, rows))
        Process(Service(models, limits, hosts, rule), listening).run()


def named_checkpoints(given: Any) -> dict[str, Path]:
    """Checkpoints by the names that requests call them by: those of a map, else of their runs' folders."""
    plain = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
    if isinstance(plain, Mapping):
        found = {str(name): saved(local(str(path))) for name, path in plain.items()}
    else:
        paths = [saved(local(str(path))) for path in (plain if isinstance(plain, list) else [plain])]
        names = [home_of(path.absolute()).name for path in paths]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"checkpoint: {' and '.join(names)} have one name; name them yourself, as checkpoint={{a: PATH, b: PATH}}"
            )
        found = dict(zip(names, paths, strict=True))
    if not found:
        raise ConfigError("checkpoint names none; give a run, a list or a map of them")
    return found


def _loaded(config: DictConfig, path: Path, batch_size: int) -> tuple[Parts, Predictor]:
    parts = load_parts(path, {name: config[name] for name in STORED}, False, config.trust, config.int8)
    if parts.int8 is not None:
        print(parts.int8)
    OmegaConf.update(parts.config, "evaluation.options.quiet", True, force_add=True)  # no bars of progress
    seed_everything(parts.config.seed, workers=True, verbose=False)
    return parts, predictor_of(parts, device_of(parts), batch_size=batch_size)


def _index(config: DictConfig, loaded: Mapping[str, tuple[Parts, Predictor]]) -> tuple[str, Any] | None:
    """The name of the first checkpoint that has made the index, and the index. Raises ConfigError where none has."""
    if config.index is None:
        return None
    last: ConfigError | None = None
    for name, (parts, predictor) in loaded.items():
        try:
            return name, open_index(parts, predictor, f"checkpoint={name}", Path(config.index), None)
        except ConfigError as error:
            last = last or error
    assert last is not None
    raise last


def _listed(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else [str(each) for each in given or ()]
