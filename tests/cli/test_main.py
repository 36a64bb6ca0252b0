"""The command line: help without heavy imports, dispatch, mistakes in one sentence, sweeps, completion."""

import gzip
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from fusionkit import __version__
from fusionkit.assembly.composition import TRAINED
from fusionkit.cli import main as cli
from fusionkit.cli.app import gather, quote_paths
from fusionkit.cli.help import keys_of
from fusionkit.cli.main import COMMANDS, run
from fusionkit.errors import DataError
from tests.toys import CONF, choices

HEAVY = "{'torch', 'lightning', 'transformers', 'timm'}"
jobs: list[DictConfig] = []


def record(config: DictConfig) -> float:
    """A job that keeps its configuration; it fails for two seeds."""
    jobs.append(config)
    if config.seed == 13:
        raise DataError("the file of seed 13 is missing")
    if config.seed == 14:
        raise RuntimeError("a defect")
    if config.seed == 15:
        raise KeyboardInterrupt
    return 1.0


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[DictConfig]:
    """Training, the plan or the profile of one, that only records; in an empty folder."""
    jobs.clear()
    for name in TRAINED:
        monkeypatch.setitem(cli.COMMANDS, name, COMMANDS[name]._replace(target=f"{__name__}:record"))
    monkeypatch.chdir(tmp_path)
    return jobs


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on stderr: one line that begins with "error: "."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def imported_by(call: str, watched: str) -> str:
    code = f"import sys\nfrom fusionkit.cli.main import run\n{call}\nprint('imported', sorted(({watched}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONF.parent)
    return done.stdout


def test_the_overview_imports_the_standard_library_only() -> None:
    out = imported_by("run(['--help'])", HEAVY + " | {'hydra', 'omegaconf', 'yaml', 'numpy'}")
    assert out.endswith("imported []\n")
    assert all(f"  {name} " in out for name in COMMANDS)


def test_the_help_of_train_lists_every_choice_without_torch() -> None:
    out = imported_by("run(['train', '--help'])", HEAVY)
    assert out.endswith("imported []\n")
    for group in ("fusion", "task", "experiment"):
        assert all(name in out for name in choices(group))
    assert "*cross_attention" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"fusionkit {name} {COMMANDS[name].examples[0]}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "command"), COMMANDS.items())
def test_every_target_exists(name: str, command: cli.Command) -> None:
    assert callable(cli.load(command.target))


