"""``fusionkit export layout=onnx`` and ``torch``: what a program without fusionkit reads there, and gets of the graphs."""

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import fusionkit as fk
from fusionkit.checkpoints.graphs import formats, write
from fusionkit.checkpoints.graphs.triton import triton_config
from fusionkit.cli.main import run
from fusionkit.errors import ConfigError
from tests.test_docs import DOCS, blocks

LINE = [
    *("experiment=quickstart", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1", "trainer.max_steps=2"),
    *("callbacks=last", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=1", "logger=csv", "evaluation.roles=[]"),
    *("data.answers.min_count=1", "text_encoder.config.hidden_size=32", "fusion.num_layers=1", "model.embed_size=16"),
    *("data.spell_answers=true", "task=[itc,itm,mlm,vqa,grounding,captioning]", "+objectives.shapes.captioning=1"),
    *("~task.captioning.search", "+task.captioning.search={_target_: fusionkit.tasks.generation.Greedy}"),
    *("+data.sources.shapes.template={questions: 'question {text} answer'}", "scheduler.warmup_steps=0"),
]  # fmt: skip
pytestmark = pytest.mark.slow  # a training, and its graphs
QUESTIONS = ["what color is the star?", "is there a red circle?", "how many objects are there in all?"]
TEXTS = ["a red star", "a large blue circle to the left of a small square", "two"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    assert run(["data", "make", "shapes", f"root={folder}", "scenes=20"]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(drawn: Path) -> Path:
    assert run(["train", *LINE, f"data.root={drawn}", f"output_dir={drawn.parent}/run"]) == 0
    return drawn.parent / "run/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def graphs(checkpoint: Path) -> Path:
    folder = checkpoint.parents[2] / "graphs"
    before = os.umask(0o027)
    try:
        assert run(["export", f"checkpoint={checkpoint}", f"output={folder}", "layout=onnx", "license=mit"]) == 0
    finally:
        os.umask(before)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> fk.Model:
    return fk.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def client(graphs: Path) -> Any:
    """The client of docs/exporting.md."""
    (code,) = (block.code for block in blocks(DOCS / "exporting.md") if block.title == "graph_client.py")
    names: dict[str, Any] = {}
    exec(compile(code, "graph_client.py", "exec"), names)
    return names["GraphClient"](graphs)


@pytest.fixture(scope="module")
def pictures(drawn: Path) -> list[Path]:
    return sorted((drawn / "images").iterdir())[:3]


def close(ours: Any, theirs: Any) -> bool:
    return bool(np.allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-5))


def test_answers_are_those_of_predict_by_the_labels_of_the_file(client, model, pictures) -> None:
    labels = client.told["tasks"]["vqa"]["labels"]
    shares = client.score("vqa", pictures, QUESTIONS)
    assert client.choose("vqa", pictures, QUESTIONS) == model.answer(pictures, QUESTIONS)
    for row, picture, question in zip(shares, pictures, QUESTIONS, strict=True):
        said = model.ask(picture, question=question, by="vqa", top=len(labels))["answers"]
        assert {each["answer"] for each in said} == set(labels)
        found = dict(zip(labels, row, strict=True))
        assert close([found[each["answer"]] for each in said], [each["probability"] for each in said])


def test_large_turned_photos_and_long_questions_are_read_as_by_predict(client, model, tmp_path) -> None:
    """A JPEG is decoded at a part of its size, and the template's words behind a question are not cut."""
    exif = Image.Exif()
    exif[274] = 6
    drawn = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "photo.jpg", quality=95, exif=exif)
    seen = client.run("image", {"pixel_values": client.pixels([tmp_path / "photo.jpg"])})["image_feats"]
    assert close(seen, model.embed(images=[tmp_path / "photo.jpg"], texts=["a"])[0])
    question, labels = "what color is the large red star " * 12, client.told["tasks"]["vqa"]["labels"]
    ids = client.words("vqa", [question])["input_ids"]
    assert ids.shape == (1, 40)
    assert ids[0, -2] == client.tokenizer.token_to_id("answer")
    found = dict(zip(labels, client.score("vqa", [tmp_path / "photo.jpg"], [question])[0], strict=True))
    said = model.ask(tmp_path / "photo.jpg", question=question, by="vqa", top=len(labels))["answers"]
    assert close([found[each["answer"]] for each in said], [each["probability"] for each in said])


def test_matches_boxes_and_cosines_are_those_of_predict(client, model, pictures) -> None:
    assert client.told["tasks"]["itm"]["labels"].index("match") == 1
    assert close(client.score("itm", pictures, TEXTS)[:, 1], model.match(pictures, TEXTS))
    images, texts = model.embed(images=pictures, texts=TEXTS)
    assert close(client.cosines("itc", pictures, TEXTS), images @ texts.T)
    assert client.told["tasks"]["itc"]["temperature"] == pytest.approx(model.parts.model.temperature.item())
    told = client.told["tasks"]["grounding"]
    numbers = dict(zip(told["labels"], client.score("grounding", pictures, TEXTS).T, strict=True))
    left, right = (numbers["center_x"] + side * numbers["width"] / 2 for side in (-1, 1))
    top, bottom = (numbers["center_y"] + side * numbers["height"] / 2 for side in (-1, 1))
    corners = 64 * np.stack([left, top, right, bottom]).clip(0, 1)  # the pictures' own size
    boxes = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]
    assert np.allclose(np.stack(boxes, axis=1), model.ground(pictures, TEXTS), atol=1e-3)


def test_captions_are_those_of_predict(client, model, pictures) -> None:
    words = model.parts.tasks["captioning"].writer.words
    said = client.say("captioning", pictures)
    assert [words.text(row) for row in said] == model.caption(pictures)
    assert all(len(row) >= client.told["tasks"]["captioning"]["min_length"] for row in said)


def test_the_file_says_how_all_is_read(client, model) -> None:
    told = client.told
    finish = model.parts.datamodule.finish
    assert told["image"]["size"] == [64, 64]
    assert told["image"]["fit"] == "squash"
    assert told["image"]["resample"] == "bicubic"
    assert close(told["image"]["mean"], [0.5] * 3)
    assert close(told["image"]["std"], [0.5] * 3)
    assert close(told["image"]["scale"], finish.scale.reshape(-1))
    assert told["tasks"]["vqa"]["text"] == {
        "max_length": 40, "template": "question {text} answer", "clean": None,
    }  # fmt: skip
    assert told["tasks"]["itm"]["text"]["template"] is None
    assert "text" not in told["tasks"]["captioning"]
    assert told["tasks"]["captioning"]["ends"] == [model.parts.tasks["captioning"].writer.rules.end]
    assert told["tasks"]["captioning"]["graphs"] == ["image", "captioning_prefill", "captioning_step"]
    assert told["left_out"] == {"mlm": "it answers nothing that is asked about one image"}
    assert (told["layout"], told["int8"], told["version"]) == ("onnx", False, 1)
    assert told["temperature"] == told["tasks"]["itc"]["temperature"]


def test_ports_are_those_of_the_files(client, graphs) -> None:
    kinds = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.BOOL: "bool"}
    for entry in client.told["graphs"].values():
        graph = onnx.load(graphs / entry["file"]).graph
        for ports, values in ((entry["inputs"], graph.input), (entry["outputs"], graph.output)):
            assert [port["name"] for port in ports] == [value.name for value in values]
            for port, value in zip(ports, values, strict=True):
                kind = value.type.tensor_type
                assert port["dtype"] == kinds[kind.elem_type]
                assert port["shape"] == [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
                assert port["shape"][0] == "batch"


def test_the_folder_is_a_model_repository_of_triton(client, graphs) -> None:
    repository = graphs / "model_repository"
    assert {path.name for path in repository.iterdir()} == set(client.told["graphs"])
    for name, entry in client.told["graphs"].items():
        text = (repository / name / "config.pbtxt").read_text()
        assert f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 64\n' in text
        assert entry["file"] == f"model_repository/{name}/1/model.onnx"
        named = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([^\]]*) \]', text)
        ports = [*entry["inputs"], *entry["outputs"]]
        assert [each[0] for each in named] == [port["name"] for port in ports]
        for (_, kind, dims), port in zip(named, ports, strict=True):
            assert kind == {"float32": "FP32", "int64": "INT64"}[port["dtype"]]
            own = [size if isinstance(size, int) else -1 for size in port["shape"][1:]]
            assert [int(size) for size in dims.split(", ")] == (own or [1])
    step = (repository / "captioning_step" / "config.pbtxt").read_text()
    assert '"tokens" data_type: TYPE_INT64 dims: [ 1 ] reshape: { shape: [ ] }' in step
    assert step.count("reshape") == 1


