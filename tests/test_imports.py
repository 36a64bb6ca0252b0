"""Who may import whom (the rooms of the design), what pyproject declares, and what the wheel carries."""

import ast
import re
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fusionkit"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# room (the longest matching path decides) -> third-party packages and fusionkit modules it may import
TENSORS = {"torch", "fusionkit.types", "fusionkit.errors", "fusionkit.internals"}
RULES = {
    "__init__": set(),
    "__main__": {"fusionkit.cli"},
    "cli": {"fusionkit"},
    "errors": set(),
    "storage": {"fusionkit.errors"},
    "tensor_files": TENSORS | {"fusionkit.plain_files", "fusionkit.storage", "xxhash"},
    "unicode": {"fusionkit.errors"},
    "names": set(),
    "plain_files": {"fusionkit.errors"},
    "sections": {"fusionkit.errors"},
    "account": {"fusionkit.errors", "wandb"},
    "types": {"torch"},
    "internals": {"torch"},
    "losses": TENSORS | {"fusionkit.distributed"},
    "negatives": TENSORS | {"fusionkit.negatives", "fusionkit.distributed", "fusionkit.plain_files"},
    "balance": TENSORS | {"fusionkit.balance", "fusionkit.distributed"},
    "momentum": TENSORS,
    "distributed": TENSORS,
    "encoders": TENSORS | {"timm", "transformers", "fusionkit.encoders"},
    "fusion": TENSORS | {"fusionkit.fusion"},
    "checkpoints/directory": TENSORS | {"fusionkit.plain_files", "fusionkit.storage", "safetensors"},
    "checkpoints/pickled": TENSORS | {"numpy"},
    "checkpoints/source": TENSORS
    | {"fusionkit.checkpoints.directory", "fusionkit.checkpoints.pickled", "fusionkit.plain_files", "huggingface_hub"},
    "checkpoints/base": TENSORS | {"fusionkit.checkpoints.source", "fusionkit.checkpoints.classes"},
    "model": TENSORS | {"fusionkit.encoders", "fusionkit.fusion"},
    "saliency": TENSORS | {"fusionkit.encoders", "fusionkit.fusion", "fusionkit.model", "fusionkit.negatives"},
    "tasks": TENSORS
    | {f"fusionkit.{name}" for name in ("tasks", "model", "losses", "negatives", "momentum", "distributed", "saliency")}
    | {"fusionkit.fusion.layers", "fusionkit.plain_files", "fusionkit.unicode"},
}
HYDRA = {"hydra", "omegaconf"}
ENTRY = {
    "app",
    "config",
    "mistakes",
    "completion",
    "help",
    "datasets",
    "import_",
    "export",
    "matrix",
    "train",
    "evaluate",
    "predict",
    "compare",
    "asking",
    "schemas",
    "scope",
    "score",
    "submit",
    "benchmarking",
    "cli",
    "rank",
    "__main__",
}
FORBIDDEN = {  # rooms that may import much, but not this
    "data": {"fusionkit.model", "fusionkit.tasks", "fusionkit.training", "fusionkit.fusion", "fusionkit.encoders"}
    | HYDRA,
    "evaluation": {"lightning", "fusionkit.training", "fusionkit.fusion", "fusionkit.encoders"} | HYDRA,
    # what reads runs, counts and draws needs neither model nor trainer
    "reporting": {"torch", "lightning", "fusionkit.training", "fusionkit.model", "fusionkit.tasks", "fusionkit.data"},
    "reporting/html": {
        "torch",
        "lightning",
        "fusionkit.training",
        "fusionkit.model",
        "fusionkit.tasks",
    },  # shows pictures
    "reporting/cost": set(),
    "training": {f"fusionkit.{name}" for name in ENTRY - {"config"}} | {"fusionkit.reporting"},
    "checkpoints": {f"fusionkit.{name}" for name in ENTRY - {"config"}},
}
# a run is built from its configuration, written with it and read back
FROM_CONFIG = ("launch", "checks", "folder", "artifacts", "restore", "resume", "vocabulary")
HYDRA_ROOMS = {f"training/{name}" for name in FROM_CONFIG} | ENTRY
HYDRA_ROOMS |= {f"checkpoints/{name}" for name in ("build", "pretrained", "write")}
HYDRA_ROOMS |= {"reporting/cost", "reporting/callback", "reporting/reading", "trust"}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "hydra": "hydra-core", "huggingface_hub": "huggingface-hub"}
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
    if (allowed := room(path, RULES)) is not None:
        # cli may import its own errors and version, and everything else by name when a command asks for it
        extra = {"fusionkit.errors"} if allowed == "cli" else set()
        assert {name for name in modules if not covers(RULES[allowed] | extra, name)} - {"fusionkit"} == set()
    if (forbidden := room(path, FORBIDDEN)) is not None:
        assert {name for name in modules if covers(FORBIDDEN[forbidden], name)} == set()
    if path.relative_to(PACKAGE).with_suffix("").as_posix() not in HYDRA_ROOMS:
        assert {name for name in modules if covers(HYDRA, name)} == set()


def test_the_rules_name_rooms_that_exist() -> None:
    for name in RULES | FORBIDDEN:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name


def test_third_party_imports_and_declared_dependencies_agree() -> None:
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in PYPROJECT["project"]["dependencies"]}
    tops = {name.split(".")[0] for path in FILES for name in imports(path)}
    imported = {DISTRIBUTIONS.get(name, name) for name in tops - set(sys.stdlib_module_names) - {"fusionkit", ""}}
    assert imported - declared == set()
    assert declared - imported <= {"tensorboard"}  # Lightning imports it for its logger


@pytest.mark.slow
def test_the_wheel_carries_the_package_and_its_configuration(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    conf = {f"fusionkit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    others = [*(ROOT / "hydra_plugins").glob("*.py"), *PACKAGE.rglob("*.css"), *PACKAGE.rglob("*.js")]
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
        ("pip install '.[pretrained]'; fusionkit train", False),
        ("pip install ./fusionkit", False),
        ("pip install git+https://host/fusionkit.git", False),
    ],
)
def test_what_would_install_it_is_known(line: str, is_asked: bool) -> None:
    assert bool(from_registry(line.replace("NAME", "fusionkit"))) is is_asked
