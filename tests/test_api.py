"""``import fusionkit as fk``: what a notebook does, and that it is what the commands do."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import Callback
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

import fusionkit as fk
from fusionkit import api
from fusionkit.api.runs import one_process
from fusionkit.assembly.composition import training_config
from fusionkit.cli.main import run
from fusionkit.commands.predict_images import predictor_of
from fusionkit.data.requests import Request
from fusionkit.errors import ConfigError, DataError
from fusionkit.training.progress import TrainingProgress
from fusionkit.visual.console import can_redraw

LINE = [
    *("experiment=quickstart", "trainer.precision=32-true", "trainer.max_epochs=-1", "trainer.max_steps=2"),
    *("callbacks=last", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=1", "evaluation.checkpoint=last"),
    *("data.answers.min_count=1", "text_encoder.config.hidden_size=32", "fusion.num_layers=2", "model.embed_size=16"),
    *("evaluation.roles=[test]", "evaluation.options.gallery=false", "evaluation.options.reranking.k=0"),
    *("data.spell_answers=true", "task=[itc,itm,mlm,vqa,grounding,captioning]", "+objectives.shapes.captioning=1"),
]
POPEN = subprocess.Popen
Capture = pytest.CaptureFixture[str]


class Interrupt(Callback):
    """A Ctrl-C in the second step."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2:
            raise KeyboardInterrupt


class InterruptAverages(Callback):
    """A Ctrl-C in the second step, or in the first validation behind it, and the weights that a checkpoint would have had."""

    averages: ClassVar[dict[str, torch.Tensor]] = {}

    def __init__(self, in_validation: bool) -> None:
        self.in_validation = in_validation

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        if not self.in_validation:
            self.interrupt(trainer, module)

    def on_validation_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.interrupt(trainer, module)

    def interrupt(self, trainer: Any, module: Any) -> None:
        if trainer.global_step >= 2:
            state = module.state_dict()
            module.average.save(state, module.named_parameters(remove_duplicate=False))
            self.averages.clear()
            self.averages.update({name: value.clone() for name, value in state.items()})
            raise KeyboardInterrupt


