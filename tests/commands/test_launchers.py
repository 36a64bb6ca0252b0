"""Who starts the processes of a training: fusionkit, or torchrun, srun and the like, which have started this one."""

from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from fusionkit.assembly.composition import training_config
from fusionkit.commands.train import train_here
from fusionkit.errors import ConfigError

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "localhost",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "7", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0"}
TWO_NODES = (
    "trainer.num_nodes is 2, but nothing has started this process as one of several; start them on each node by "
)


@pytest.mark.parametrize(
    ("environment", "overrides", "expected"),
    [
        ({}, [], "2 started"),
        (SRUN, [], "trains"),
        (TORCHRUN, [], "trains"),
        ({}, ["+trainer.num_nodes=2"], TWO_NODES),
        ({}, ["+trainer.num_nodes=2", "trainer.devices=1"], TWO_NODES),
        (SRUN | {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"}, ["+trainer.num_nodes=2"], "trains"),
        (TORCHRUN | {"WORLD_SIZE": "4"}, ["+trainer.num_nodes=2"], "trains"),
        (SRUN | {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"}, [], "trains"),
        (TORCHRUN | {"WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}, [], "trains"),
        (
            TORCHRUN | {"WORLD_SIZE": "4"},
            [],
            "4 processes were started, but trainer.devices=2 on 1 machine",
        ),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, [], "2 started"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, [], "RANK and WORLD_SIZE are set, but LOCAL_RANK is not"),
    ],
)
def test_a_process_that_was_started_as_one_of_several_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], overrides: list[str], expected: str
) -> None:
    def start(job: str, config: object, count: int) -> None:
        raise ConfigError(f"{count} started")

    def train(*_: object) -> None:
        raise ConfigError("trains")

    monkeypatch.setattr("fusionkit.commands.train.run_in_ranks", start)
    monkeypatch.setattr("fusionkit.commands.train.build", train)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which a trainer changes
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = training_config("experiment=quickstart", "trainer=ddp_cpu", f"output_dir={tmp_path}/run", *overrides)
    with pytest.raises(ConfigError) as caught:
        train_here(config)
    assert str(caught.value).startswith(expected)
    assert not (tmp_path / "run").exists()
