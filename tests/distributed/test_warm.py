"""Processes that are forked with the libraries imported know of themselves what those know that begin with nothing."""

import os
import sys
from pathlib import Path

from tests.warm import Warm

SCRIPT = """
import os, sys, threading, time
import torch
from fusionkit.training.processes.ranks import is_main
threading.Thread(target=lambda: (time.sleep(0.3), print("thread", flush=True))).start()
print("rank", is_main(), torch.get_num_threads(), os.environ["RANK"], "FORGOTTEN" in os.environ, sys.argv[1:], sys.path[0])
sys.exit(3)
"""


def test_a_rank_knows_which_it_is_and_ends_when_its_threads_do(tmp_path: Path, forking: Warm, monkeypatch) -> None:
    monkeypatch.setenv("FORGOTTEN", "1")
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "FORGOTTEN"}
    told = []
    for rank in ("0", "1"):
        more = {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "2"}
        with (tmp_path / "told").open("w") as out:
            process = forking([sys.executable, str(file), "a b"], environment | more, stdout=out)
        assert process.wait() == process.poll() == 3
        told.append((tmp_path / "told").read_text().splitlines())
    place = str(tmp_path)
    assert told[0] == [f"rank True 2 0 False ['a b'] {place}", "thread"]
    assert told[1] == [f"rank False 2 1 False ['a b'] {place}", "thread"]
