"""Set up for every test: one thread, no network, no W&B; what a marker needs, and why a test is skipped without it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FUSIONKIT_CACHE"] = (cache := TemporaryDirectory(prefix="fusionkit-tests-")).name  # not that of the user

import torch

from tests.warm import Warm

if TYPE_CHECKING:
    from tests.browser import Browser

ROOT = Path(__file__).parents[1]
REFERENCE = Path(os.environ.get("FUSIONKIT_REFERENCE", ROOT.parent / "shared"))

torch.set_num_threads(1)


def no_browser() -> str:
    from tests.browser import why_skipped

    return why_skipped()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "gpu": not torch.cuda.is_available() and "no CUDA device",
        "reference": not REFERENCE.is_dir() and f"no reference files in {REFERENCE}; set FUSIONKIT_REFERENCE",
        "browser": any(item.get_closest_marker("browser") for item in items) and no_browser(),
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference files (``reference/`` and ``data/`` in it); use with the marker of the same name."""
    return REFERENCE


@pytest.fixture(scope="session")
def forking() -> Iterator[Warm]:
    """Starts processes that need not import the libraries again (tests/warm.py)."""
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture
def warm(forking: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks and jobs that a test starts begin with the libraries imported."""
    known = SimpleNamespace(Popen=forking, STDOUT=subprocess.STDOUT, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("fusionkit.commands.processes.subprocess", known)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """One headless Chromium; use with the marker of the same name."""
    from tests.browser import Browser

    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