def no_process(command: Any, *args: Any, **options: Any) -> Any:
    assert command[0] == "git", command  # whose answer is kept with the run
    return POPEN(command, *args, **options)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    assert run(["data", "make", "shapes", f"root={folder}", "scenes=20"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(drawn: Path) -> fk.TrainedRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_process)
        return fk.train(*LINE, f"data.root={drawn}", f"output_dir={drawn.parent}/run")


@pytest.fixture(scope="module")
def model(trained: fk.TrainedRun) -> fk.Model:
    return fk.load(trained.folder, device="cpu")


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted((drawn / "images").iterdir())[:5]


def test_the_import_brings_no_library() -> None:
    code = """
import sys
import fusionkit as fk
heavy = {"torch", "numpy", "hydra", "lightning", "transformers", "PIL"}
assert set(dir(fk)) > {"load", "train", "evaluate", "compose", "Model"}
assert not hasattr(fk, "lode")
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from fusionkit import compose
assert compose is fk.compose and "hydra" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_its_names_are_those_of_the_api() -> None:
    assert {name for name in fk.__all__ if not hasattr(api, name)} == {"__version__"}
    assert fk.load is api.load


def test_a_run_trains_in_this_process_and_gives_what_it_wrote(trained: fk.TrainedRun, model: fk.Model, paths) -> None:
    assert not trained.is_interrupted
    assert trained.metrics == json.loads((trained.folder / "metrics.json").read_text())
    assert trained.model.path == model.path == trained.folder / "checkpoints/last.ckpt"
    steps = {row["step"]: row for row in trained.history}
    assert "train/shapes/vqa_loss" in steps[1]
    assert trained.model.match(paths, "a red star").equal(model.match(paths, "a red star"))
    assert OmegaConf.load(trained.folder / "config.yaml").trainer.strategy == "auto"
    assert (
        str(model) == f"Model(CrossAttention; tasks: itc, itm, mlm, vqa, grounding, captioning; on cpu; {model.path})"
    )


def test_it_answers_as_the_command_does(model: fk.Model, paths: list[Path], tmp_path: Path) -> None:
    words = {"question": "how many red stars are there?", "phrase": "the red star", "text": "a star above a ring"}
    lines = [{"image": str(path), "caption": True, **words} for path in paths]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "replies.jsonl"
    assert run(["predict", f"checkpoint={model.path}", f"image={tmp_path}/requests.jsonl", f"output={output}"]) == 0
    said = [json.loads(line) for line in output.read_text().splitlines()]
    asked = model.ask(paths, **words, caption=True)
    for own, record in zip(asked, said, strict=True):
        assert own.keys() == record.keys()
        assert {key: own[key] for key in ("image", "answer", "caption")} == {
            key: record[key] for key in ("image", "answer", "caption")
        }
        for key in ("bbox", "match", "cosine"):
            assert own[key] == pytest.approx(record[key], abs=1e-4)
    assert model.answer(paths, words["question"]) == [record["answer"] for record in said]
    assert model.caption(paths) == [record["caption"] for record in said]
    expected = {"match": model.match(paths, words["text"]), "bbox": model.ground(paths, words["phrase"])}
    expected["cosine"] = model.embed(images=paths) @ model.embed(texts=words["text"])
    for key, values in expected.items():
        assert values.tolist() == [pytest.approx(record[key], abs=1e-4) for record in said]
    assert len(model.ask(paths[0], question="how many?", top=2)["answers"]) == 2


def test_one_in_one_out_and_either_may_be_one(model: fk.Model, paths: list[Path]) -> None:
    texts = ["a red star", "a ring", "a blue circle below a star", "it", "a star"]
    pairs = model.match(paths, texts)
    assert pairs.shape == (5,)
    assert len({round(number, 6) for number in pairs.tolist()}) == 5
    assert [model.match(*pair) for pair in zip(paths, texts, strict=True)] == pytest.approx(pairs.tolist(), abs=1e-5)
    assert model.match(paths[1], texts)[1] == pytest.approx(pairs[1].item(), abs=1e-5)
    assert model.match(paths, [texts[2]]).shape == (5,)
    assert isinstance(model.answer(paths[0], "how many?"), str)
    assert isinstance(model.caption(paths[0]), str)
    assert model.ground(paths[0], "a star").shape == (4,)
    assert model.ground(paths[:1], "a star").shape == (1, 4)
    assert model.embed(texts="a star").shape == (16,)
    images, words = model.embed(paths, texts)
    assert images.norm(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    assert (images.shape, words.shape) == ((5, 16), (5, 16))
    assert torch.allclose(model.embed(images=[paths[0], paths[0]]), images[:1].expand(2, -1), atol=1e-5)


def test_images_are_files_pictures_arrays_or_tensors(model: fk.Model, paths: list[Path]) -> None:
    picture = Image.open(paths[0])
    array = np.asarray(picture.convert("RGB"))
    shown = [paths[0], str(paths[0]), picture, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    found = model.match(shown, "a star")
    assert found.tolist() == [found[0].item()] * 5
    assert model.embed(images=np.stack([array, array])).shape == (2, 16)
    turned = picture.transpose(Image.Transpose.ROTATE_90)  # the right way round by its EXIF orientation, 6
    turned.getexif()[274] = 6
    assert model.match(turned, "a star") == pytest.approx(found[0].item(), abs=1e-6)
    assert model.match(array[:, :, 0], "a star") != pytest.approx(found[0].item(), abs=1e-6)


def test_encodings_are_those_of_the_encoders_whatever_the_batches(model: fk.Model, paths: list[Path]) -> None:
    texts = ["a red star above a ring", "a star"]
    image, text = model.encode_image(paths), model.encode_text(texts)
    assert image.embeds.shape[0] == 5
    assert text.mask.sum(dim=1).tolist() == [8, 4]
    projected = model.parts.model.project_image(image).detach()
    assert projected.tolist() == [pytest.approx(row, abs=1e-5) for row in model.embed(images=paths).tolist()]
    small = fk.Model(model.parts, model.device, batch_size=2)
    assert torch.allclose(small.encode_image(paths).embeds, image.embeds, atol=1e-5)
    assert small.encode_image(paths[0]).embeds.shape == image.embeds.shape[1:]
    many = ["a star"] * 9 + texts  # more than a batch, and the longest is in the last one
    padded = small.encode_text(many)
    assert padded.mask.sum(dim=1).tolist() == [4] * 9 + [8, 4]
    assert torch.allclose(padded.embeds[-2], text.embeds[0], atol=1e-5)
    image.embeds.requires_grad_().sum().backward()  # they are no inference tensors


def test_an_image_is_encoded_once_however_many_texts_ask(model: fk.Model, paths: list[Path], monkeypatch) -> None:
    network, rows = model.parts.model, []
    encode = network.encode_image
    monkeypatch.setattr(network, "encode_image", lambda images: rows.append(len(images)) or encode(images))
    model.match(paths[0], ["a star", "a ring", "a red ring"])
    model.match(paths[:2], ["a star", "a ring"])
    assert rows == [1, 2]


def test_attention_by_layer_and_head(model: fk.Model, paths: list[Path]) -> None:
    texts = ["a red star", "a ring above a star"]
    values, attention = model.match(paths[:2], texts, return_attention=True)
    assert values.tolist() == pytest.approx(model.match(paths[:2], texts).tolist(), abs=1e-6)
    assert attention[0].tokens == ["[CLS]", "a", "red", "star", "[SEP]"]
    layers = len(model.parts.model.fusion.cross_attentions())
    assert attention[0].weights.shape == (layers, 4, 5, 64)
    assert attention[1].weights.shape == (layers, 4, 7, 64)
    assert torch.allclose(attention[1].weights.sum(dim=-1), torch.ones(layers, 4, 7), atol=1e-5)
    assert attention[0].grid.flatten(3).equal(attention[0].weights)
    for layer in range(layers):
        predictor = predictor_of(model.parts, model.device, looks=True, layer=layer)
        (reply,) = predictor.answer([Request(paths[0], {"text": texts[0]})])
        mean = attention[0].grid[layer].mean(dim=0)
        assert np.allclose(reply.looks["text"].attention[0], mean.mean(dim=0), atol=1e-6)
        assert np.allclose(reply.looks["text"].attention[2], mean[2], atol=1e-6)  # of the word "red"
    answer, (own,) = model.answer(paths[:1], "how many?", return_attention=True)
    assert isinstance(answer, list)
    assert own.tokens[-2] == "?"


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda model, paths: model.match(paths, ["a", "b"]), "5 images and 2 texts"),
        (lambda model, paths: model.match([], "a"), "no image is given"),
        (lambda model, paths: model.match(paths[0], " "), "the text is ' ', but has to be words"),
        (lambda model, paths: model.embed(texts=["a", 3]), "the text is 3, but has to be words"),
        (lambda model, paths: model.embed(), "embed: nothing is given"),
        (lambda model, paths: model.ask(paths[0]), "ask: nothing is asked"),
        (lambda model, paths: model.answer(0.5, "a"), "image 0 is float; give a path"),
        (lambda model, paths: model.answer([paths[0], np.zeros((8, 8, 3))], "a"), "image 1 is float64 of shape"),
        (lambda model, paths: model.answer(np.zeros((8, 8, 7), np.uint8), "a"), "give a path, a PIL image"),
        (lambda model, paths: model.match(paths[0], "a", by="itx"), "did you mean 'itm'"),
        (lambda model, paths: model.match(paths[0], "a", by="itc"), "gives no 'match' for this"),
        (lambda model, paths: model.answer("x.jpg", "a"), "the image x.jpg does not exist"),
        (lambda model, paths: model.embed(images=["x.jpg"]), "the image x.jpg does not exist"),
        (lambda model, paths: fk.load("nowhere.ckpt"), "nowhere.ckpt does not exist"),
        (lambda model, paths: fk.load(model.path, device="cuda:99"), "device cuda:99 cannot be used"),
        (lambda model, paths: fk.compose("fusion=lat"), "did you mean 'late'"),
        (lambda model, paths: fk.compose(config_dir="nowhere"), "config_dir=nowhere is no folder"),
        (lambda model, paths: fk.train(fk.compose(), "seed=2"), "one configuration of compose and nothing else"),
        (lambda model, paths: fk.train("fusion.num_layer=2"), "num_layer"),
        (lambda model, paths: fk.evaluate(model, "split=tset"), "no source of the run has a split for the role 'tset'"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence(model: fk.Model, paths: list[Path], ask, told: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=told):
        ask(model, paths)


def test_what_was_not_trained_is_refused(drawn: Path, paths: list[Path], tmp_path: Path) -> None:
    few = [text for text in LINE if not text.startswith(("task=", "+objectives", "data.spell"))]
    chosen = [
        "task=[mlm,vqa]",
        "objectives=none",
        "+objectives.shapes.mlm=1",
        "+objectives.shapes.vqa=1",
        "evaluation.roles=[]",
    ]
    config = fk.compose(*few, *chosen, f"data.root={drawn}", f"output_dir={tmp_path}/run", "fusion=gated")
    config.trainer.max_steps = 1
    model = fk.train(config).model
    assert config.trainer.devices == 2  # the caller's own is not changed
    assert isinstance(model.answer(paths[0], "how many?"), str)
    for refused, told in (
        (lambda: model.embed(images=paths), "was trained without contrast"),
        (lambda: model.match(paths, "a"), "a text is asked for, but no task of the checkpoint answers it"),
        (lambda: model.caption(paths), "a caption is asked for, but no task"),
        (lambda: model.answer(paths, "a", return_attention=True), "has no attention of the text to the image"),
    ):
        with pytest.raises(ConfigError, match=told):
            refused()


def test_an_evaluation_gives_metrics_rows_and_intervals(trained: fk.TrainedRun, model: fk.Model) -> None:
    scores = fk.evaluate(model, "split=val", "sources=[shapes]")
    assert scores.folder == trained.folder / "evaluation"
    assert scores.metrics == json.loads((scores.folder / "metrics.json").read_text())
    answered = [row["score"] for row in scores.rows["shapes_vqa"]]
    assert sum(answered) / len(answered) == pytest.approx(scores.metrics["shapes/vqa_accuracy"])
    low, high = scores.intervals(resamples=50)["shapes/grounding_mean_iou"]
    assert low - 1e-6 <= scores.metrics["shapes/grounding_mean_iou"] <= high + 1e-6
    again = fk.evaluate(trained.folder, f"output_dir={trained.folder}/again")
    assert again.metrics == pytest.approx(trained.metrics)
    other = fk.load(model.path, "cpu")
    with torch.no_grad():
        other.parts.model.temperature += 1
    with pytest.raises(ConfigError, match="weights are not those of"):
        fk.evaluate(other)


def test_packages_trusted_by_either_way_are_trusted(trained: fk.TrainedRun, monkeypatch) -> None:
    given = []
    monkeypatch.setattr("fusionkit.commands.evaluate.evaluate", lambda config: given.append(list(config.trust)))
    fk.evaluate(trained.folder, f"output_dir={trained.folder}/trusted", "trust=[one]", trust="other")
    assert given == [["one", "other"]]


def test_a_ctrl_c_gives_the_model_so_far_and_the_next_one_still_works(
    drawn: Path, paths: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    line = [*LINE, "trainer.max_steps=9", f"data.root={drawn}", "+callbacks.stop._target_=tests.test_api.Interrupt"]
    run_ = fk.train(*line, f"output_dir={tmp_path}/run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert run_.is_interrupted
    assert run_.metrics == {}
    assert run_.model.path is None
    assert 0 < run_.model.match(paths[0], "a star") < 1
    with pytest.raises(ConfigError, match="the model is not saved"):
        fk.evaluate(run_.model)
    capsys.readouterr()
    assert run(["train", *line, "trainer=cpu", f"output_dir={tmp_path}/other"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("in_validation", [False, True])
def test_a_ctrl_c_gives_the_averages_where_there_are_some(drawn: Path, tmp_path: Path, in_validation: bool) -> None:
    stop = "+callbacks.stop._target_=tests.test_api.InterruptAverages"
    line = [*LINE, "trainer.max_steps=9", f"data.root={drawn}", stop, f"+callbacks.stop.in_validation={in_validation}"]
    validated = ["trainer.limit_val_batches=1", "trainer.num_sanity_val_steps=0"]
    run_ = fk.train(*line, *validated, "ema.decay=0.5", f"output_dir={tmp_path}/run")
    assert run_.is_interrupted
    found = run_.model.parts.model.state_dict()
    assert found.keys() <= {name.removeprefix("model.") for name in InterruptAverages.averages}
    for name, value in found.items():
        torch.testing.assert_close(value, InterruptAverages.averages[f"model.{name}"], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("asked", "devices"),
    [
        (["trainer=cpu"], 1),
        (["trainer=ddp_cpu"], 1),
        (["trainer=ddp"], 1),
        (["trainer.devices=auto"], 1),
        (["trainer.devices=[3,4]"], [3]),
        (["trainer.devices=[3]", "trainer.strategy=ddp"], [3]),
        (["+trainer.num_nodes=2"], 1),
    ],
)
def test_one_process_trains_on_one_device(asked: list[str], devices: Any, capsys: Capture) -> None:
    config = training_config(*asked)
    found = one_process(config).trainer
    assert (found.devices, found.strategy, found.get("num_nodes", 1)) == (devices, "auto", 1)
    assert bool(capsys.readouterr().out) == (asked != ["trainer=cpu"])


def test_processes_are_started_where_they_are_asked_for(drawn: Path, tmp_path: Path, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(
        "fusionkit.commands.train.run_in_ranks", lambda job, config, count: started.append((job, count))
    )
    with pytest.raises(DataError, match="holds no checkpoint to give as a model"):  # nothing was trained
        fk.train(*LINE, f"data.root={drawn}", f"output_dir={tmp_path}/run", processes=True)
    assert started == [("fusionkit.commands.train:train", 2)]


def test_a_composition_is_the_commands_own_but_for_the_loggers(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "conf/fusion").mkdir(parents=True)
    (tmp_path / "conf/fusion/mine.yaml").write_text("_target_: my.Fusion\n_partial_: true\n")
    overrides = ["experiment=quickstart", "seed=3", f"data.root={tmp_path}/a, b"]
    config = fk.compose(*overrides, "teacher=null")
    assert config.data.root == f"{tmp_path}/a, b"
    assert config == training_config("experiment=quickstart", "seed=3", f"data.root='{tmp_path}/a, b'", "logger=csv")
    assert list(fk.compose("logger=[csv,wandb]").logger) == ["csv", "wandb"]
    monkeypatch.chdir(tmp_path)
    for folder in ("conf", tmp_path / "conf"):
        assert fk.compose("fusion=mine", config_dir=folder).fusion._target_ == "my.Fusion"


def test_a_notebook_without_widgets_gets_plain_lines(monkeypatch) -> None:
    monkeypatch.setattr("fusionkit.visual.console.find_spec", lambda name: None)
    notebook = Console(force_jupyter=True)
    assert not can_redraw(notebook)
    assert TrainingProgress(every_seconds=7, console=notebook).every_seconds == 7
    assert can_redraw(Console(force_terminal=True, force_jupyter=False))
    assert not can_redraw(Console(file=io.StringIO()))
    monkeypatch.setattr("fusionkit.visual.console.find_spec", lambda name: name)
    assert can_redraw(notebook)


@pytest.mark.gpu
def test_it_answers_alike_on_a_gpu(model: fk.Model, paths: list[Path]) -> None:
    other = fk.load(model.path)
    assert other.device.type == "cuda"
    found = other.embed(images=paths)
    assert found.device.type == "cpu"
    assert torch.allclose(found, model.embed(images=paths), atol=0.05)
    assert torch.allclose(other.match(paths, "a star"), model.match(paths, "a star"), atol=0.05)
    _, (attention,) = other.match(paths[:1], "a star", return_attention=True)
    assert attention.weights.device.type == "cpu"