def test_where_a_port_has_no_rows_none_are_joined() -> None:
    text = triton_config("one", [{"name": "x", "dtype": "bool", "shape": [2, "length"]}], [])
    assert "max_batch_size: 0" in text
    assert '{ name: "x" data_type: TYPE_BOOL dims: [ 2, -1 ] }' in text
    assert "dynamic_batching" not in text


def test_files_have_the_modes_of_the_system(graphs) -> None:
    files = [path for path in graphs.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in graphs.rglob("*") if path.is_dir()} == {0o750}
    assert {path.name for path in graphs.iterdir()} == {"README.md", "graphs.json", "model_repository", "tokenizer"}
    card = (graphs / "README.md").read_text()
    assert "license: mit" in card
    assert "run by onnxruntime or torch alone" in card
    assert "`vqa` (answers questions)" in card
    assert "mlm" not in card


def test_torch_runs_its_own_programs_at_other_sizes(checkpoint, client, pictures, tmp_path, capsys) -> None:
    line = [f"checkpoint={checkpoint}", f"output={tmp_path}/torch", "layout=torch", "tasks=[vqa]"]
    assert run(["export", *line]) == 0
    assert "vqa: image, pair\n" in capsys.readouterr().out
    told = json.loads((tmp_path / "torch" / "graphs.json").read_text())
    assert set(told["graphs"]) == {"image", "pair"}
    assert told["left_out"]["itm"] == "it is not among tasks"
    programs = {
        name: torch.export.load(tmp_path / "torch" / entry["file"]).module() for name, entry in told["graphs"].items()
    }
    for count in (1, 3):
        given = {"pixel_values": torch.from_numpy(client.pixels(pictures[:count]))}
        given |= {name: torch.from_numpy(array) for name, array in client.words("vqa", QUESTIONS[:count]).items()}
        for name in ("image", "pair"):
            inputs = [given[port["name"]] for port in told["graphs"][name]["inputs"]]
            given |= programs[name](*inputs)
        assert close(given["vqa"].sigmoid(), client.score("vqa", pictures[:count], QUESTIONS[:count]))


