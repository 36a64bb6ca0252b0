"""``python -m fusionkit.commands.worker MODULE:FUNCTION CONFIG.yaml``: do a job on a saved configuration.

As one of the processes that share it, on the configuration of rank 0, or as one run of a sweep.
"""

import os
import sys
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, OmegaConf

from fusionkit.cli.app import report
from fusionkit.cli.error_messages import translate
from fusionkit.cli.main import load
from fusionkit.commands.processes import start_ranks
from fusionkit.config import register_resolvers
from fusionkit.errors import UserError


def run_in_ranks(job: str, config: DictConfig, count: int) -> None:
    """Do a job ("module:function") in ``count`` processes, each on the same saved configuration.

    Raises UserError where one of them fails. A user's mistake, which most often every rank makes, is left by each in the
    folder and told once, here.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
        if code := start_ranks([sys.executable, "-m", "fusionkit.commands.worker", job, str(path)], count):
            failure = UserError(_told(Path(folder)) or _untold(code))
            failure.exit_code = abs(code)
            raise failure


def _told(folder: Path) -> str | None:
    """The mistake that the lowest rank met, if any did."""
    return next((path.read_text(encoding="utf-8") for path in sorted(folder.glob("mistake_*"))), None)


def _untold(code: int) -> str:
    if code != -SIGKILL:
        return "one of the processes failed; its message stands above"
    return (
        "one of the processes was killed, as the system does where memory runs out; lower data.sources.NAME.batch_size "
        "or the number of devices"
    )


def main(job: str, path: str) -> int:
    """Do a job on a saved configuration; gives the exit code."""
    register_resolvers()
    config = OmegaConf.create(Path(path).read_text(encoding="utf-8"))
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    try:
        load(job)(config)
    except Exception as error:
        mistake = translate(error)
        if mistake is None or os.environ.get("FUSIONKIT_TRACE") == "1" or "RANK" not in os.environ:
            return report(error)
        place = Path(path).with_name(f"mistake_{int(os.environ['RANK']):05}")
        place.write_text(str(mistake), encoding="utf-8")
        return mistake.exit_code
    except KeyboardInterrupt:  # the process that started us tells of it
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
