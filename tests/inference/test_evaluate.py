import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from fusionkit.assembly.evaluation_options import EvaluationOptions, Reranking
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference import evaluate as run
from fusionkit.inference.all_pairs import AllPairs
from fusionkit.inference.evaluate import draw_gallery, evaluate, own_splits, predict_split, score_split, splits_of
from fusionkit.scoring.records import read_records
from fusionkit.scoring.results import metrics_of
from fusionkit.scoring.scorers import MATCHING, RETRIEVAL, VQA, notes_of
from fusionkit.tasks.base import Task
from fusionkit.types import Encoded, Tokens

CPU = torch.device("cpu")
QUIET = EvaluationOptions(quiet=True)
NUM_IMAGES = 12


class FakeModel(nn.Module):
    """Image and text states are the number of the image shown or described; its contrastive features are poor."""

    def __init__(self):
        super().__init__()
        self.encoded_images, self.modes = 0, []
        self.fusion = SimpleNamespace(prepare=lambda image: image)
        self.temperature = torch.tensor(0.05)

    def images_of(self, batch):
        return batch["pixel_values"]

    def encode_image(self, pixel_values):
        self.encoded_images += len(pixel_values)
        return Tokens(pixel_values[:, None, None], None, pixel_values[:, None])

    def encode(self, batch, kinds):
        self.modes.append((self.training, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        image = self.encode_image(batch["pixel_values"])
        rows = {kind: batch[kind]["described"] for kind in kinds}
        text = {kind: Tokens(row[:, None, None], torch.ones(len(row), 1), row[:, None]) for kind, row in rows.items()}
        feats = {kind: self.feats(row) for kind, row in rows.items()}
        return Encoded(image, image, self.feats(batch["pixel_values"]), text, feats)

    def feats(self, number):
        return nn.functional.one_hot(number.long() // 3, NUM_IMAGES).float()  # three images look alike


class Contrast(Task):
    reads = "captions"
    ranks = True

    def predict(self, model, batch, encoded):
        ids = [{"image_id": key} for key in batch["image_ids"]] + [
            {"caption_id": key} for key in batch["captions"]["ids"]
        ]
        feats = torch.cat([encoded.image_feats, encoded.text_feats["captions"]])
        return [{**key, "feats": row} for key, row in zip(ids, feats, strict=True)]


class Matching(Task):
    reads = "captions"
    matches = True

    def score_pairs(self, model, memory, text, image_index):
        distance = (memory.embeds[image_index, 0, 0] - text.embeds[:, 0, 0]).abs()
        return torch.stack([distance, -distance], dim=1)

    def predict(self, model, batch, encoded):
        rows = batch["captions"]["image_index"]
        records = []
        for label, image_rows in ((1, rows), (0, (rows + 1) % len(batch["image_ids"]))):
            scores = self.score_pairs(model, encoded.memory, encoded.text["captions"], image_rows).softmax(dim=1)[:, 1]
            records += [
                {"caption_id": key, "image_id": batch["image_ids"][row], "score": score, "label": label}
                for key, row, score in zip(batch["captions"]["ids"], image_rows.tolist(), scores.tolist(), strict=True)
            ]
        return records


class Answering(Task):
    reads = "questions"

    def predict(self, model, batch, encoded):
        return [{"question_id": key, "answer": "yes"} for key in batch["questions"]["ids"]]


class Counting(Task):
    """A task of one's own: a plain function scores it."""

    reads = "captions"
    encodes = False

    def predict(self, model, batch, encoded):
        return [{"caption_id": key} for key in batch["captions"]["ids"]]


def count_records(records, samples):
    return {"counted": float(len(records))}


class FakeData:
    def tokens_of(self, source, kind):
        return str.split

    def __init__(self, folder):
        self.sources = {
            "toy": SimpleNamespace(splits={"train": [], "test": [], "odd": []}),
            "other": SimpleNamespace(splits={"test": []}),
        }
        self.folder, self.version = folder, 1

    def samples(self, source, role):
        made = []
        for number in range(NUM_IMAGES):
            path = self.folder / f"{number}.png"
            if not path.exists():
                Image.new("RGB", (16, 16)).save(path)
            texts = {"captions": tuple(Text(10 * number + i, f"scene {number}") for i in range(2))}
            if source == "toy" and number % 2:
                answer = "yes" if role == "test" else "no"
                texts["questions"] = (Text(number, "is it?", {"answers": [answer] * 10, "answer_type": "yes/no"}),)
            made.append(Sample(number, path, texts, size=(16, 16)))
        return made

    def eval_loader(self, source, role, numbers=None):
        samples = self.samples(source, role)
        starts = range(0, NUM_IMAGES, 5)
        return [self.batch(samples[at : at + 5]) for at in (starts if numbers is None else [5 * n for n in numbers])]

    def identity(self, source, role):
        return [f"{source} {role} {self.version}"]

    def batch(self, samples):
        batch = {
            "image_ids": [s.image_id for s in samples],
            "image_keys": torch.tensor([s.image_id for s in samples]),
            "pixel_values": torch.tensor([float(s.image_id) for s in samples]),
        }
        for kind in ("captions", "questions"):
            texts = [(row, text) for row, sample in enumerate(samples) for text in sample.texts.get(kind, ())]
            index = torch.tensor([row for row, _ in texts], dtype=torch.int64)
            batch[kind] = {
                "ids": [text.id for _, text in texts],
                "image_index": index,
                "described": batch["pixel_values"][index],
            }
        return batch


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images").mkdir()
    return FakeData(tmp_path / "images")


@pytest.fixture
def tasks():
    return all_tasks()


def all_tasks():
    return {
        "itc": Contrast(RETRIEVAL),
        "itm": Matching(MATCHING),
        "vqa": Answering(VQA),
        "mine": Counting(count_records),
    }


def evaluate_source(model, tasks, data, source, role, device, options):
    """The metrics of one split without their source, and its predictions."""
    (split,) = own_splits(tasks, data, {source: list(tasks)}, [role])
    predictions = predict_split(model, split, data, device, options)
    scored = [each for _, each in score_split(split, predictions, data.samples(source, role), data)]
    return {name.partition("/")[2]: value for name, value in metrics_of(scored).items()}, predictions


def evaluate_run(model, tasks, data, objectives, folder, device, options, roles=("test",), watch=None):
    """The metrics of an evaluation of a run's own data."""
    splits = own_splits(tasks, data, objectives, roles)
    return metrics_of(evaluate(model, splits, data, folder, device, options, watch=watch)[0])


def test_a_source_is_encoded_once_and_scored(data, tasks):
    model = FakeModel()
    metrics, predictions = evaluate_source(model, tasks, data, "toy", "test", CPU, QUIET)
    assert model.encoded_images == NUM_IMAGES
    assert metrics["vqa_accuracy"] == metrics["itm_accuracy"] == 100
    assert metrics["counted"] == 2 * NUM_IMAGES
    assert (metrics["text_to_image_r1"], metrics["image_to_text_r1"]) == (100, 100)
    assert (metrics["text_to_image_r1_itc"], metrics["text_to_image_r5_itc"]) == (0, 100)  # ties of three
    assert (metrics["vqa_accuracy_baseline"], metrics["itm_accuracy_chance"]) == (0, 50)
    assert metrics["text_to_image_r1_chance"] == pytest.approx(100 / NUM_IMAGES)
    assert predictions.keys() == {"itc", "itc_reranked", "itm", "vqa", "mine"}
    assert json.loads(json.dumps(predictions)) == predictions
    assert len(predictions["itc_reranked"]) == 3 * NUM_IMAGES


def test_without_contrast_every_pair_is_ranked_by_matching(data, tasks):
    ranking = AllPairs(tasks["itm"])
    ranking.scorer = RETRIEVAL
    chosen = {"itc": ranking, "vqa": tasks["vqa"]}
    metrics, predictions = evaluate_source(FakeModel(), chosen, data, "toy", "test", CPU, QUIET)
    assert (metrics["text_to_image_r1"], metrics["image_to_text_r1"], metrics["vqa_accuracy"]) == (100, 100, 100)
    assert predictions.keys() == {"itc", "vqa"}
    by_text = [record for record in predictions["itc"] if "caption_id" in record]
    assert len(by_text) == 2 * NUM_IMAGES
    assert len(predictions["itc"]) == 3 * NUM_IMAGES
    for record in by_text:  # all images, by their distance
        assert sorted(record["image_ids"]) == list(range(NUM_IMAGES))
        assert record["scores"] == [-abs(record["caption_id"] // 10 - image) for image in record["image_ids"]]


def test_a_second_evaluation_finds_what_the_first_encoded(data, tasks, tmp_path):
    model = FakeModel()
    options = EvaluationOptions(Reranking(chunk=3), quiet=True, cache=tmp_path / "cache")
    first = evaluate_source(model, tasks, data, "toy", "test", CPU, options)
    (folder,) = (tmp_path / "cache").iterdir()
    assert model.encoded_images == NUM_IMAGES
    assert evaluate_source(model, tasks, data, "toy", "test", CPU, options) == first
    assert model.encoded_images == NUM_IMAGES
    (folder / "batch_000001.pt").unlink()  # as after an interruption
    assert evaluate_source(model, tasks, data, "toy", "test", CPU, options) == first
    assert model.encoded_images == NUM_IMAGES + 5


@pytest.mark.parametrize("changed", ["data", "weights", "precision", "recipe"])
def test_what_was_encoded_otherwise_is_not_used(data, tasks, tmp_path, changed):
    model = FakeModel()
    options = EvaluationOptions(quiet=True, cache=tmp_path / "cache")
    evaluate_source(model, tasks, data, "toy", "test", CPU, options)
    if changed == "data":
        data.version = 2
    elif changed == "weights":
        model.temperature = nn.Parameter(torch.tensor(0.05))
    else:
        options = replace(options, **{"precision": "bf16-mixed"} if changed == "precision" else {"recipe": "heads: 3"})
    evaluate_source(model, tasks, data, "toy", "test", CPU, options)
    assert model.encoded_images == 2 * NUM_IMAGES


@pytest.mark.parametrize(("without", "k"), [("itm", 32), (None, 0)])
def test_without_reranking_the_contrastive_scores_are_final(data, tasks, without, k):
    kept = {name: task for name, task in tasks.items() if name != without}
    options = EvaluationOptions(Reranking(k=k), quiet=True)
    metrics, predictions = evaluate_source(FakeModel(), kept, data, "toy", "test", CPU, options)
    assert metrics["text_to_image_r1"] == 0
    assert not any("_itc" in name for name in metrics)
    assert "itc_reranked" not in predictions


def test_modes_are_set_and_put_back(data, tasks):
    model = FakeModel().train()
    tasks["itm"].eval()
    evaluate_source(model, tasks, data, "toy", "test", CPU, EvaluationOptions(precision="bf16-mixed", quiet=True))
    assert set(model.modes) == {(False, True, True)}
    assert (model.training, tasks["itc"].training, tasks["itm"].training) == (True, True, False)


def test_a_run_leaves_metrics_predictions_and_pictures(data, tasks, tmp_path):
    objectives = {"toy": {"itc": 1.0, "itm": 0.5, "vqa": 1.0, "mine": 1.0}, "other": ["itc", "vqa"]}
    metrics = evaluate_run(FakeModel(), tasks, data, objectives, tmp_path / "out", CPU, QUIET, ["test", "odd"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert metrics["toy/vqa_accuracy"] == 100
    assert metrics["toy_odd/vqa_accuracy"] == 0
    assert metrics["toy_odd/vqa_accuracy_baseline"] == 100  # the training answers
    assert metrics["other/text_to_image_r1"] == 0  # no matching task on that source
    assert not any(name.startswith(("other/vqa", "other_odd")) for name in metrics)
    assert {path.name for path in (tmp_path / "out" / "predictions").iterdir()} == {
        *(
            f"{label}_{name}.jsonl"
            for label in ("toy", "toy_odd")
            for name in ("itc", "itc_reranked", "itm", "vqa", "mine")
        ),
        "other_itc.jsonl",
    }
    assert {path.name for path in (tmp_path / "out" / "gallery").iterdir()} == {
        "toy_itc.png", "toy_itm.png", "toy_vqa.png", "toy_odd_itc.png", "toy_odd_itm.png", "toy_odd_vqa.png", "other_itc.png"
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out" / "curves").iterdir()} == {
        "toy_itc.json", "toy_itc.png", "toy_odd_itc.json", "toy_odd_itc.png"
    }  # fmt: skip
    last = json.loads((tmp_path / "out" / "curves" / "toy_itc.json").read_text())[-1]
    assert last["text_to_image_r1"] == metrics["toy/text_to_image_r1"] == 100
    records = read_records(tmp_path / "out" / "predictions" / "toy_itc_reranked.jsonl")
    assert RETRIEVAL(records, data.samples("toy", "test"))["text_to_image_r1"] == metrics["toy/text_to_image_r1"]


def test_which_way_a_metric_is_better_and_how_sure_it_is_are_kept(data, tasks, tmp_path):
    def hits(records, samples):
        return {"off_by": sum(record["caption_id"] % 2 for record in records) / len(records), "hits": 1.0}

    hits.metrics = {"off_by": False}
    tasks["mine"] = Counting(hits)
    evaluate_run(FakeModel(), tasks, data, {"toy": ["itc", "itm", "mine"]}, tmp_path, CPU, QUIET)
    said = json.loads((tmp_path / "directions.json").read_text())
    assert {name: up for name, up in said.items() if "image_to" not in name} == {
        "toy/off_by": False,
        "toy/itm_accuracy": True,
        **{f"toy/text_to_image_r{cut}{stage}": True for cut in (1, 5, 10) for stage in ("", "_itc")},
    }
    details = json.loads((tmp_path / "details.json").read_text())
    assert details.keys() == {"toy_itc", "toy_itm", "toy_mine"}
    low, high = details["toy_mine"]["intervals"]["off_by"]
    assert low == high == 0.5  # of each image one caption in two
    assert details["toy_itm"]["intervals"] == {"itm_accuracy": [100, 100]}
    assert {about["prefix"] for about in details.values()} == {"toy"}
    assert details["toy_itc"]["guesses"]["text_to_image_r1_chance"] == pytest.approx(100 / NUM_IMAGES)


def test_missing_training_annotations_cost_only_the_baselines(data, tasks, monkeypatch, capsys):
    samples = data.samples
    monkeypatch.setattr(data, "samples", lambda source, role: fail() if role == "train" else samples(source, role))

    def fail():
        raise DataError("no file at [train].json")

    metrics, _ = evaluate_source(FakeModel(), tasks, data, "toy", "test", CPU, QUIET)
    assert metrics["vqa_accuracy"] == 100
    assert "vqa_accuracy_baseline" not in metrics
    assert "text_to_image_r1_baseline" in metrics
    assert "[train].json" in capsys.readouterr().err


def test_unknown_role_and_precision(data, tasks, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        evaluate_run(FakeModel(), tasks, data, {"toy": ["itc"]}, tmp_path, CPU, QUIET, ["tets"])
    with pytest.raises(ConfigError, match="bf16-mixed"):
        EvaluationOptions(precision="bf16-mixd")


def test_notes_name_their_task_and_a_plain_scorer_has_none():
    few = Sample(1, Path("1.png"), {"questions": (Text(1, "?", {"answers": ["red"]}),)})
    tasks = {"vqa": SimpleNamespace(scorer=VQA), "own": SimpleNamespace(scorer=lambda records, samples: {})}
    for task in tasks.values():
        task.reads = "questions"
    notes = notes_of(tasks, [few])
    assert list(notes) == ["vqa, few answers"]
    assert notes["vqa, few answers"].startswith("1 of 1 questions have fewer than four answers")


def test_a_run_is_watched_task_by_task_and_draws_only_what_it_is_asked_to(data, tasks, tmp_path):
    seen = []
    options = EvaluationOptions(quiet=True, gallery=False)
    objectives = {"toy": ["itc", "itm", "vqa", "mine"]}
    evaluate_run(
        FakeModel(), tasks, data, objectives, tmp_path, CPU, options, ["odd", "test"], lambda *each: seen.append(each)
    )
    assert not (tmp_path / "gallery").exists()
    assert [each[0] for each in seen] == [
        f"{label}_{name}" for label in ("toy", "toy_test") for name in ("itc", "itm", "vqa")
    ]
    label, scorer, records, samples, rows = seen[0]
    assert scorer is RETRIEVAL
    assert records == read_records(tmp_path / "predictions" / "toy_itc_reranked.jsonl")  # those that are scored
    assert [sample.image_id for sample in samples] == list(range(NUM_IMAGES))
    assert rows == read_records(tmp_path / "samples" / f"{label}.jsonl")
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {f"{each[0]}.jsonl" for each in seen}
    assert json.loads((tmp_path / "metrics.json").read_text())["toy_test/vqa_accuracy"] == 100


def test_a_task_that_nobody_scores_is_predicted_alone(data, tasks):
    tasks["mine"] = Counting(None)
    metrics, predictions = evaluate_source(FakeModel(), tasks, data, "toy", "test", CPU, QUIET)
    assert len(predictions["mine"]) == 2 * NUM_IMAGES
    assert "counted" not in metrics
    assert metrics["vqa_accuracy"] == 100


def test_a_source_without_training_data_has_the_baselines_that_need_none(data, tasks):
    data.sources["toy"].splits.pop("train")
    metrics, _ = evaluate_source(FakeModel(), tasks, data, "toy", "test", CPU, QUIET)
    assert {"itm_accuracy_baseline", "text_to_image_r1_baseline"} <= metrics.keys()
    assert "vqa_accuracy_baseline" not in metrics


def test_training_data_that_is_missing_is_told_in_a_line(capsys):
    def fail():
        raise DataError("no [bold]file at 3")

    assert run.or_none(fail, "toy") == []
    said = capsys.readouterr()
    assert (said.out, " ".join(said.err.split())) == (
        "",
        "toy: baselines that need training data are left out: no [bold]file at 3",
    )
    assert run.or_none(lambda: ["a"], "toy") == ["a"]


def test_only_what_there_is_is_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(run, "draw_sheet", lambda *each: drawn.append(each))
    for panels in ([1], []):
        draw_gallery(SimpleNamespace(panels=panels), "toy · test · a", Path("toy_a.png"))
    ((sheet, title, path),) = drawn
    assert (sheet.panels, title, path) == ([1], "toy · test · a · worst first", Path("toy_a.png"))


def test_a_run_names_its_pictures_after_source_and_role(data, tasks, tmp_path, monkeypatch):
    drawn, curves = [], []
    monkeypatch.setattr(run, "draw_sheet", lambda sheet, title, path: drawn.append((title, path)))
    monkeypatch.setattr(run, "write_curve", lambda curve, title, stem: curves.append((title, stem)))
    evaluate_run(FakeModel(), tasks, data, {"toy": ["itc", "itm"]}, tmp_path, CPU, QUIET, ["odd"])
    assert drawn == [
        (f"toy · odd · {name} · worst first", tmp_path / "gallery" / f"toy_{name}.png") for name in ("itc", "itm")
    ]
    assert curves == [("toy · odd", tmp_path / "curves" / "toy_itc")]


def test_pictures_of_regions_are_not_drawn(data, tasks, tmp_path, monkeypatch):
    samples = [replace(sample, image=Path(f"{sample.image_id}.npz")) for sample in data.samples("toy", "test")]
    monkeypatch.setattr(data, "samples", lambda source, role: samples)
    evaluate_run(FakeModel(), tasks, data, {"toy": ["vqa"]}, tmp_path, CPU, QUIET)
    assert not (tmp_path / "gallery").exists()
    assert (tmp_path / "samples" / "toy_vqa.jsonl").exists()


def test_splits_stand_in_the_order_of_the_roles(data):
    assert splits_of(data, {"toy": [], "other": []}, ["odd", "test"]) == [
        ("odd", "toy"),
        ("test", "toy"),
        ("test", "other"),
    ]


def test_only_the_first_of_several_processes_scores_and_writes(data, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "rank", lambda: 1)
    assert evaluate_run(FakeModel(), tasks, data, {"toy": ["vqa"]}, tmp_path / "out", CPU, QUIET) == {}
    assert not (tmp_path / "out").exists()
