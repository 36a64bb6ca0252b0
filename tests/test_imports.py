"""Who may import whom (the rooms of the design), what pyproject declares, and what the wheel carries."""

import ast
import re
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fusionkit"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FLOORS = (  # each room imports those before it, never those behind it
    "errors",
    "signals",
    "types",
    "internals",
    "distributed",
    "files",
    "config",
    "losses",
    "data",
    "encoders",
    "negatives",
    "balance",
    "fusion",
    "model",
    "tasks",
    "contracts",
    "scoring",
    "assembly",
    "visual",
    "checkpoints",
    "training",
    "inference",
    "cli",
    "reporting",
    "serving",
    "commands",
    "api",
    "__main__",
)
TENSORS = {"torch", "fusionkit.types", "fusionkit.errors", "fusionkit.internals", "fusionkit.distributed"}
ALLOWED = {  # room (the longest matching path decides) -> the packages and modules that it may import, where they are few
    "__init__": set(),
    "errors": set(),
    "signals": set(),
    "types": {"torch"},
    "internals": {"torch"},
    "distributed": TENSORS,
    "files": {"fusionkit.errors", "fusionkit.files", "torch", "xxhash"},
    "losses": TENSORS,
    "negatives": TENSORS | {"fusionkit.negatives", "fusionkit.files"},
    "balance": TENSORS | {"fusionkit.balance"},
    "encoders": TENSORS | {"timm", "transformers", "fusionkit.encoders"},
    "fusion": TENSORS | {"fusionkit.fusion"},
    "model/momentum": TENSORS,
    "model": TENSORS | {"fusionkit.encoders", "fusionkit.fusion", "fusionkit.model", "fusionkit.negatives", "regex"},
    "tasks": TENSORS
    | {f"fusionkit.{name}" for name in ("tasks", "model", "losses", "negatives", "files")}
    | {"fusionkit.encoders.base", "fusionkit.fusion.base", "fusionkit.fusion.layers", "torchmetrics"},
    "checkpoints/directory": TENSORS | {"fusionkit.files", "safetensors"},
    "checkpoints/pickled": TENSORS | {"numpy"},
    "checkpoints/source": TENSORS
    | {"fusionkit.checkpoints.directory", "fusionkit.checkpoints.pickled", "fusionkit.files", "huggingface_hub"},
    "checkpoints/base": TENSORS | {"fusionkit.checkpoints.source", "fusionkit.checkpoints.classes"},
}
EXTRAS = {  # rooms that import the packages of an extra, which their commands ask for first
    "serving": "serve",
    "assembly/search_study.py": "search",
}
READS_RUNS = {"torch", "lightning", "fusionkit.training", "fusionkit.model", "fusionkit.tasks", "fusionkit.data"}
FORBIDDEN = {  # rooms that import much, but not this
    "data": {"fusionkit.encoders"},
    "scoring": {"torch", "lightning", "fusionkit.model", "fusionkit.tasks"},
    "inference": {"lightning", "fusionkit.training", "fusionkit.fusion", "fusionkit.encoders"},
    "serving": {"lightning", "fusionkit.training", "fusionkit.fusion", "fusionkit.encoders"},
    "visual": {"lightning", "fusionkit.fusion", "fusionkit.encoders"},
    # what reads runs, counts and draws needs neither model nor trainer
    "reporting": READS_RUNS,
    "reporting/html": READS_RUNS - {"fusionkit.data"},  # shows pictures
    "reporting/measure_cost": set(),
    "reporting/dashboard": set(),
}
HYDRA = {"hydra", "omegaconf"}
HYDRA_ROOMS = {"api", "assembly", "cli", "commands", "config", "__main__"}
HYDRA_ROOMS |= {f"checkpoints/{name}" for name in ("before", "build", "load", "possible", "pretrained", "write")}
HYDRA_ROOMS |= {"training/trainer", "training/resume", "contracts/toys"}
HYDRA_ROOMS |= {"reporting/measure_cost", "reporting/callback", "reporting/reading"}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "hydra": "hydra-core", "huggingface_hub": "huggingface-hub"}
DISTRIBUTIONS |= {"prometheus_client": "prometheus-client"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, those for the type checker alone left out."""
    for node in _runtime(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _runtime(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_typing:
            yield child
            yield from _runtime(child)


def covers(names: set[str], module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def room(path: Path, table: dict[str, set[str]]) -> str | None:
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return max((r for r in table if name == r or name.startswith(f"{r}/")), key=len, default=None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    modules = {name for name in imports(path) if name.split(".")[0] not in sys.stdlib_module_names}
    if (allowed := room(path, ALLOWED)) is not None:
        assert {name for name in modules if not covers(ALLOWED[allowed], name)} == set()
    if (forbidden := room(path, FORBIDDEN)) is not None:
        assert {name for name in modules if covers(FORBIDDEN[forbidden], name)} == set()
    if room(path, {name: set() for name in HYDRA_ROOMS}) is None:
        assert {name for name in modules if covers(HYDRA, name)} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_import_runs_up(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    floor = FLOORS.index(own)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fusionkit.")}
    assert {name for name in used - {own} if FLOORS.index(name) > floor} == set()


def test_every_room_has_its_floor_and_no_more_files_than_one_can_survey() -> None:
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} - {"__init__"}
    assert rooms == set(FLOORS)
    assert len(rooms) <= 28
    choices = {"tasks", "fusion", "data/readers", "checkpoints/families", "commands"}  # one file a choice
    counts = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in FILES if path.name != "__init__.py")
    assert {place: count for place, count in counts.items() if count > 25 and place not in choices} == {}


def test_what_runs_a_model_or_scores_it_knows_no_configuration() -> None:
    for place in ("inference", "scoring", "visual", "model"):
        for path in (PACKAGE / place).rglob("*.py"):
            assert "DictConfig" not in path.read_text(), path


def test_the_rules_name_rooms_that_exist() -> None:
    for name in ALLOWED.keys() | FORBIDDEN | HYDRA_ROOMS:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name


def test_third_party_imports_and_declared_dependencies_agree() -> None:
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in PYPROJECT["project"]["dependencies"]}

    def brought(extra: str) -> set[str]:
        lines = PYPROJECT["project"]["optional-dependencies"][extra]
        return {re.match(r"[\w-]+", line)[0].lower() for line in lines}

    def imported_by(files: list[Path]) -> set[str]:
        tops = {name.split(".")[0] for path in files for name in imports(path)}
        return {DISTRIBUTIONS.get(name, name) for name in tops - set(sys.stdlib_module_names) - {"fusionkit", ""}}

    for place, extra in EXTRAS.items():
        own = [path for path in FILES if path.is_relative_to(PACKAGE / place)]
        assert brought(extra) <= imported_by(own) <= declared | brought(extra)
    rest = [path for path in FILES if not any(path.is_relative_to(PACKAGE / place) for place in EXTRAS)]
    imported = imported_by(rest)
    assert imported - declared == set()
    assert declared - imported <= {"tensorboard"}  # Lightning imports it for its logger


def test_durations_are_not_read_off_the_time_of_day() -> None:
    """It jumps (a cluster sets it, a laptop wakes up): only ages of files are measured by it, to tidy up."""
    called = re.compile(r"\btime\.time\b|from time import .*\btime\b")
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if called.search(path.read_text())}
    assert found == {"files/atomic.py", "data/tables/place.py"}


@pytest.mark.slow
def test_the_wheel_carries_the_package_and_its_configuration(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    conf = {f"fusionkit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    shown = [path for ending in ("css", "js", "html") for path in PACKAGE.rglob(f"*.{ending}")]
    others = [*(ROOT / "hydra_plugins").glob("*.py"), *shown]
    package = {path.relative_to(ROOT).as_posix() for path in [*FILES, *others]}
    assert len(conf) > 10
    assert conf | package <= names
    assert not any(name.startswith("tests/") for name in names)


def test_no_text_installs_the_package_of_this_name_from_the_registry() -> None:
    """On PyPI it is somebody else's: ours is built, or installed from its repository."""
    endings = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cfg", ".ipynb", ".sh", ""}
    kept = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix in endings]
    places = ("fusionkit", "conf", "docs", "tests", "experiments", "benchmarks", "hydra_plugins", ".ci", ".github")
    files = [path for path in kept if path.parent == ROOT or path.relative_to(ROOT).parts[0] in places]
    assert ROOT / "README.md" in files
    assert PACKAGE / "errors.py" in files
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not from_registry(text), path


