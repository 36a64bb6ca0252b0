"""``python -m fusionkit.rank CONFIG.yaml``: one rank of a training on several devices, on the configuration of rank 0."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, OmegaConf

from fusionkit.app import report
from fusionkit.config import register_resolvers
from fusionkit.errors import UserError
from fusionkit.training.ranks import start_ranks


def train_in_ranks(config: DictConfig, count: int) -> None:
    """Train in ``count`` processes, each on the same saved configuration; raises UserError where one of them fails."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
        if code := start_ranks([sys.executable, "-m", "fusionkit.rank", str(path)], count):
            failure = UserError("a rank of the training failed; its message stands above")
            failure.exit_code = code
            raise failure


def main(path: str) -> int:
    """Train on a saved configuration; gives the exit code."""
    from fusionkit.train import train

    register_resolvers()
    config = OmegaConf.create(Path(path).read_text(encoding="utf-8"))
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    try:
        train(config)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
