"""A trained checkpoint, pictures, an index, and services of them or of nothing at all."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import fusionkit as fk
from fusionkit.cli.main import run
from fusionkit.commands.predict_images import predictor_of
from fusionkit.serving import app as application
from fusionkit.serving.app import Service
from fusionkit.serving.guard import LOOPBACK
from fusionkit.serving.limits import Limits
from fusionkit.serving.served import Served

LINE = (
    "experiment=quickstart trainer=cpu trainer.precision=32-true trainer.max_epochs=1 trainer.max_steps=1 logger=csv "
    "callbacks=last trainer.limit_val_batches=0 evaluation.checkpoint=last data.answers.min_count=1 "
    "text_encoder.config.hidden_size=32 fusion.num_layers=2 model.embed_size=16 evaluation.roles=[] "
    "task=[itc,itm,vqa,grounding,captioning] +objectives.shapes.captioning=1"
)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn scenes, a run of them, and an index."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["data", "make", "shapes", "root=shapes", "scenes=24"]) == 0
        assert run(["train", *LINE.split(), "data.root=shapes", "output_dir=run"]) == 0
        assert run(["search", "checkpoint=run/checkpoints/last.ckpt", "index=index", "images=shapes/images"]) == 0
    return folder


@pytest.fixture(scope="session")
def model(world: Path) -> fk.Model:
    return fk.load(world / "run", device="cpu")


@pytest.fixture(scope="session")
def photos(world: Path) -> list[Path]:
    return sorted((world / "shapes/images").iterdir())[:6]


@pytest.fixture(scope="session")
def served(world: Path, model: fk.Model) -> Served:
    predictor = predictor_of(model.parts, model.device, batch_size=16)
    search = model.index(world / "index")._images
    return Served("run", predictor, search, {search.index.name(row): row for row in range(len(search.index))})


@pytest.fixture
def service_of() -> Iterator[Callable[..., Service]]:
    """Makes services, which end with the test."""
    made: list[Service] = []

    def make(*models: Any, rule: Any = None, clock: Any = None, hosts: Any = LOOPBACK, **limits: Any) -> Service:
        service = Service(models, Limits(**({"wait_ms": 0} | limits)), hosts, rule, clock)
        service.start()
        made.append(service)
        return service

    yield make
    for service in made:
        assert service.close(30)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, service_of: Callable[..., Service]) -> Callable[..., Service]:
    """Makes services without a model: ``compute`` (key, jobs) gives the outcomes."""

    def make(compute: Any, **options: Any) -> Service:
        monkeypatch.setattr(
            application, "prepare", lambda kind, asked, served, limits: (SimpleNamespace(kind=kind), asked)
        )
        monkeypatch.setattr(application, "compute", lambda models, rule, key, jobs: compute(key, jobs))
        return service_of(SimpleNamespace(name="toy", described=lambda: {"name": "toy"}), **options)

    return make


def client(service: Service, **options: Any) -> httpx.AsyncClient:
    """Talks to the real application, without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(service.app), base_url="http://localhost:8000", **options)


def encoded(path: Path | bytes) -> str:
    return base64.b64encode(path if isinstance(path, bytes) else path.read_bytes()).decode()