def from_registry(text: str) -> list[str]:
    """Commands that would install the registry's package of our name."""
    asked = re.findall(
        r"(?:pip[0-9.]*|uv|pipx|poetry|conda|mamba)[\"', ]+(?:pip )?(?:install|add|run)\b([^\n`|;&]*)", text
    )
    return [line for line in asked if re.search(r"(?<![\w./*-])fusionkit(?![\w/-]|\.\w|-\*)", line)]


@pytest.mark.parametrize(
    ("line", "is_asked"),
    [
        ("pip install NAME", True),
        ("`pip install -U NAME`", True),
        ("python -m pip install 'NAME[pretrained]'", True),
        ("pip install --quiet torch NAME==0.1.0", True),
        ("uv pip install NAME", True),
        ("uv add NAME", True),
        ("pip install dist/NAME-*.whl", False),
        ("pip install dist/fusionkit-0.1.0-py3-none-any.whl", False),
        ("pip install vl-fusionkit", False),
        ("pip install 'vl-fusionkit[pretrained]'", False),
        ("pip install '.[pretrained]'; fusionkit train", False),
        ("pip install ./fusionkit", False),
        ("pip install git+https://host/fusionkit.git", False),
    ],
)
def test_what_would_install_it_is_known(line: str, is_asked: bool) -> None:
    assert bool(from_registry(line.replace("NAME", "fusionkit"))) is is_asked