def content_of(name: str) -> dict[str, Any]:
    """A command's own file, and what it begins with."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    others = [entry for entry in content["defaults"] if isinstance(entry, str) and entry != "_self_"]
    return {key: value for other in others for key, value in content_of(other).items()} | content


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.config_name])
def test_help_says_a_sentence_of_each_key(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = content_of(str(COMMANDS[name].config_name))
    told = keys_of(str(COMMANDS[name].config_name))
    assert [key for key, _, _ in told] == [key for key in content if key != "defaults"]
    assert [key for key, _, sentence in told if not sentence] == []
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    page = " ".join(out.split())
    for key, value, sentence in told:
        assert f" {key}={value} {' '.join(sentence.split())}" in page
        assert content[key] in (None, "???") or yaml.safe_load(value) == content[key]
    assert len(out.splitlines()) <= 61


def test_a_sentence_may_go_on_below_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "# a file\ndefaults:\n  - x: y # no key\n\na: 1 # one\n# two\nb: ??? # three\nc: [d, e]\nf: null\n"
    (tmp_path / "some.yaml").write_text(text)
    monkeypatch.setattr("fusionkit.cli.help.conf_dir", lambda: tmp_path)
    assert keys_of("some") == [("a", "1", "one two"), ("b", "", "three"), ("c", "[d, e]", ""), ("f", "", "")]


EXAMPLES = [(name, words) for name, command in COMMANDS.items() for words in command.examples]
COMPOSED = [(name, words) for name, words in EXAMPLES if COMMANDS[name].config_name or name == "data"]


@pytest.mark.parametrize(("name", "words"), COMPOSED)
def test_an_example_of_the_help_can_be_composed(name: str, words: str, recorded: list[DictConfig], capsys) -> None:
    arguments = [*shlex.split(words), *([] if name == "train" else ["--cfg", "job"])]
    assert run([name, *arguments]) == 0, capsys.readouterr().err


def test_a_look_has_the_sections_of_a_training_on_a_table() -> None:
    look, table = (yaml.safe_load((CONF / name).read_text()) for name in ("data_look.yaml", "data/table.yaml"))
    shared = [key for key in look if key in table and key != "defaults"]
    assert {"columns", "split_by", "filters"} <= set(shared)
    assert {key: look[key] for key in shared} == {key: table[key] for key in shared}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bare_command_works_or_says_what_it_needs(name: str, recorded: list[DictConfig], capsys) -> None:
    code = run([name])
    if name in TRAINED:  # of which test_a_bare_training_works, test_plan.py and test_profile.py run some
        assert (code, len(recorded)) == (0, 1)
        return
    assert code == 2
    error_of(capsys)


@pytest.mark.parametrize(
    "line",
    [
        "train optimizer.lr=high",
        "train model.embed=16",
        "train seed=many",
        "train fusion=crss_attention",
        "train experiment=quickstart fusion=late +fusion.num_layers=2",
        "train objectives.shapes.itc=-1",
        "train trainer.max_steps=abc",
        "evaluate checkpoint=x resamples=many",
        "predict checkpoint=x top=few",
        "score benchmark=vqav2 predictions=x annotations=y output=z resamples=many",
        "submit benchmark=vqav2 predictions=x questions=y output=z method=[a]",
        "compare",
        "compare a examples=many",
        "export checkpoint=x",
        "import albef=x nothing=1",
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(line: str) -> None:
    out = imported_by(f"sys.stderr = sys.stdout\nassert run({line.split()!r}) == 2", HEAVY)
    told, imported = out.splitlines()
    assert told.startswith("error: ")
    assert imported == "imported []"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"fusionkit {__version__}\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian", "did you mean 'train'?"),
        ("train task.itc.scorer._target_=true", "task.itc.scorer._target_ is True, but has to be a text"),
        ("train task.itc._partial_=1", "task.itc._partial_ is 1, but has to be true or false"),
        ("train +model.embed=16", "did you mean 'embed_size'?"),
        ("train model.embed_size=wide", "model.embed_size is 'wide', but has to be a whole number"),
        ("train trainer.max_steps={}", "trainer cannot be built: "),
        ("train sead=2", "unknown key 'sead' in the configuration; did you mean 'seed'?"),
        ("train experimnt=quickstart", "did you mean 'experiment'?"),
        ("train trainer.max_epoch=2", "unknown key 'max_epoch' in trainer; did you mean 'max_epochs'?"),
        ("train data=llava data.zoom=2", "unknown key 'zoom' in data; known: "),
        ("train data=llava data.zoom=2", "what has no value in the configuration yet is added as +data.zoom=VALUE"),
        ("train data.mising=skip", "unknown key 'mising' in data; did you mean 'missing'?"),
        ("train objectives.shape.itc=2", "unknown key 'shape' in objectives; did you mean 'shapes'?"),
        ("train seed.x=2", "'seed' is a single value or an empty section, so it has no key 'x'"),
        ("train balance=schedule balance.points.shapes.itm=[[0,1]]", "add it with +balance.points.shapes=VALUE"),
        (
            "train fusion=cros_attention",
            "did you mean 'cross_attention'? known: alternating_cross_attention, bottleneck, bridge, co_attention",
        ),
        ("train task=[itc,itn]", "task has no choice 'itn'; did you mean"),
        ("train fusion=cross_attention,merged_attention", "add -m to run each in turn"),
        ("train seed=[1", "override 'seed=[1' cannot be read"),
        ("train seed", "'seed' says no key; write KEY=seed"),
        ("train ~sead", "'sead' does not exist"),
        ("train --cfg jobs", "invalid choice: 'jobs'"),
        ("train --config-dir nowhere", "nowhere"),
        ("evaluate", "'checkpoint' has no value yet; give it as checkpoint=VALUE"),
        ("evaluate outputs/best.ckpt", "'outputs/best.ckpt' says no key; write KEY=outputs/best.ckpt"),
        (
            "score",
            "'benchmark' has no value yet; give it as benchmark=NAME, known: aro_attribution, aro_relation, coco_caption",
        ),
        ("compare", "there are no runs to compare; name folders: fusionkit compare outputs/a outputs/b"),
        ("import albef=", "'albef' has no value yet; give it as albef=PATH"),
        ("evaluate checkpoint=", "checkpoint is empty; give it as checkpoint=PATH"),
        ("predict checkpoint=x logger=csv", "logger is no choice of this command; known: benchmark"),
        ("predict checkpoint=x overlays=3", "unknown key 'overlays'"),
        ("evaluate chekpoint=x", "did you mean 'checkpoint'?"),
        ("data", "fusionkit data cannot ''; known: convert, look, make"),
        ("data convert uniter_lmdb", "data convert knows no data set 'uniter_lmdb'; did you mean 'uniter'?"),
        ("data convert uniter root=x", "'lmdb' has no value yet; give it as lmdb=VALUE"),
        ("data convert uniter root=x lmdb=nowhere", "lmdb=nowhere is no lmdb"),
        ("data make shape", "did you mean 'shapes'?"),
        ("data make shapes scene=3", "did you mean 'scenes'?"),
        ("completion tcsh", "known: bash, fish, zsh"),
    ],
)
def test_a_mistake_is_one_sentence(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert words in error_of(capsys)


def test_a_missing_file_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "checkpoint=nowhere.ckpt"]) == 1
    assert "checkpoint nowhere.ckpt does not exist" in error_of(capsys)


def test_a_job_gets_the_composed_configuration_and_leaves_no_files(recorded: list[DictConfig], tmp_path: Path) -> None:
    assert run(["train", "seed=3", "experiment=quickstart"]) == 0
    assert (recorded[0].seed, recorded[0].output_dir) == (3, "outputs/quickstart")
    assert "hydra" not in recorded[0]
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_modules_of_the_working_folder_can_be_named(
    recorded: list[DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as a console script finds it
    (tmp_path / "my_own_part.py").write_text("import json\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('a library is shadowed')\n")
    assert run(["train", "seed=3"]) == 0
    assert importlib.import_module("my_own_part").json is json


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "seed=1", "b/*"], ["seed=1", "runs=['a','b/*']"]),
        (["seed=1"], ["seed=1"]),
        (["it's", "a b"], [r"runs=['it\'s','a b']"]),
    ],
)
def test_words_without_a_key_are_the_operands(words: list[str], expected: list[str]) -> None:
    assert gather(words, "runs") == expected
    assert gather(words, None) == words


def test_a_folder_with_an_equals_sign_is_no_override(tmp_path: Path) -> None:
    (tmp_path / "fusion=late").mkdir()
    assert gather([f"{tmp_path}/fusion=late"], "runs") == [f"runs=['{tmp_path}/fusion=late']"]


def test_options_may_stand_after_overrides(recorded: list[DictConfig], tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/own.yaml").write_text("# @package _global_\nseed: 7\n")
    assert run(["train", "experiment=own", "--config-dir", str(tmp_path / "mine")]) == 0
    assert recorded[0].seed == 7


def test_a_sweep_gives_each_job_a_folder_and_survives_a_mistake(
    recorded: list[DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "-m", "seed=1,13,2", "name=mine"]) == DataError.exit_code
    assert [config.seed for config in recorded] == [1, 13, 2]
    assert [config.output_dir for config in recorded] == [f"multirun/mine/{n}" for n in range(3)]
    printed = capsys.readouterr()
    assert "job 1: seed=13 name=mine" in printed.out
    assert printed.err == "error: the file of seed 13 is missing\n"


def test_a_defect_keeps_its_trace(recorded: list[DictConfig]) -> None:
    with pytest.raises(RuntimeError, match="a defect"):
        run(["train", "seed=14"])


def test_a_mistake_shows_its_trace_on_demand(
    recorded: list[DictConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSIONKIT_TRACE", "1")
    assert run(["train", "seed=13"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(recorded: list[DictConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "seed=15"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_keys_of_the_checkpoint_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.clear()
    command = COMMANDS["evaluate"]._replace(target=f"{__name__}:jobs_append")
    monkeypatch.setitem(cli.COMMANDS, "evaluate", command)
    assert run(["evaluate", "checkpoint=x", "data.root=other", "data.sources.a.splits.test=[val]"]) == 0
    assert jobs[0].data == {"root": "other", "sources": {"a": {"splits": {"test": ["val"]}}}}


jobs_append = jobs.append


@pytest.mark.parametrize(
    "words",
    [
        "what's that, (really)?",
        "a=b",
        "it's {1,2} [x] \\'quoted\\'",
        "\\",
        "c:\\d\\",
        '"so" he said',
        "",
        "100% # & * ~ !",
        "ä, 猫",
    ],
)
def test_what_is_said_in_words_arrives_as_it_was_written(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.clear()
    monkeypatch.setitem(cli.COMMANDS, "predict", COMMANDS["predict"]._replace(target=f"{__name__}:jobs_append"))
    assert run(["predict", "checkpoint=x", f"question={words}", "phrase='quoted, already'", "text=null"]) == 0
    assert (jobs[0].question, jobs[0].phrase, jobs[0].text) == (words, "quoted, already", None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fusionkit tr", ["train "]),
        ("fusionkit completion z", ["zsh "]),
        ("fusionkit data ", ["make ", "convert ", "look "]),
        ("fusionkit data convert b", ["bottom_up "]),
        ("fusionkit data convert bottom_up ts", ["tsv="]),
        ("fusionkit data make ", ["motion ", "sets ", "shapes ", "tones "]),
        ("fusionkit train fusion=cr", ["fusion=cross_attention"]),
        ("fusionkit train seed=1 objectives.shapes.it", ["objectives.shapes.itc=", "objectives.shapes.itm="]),
        ("fusionkit train experiment=q", ["experiment=quickstart"]),
        ("fusionkit data make shapes sc", ["scenes="]),
        ("fusionkit import albe", ["albef="]),
        ("fusionkit compare a examples=0 basel", ["baseline="]),
        (f"fusionkit compare a {CONF.parent}/tests/repo", [f"{CONF.parent}/tests/reporting/"]),
        ("fusionkit import albef=ALBEF.pth bert.fus", ["bert.fusion_layer="]),
    ],
)
def test_completion_offers(line: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "query", line]) == 0
    assert capsys.readouterr().out.splitlines() == expected


def test_completion_sees_the_users_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/my_own.yaml").write_text("# @package _global_\nseed: 7\n")
    for option in (f"--config-dir {tmp_path}", f"--config-dir={tmp_path}", f"-m seed=1 --config-dir {tmp_path}"):
        assert run(["completion", "query", f"fusionkit train {option} experiment=my"]) == 0
        assert capsys.readouterr().out.splitlines() == ["experiment=my_own"]
    assert run(["completion", "query", "fusionkit train experiment=my"]) == 0
    assert capsys.readouterr().out == ""


def test_completion_needs_no_torch() -> None:
    assert imported_by("run(['completion', 'query', 'fusionkit train fus'])", HEAVY).endswith("imported []\n")


def test_the_bash_script_completes_after_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "fusionkit").write_text(f'#!/bin/sh\nexec {sys.executable} -m fusionkit "$@"\n')
    (tmp_path / "fusionkit").chmod(0o755)
    line = "fusionkit train fusion=m"
    script = f"""
        PATH={tmp_path}:$PATH
        eval "$(fusionkit completion bash)"
        COMP_LINE='{line}' COMP_POINT={len(line)} _fusionkit
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=CONF.parent)
    assert "merged_attention" in done.stdout.split()


