"""The whole road at toy size: make the data, train, evaluate, predict, resume; and what stops it."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from fusionkit.cli.main import run
from fusionkit.commands.compare import samples_of
from fusionkit.commands.train import begin_tasks
from fusionkit.reporting.reading import read_run, read_runs
from fusionkit.scoring.sample_scores import scores_of

pytestmark = pytest.mark.usefixtures("warm")

SMALL = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "scheduler.warmup_steps=0",
    "logger=csv",
    "data.answers.min_count=1",
    "data.sources.shapes.batch_size=8",
    "image_encoder=resnet_small",
    "text_encoder=bert_small",
    "text_encoder.config.hidden_size=32",
    "text_encoder.config.num_hidden_layers=1",
    "fusion=cross_attention",
    "fusion.num_layers=1",
    "fusion.num_heads=4",
    "model.embed_size=16",
    "evaluation.roles=[test,compositional]",
    "evaluation.options.reranking.k=2",
]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set and a finished run on it."""
    folder = tmp_path_factory.mktemp("world")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=40"]) == 0
    assert train(folder) == 0
    return folder


def train(world: Path, *overrides: str, name: str = "first") -> int:
    return run(["train", *SMALL, f"data.root={world}/shapes", f"output_dir={world}/{name}", *overrides])


def evaluate(world: Path, *overrides: str, command: str = "evaluate") -> int:
    return run([command, f"checkpoint={world}/first/checkpoints/best.ckpt", *overrides])


def sentence(capsys: Capture) -> str:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_a_run_leaves_its_files(world: Path) -> None:
    made = {path.name for path in (world / "first").iterdir()}
    assert made == {
        *("checkpoints", "config.yaml", "curves", "gallery", "logs", "predictions", "samples"),
        *("metrics.json", "details.json", "directions.json"),
    }
    metrics = json.loads((world / "first/metrics.json").read_text())
    for task in ("vqa_accuracy", "grounding_acc50", "itm_accuracy", "mlm_accuracy", "text_to_image_r1"):
        assert 0 <= metrics[f"shapes/{task}"] <= 100
        assert f"shapes/{task}_baseline" in metrics
    assert "shapes_compositional/vqa_accuracy" in metrics
    for task in ("vqa", "grounding", "itc"):
        rows = [json.loads(line) for line in (world / f"first/samples/shapes_{task}.jsonl").read_text().splitlines()]
        scores = scores_of(rows)
        names = [name for name in scores if f"shapes/{name}" in metrics]
        assert len(names) >= 2
        assert {name: scores[name] for name in names} == pytest.approx(
            {name: metrics[f"shapes/{name}"] for name in names}
        )


def test_a_run_can_be_compared(world: Path) -> None:
    found = read_run(world / "first")
    assert found.metrics == json.loads((world / "first/metrics.json").read_text())
    assert {"shapes_vqa", "shapes_grounding", "shapes_compositional_itc"} <= found.samples.keys()
    assert found.parameters is not None
    assert found.parameters > 1000
    last = next(row for row in reversed(found.history) if "test/shapes/vqa_accuracy" in row)
    assert last["test/shapes/vqa_accuracy"] == pytest.approx(found.metrics["shapes/vqa_accuracy"])


def test_the_run_is_summed_up_before_it_starts(world: Path, capsys: Capture) -> None:
    assert train(world, "trainer.fast_dev_run=true", name="dry") == 0
    out = capsys.readouterr().out
    for words in (
        "TimmEncoder",
        "shapes: 40 images, 8 a step",
        "itc x 1",
        "precision 32-true",
        "MB a process, batches aside",
    ):
        assert words in out
    assert not (world / "dry").exists()


def test_a_finished_run_is_not_replaced_unasked(world: Path, capsys: Capture) -> None:
    assert train(world) == 2
    assert "already holds a run (best.ckpt); add resume=true" in sentence(capsys)
    assert train(world, "resume=true", name="nothing") == 1
    assert "holds no last.ckpt to resume from" in sentence(capsys)
    assert train(world, "resume=true", "overwrite=true") == 2
    assert "contradict each other" in sentence(capsys)


