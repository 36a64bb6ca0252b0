"""``python -m fusionkit.commands.worker MODULE:FUNCTION CONFIG.yaml``: do a job on a saved configuration.

As one of the processes that share it, on the configuration of rank 0, as one run of a sweep, or in a job of SLURM.
"""

import os
import re
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusionkit.assembly.trust import foreign_resolver
from fusionkit.cli.app import report
from fusionkit.cli.error_messages import translate
from fusionkit.cli.main import is_first, load
from fusionkit.commands.processes import start_ranks
from fusionkit.config import leaves, register_resolvers
from fusionkit.errors import LostRankError, UserError
from fusionkit.signals import MISTAKE, Stopped, end_with_parent, is_child, listening, stopped_code

NOW = re.compile(r"\$\{\s*now\s*:")


def run_in_ranks(job: str, config: DictConfig, count: int) -> float | None:
    """Do a job ("module:function") in ``count`` processes, each on the same saved configuration; gives the score of rank 0.

    Raises UserError where one of them fails. A user's mistake, which most often every rank makes, is left by each in the
    folder and told once, here.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        save(config, path)
        if code := start_ranks([sys.executable, "-m", "fusionkit.commands.worker", job, str(path)], count):
            told = None if code == -SIGKILL else _told(Path(folder))
            failure = UserError(told or _untold(code))
            failure.exit_code = abs(code)
            raise failure
        return score_of(path)


def save(config: DictConfig, path: Path, hydra: Any = None) -> None:
    """Write a configuration for ``main``; where it calls resolvers, what Hydra's own give here goes into a file beside it.

    So all processes have the same time, and Hydra's configuration, ``hydra`` or that of this process, while the calls stay in
    what they keep of the configuration.
    """
    path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    for left in (_answers_of(path), _score_of(path)):
        left.unlink(missing_ok=True)
    plain = OmegaConf.to_container(config, resolve=False)
    calls = [(place, text) for place, text in leaves(plain) if isinstance(text, str) and foreign_resolver(text)]
    if not calls:
        return
    for place, text in calls:
        if NOW.search(text):
            with suppress(OmegaConfBaseException):  # who asks for it tells what is wrong
                OmegaConf.select(config, place)
    if hydra is None and HydraConfig.initialized():
        hydra = HydraConfig.get()
    answers = {
        "now": {arguments[0]: answer for arguments, answer in OmegaConf.get_cache(config).get("now", {}).items()},
        "moment": datetime.now().isoformat(),  # of any other ${now:...}
        "hydra": hydra and OmegaConf.to_container(hydra, resolve=False, enum_to_str=True),
    }
    _answers_of(path).write_text(yaml.safe_dump(answers), encoding="utf-8")


def score_of(path: Path) -> float | None:
    """The number that a job gave, which was done on the configuration in a file; None where it gave none."""
    place = _score_of(path)
    return float(place.read_text(encoding="utf-8")) if place.is_file() else None


def _score_of(path: Path) -> Path:
    return path.with_suffix(".score")


def _answers_of(path: Path) -> Path:
    return path.with_suffix(".hydra.yaml")


def _take_over(config: DictConfig, path: Path) -> None:
    """Let Hydra's resolvers give what they gave where the configuration was saved."""
    answers = yaml.safe_load(path.read_text(encoding="utf-8"))
    moment = datetime.fromisoformat(answers["moment"])

    def now(pattern: str) -> str:
        return str(answers["now"].get(pattern) or moment.strftime(pattern))

    setup_globals()
    OmegaConf.register_new_resolver("now", now, use_cache=True, replace=True)
    if answers["hydra"]:
        whole, hydra = config.copy(), OmegaConf.structured(HydraConf)
        OmegaConf.set_struct(hydra, False)  # a configuration may hold more
        whole["hydra"] = OmegaConf.merge(hydra, answers["hydra"])
        HydraConfig.instance().set_config(whole)


def _told(folder: Path) -> str | None:
    """The mistake that the lowest rank met, if any did; that it has lost another says less."""
    found = [*sorted(folder.glob("mistake_*")), *sorted(folder.glob("lost_*"))]
    return next((path.read_text(encoding="utf-8") for path in found), None)


def _untold(code: int) -> str:
    if code != -SIGKILL:
        return "one of the processes failed; its message stands above"
    return (
        "one of the processes was killed, as the system does where memory runs out; lower data.sources.NAME.batch_size "
        "or the number of devices; resume=auto goes on from the last checkpoint"
    )


def main(job: str, path: str) -> int:
    """Do a job on a saved configuration; gives the exit code."""
    end_with_parent()
    is_ours = "RANK" in os.environ and is_child()  # of ``run_in_ranks``, which tells what there is to tell
    if is_ours:
        os.environ[MISTAKE] = str(Path(path).with_name(f"mistake_{int(os.environ['RANK']):05}"))
    try:
        with listening():
            return _main(job, path)
    except Stopped as stopped:
        if is_first() and not is_ours:
            print(stopped, file=sys.stderr, flush=True)
        return stopped_code()


def _main(job: str, path: str) -> int:
    register_resolvers()
    config = OmegaConf.create(Path(path).read_text(encoding="utf-8"))
    assert isinstance(config, DictConfig)
    if (answers := _answers_of(Path(path))).is_file():
        _take_over(config, answers)
    OmegaConf.set_struct(config, True)
    try:
        score = load(job)(config)
        if isinstance(score, float) and is_first():
            _score_of(Path(path)).write_text(repr(score), encoding="utf-8")
    except Exception as error:
        mistake = translate(error)
        if mistake is None or os.environ.get("FUSIONKIT_TRACE") == "1" or MISTAKE not in os.environ:
            return report(error)
        place = Path(os.environ[MISTAKE])
        if isinstance(mistake, LostRankError):  # the other one's mistake comes first
            place = place.with_name(place.name.replace("mistake", "lost"))
        place.write_text(str(mistake), encoding="utf-8")
        return mistake.exit_code
    except KeyboardInterrupt:  # the process that started us tells of it
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