def test_int8_rounds_linear_layers_alone(checkpoint, graphs, client, pictures, tmp_path) -> None:
    line = [f"checkpoint={checkpoint}", f"output={tmp_path}/int8", "layout=onnx", "int8=true", "tasks=[itm,vqa]"]
    assert run(["export", *line]) == 0
    rounded = type(client)(tmp_path / "int8")
    assert rounded.told["int8"] is True
    file = rounded.told["graphs"]["pair"]["file"]
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8" / file).graph.node]
    assert kinds.count("MatMulInteger") > 5
    assert not {"ConvInteger", "QLinearConv"} & set(kinds)
    whole = [node.op_type for node in onnx.load(graphs / file).graph.node]
    weights = {array.name for array in onnx.load(graphs / file).graph.initializer}
    assert weights
    assert whole.count("MatMulInteger") == 0
    assert kinds.count("MatMul") + kinds.count("Gemm") < whole.count("MatMul") + whole.count("Gemm")
    assert (tmp_path / "int8" / file).stat().st_size < (graphs / file).stat().st_size
    assert sorted(path.name for path in (tmp_path / "int8" / file).parent.iterdir()) == ["model.onnx"]
    ours, theirs = rounded.score("vqa", pictures, QUESTIONS), client.score("vqa", pictures, QUESTIONS)
    assert 0 < np.abs(ours - theirs).max() < 0.05


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["layout=torch", "int8=true"], "int8=true writes graphs of ONNX; give layout=onnx with it"),
        (["layout=onnx", "int8=[fusion]"], "of a graph all linear layers have 8 bits or none"),
        (["layout=onnx", "tasks=[vqq]"], "tasks names 'vqq', which the checkpoint was not trained with; did you mean 'vqa'?"),
        (["layout=onnx", "tasks=vqa"], "tasks is vqa, but has to be a list of names"),
        (["layout=torch", "merge_adapters=false"], "a graph has adapters added to the weights"),
        (["layout=onnx", "tasks=[]"], "has to be a list of names, such as [itm, vqa]"),
        (["layout=onnx", "tasks=[mlm]"], "the checkpoint has no task that replies"),
        (["tasks=[vqa]"], "give it with layout=onnx or torch, or leave it out"),
        (["max_shard_size=much"], "max_shard_size is much, but has to be a size such as 5GB"),
        (["layout=torch", "licences={fotos: mit}"], "licences names 'fotos', of which the model was not made"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_is_written(words, told, checkpoint, tmp_path, capsys) -> None:
    assert run(["export", f"checkpoint={checkpoint}", f"output={tmp_path}/out", *words]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert told in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", formats.PACKAGES)
def test_without_its_packages_one_sentence_says_how_to_get_them(
    package, checkpoint, tmp_path, capsys, monkeypatch
) -> None:
    there = importlib.import_module

    def lacking(name: str, *rest: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(name)
        return there(name, *rest)

    monkeypatch.setattr(formats.importlib, "import_module", lacking)
    assert run(["export", f"checkpoint={checkpoint}", f"output={tmp_path}/out", "layout=onnx"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"layout=onnx needs the package {package}: pip install onnx onnxscript onnxruntime" in sentence
    assert "pip install '.[graphs]'" in sentence
    assert not list(tmp_path.iterdir())


def broken(*_: Any) -> Any:
    raise RuntimeError("data-dependent\nand more")


@pytest.mark.parametrize(
    ("place", "name", "part"),
    [(write, "pair_example", "pair"), (write, "text_example", "text"), (write, "said_examples", "captioning")],
)
def test_a_part_that_is_no_graph_is_named(place, name, part, checkpoint, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(place, name, broken)
    assert run(["export", f"checkpoint={checkpoint}", f"output={tmp_path}/out", "layout=torch"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert (
        f"the part '{part}' cannot be put in a graph (data-dependent); leave its tasks out by tasks=[...]" in sentence
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layout", "place"), [("torch", "torch.export.export"), ("onnx", "torch.onnx.export")])
def test_what_the_exporters_refuse_is_one_sentence(layout, place, checkpoint, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(place, lambda *args, **options: broken())
    assert run(["export", f"checkpoint={checkpoint}", f"output={tmp_path}/out", f"layout={layout}", "tasks=[itc]"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "the part 'image' cannot be put in a graph (data-dependent)" in sentence
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_other_numbers_is_refused(checkpoint, tmp_path, capsys, monkeypatch) -> None:
    made = write.examples_of

    def others(*args: Any) -> Any:
        found = made(*args)
        found["text"].outputs["text_feats"][0] += 0.1
        return found

    monkeypatch.setattr(write, "examples_of", others)
    assert run(["export", f"checkpoint={checkpoint}", f"output={tmp_path}/out", "layout=onnx", "tasks=[itc]"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert (
        "the part 'text' cannot be put in a graph: onnxruntime computes other numbers than the model for text_feats"
        in sentence
    )
    assert not list(tmp_path.iterdir())


def test_graphs_are_uploaded_if_asked(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    asked = []
    monkeypatch.setattr(
        "fusionkit.checkpoints.write.upload", lambda *given: asked.append(given) or "https://hub/me/mine"
    )
    line = [f"checkpoint={checkpoint}", f"output={tmp_path}/out", "layout=torch", "tasks=[itc]", "hub=me/mine"]
    assert run(["export", *line]) == 0
    assert asked == [(tmp_path / "out", "me/mine")]
    assert "uploaded to https://hub/me/mine" in capsys.readouterr().out


def test_a_model_in_python_is_uploaded_with_its_card(model, monkeypatch) -> None:
    seen = []

    class Hub:
        def create_repo(self, name, exist_ok):
            seen.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            names = sorted(path.name for path in folder_path.iterdir())
            seen.append((repo_id, folder_path.name, names, (folder_path / "README.md").read_text()))
            return "https://hub/me/mine"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert model.push_to_hub("me/mine", license="mit") == "https://hub/me/mine"
    assert seen[0] == ("me/mine", True)
    repository, folder, names, card = seen[1]
    assert (repository, folder, names) == ("me/mine", "mine", ["README.md", "config.json", "model.safetensors"])
    assert "license: mit" in card
    assert "# mine" in card
    with pytest.raises(ConfigError, match="max_shard_size is 7"):
        model.push_to_hub("me/mine", max_shard_size="7")
    with pytest.raises(ConfigError, match="push_to_hub: the model is not saved"):
        fk.Model(model.parts, model.device).push_to_hub("me/mine")


def test_weights_in_shards_are_the_same_model(checkpoint, model, pictures, tmp_path) -> None:
    line = [
        f"checkpoint={checkpoint}",
        f"output={tmp_path}/plain",
        "max_shard_size=300KB",
        "licences={shapes: cc0-1.0}",
    ]
    assert run(["export", *line]) == 0
    assert len(list((tmp_path / "plain").glob("model-*-of-*.safetensors"))) > 2
    again = fk.load(tmp_path / "plain", device="cpu")
    assert again.match(pictures, TEXTS).equal(model.match(pictures, TEXTS))
    assert "| data `shapes` | drawn by fusionkit, read by CocoCaptions, RefCOCO, VQAv2 | cc0-1.0 |" in (
        (tmp_path / "plain" / "README.md").read_text()
    )
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "plain").iterdir()} == {0o644}
