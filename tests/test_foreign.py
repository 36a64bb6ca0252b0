"""Checkpoints, exports and run folders of strangers: nothing of them runs, and nothing is read or written elsewhere."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from fusionkit.checkpoints.directory import write_directory
from fusionkit.checkpoints.pretrained import from_pretrained, rounded_in_training
from fusionkit.cli.main import run
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.errors import ConfigError, DataError, UserError
from tests.commands.test_predict import LINE

Capture = pytest.CaptureFixture[str]
MODULES = ("strange", "strange.inner")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours, which strangers then change: run/, its data in shapes/."""
    folder = tmp_path_factory.mktemp("foreign")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=20"]) == 0
    assert run(["train", *LINE.split(), f"data.root={folder}/shapes", f"output_dir={folder}/run"]) == 0
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a package that tells where it is imported, and an image to ask about."""
    for name in MODULES:
        sys.modules.pop(name, None)
        file = tmp_path / name.replace(".", "/") / "__init__.py"
        file.parent.mkdir(parents=True)
        file.write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\ndef build(*_, **__): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SECRET", "hunter2")
    Image.new("RGB", (64, 64), "red").save("a.jpg")
    return tmp_path


def sentence(capsys: Capture) -> str:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


Change = Callable[[dict[str, Any], dict[str, Any]], object]  # of a checkpoint's artifacts, and of its configuration


def foreign(world: Path, change: Change) -> str:
    checkpoint = torch.load(world / "run/checkpoints/last.ckpt", weights_only=True)
    artifacts = dict(checkpoint["fusionkit"])
    artifacts["tokenizer"] = dict(artifacts["tokenizer"])
    config = yaml.safe_load(artifacts.pop("config"))
    change(artifacts, config)
    artifacts.setdefault("config", yaml.safe_dump(config, sort_keys=False))
    torch.save(checkpoint | {"fusionkit": artifacts}, "foreign.ckpt")
    return "checkpoint=foreign.ckpt"


def at(*keys: str, value: Any) -> Change:
    def change(_: Any, config: dict[str, Any]) -> None:
        node = config
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value

    return change


def code(*_: Any) -> dict[str, Any]:
    return {"_target_": "fusionkit.commands.processes.start_ranks", "command": ["touch", "pwned"], "count": 1}


SOURCE = ("data", "sources", "shapes")
GET = "hydra.utils.get_object"
BUILT = {  # what every command builds
    "scorer": at("task", "vqa", "scorer", value=code()),
    "negatives": at("task", "itm", "negatives", value=code()),
    "fusion": at("fusion", value=code()),
    "encoder": at("image_encoder", value=code()),
    "text": at("text_encoder", "config", "inner", value=code()),
    "model": at("model", value=code()),
    "adapters": at("adapters", value=code()),
    "adapters_rule": at("adapters", value={"_target_": "fusionkit.model.adapters.Adapters", "text_encoder": code()}),
    "os": at("task", "vqa", "scorer", value={"_target_": "os.system", "command": "touch pwned"}),
    "package": at("fusion", value={"_target_": "strange.inner.build"}),
    "path": at("task", "vqa", "scorer", value={"_target_": GET, "path": "strange.inner.build"}),
    "arguments": at("task", "vqa", "scorer", value={"_target_": GET, "_args_": ["strange.build"]}),
    "walk": at("fusion", value={"_target_": "torch.nn.functional.os.system", "command": "touch pwned"}),
    "elsewhere": lambda _, config: (at("optimizer", value=code())(_, config), at("fusion", value="${optimizer}")(_, config)),
    "create": at("task", "vqa", "scorer", value="${oc.create:{_target_: strange.build}}"),
    "name": lambda _, config: config["task"].update({"../../x": config["task"].pop("vqa")}),
    "text_json": lambda artifacts, _: artifacts.update(text_encoder=json.dumps({"x": code()})),
    "text_call": lambda artifacts, _: artifacts.update(text_encoder=json.dumps({"x": "${oc.env:SECRET}"})),
    "text_list": lambda artifacts, _: artifacts.update(text_encoder="[1]"),
    "text_none": lambda artifacts, _: artifacts.update(text_encoder=None),
    "absolute": lambda artifacts, _: artifacts["tokenizer"].update({str(Path.cwd() / "pwned"): "x"}),
    "upwards": lambda artifacts, _: artifacts["tokenizer"].update({"../pwned": "x"}),
    "backslash": lambda artifacts, _: artifacts["tokenizer"].update({"..\\pwned": "x"}),
    "nul": lambda artifacts, _: artifacts["tokenizer"].update({"a\0b": "x"}),
    "bytes": lambda artifacts, _: artifacts["tokenizer"].update({"a": b"x"}),
    "tag": lambda artifacts, _: artifacts.update(config="a: !!python/object/apply:os.system ['touch pwned']"),
    "bomb": lambda artifacts, _: artifacts.update(config="a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"),
}  # fmt: skip
DATA = {  # what a command builds that reads data
    "reader": at(*SOURCE, "reader", value=code()),
    "augment": at(*SOURCE, "augment", value={"_target_": "strange.build"}),
    "environment": at(*SOURCE, "reader", "annotations", value="${oc.env:SECRET}"),
}  # fmt: skip
ASKED = {  # what answers to one's own questions need, too
    "clean": at(*SOURCE, "clean", value=code()),
    "looking_up": at(*SOURCE, "clean", value={"_target_": GET, "_partial_": True}),
    "evaluation": at("evaluation", "options", "reranking", value=code()),
    "trainer": at("trainer", "callbacks", value=[code()]),
    "source": lambda _, config: (
        config["data"]["sources"].update({"../x": config["data"]["sources"].pop("shapes")}),
        config["objectives"].update({"../x": config["objectives"].pop("shapes")}),
    ),
    "role": at(*SOURCE, "splits", "../x", value=["val"]),
    "package_file": at("data", "mean", value="${package_file:strange.inner,x}"),
}  # fmt: skip


def assert_untouched(place: Path) -> None:
    assert not (place / "pwned").exists()
    assert not (place.parent / "pwned").exists()


@pytest.mark.parametrize("name", [*BUILT, *ASKED])
def test_a_foreign_checkpoint_runs_nothing_when_it_is_asked(
    name: str, world: Path, place: Path, capsys: Capture
) -> None:
    line = foreign(world, (BUILT | ASKED)[name])
    assert run(["predict", line, "image=a.jpg", "question=what"]) in (1, 2)
    assert "hunter2" not in sentence(capsys)
    assert_untouched(place)


@pytest.mark.parametrize("name", DATA)
def test_a_foreign_reader_is_refused_where_data_are_read_and_else_left_out(
    name: str, world: Path, place: Path, capsys: Capture
) -> None:
    line = foreign(world, DATA[name])
    assert run(["evaluate", line, f"data.root={world}/shapes", "output_dir=out"]) == 2
    assert f"foreign.ckpt: data.sources.shapes.{'reader' if name == 'environment' else name}" in sentence(capsys)
    assert run(["predict", line, "image=a.jpg", "question=what"]) == 0
    assert_untouched(place)


@pytest.mark.parametrize("keys", [("text_encoder", "config", "num_hidden_layers"), ("fusion", "num_layers")])
def test_layers_that_no_tensors_are_there_for_are_not_built(
    keys: tuple[str, ...], world: Path, capsys: Capture
) -> None:
    line = foreign(world, at(*keys, value=4000))
    words = f"checkpoint foreign.ckpt: {'.'.join(keys)} is 4000, but the checkpoint has "
    assert run(["predict", line, "image=a.jpg", "question=what"]) == 1
    assert words in sentence(capsys)
    with pytest.raises(DataError, match=words):
        from_pretrained("foreign.ckpt")


def test_values_of_another_kind_are_named_by_whatever_loads_them(world: Path, capsys: Capture) -> None:
    line = foreign(world, at("fusion", "dropout", value="a third"))
    words = "checkpoint foreign.ckpt: fusion.dropout is 'a third', but has to be a number"
    assert run(["predict", line, "image=a.jpg", "question=what"]) == 2
    assert words in sentence(capsys)
    with pytest.raises(ConfigError, match=words):
        from_pretrained("foreign.ckpt")
    assert run(["export", line, "output=exported"]) == 2
    assert words in sentence(capsys)
    assert not Path("exported").exists()


def test_numbers_that_are_not_finite_are_named_as_in_the_file(world: Path, capsys: Capture) -> None:
    name = "model.image_projection.bias"
    checkpoint = torch.load(world / "run/checkpoints/last.ckpt", weights_only=True)
    checkpoint["state_dict"][name][0] = float("nan")
    torch.save(checkpoint, "foreign.ckpt")
    assert run(["predict", "checkpoint=foreign.ckpt", "image=a.jpg", "question=what"]) == 1
    assert f"checkpoint foreign.ckpt: {name} holds NaN" in sentence(capsys)
    with pytest.raises(DataError, match=f"checkpoint foreign.ckpt: {name} holds NaN"):
        from_pretrained("foreign.ckpt")
    assert run(["export", "checkpoint=foreign.ckpt", "output=exported"]) == 1
    assert f"checkpoint foreign.ckpt: {name} holds NaN" in sentence(capsys)
    assert not Path("exported").exists()
    line = [*LINE.split(), "checkpoint=foreign.ckpt", f"data.root={world}/shapes", "output_dir=out"]
    assert run(["train", *line]) == 1
    assert f"foreign.ckpt: {name} holds NaN" in sentence(capsys)


@pytest.mark.parametrize("name", [*BUILT, "teacher"])
def test_a_foreign_checkpoint_runs_nothing_when_it_is_loaded_or_exported(
    name: str, world: Path, place: Path, capsys: Capture
) -> None:
    line = foreign(world, at("teacher", value=code()) if name == "teacher" else BUILT[name])
    if name != "name":  # which is then no part of a file's
        with pytest.raises(UserError):
            from_pretrained("foreign.ckpt")
        assert run(["export", line, "output=exported"]) in (1, 2)
        assert sentence(capsys)
    assert not (place / "exported").exists()
    assert_untouched(place)


@pytest.mark.parametrize("name", ["scorer", "package", "path", "create", "adapters", "text_json", "absolute", "tag"])
def test_an_export_of_a_stranger_whose_hashes_are_right_runs_nothing(
    name: str, world: Path, place: Path, capsys: Capture
) -> None:
    foreign(world, BUILT[name])
    checkpoint = torch.load("foreign.ckpt", weights_only=True)
    write_directory(place / "given", checkpoint["state_dict"], {"fusionkit": checkpoint["fusionkit"]}, {})
    assert run(["predict", "checkpoint=given", "image=a.jpg", "question=what"]) in (1, 2)
    assert "given" in sentence(capsys)
    with pytest.raises(UserError, match="given"):
        from_pretrained("given")
    assert_untouched(place)


def test_what_an_export_says_of_the_weights_in_training_asks_this_machine_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for kind in ("${oc.env:SECRET}", r"\\${oc.env:SECRET}"):
        text = yaml.safe_dump({"adapters": {"base_weights": kind}})
        assert "hunter2" not in str(rounded_in_training(SimpleNamespace(artifacts={"config": text})))
    for kind in (None, "nf4"):
        text = yaml.safe_dump({"adapters": {"base_weights": kind}})
        assert rounded_in_training(SimpleNamespace(artifacts={"config": text})) == kind


def test_what_is_not_built_is_not_asked_about(world: Path, place: Path) -> None:
    def change(_: Any, config: dict[str, Any]) -> None:
        for section in ("optimizer", "scheduler", "balance", "logger", "callbacks"):
            config[section] = {"x": code(), "y": "${oc.env:SECRET}"}
        config["data"] |= {"prepare": code(), "answers": {"_target_": "strange.build"}}
        config["evaluation"]["options"]["cache"] = str(place / "pwned")

    line = foreign(world, change)
    assert (
        run(["evaluate", line, f"data.root={world}/shapes", "output_dir=out", "evaluation.options.reranking.k=4"]) == 0
    )
    kept = (place / "out/evaluation.yaml").read_text()
    assert "${oc.env:SECRET}" in kept
    assert "hunter2" not in kept
    assert_untouched(place)


def test_the_command_line_says_where_the_cache_is_and_may_name_code(world: Path, place: Path, capsys: Capture) -> None:
    line = foreign(world, at(*SOURCE, "augment", value=None))
    at_home = [line, f"data.root={world}/shapes", "output_dir=out", "evaluation.options.reranking.k=4"]
    assert run(["evaluate", *at_home, "evaluation.options.cache=kept"]) == 0
    assert list((place / "kept").iterdir())
    assert not (place / "cache").exists()
    assert run(["evaluate", *at_home, "data.sources.shapes.augment={_target_: strange.inner.build}"]) == 0
    assert (place / "pwned").exists()  # his own words


def test_the_checkpoint_that_a_run_starts_from_runs_nothing(world: Path, place: Path, capsys: Capture) -> None:
    for name in ("text_json", "upwards", "tag", "bomb"):
        start = foreign(world, BUILT[name])
        assert run(["train", *LINE.split(), start, f"data.root={world}/shapes", "output_dir=out"]) == 1, name
        assert sentence(capsys)
    assert_untouched(place)
    assert not (place / "out").exists()


def test_a_tokenizer_reads_no_other_files_and_fetches_no_code(world: Path, place: Path, capsys: Capture) -> None:
    (place / "vocab.json").write_text("{}")

    def change(more: dict[str, Any]) -> Change:
        def changed(artifacts: dict[str, Any], _: Any) -> None:
            files = artifacts["tokenizer"]
            files["tokenizer_config.json"] = json.dumps(json.loads(files["tokenizer_config.json"]) | more)

        return changed

    for key, value in {
        "tokenizer_file": str(place / "vocab.json"),
        "fast_tokenizer_files": ["../tokenizer.4.0.0.json"],
    }.items():
        assert run(["predict", foreign(world, change({key: value})), "image=a.jpg", "question=what"]) == 1
        assert f"says that its {key} is " in sentence(capsys)
    automatic = {"auto_map": {"AutoTokenizer": ["stranger/code--a.B", None]}, "tokenizer_class": "Strange"}
    assert run(["predict", foreign(world, change(automatic)), "image=a.jpg", "question=what"]) in (0, 1)
    harmless = {"special_tokens_map_file": "/root/.cache/x.json", "tokenizer_file": None, "vocab_file": "vocab.txt"}
    assert run(["predict", foreign(world, change(harmless)), "image=a.jpg", "question=what"]) == 0


def test_what_is_written_follows_no_link_out_of_the_run(world: Path, place: Path, capsys: Capture) -> None:
    (place / "mine").mkdir()
    (place / "mine/secret.json").write_text("{}")
    for name, target in {"predictions": "mine", "metrics.json": "mine/secret.json", "cache": "mine"}.items():
        home = place / f"of_{name}"
        shutil.copytree(world / "run", home)
        path = home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(place / target)
        assert run(
            ["evaluate", f"checkpoint={home}/checkpoints/last.ckpt", f"data.root={world}/shapes", "split=test"]
        ) in (0, 1)
        capsys.readouterr()
        assert run(["evaluate", f"checkpoint={home}/checkpoints/last.ckpt"]) == 1
        assert f"{path} is a link that leads out of the run's folder" in sentence(capsys)
        if name != "cache":
            assert run(["compare", str(home), "output_dir=cmp", "resamples=20"]) == 1
            assert f"{path} leads out of the run's folder" in sentence(capsys)
    assert [path.name for path in (place / "mine").iterdir()] == ["secret.json"]
    assert (place / "mine/secret.json").read_text() == "{}"


def test_a_foreign_run_folder_shows_nothing_of_this_machine(world: Path, place: Path, capsys: Capture) -> None:
    shutil.copytree(world / "run", place / "good")
    shutil.copytree(world / "run", place / "bad")
    path = place / "bad/config.yaml"
    config = yaml.safe_load(path.read_text())
    config |= {"tokenizer": "${oc.env:SECRET}", "seed": r"\\${oc.env:SECRET}", "fusion": "<img src=x onerror=alert(1)>"}
    config["model"] |= {"name": "![x](http://evil/x.png) <script>alert(1)</script> `", "other": "a|b\nc"}
    path.write_text(yaml.safe_dump(config))
    line = ["compare", "good", "bad", "output_dir=cmp", "resamples=20"]
    assert run(line) == 0, capsys.readouterr().err
    table, page = (place / "cmp/table.md").read_text(), (place / "cmp/index.html").read_text()
    printed = capsys.readouterr().out
    assert "hunter2" not in table + page + printed + (place / "cmp/table.csv").read_text()
    assert "oc.env:SECRET" in table
    for markup in ("<img", "<script", "![x](", "](http://"):
        assert markup not in table, markup
    assert "<script>alert" not in page
    assert '<img src="x"' not in page
    config["data"]["sources"]["shapes"]["reader"] = code()
    path.write_text(yaml.safe_dump(config))
    shutil.rmtree(place / "cmp")
    assert run(line) == 0  # the samples are read as the good run says
    assert "warning" not in capsys.readouterr().err
    line = ["compare", "bad", "good", "output_dir=cmp", "resamples=20"]
    with pytest.warns(
        UserWarning, match=f"^run {place}/bad: data.sources.shapes.reader._target_ is 'fusionkit.*not shown$"
    ):
        assert run(line) == 0
    assert (place / "cmp/index.html").read_text().count("<img") > 1  # in its place the other run's are
    assert run([*line, "examples=0"]) == 0
    config["data"]["sources"]["shapes"]["reader"] = {"_target_": "strange.inner.build"}
    path.write_text(yaml.safe_dump(config))
    with pytest.warns(
        UserWarning, match=r"add trust=\[strange\] if you trust who wrote it; its samples are not shown$"
    ):
        assert run(line) == 0
    assert_untouched(place)
    assert run([*line, "examples=0", "trust=[strange]"]) == 0
    assert_untouched(place)
    assert run([*line, "trust=[strange]"]) == 0
    assert (place / "pwned").exists()  # it is read by the trusted code


LATER = {
    "p": "${oc.create:{_target_: strange.inner.build}}"
}  # a text, which Hydra would look up when it fills in again


def later(*keys: str, value: Any = "${logger.p}") -> Change:
    def change(artifacts: dict[str, Any], config: dict[str, Any]) -> None:
        at("logger", value=LATER)(artifacts, config)
        at(*keys, value=value)(artifacts, config)

    return change


TIMM = {"_target_": "fusionkit.encoders.image.TimmEncoder", "name": "resnet10t", "pool": "mean"}
READS = {  # texts that become calls, and networks that read or fetch files: a change, what the sentence names
    "later": (later("task", "itm", "negatives"), "task.itm.negatives is '${oc.create"),
    "later_selected": (later("task", "itm", "negatives", value="${oc.select:logger.p}"), "task.itm.negatives is '${oc"),
    "later_joined": (later("fusion", "act", value="${first_of:null,$}{logger.p}"), "fusion.act is '${logger.p}'"),
    "arguments": (
        at("image_encoder", value={"_target_": TIMM["_target_"], "_args_": ["resnet10t", True]}),
        "_args_ is ",
    ),
    "nested": (at("image_encoder", "act_layer", value=TIMM | {"pretrained": True}), "act_layer.pretrained is True"),
    "nested_file": (at("image_encoder", "act_layer", value=TIMM | {"weights": "x"}), "act_layer.weights is 'x'"),
    "nested_path": (at("fusion", "act", value=[TIMM | {"checkpoint_path": "x"}]), "fusion.act.0._target_ is "),
    "function": (
        at(
            "image_encoder", "act_layer", value={"_target_": "fusionkit.encoders.tower.load_tower", "pretrained": "a/b"}
        ),
        "act_layer._target_ is 'fusionkit.encoders.tower.load_tower'",
    ),
    "file": (
        at("task", "itm", "negatives", value={"_target_": "fusionkit.negatives.OfflineNegatives", "_args_": ["x"]}),
        "task.itm.negatives._args_ is ",
    ),
    "backbone": (
        at("text_encoder", "config", value={"model_type": "timm_wrapper", "architecture": "hf-hub:a/b"}),
        "timm_wrapper",
    ),
    "section": (at("fusion", value="torch"), "fusion is 'torch', but has to be a section"),
}


@pytest.mark.parametrize("name", READS)
def test_no_network_of_a_foreign_checkpoint_reads_files_or_fetches_them(
    name: str, world: Path, place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = READS[name]
    line = foreign(world, change)
    fetched: list[object] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: fetched.append(address) or [])
    assert run(["predict", line, "image=a.jpg", "question=what"]) in (1, 2)
    assert words in sentence(capsys)
    with pytest.raises(UserError):
        from_pretrained("foreign.ckpt")
    assert not fetched
    assert_untouched(place)


def test_files_that_the_training_started_from_are_not_read_again(world: Path, place: Path, capsys: Capture) -> None:
    (place / "x.pth").write_bytes(b"no weights")
    for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "weights"):
        value = {"file": "x.pth"} if "cfg" in key else "x.pth"
        assert (
            run(["predict", foreign(world, at("image_encoder", key, value=value)), "image=a.jpg", "question=what"]) == 0
        )


def test_words_and_answers_that_a_checkpoint_only_names_are_not_read(world: Path, place: Path, capsys: Capture) -> None:
    (place / "answers.json").write_text('["yes", "no"]')
    for key, value in (("tokenizer", "a/b"), ("tokenizer", str(place)), ("answers", "answers.json")):

        def change(artifacts: dict[str, Any], config: dict[str, Any], key: str = key, value: str = value) -> None:
            artifacts[key], config["data"][key] = None, value

        line = [foreign(world, change), "image=a.jpg", "question=what"]
        assert run(["predict", *line]) == 2
        told = sentence(capsys)
        assert f"carries no {key}, but names '{value}'" in told
        assert f"as data.{key}=PLACE" in told
    assert run(["predict", *line, "data.answers=answers.json"]) == 1  # which is then read: too few for the head
    assert "is of another architecture" in sentence(capsys)


def test_a_run_that_goes_on_asks_this_machine_nothing(world: Path, place: Path, capsys: Capture) -> None:
    shutil.copytree(world / "run", "run")
    line = ["train", *LINE.split(), f"data.root={world}/shapes", "output_dir=run"]
    calls = at("seed", value="${oc.env:SECRET}")
    shutil.move(foreign(world, calls).removeprefix("checkpoint="), "run/checkpoints/last.ckpt")
    assert run([*line, "resume=true"]) == 2
    assert "seed is 1, but was ${oc.env:SECRET}" in sentence(capsys)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    calls({}, config)
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    assert run([*line, "resume=auto"]) == 2
    assert "(seed was ${oc.env:SECRET}, is 1)" in sentence(capsys)
    for text in ("a: &a [x, x]\nb: [*a, *a]", "- a", "a: ["):
        Path("run/config.yaml").write_text(text)
        assert run([*line, "resume=auto"]) == 1
        assert "run/config.yaml: its configuration " in sentence(capsys)
    (place / "logs").mkdir()
    shutil.rmtree("run/logs")
    Path("run/logs").symlink_to(place / "logs")
    for asked in ("resume=true", "resume=auto", "overwrite=true"):
        assert run([*line, asked]) == 1
        assert "run/logs is a link that leads out of the run's folder" in sentence(capsys)
    assert list((place / "logs").iterdir()) == []


def test_a_foreign_evaluation_is_none_of_ours(world: Path, place: Path, capsys: Capture) -> None:
    shutil.copytree(world / "run", "run")
    texts = ["- a", "a: 1", "checkpoint: [1]", "a: [", "checkpoint: !!python/object/apply:os.system ['touch pwned']"]
    for number, text in enumerate(texts, 1):
        folder = Path("run") / ("evaluation" if number == 1 else f"evaluation_{number}")
        folder.mkdir()
        (folder / "evaluation.yaml").write_text(text)
    line = ["checkpoint=run/checkpoints/last.ckpt", f"data.root={world}/shapes", "split=test"]
    assert run(["evaluate", *line]) == 0
    assert Path("run/evaluation_6/metrics.json").is_file()
    assert_untouched(place)


def test_what_a_checkpoint_says_is_printed_without_control_characters(
    world: Path, place: Path, capsys: Capture
) -> None:
    def change(artifacts: dict[str, Any], _: Any) -> None:
        artifacts["answers"] = [f"\x1b]0;own\x07{number}" for number in range(len(artifacts["answers"]))]

    assert run(["predict", foreign(world, change), "image=a.jpg", "question=what"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b]" not in printed
    assert "]0;own" in printed
    assert run(["predict", "checkpoint=a\x1b[2Jb.ckpt", "image=a.jpg"]) == 1
    assert "\x1b" not in sentence(capsys)


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "{place}/secret.jpg"])
def test_images_outside_of_their_folder_are_not_read(name: str, place: Path) -> None:
    (place / "images").mkdir()
    shutil.copy("a.jpg", "secret.jpg")
    shutil.copy("a.jpg", "images/own.jpg")
    own = {"id": 2, "file_name": f"{place}/images/own.jpg"}
    rows = [{"id": 1, "file_name": name.format(place=place)}, own]
    said = [{"id": n, "image_id": n, "caption": "a"} for n in (1, 2)]
    Path("captions.json").write_text(json.dumps({"images": rows, "annotations": said}))
    with pytest.raises(
        DataError, match=r"captions\.json says that the image 1 is .*, which lies outside of its folder"
    ):
        CocoCaptions("captions.json", f"{place}/images").read("train")
    Path("captions.json").write_text(json.dumps({"images": [own], "annotations": said[1:]}))
    assert [sample.image for sample in CocoCaptions("captions.json", f"{place}/images").read("train")] == [
        place / "images/own.jpg"
    ]


def test_trust_is_a_list_of_packages(world: Path, capsys: Capture) -> None:
    line = foreign(world, lambda *_: None)
    for command in (
        ["predict", line, "image=a.jpg", "question=what"],
        ["export", line, "output=out"],
        ["compare", str(world / "run")],
    ):
        assert run([*command, "trust=3"]) == 2
        assert "trust names 3, but takes names of packages" in sentence(capsys)
    with pytest.raises(ConfigError, match="takes names of packages"):
        from_pretrained("foreign.ckpt", trust=["*"])
