"""Every code block of the README and the documentation runs here, smaller; what needs data or devices at least composes."""

import ast
import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra.utils import get_object
from PIL import Image

import fusionkit as fk
from fusionkit import api
from fusionkit.cli.app import composed, parse
from fusionkit.cli.help import command_help
from fusionkit.cli.main import COMMANDS, DATA_VERBS, LOOK, run
from fusionkit.config import conf_dir, group_choices, target_blocks
from tests.data.worlds import write_shards

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = ("cli.md", "recipes.md")
PAGES = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if path.name not in GENERATED)]
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
FENCE = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALLER = [  # what a run of the documentation is made small by
    *("data.prepare.scenes=24", "data.answers.min_count=1", "data.sources.shapes.batch_size=8"),
    *("trainer.precision=32-true", "trainer.max_steps=2", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1"),
    *("scheduler.warmup_steps=0", "evaluation.options.gallery=false", "evaluation.options.reranking.k=2"),
    *("text_encoder.config.hidden_size=32", "fusion.num_layers=1", "model.embed_size=16"),
]
NARROW = [word for word in SMALLER if word.startswith(("text_encoder", "fusion", "model"))]
OTHERS = {"eval", "wandb", "make", "python"}  # what else stands in a shell block


class Block(NamedTuple):
    page: str
    number: int
    needs: str | None
    language: str
    title: str | None
    code: str


def blocks(path: Path) -> list[Block]:
    found = []
    for number, (needs, info, code) in enumerate(FENCE.findall(path.read_text(encoding="utf-8"))):
        title = re.search(r'title="([^"]+)"', info)
        name = path.relative_to(ROOT).as_posix()
        found.append(Block(name, number, needs or None, info.split()[0] if info else "", title and title[1], code))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def lines(code: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def smaller(arguments: list[str]) -> list[str]:
    """A training of the documentation with what makes it small, where it does not say otherwise."""
    said = {text.lstrip("+").partition("=")[0] for text in arguments}
    text = " ".join(arguments)
    shapes = {"data.prepare.scenes", "data.answers.min_count", "data.sources.shapes.batch_size"}
    left_out = shapes if "data=" in text else set[str]()
    is_drawn_stream = re.search(r"experiment=(video_small|audio_small|several_images)", text)
    left_out |= shapes if is_drawn_stream else set()
    left_out |= (
        {"fusion.num_layers"}
        if re.search(r"fusion=(late|add_pooled|\S*,)|experiment=(llava|chat)_tiny", text)
        else set()
    )
    if re.search(r"tiny_(t5|bart)|coca_tiny", text):  # which call it otherwise
        left_out.add("text_encoder.config.hidden_size")
    added = [one for one in SMALLER if one.partition("=")[0] not in said | left_out]
    again = [] if "resume=" in text else ["overwrite=true"]
    logger = [] if "logger=" in text else ["logger=csv"]
    added += ["data.prepare.clips=20"] if is_drawn_stream else []
    devices = [] if "trainer=" in text else ["trainer=cpu"]
    return [*arguments, *added, *again, *logger, *devices]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the quickstart, a photo, and pictures of one's own."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["train", *smaller(["experiment=quickstart"])]) == 0
        images = sorted((folder / "outputs/quickstart/data/images").iterdir())
        best = folder / "outputs/quickstart/checkpoints"
        assert (best / "best.ckpt").exists()
        shutil.copy(images[0], "photo.jpg")
        for split in ("train", "val", "test"):
            (folder / "pictures" / split).mkdir(parents=True)
            for number in range(8):
                Image.open(images[number]).save(folder / f"pictures/{split}/a_red_star.{split}{number}.jpg")
    write_shards(folder / "web", count=10, samples=8)
    return folder


@pytest.fixture
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, where one's own modules are found, with trainings in Python as small as those of the shell."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", [*sys.path, str(world)])
    compose = api.compose

    def small(*overrides: str, **options: Any) -> Any:
        return compose(*smaller([*overrides]), **options)

    for place in (api, api.runs):  # what a page calls, and what training calls
        monkeypatch.setattr(place, "compose", small)
    yield world
    for name in [name for name in sys.modules if name == "my" or name.startswith("my.")]:
        del sys.modules[name]


def test_blocks_were_found_and_say_what_they_are() -> None:
    assert len(PAGES) > 9
    assert len(BLOCKS) > 40
    assert {block.language for block in BLOCKS} == {"bash", "python", "yaml", "text"}
    assert {block.needs for block in BLOCKS} == {None, "DATA", "GPU"}
    for page in PAGES:  # none is indented, and so not seen
        assert page.read_text().count("\n```") == 2 * len(blocks(page)), page


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=lambda b: f"{b.page}-{b.number}")
def test_what_a_shell_block_says_composes(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for program, *words in lines(block.code):
        if program == "make":
            assert f"\n{words[0]}: " in (ROOT / "Makefile").read_text()
        elif program == "python":
            assert importlib.util.find_spec(words[1]) is not None
        elif program != "fusionkit":
            assert program in OTHERS
        elif "--help" not in words[1:]:
            require_composes(words[0], words[1:])


def require_composes(name: str, words: list[str]) -> None:
    options, overrides = parse(name, words)
    if name in ("import", "data", "check", "completion"):
        groups = {"import": ["import"], "data": [*DATA_VERBS, LOOK]}.get(name, [])
        first = overrides[0].partition("=")[0]
        assert not groups or (first in group_choices(groups[0]) if name == "import" else first in groups)
    elif "--config-dir" in options:  # of one's own, which the next test runs
        assert options[options.index("--config-dir") + 1] in ("my_conf", "outputs/albef")
    elif "--multirun" not in options:
        composed(name, overrides)
    else:
        for override in overrides:  # a sweep: each of its values
            key, _, values = override.partition("=")
            for value in re.split(r",(?![^\[]*\])", values):
                composed(name, [f"{key}={value}"])


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
def test_a_page_runs(page: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its first block to its last: files are written, commands run, Python goes on where the block before stopped."""
    names: dict[str, Any] = {"__name__": "__main__"}
    own = [block for block in BLOCKS if block.page == page]
    compared = [words for block in own if block.language == "bash" for words in lines(block.code) if "compare" in words]
    for block in own:
        if block.title is not None:
            (inside / block.title).parent.mkdir(parents=True, exist_ok=True)
            (inside / block.title).write_text(block.code)
        elif block.language == "python":
            code = compile(block.code, f"{page}, block {block.number}", "exec")
            if block.needs is None:
                exec(code, names)
        elif block.language == "yaml":
            yaml.safe_load(block.code)
        elif block.language == "bash" and block.needs is None:
            for program, *words in lines(block.code):
                if program == "fusionkit" and words[0] != "serve":  # which does not end; tests/serving asks it
                    arguments = words[1:]
                    if words[0] == "train" and "--help" not in words:
                        said = dict(word.partition("=")[::2] for word in words)
                        folder = said.get("output_dir") or f"outputs/{said.get('name') or said.get('experiment')}"
                        is_compared = any(folder in others for others in compared)
                        arguments = [*smaller(words[1:]), *([] if is_compared else ["evaluation.roles=[]"])]
                    assert run([words[0], *arguments]) == 0, (words, capsys.readouterr().err)


def test_own_parts_of_the_documentation_name_what_they_define() -> None:
    files = {block.title: block.code for block in BLOCKS if block.title is not None}
    assert len(files) == 12
    for name, code in files.items():
        if name.endswith(".py"):
            ast.parse(code)
            continue
        for _, part in target_blocks(yaml.safe_load(code)):
            module, _, symbol = part["_target_"].rpartition(".")
            if module.startswith("my."):
                assert f"class {symbol}" in files[f"{module.replace('.', '/')}.py"]
            else:
                assert get_object(part["_target_"])


def test_links_lead_somewhere() -> None:
    count = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            there = page.parent / target
            assert there.exists() or there.name in GENERATED, f"{page}: {target}"
            count += 1
    assert count > 30


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 75
    pages = {path.name for path in DOCS.glob("*.md")}
    assert {name for name in pages if f"docs/{name}" not in text} == set()
    told = (ROOT / "mkdocs.yml").read_text()
    assert {name for name in [*pages, *GENERATED, "api.md"] if name not in told} == set()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose = api.compose
    for place in (api, api.runs):
        monkeypatch.setattr(place, "compose", lambda *words, **options: compose(*words, *NARROW, **options))
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        assert cell["outputs"] == []  # which would be another machine's
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)


def test_notebooks_do_what_they_are_for() -> None:
    code = "".join(
        line for path in NOTEBOOKS for cell in json.loads(path.read_text())["cells"] for line in cell["source"]
    )
    for part in (
        "fk.load",
        "model.answer",
        "model.ground",
        "[:500]",
        "model.embed",
        ".max_steps",
        "= 20, 0, 1",
        "run.metrics",
    ):
        assert part in code


def test_the_reference_is_made_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    generate.on_pre_build(None)
    cli, recipes = ((tmp_path / name).read_text() for name in GENERATED)
    for name, command in COMMANDS.items():
        assert command_help(name, command) in cli
    assert "- `merged_attention`: One stream over text and image tokens (UNITER, ViLT, VisualBERT).\n" in cli
    for path in (conf_dir() / "experiment").glob("*.yaml"):
        assert f"- `{path.stem}`: " in recipes
    assert "Published test-dev/std: 74.54/74.70" in recipes
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.SafeLoader)
    assert {"material", "docs/generate.py"} == {config["theme"]["name"], *config["hooks"]}


def test_the_site_names_what_the_api_has() -> None:
    page = (DOCS / "reference/api.md").read_text()
    members = re.search(r"members: \[(.*)\]", page)
    assert members is not None
    assert set(members[1].split(", ")) == set(fk.__all__) - {"__version__"}


def test_the_version_is_cited() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == fk.__version__
    assert f"## {fk.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text())