ODD = [
    "dữ liệu/ảnh",
    "a  b",
    " a ",
    "\U0001f600",
    "x=1",
    "it's",
    'so "said"',
    "$HOME ${x}",
    "a(1)",
    "a,b",
    "[1]",
    "{1}",
    "#&;!^",
    "2024",
    "true",
    "b\\",
    "~x",
]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("train", ("data.root", "output_dir", "checkpoint", "tokenizer")),
        ("evaluate", ("checkpoint", "output_dir", "root", "data.root")),
        ("predict", ("checkpoint", "output_dir", "root", "data.root", "image", "output")),
        ("score", ("predictions", "annotations", "questions", "instances", "output")),
        ("alt-text", ("folder", "checkpoint", "output_dir", "output")),
        ("search", ("checkpoint", "index", "images", "image", "output", "sheet")),
        ("submit", ("predictions", "questions", "output")),
        ("compare", ("output_dir", "costs")),
        ("export", ("checkpoint", "output")),
    ],
)
def test_a_path_arrives_as_it_was_written(
    command: str, keys: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.clear()
    monkeypatch.setitem(cli.COMMANDS, command, COMMANDS[command]._replace(target=f"{__name__}:jobs_append"))
    path = tmp_path / name
    path.mkdir(parents=True)
    more = {"score": ["benchmark=vqav2"], "submit": ["benchmark=vqav2"], "compare": ["a_run"]}.get(command, [])
    assert run([command, *more, *(f"{key}={path}" for key in keys)]) == 0
    assert [OmegaConf.select(jobs[0], key) for key in keys] == [str(path)] * len(keys)


@pytest.mark.parametrize("name", [name for name in ODD if "$" not in name and name.strip() == name and name != "[1]"])
def test_a_path_that_is_not_there_yet_arrives_too(name: str, recorded: list[DictConfig]) -> None:
    assert run(["train", f"output_dir={name}", f"data.root=new/{name}"]) == 0
    assert (recorded[0].output_dir, recorded[0].data.root) == (name, f"new/{name}")


def test_the_home_folder_is_found(recorded: list[DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\ncheckpoint: ~/c.ckpt\nname: a~/b\n")
    line = [
        "train",
        "--config-dir=~/conf",
        "experiment=mine",
        "data.root=~/dữ liệu",
        "output_dir='~/quoted'",
        "tokenizer=~",
    ]
    assert run(line) == 0
    config = recorded[0]
    assert (config.checkpoint, config.data.root) == (f"{tmp_path}/c.ckpt", f"{tmp_path}/dữ liệu")
    assert (config.output_dir, config.tokenizer, config.name) == (f"{tmp_path}/quoted", str(tmp_path), "a~/b")


def test_words_about_a_home_folder_stay_words(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.clear()
    monkeypatch.setitem(cli.COMMANDS, "predict", COMMANDS["predict"]._replace(target=f"{__name__}:jobs_append"))
    assert run(["predict", "checkpoint=x", "question=~/is it?"]) == 0
    assert jobs[0].question == "~/is it?"


def test_runs_of_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a=b").mkdir()
    assert gather(["~/a", "~/a=b", "seed=1"], "runs") == ["seed=1", f"runs=['{tmp_path}/a','{tmp_path}/a=b']"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1", "seed=1"),
        ("data.sources.x.splits={train: [a]}", "data.sources.x.splits={train: [a]}"),
        ("task=[itc,itm]", "task=[itc,itm]"),
        ("task=[itc", "task=[itc"),
        ("name={a", "name={a"),
        ("output_dir=[a", "output_dir='[a'"),
        ("output_dir=[a]", "output_dir=[a]"),
        ("output_dir='a b'", "output_dir='a b'"),
        ("output_dir=", "output_dir="),
        ("output_dir=null", "output_dir=null"),
        ("+data.folder=dữ", "+data.folder='dữ'"),
        ("++output_dir=1", "++output_dir='1'"),
        ("output_dir=runs/${name}", "output_dir=runs/${name}"),
        ("output_dir=dữ/${name}", "output_dir='dữ/${name}'"),
        ("~callbacks.best", "~callbacks.best"),
    ],
)
def test_other_values_stay_what_they_are(override: str, expected: str) -> None:
    assert quote_paths([override], COMMANDS["train"].paths) == [expected]


def test_a_sweep_over_paths_is_one() -> None:
    given = ["checkpoint=a,b", "output_dir=choice(a,b)", "output_dir=a b"]
    assert quote_paths(given, ("checkpoint", "output_dir"), is_sweep=True) == given
    assert quote_paths(given[:2], ("checkpoint", "output_dir")) == ["checkpoint='a,b'", "output_dir='choice(a,b)'"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: b: c", "is not valid yaml (mapping values are not allowed"),
        ("name: é".encode("latin-1"), "is not valid yaml ('utf-8' codec can't decode byte 0xe9"),
        (gzip.compress(b"name: a", mtime=0), "is compressed by gzip, where yaml is read; unpack it first"),
        ("name: a".encode("utf-16"), "is text in UTF-16, where yaml is read"),
        (b"a: " + b"[" * 20000, "is not valid yaml (while increasing flow level exceeded maximum nesting depth"),
        (b"# @package _global_\ndefaults: 5", "no configuration can be composed of it"),
    ],
)
@pytest.mark.parametrize("is_chosen", [True, False])
def test_the_file_that_cannot_be_composed_is_named(
    content: bytes, words: str, is_chosen: bool, tmp_path: Path, recorded: list[DictConfig], capsys
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_bytes(content)
    chosen = ["experiment=mine"] if is_chosen else ["+experiment@x=mine"]
    assert run(["train", "--config-dir", str(tmp_path), *chosen]) == 2
    told = error_of(capsys)
    assert words in told
    assert (f"{tmp_path}/experiment/mine.yaml" if is_chosen or "composed" not in words else str(tmp_path)) in told


def test_a_mistake_names_the_file_it_is_composed_with(tmp_path: Path, recorded: list[DictConfig], capsys) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nseed: ${sede}\n")
    assert run(["train", "--config-dir", str(tmp_path), "experiment=mine"]) == 2
    assert error_of(capsys).endswith(f"(composed with {tmp_path}/experiment/mine.yaml)")
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nseed: 13\n")
    assert run(["train", "--config-dir", str(tmp_path), "experiment=mine"]) == 1
    assert "composed with" not in error_of(capsys)  # files of data are another matter
    assert run(["train", "fusion=nothing"]) == 2
    assert "composed with" not in error_of(capsys)


def test_a_defect_of_a_job_is_no_mistake_of_a_file(tmp_path: Path, recorded: list[DictConfig]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nseed: 14\n")
    with pytest.raises(RuntimeError, match="a defect"):
        run(["train", "--config-dir", str(tmp_path), "experiment=mine"])