def test_resume_auto_leaves_a_finished_run_alone_and_refuses_another(world: Path, capsys: Capture) -> None:
    before = (world / "first/checkpoints/last.ckpt").stat().st_mtime_ns
    assert train(world, "resume=auto") == 0
    assert f"{world}/first is finished" in capsys.readouterr().out
    assert (world / "first/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert train(world, "resume=auto", "seed=2") == 2
    assert "is of another run (seed was 1, is 2)" in sentence(capsys)
    assert train(world, "resume=perhaps", name="new") == 2
    assert "resume is 'perhaps'; give true, false or auto" in sentence(capsys)


@pytest.mark.slow
def test_resume_goes_on_and_overwrite_starts_anew(world: Path) -> None:
    last = world / "again/checkpoints/last.ckpt"
    assert train(world, name="again") == 0
    assert train(world, "resume=true", "trainer.max_epochs=2", name="again") == 0
    assert torch.load(last, weights_only=True)["global_step"] == 10
    assert train(world, "overwrite=true", name="again") == 0
    assert torch.load(last, weights_only=True)["global_step"] == 5


def test_a_resume_that_cannot_work_changes_nothing(world: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(world / "first", tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    shutil.copy(last.with_name("best.ckpt"), last)
    before = (tmp_path / "run/config.yaml").read_text()
    assert train(world, "resume=true", "model.embed_size=8", f"output_dir={tmp_path}/run") == 1
    told = sentence(capsys)
    assert str(last) in told
    assert "model.image_projection.weight" in told
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_an_output_folder_that_cannot_be_made_is_named(world: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    assert train(world, f"output_dir={tmp_path}/file/run") == 1
    assert f"output_dir={tmp_path}/file/run cannot be written to" in sentence(capsys)
    assert evaluate(world, f"output_dir={tmp_path}/file/run") == 1
    assert f"output_dir={tmp_path}/file/run cannot be written to" in sentence(capsys)


@pytest.mark.slow
def test_evaluate_gives_the_scores_of_the_run(world: Path) -> None:
    path = world / "first/metrics.json"
    before = json.loads(path.read_text())
    path.unlink()
    assert evaluate(world) == 0
    assert json.loads(path.read_text()) == pytest.approx(before)


@pytest.mark.slow
def test_two_processes_give_the_scores_and_answers_of_one_to_the_last_digit(world: Path, tmp_path: Path) -> None:
    small = [
        "data.sources.shapes.batch_size=7",
        "evaluation.options.gallery=false",
    ]  # neither batches nor images are even
    for devices in (1, 2):
        place = [f"output_dir={tmp_path}/{devices}", f"evaluation.options.cache={tmp_path}/cache{devices}"]
        assert evaluate(world, f"devices={devices}", *small, *place) == 0
    (alone, images), (shared, _) = ((tmp_path / name, (tmp_path / name).rglob("*.json*")) for name in "12")
    names = [path.relative_to(alone) for path in images]
    assert len(names) > 10
    for name in names:
        assert (shared / name).read_bytes() == (alone / name).read_bytes(), name
    records = [json.loads(line) for line in (shared / "predictions/shapes_vqa.jsonl").open()]
    assert len({record["question_id"] for record in records}) == len(records)
    batches = list((tmp_path / "cache2").glob("shapes_test_*/batch_*"))
    assert len(batches) % 2 == 1
    assert len(batches) == len(list((tmp_path / "cache1").glob("shapes_test_*/batch_*")))


def test_other_splits_are_scored_beside_the_run(world: Path) -> None:
    before = (world / "first/metrics.json").read_text()
    assert evaluate(world, "split=val", "evaluation.options.gallery=false", f"data.root={world}/shapes") == 0
    assert "shapes/vqa_accuracy" in json.loads((world / "first/evaluation/metrics.json").read_text())
    assert (world / "first/metrics.json").read_text() == before


def shapes_of(world: Path) -> list[str]:
    return [
        f"benchmark.shapes.files.annotations={world}/shapes",
        f"benchmark.shapes.files.images={world}/shapes/images",
    ]


def test_a_sweep_scores_benchmarks_with_intervals(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = world / "first/checkpoints"
    sweep = [
        "-m",
        f"checkpoint={folder}/best.ckpt,{folder}/last.ckpt",
        "benchmark=shapes",
        "benchmark.shapes.splits=[test]",
    ]
    assert run(["evaluate", *sweep, *shapes_of(world), "resamples=20"]) == 0
    assert "job 1: checkpoint=" in capsys.readouterr().out
    run_metrics = json.loads((world / "first/metrics.json").read_text())
    metrics, details = (
        json.loads((tmp_path / f"multirun/fusionkit/0/{name}.json").read_text()) for name in ("metrics", "details")
    )
    assert metrics["shapes/vqa/accuracy"] == pytest.approx(run_metrics["shapes/vqa_accuracy"])
    assert metrics["shapes/itc/text_to_image_r1"] == pytest.approx(run_metrics["shapes/text_to_image_r1"])  # re-ranked
    for name in ("vqa/accuracy", "vqa/accuracy/yes_no", "grounding/mean_iou", "itc/image_to_text_r5"):
        of_run = name.removeprefix("itc/").replace("/", "_")
        for guesser in ("baseline", "chance"):
            assert metrics[f"shapes/{name}_{guesser}"] == pytest.approx(run_metrics[f"shapes/{of_run}_{guesser}"])
    low, high = details["shapes/grounding"]["intervals"]["mean_iou"]
    assert low <= metrics["shapes/grounding/mean_iou"] <= high
    best, last = read_runs(["multirun/fusionkit"])
    assert (best.name, last.name) == ("first/best", "first/last")
    assert best.metrics == metrics
    assert best.checkpoint == folder / "best.ckpt"
    asked = {text.id for sample in samples_of(best, "shapes/vqa") for text in sample.texts["questions"]}
    assert {row["id"] for row in best.samples["shapes/vqa"].rows} <= asked


def test_a_benchmark_is_predicted_without_scores(world: Path, tmp_path: Path, capsys: Capture) -> None:
    overrides = ["benchmark=shapes", *shapes_of(world), f"output_dir={tmp_path}", "benchmark.shapes.splits=[test]"]
    assert evaluate(world, *overrides, command="predict") == 0
    assert {path.name for path in tmp_path.rglob("*.jsonl")} == {
        f"shapes_{name}.jsonl" for name in ("itc", "vqa", "grounding")
    }
    assert not (tmp_path / "metrics.json").exists()
    assert evaluate(world, "benchmark=[nlvr2]", "root=nowhere") == 2
    assert "benchmark nlvr2 is answered by the task 'nlvr2', which the checkpoint has not learnt" in sentence(capsys)
    assert evaluate(world, "benchmark=[vqav2]", "root=nowhere") == 1
    assert "its files lie below root=FOLDER" in sentence(capsys)


def test_predict_writes_records_without_scores(world: Path, tmp_path: Path) -> None:
    assert evaluate(world, "split=val", f"output_dir={tmp_path}", command="predict") == 0
    lines = (tmp_path / "predictions/shapes_val_vqa.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) == {"question_id", "answer"}
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["data.rooot=x"], 2, "unknown key 'rooot' in data; did you mean 'root'?"),
        (["data.root=nowhere"], 1, "nowhere"),
        (["devices=0"], 2, "devices is 0, but has to be a number of processes from 1 up"),
        (["split=tset"], 2, "did you mean 'test'?"),
        (["sources=[coco]"], 2, "the checkpoint has no source 'coco'; known: shapes"),
        (["evaluation.options.reranking.rule=x"], 2, "re-ranking rule 'x'"),
    ],
)
def test_a_wrong_evaluation_is_one_sentence(
    overrides: list[str], code: int, words: str, world: Path, capsys: Capture
) -> None:
    assert evaluate(world, *overrides) == code
    assert words in sentence(capsys)


def test_a_file_that_is_no_checkpoint_is_named(world: Path, tmp_path: Path, capsys: Capture) -> None:
    good = (world / "first/checkpoints/best.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    torch.save({"fusionkit": {}, "state_dict": {}, "code": os.system}, tmp_path / "pickled.ckpt")
    for name, words in (
        ("half", "is truncated, damaged or no such file at all"),
        ("text", "is truncated, damaged or no such file at all"),
        ("foreign", "was not written by fusionkit train: it holds model"),
        ("pickled", "cannot be read"),
    ):
        assert run(["evaluate", f"checkpoint={tmp_path}/{name}.ckpt"]) == 1
        told = sentence(capsys)
        assert f"{name}.ckpt" in told
        assert words in told


def test_a_checkpoint_of_another_architecture_names_the_first_difference(world: Path, capsys: Capture) -> None:
    start = f"checkpoint={world}/first/checkpoints/best.ckpt"
    assert train(world, start, "model.embed_size=8", "trainer.fast_dev_run=true", name="other") == 1
    told = sentence(capsys)
    assert "best.ckpt" in told
    assert "model.image_projection.weight" in told


def test_training_starts_from_the_weights_of_a_checkpoint(world: Path, capsys: Capture) -> None:
    start = f"checkpoint={world}/first/checkpoints/best.ckpt"
    assert train(world, start, "trainer.fast_dev_run=true", name="tuned") == 0
    assert f"started from {world}/first/checkpoints/best.ckpt\n" in capsys.readouterr().out


def test_a_damaged_tokenizer_of_a_checkpoint_is_named(world: Path, tmp_path: Path, capsys: Capture) -> None:
    content = torch.load(world / "first/checkpoints/best.ckpt", weights_only=True)
    content["fusionkit"]["tokenizer"]["tokenizer_config.json"] = "../x"
    torch.save(content, tmp_path / "x.ckpt")
    assert train(world, f"checkpoint={tmp_path}/x.ckpt", "trainer.fast_dev_run=true", name="tuned") == 1
    told = sentence(capsys)
    assert f"checkpoint {tmp_path}/x.ckpt: the checkpoint's own tokenizer" in told
    assert "/tmp/tmp" not in told


def test_a_checkpoint_of_impossible_numbers_is_named(world: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.ckpt"
    content = torch.load(world / "first/checkpoints/best.ckpt", weights_only=True)
    config = content["fusionkit"]["config"]
    for seed in ("1.0e+308", "-1", "4294967296", "true"):
        content["fusionkit"]["config"] = config.replace("\nseed: 1\n", f"\nseed: {seed}\n")
        assert content["fusionkit"]["config"] != config
        torch.save(content, path)
        assert run(["evaluate", f"checkpoint={path}"]) == 2
        assert f"checkpoint {path}: seed is " in sentence(capsys)
    content["fusionkit"]["config"] = config
    names = [name for name, tensor in content["state_dict"].items() if name.startswith("tasks.") and tensor.ndim][:2]
    for name in names:
        content["state_dict"][name] = content["state_dict"][name] * float("nan")
    torch.save(content, path)
    assert run(["evaluate", f"checkpoint={path}"]) == 1
    told = sentence(capsys)
    assert f"checkpoint {path}: " in told
    assert "holds NaN or infinite numbers, as do 1 more tensors" in told


@pytest.fixture(scope="module")
def changed_world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data with other words, more often said, and every answer in the place of another."""
    folder = tmp_path_factory.mktemp("changed") / "shapes"
    shutil.copytree(world / "shapes", folder)
    captions = folder / "annotations/captions_train.json"
    content = json.loads(captions.read_text())
    content["annotations"] = [{**row, "caption": "zebra yonder " + row["caption"]} for row in content["annotations"]]
    captions.write_text(json.dumps(content))
    path = folder / "vqa/v2_mscoco_train_annotations.json"
    content = json.loads(path.read_text())
    names = sorted({row["multiple_choice_answer"] for row in content["annotations"]})
    turned = dict(zip(names, names[1:] + names[:1], strict=True))
    for row in content["annotations"]:
        row["multiple_choice_answer"] = turned[row["multiple_choice_answer"]]
        row["answers"] = [{**one, "answer": turned.get(one["answer"], one["answer"])} for one in row["answers"]]
    path.write_text(json.dumps(content))
    return folder


def rows_of(checkpoint: dict, start: str, end: str, names: list[str]) -> dict[str, torch.Tensor]:
    state = checkpoint["state_dict"]
    (key,) = [key for key in state if key.startswith(start) and key.endswith(end)]
    return dict(zip(names, state[key], strict=True))


def words_of(checkpoint: dict) -> list[str]:
    vocabulary = json.loads(checkpoint["fusionkit"]["tokenizer"]["tokenizer.json"])["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__)


@pytest.mark.parametrize("way", ["start", "list", "resume"])
def test_words_and_answers_keep_their_meaning_on_other_data(
    world: Path, changed_world: Path, tmp_path: Path, way: str, capsys: Capture, recwarn: pytest.WarningsRecorder
) -> None:
    """Also from a copied folder, and with another rate, so small that nothing moves."""
    first = torch.load(world / "first/checkpoints/last.ckpt", weights_only=True)
    shutil.copytree(world / "first", tmp_path / "run")
    still = ["optimizer.lr=1e-12", "optimizer.weight_decay=0", "trainer.max_epochs=2", "evaluation.roles=[]"]
    line = [*still, f"data.root={changed_world}", f"output_dir={tmp_path}/run"]
    if way == "resume":
        line += ["resume=true", "checkpoint=gone.ckpt"]  # what it once started from is not needed any more
    else:
        line += [f"checkpoint={world}/first/checkpoints/last.ckpt", "overwrite=true"]
    if way == "list":
        answers = [*reversed(first["fusionkit"]["answers"]), "zebra"]
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        line.append(f"data.answers={tmp_path}/answers.json")
    assert train(world, *line) == 0
    out = capsys.readouterr().out
    assert sum("does not know 2 words of the training texts" in str(told.message) for told in recwarn) == 1
    after = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert words_of(after) == words_of(first)
    for found in (
        [rows_of(c, "model.text_encoder.", "word_embeddings.weight", words_of(c)) for c in (first, after)],
        [rows_of(c, "tasks.vqa.head.", "3.weight", c["fusionkit"]["answers"]) for c in (first, after)],
    ):
        assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])
    assert after["fusionkit"]["answers"] == (answers if way == "list" else first["fusionkit"]["answers"])
    if way == "resume":
        assert "optimizer.lr was 0.0001 and is 1e-12" in out
        assert "going on from" in out
    else:
        assert ("1 of" in out) == (way == "list")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["optimizer"]["lr"] == 1e-12
    assert max(group["initial_lr"] for group in after["optimizer_states"][0]["param_groups"]) == 1e-12


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["seed=2"], 2, "seed is 2, but was 1"),
        (["optimizer=muon"], 2, "optimizer._target_ is fusionkit.training.muon.build_muon, but was"),
        (["optimizer.rules=[[itm,0,null]]"], 2, "was trained, and is not any more"),
        (["objectives.shapes.vqa=0"], 2, "objectives: shapes/vqa was trained and is not"),
        (["trainer.max_steps=1"], 2, "trainer.max_steps is 1, but the run has made 5 already"),
        (["scheduler.warmup_steps=1.5"], 2, "scheduler.warmup_steps: expected"),
        (["balance=gradnorm"], 1, "balance.next_factors is missing there"),
    ],
)
def test_a_resume_that_cannot_work_keeps_scores_and_configuration(
    overrides: list[str], code: int, words: str, world: Path, capsys: Capture
) -> None:
    kept = {name: (world / "first" / name).read_text() for name in ("metrics.json", "config.yaml")}
    assert train(world, "resume=true", "trainer.max_epochs=2", *overrides) == code
    assert words in sentence(capsys)
    assert {name: (world / "first" / name).read_text() for name in kept} == kept


@pytest.mark.parametrize("key", ["pytorch-lightning_version", "progress", "loops", "deep"])
def test_a_damaged_place_is_one_sentence_and_nothing_is_lost(
    world: Path, tmp_path: Path, key: str, capsys: Capture
) -> None:
    shutil.copytree(world / "first", tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    if key == "deep":
        content["loops"]["fit_loop"]["epoch_progress"] = 3
    else:
        del content[key]
    torch.save(content, last)
    assert train(world, "resume=true", "trainer.max_epochs=2", f"output_dir={tmp_path}/run") == 1
    assert ("cannot be gone on from" if key == "deep" else f"has no '{key}'") in sentence(capsys)
    assert (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["data.sources.shapes.texts_per_image.expressions=0"], 2, "grounding: the task reads expressions, but"),
        (["data.root=nowhere/shapes", "data.prepare=null"], 1, "the data folder nowhere/shapes does not exist"),
        (["trainer.accelerator=quantum"], 2, "quantum"),
        (["image_encoder.name=resnett18"], 2, "is no timm model"),
        (["tokenizer=nowhere"], 2, "nowhere"),
        (["evaluation.options.precision=8"], 2, "precision"),
        (["evaluation.roles=test"], 2, "has to be a list: [test]"),
        (["optimizer.lr=-1"], 2, "optimizer: "),
        (["callbacks.best.mode=maxx"], 2, "maxx"),
        (["fusion.num_heads=5"], 2, "fusion.num_heads is 5, which does not divide the width 32"),
        (["fusion.dropout=3"], 2, "dropout"),
        (["task.itc.queue_size=-3"], 2, "task.itc.queue_size is -3"),
        (["seed=-1"], 2, "seed is -1"),
        (["evaluation.roles=[tset]"], 2, "did you mean 'test'?"),
        (["evaluation.checkpoint=bets"], 2, "did you mean 'best'?"),
        (["callbacks.best.monitor=test/shapes/vqa_accuracy"], 2, "chosen by a validation score: val/mean or"),
        (["data.sources.shapes.splits.val=[test]"], 1, "shapes/val and shapes/test share 4 of their images"),
        (["data.sources.shapes.splits.train=[train,val]"], 1, "with ++data.drop_overlap=[shapes], or allow this pair"),
    ],
)
def test_a_run_that_cannot_work_leaves_nothing(
    overrides: list[str], code: int, words: str, world: Path, capsys: Capture
) -> None:
    assert train(world, *overrides, name="never") == code
    assert words in sentence(capsys)
    assert not (world / "never").exists()


def test_a_task_is_shown_what_it_trains_on() -> None:
    """SCST counts document frequencies of it, which the validation's captions would give away."""
    shown: dict[str, Any] = {}

    def task(name: str) -> Any:
        return SimpleNamespace(begin=lambda training: shown.update({name: training}))

    tasks = {name: task(name) for name in ("captioning", "itm", "vqa")}
    parts = SimpleNamespace(tasks=tasks, datamodule=SimpleNamespace(samples=lambda source, role: f"{source} {role}"))
    objectives = {"coco": {"captioning": 1.0, "itm": 1.0}, "web": {"captioning": 1.0}}
    begin_tasks(cast("Any", parts), cast("Any", SimpleNamespace(objectives=objectives)))
    assert shown == {"captioning": {"coco": "coco train", "web": "web train"}, "itm": {"coco": "coco train"}}


def test_a_decoder_that_cannot_share_its_encoder_is_told_before_the_first_step(world: Path, capsys: Capture) -> None:
    task = [
        "objectives=none",
        "+objectives.shapes.captioning=1",
        "task=[captioning]",
        "fusion=mixed_cross_attention",
        "task.captioning._target_=fusionkit.tasks.captioning_shared.SharedCaptioning",
        "+task.captioning.first_token_id=7",
        "+task.captioning.decoder={_target_: fusionkit.fusion.mixed_cross_attention.SelfAttentionLayers, _partial_: true, "
        "num_layers: 1, num_heads: 4}",
    ]
    assert train(world, *task, name="shared") == 2
    assert "text_encoder: HFTextEncoder has no first_token_id" in sentence(capsys)
    assert not (world / "shared").exists()
