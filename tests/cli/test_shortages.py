"""Where memory, shared memory or a process is missing, one sentence says what needed it and what to do."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fusionkit.cli.error_messages import composing, translate
from fusionkit.errors import UserError


class Greedy(nn.Module):
    """Asks for more memory than there is, within a layer of torch's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Sequential(nn.Identity())(x) + torch.empty(10**15)


def test_memory_that_runs_out_names_the_part_and_the_size() -> None:
    with pytest.raises(RuntimeError) as raised:
        Greedy()(torch.ones(1))
    told = str(translate(raised.value))
    assert told.startswith(
        "memory ran out in Greedy, which asked for 3,638.0 TiB; what costs least in a training: half of data.sources."
    )
    assert told.endswith("says what takes how much, and a training goes on from its last checkpoint with resume=auto")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), r"^memory ran out; what costs least"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), r"^memory ran out; what costs"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"),
            r"^memory ran out, which asked for 2.50 GiB; what costs least",
        ),
        (RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 1536 bytes."), "asked for 1.5 KiB;"),
        (
            RuntimeError("DataLoader worker (pid 311) is killed by signal: Killed. "),
            r"^a process that makes batches \(process 311\) was killed, as .* lower data.num_workers \(0: .*resume=auto",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), r"\(process 7\) was killed, as"),
        (
            RuntimeError(
                "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that ... shared memory"
            ),
            r"^a process that makes batches \(process 5\) found no room in /dev/shm, .*--shm-size=8g.*data.num_workers=0",
        ),
        (
            SystemError(
                "error return without exception set\n    full_key: data"
            ),  # libyaml's, where there is no room for what it reads
            r"^a library failed \(error return without exception set\), .*let the process have more \(ulimit -v",
        ),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            r"^a library failed \(libtorch_cpu.so: failed to map segment from shared object\), as .* memory runs out",
        ),
        (
            RuntimeError("unable to write to file </torch_12_34_5>: No space left on device (28)"),
            r"^a process that makes batches found no room in /dev/shm",
        ),
    ],
)
def test_each_shortage_is_one_sentence(error: Exception, expected: str) -> None:
    wrapped = ValueError("of a library")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        told = translate(raised)
        assert isinstance(told, UserError)
        assert told.exit_code == 1
        assert re.search(expected, str(told)), told
        assert "\n" not in str(told)


def test_other_defects_of_python_keep_their_trace() -> None:
    assert translate(SystemError("bad argument to internal function")) is None
    assert translate(ImportError("no module named torch")) is None
    assert translate(ValueError("without exception set")) is None


def test_a_file_is_not_blamed_for_missing_memory(tmp_path: Path) -> None:
    (path := tmp_path / "tiny.yaml").write_text("a: 1\n")
    error = SystemError("error return without exception set")
    assert composing(error, [path]) is error


def test_numpy_s_words_are_known() -> None:
    with pytest.raises(MemoryError) as raised:
        np.empty(10**17, dtype=np.uint8)
    assert str(translate(raised.value)).startswith("memory ran out, which asked for 88.8 PiB; what costs least")


def broken(rows: list[int]) -> Any:
    raise RuntimeError(f"a defect with {len(rows)} rows")


def test_an_error_within_a_process_that_makes_batches_keeps_its_trace() -> None:
    loader = torch.utils.data.DataLoader([1, 2], batch_size=2, num_workers=1, collate_fn=broken)
    with pytest.raises(RuntimeError, match="in DataLoader worker process 0") as raised:
        next(iter(loader))
    assert translate(raised.value) is None


@pytest.mark.parametrize("said", ["size mismatch", "No space left on device", "the worker is killed by signal: Killed"])
def test_a_defect_of_ours_keeps_its_trace(said: str) -> None:
    assert translate(RuntimeError(said)) is None
