"""What a training on a user's own table is given: tasks by the columns, sizes by the pictures, and what the user said first."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusionkit import api
from fusionkit.assembly.composition import training_config
from fusionkit.assembly.table_choices import choices_for, least_count, longest_text, side_for
from fusionkit.cli.main import run
from fusionkit.data.readers.table import Table
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError
from tests.data.worlds import write_photo, write_shards

SHAPES = [
    ("red", "star"),
    ("blue", "circle"),
    ("green", "square"),
    ("red", "circle"),
    ("blue", "star"),
    ("green", "star"),
] * 6


def write_table(folder: Path, *columns: str, size: tuple[int, int] = (32, 24), name: str = "t.jsonl") -> Path:
    """A table of coloured things, with as many pictures as there are of them."""
    lines = []
    for number, (color, shape) in enumerate(SHAPES):
        write_photo(folder / f"images/{number}.png", number * 5 % 256, (size[0] + number % 3, size[1]))
        known: dict[str, Any] = {
            "caption": f"a {color} {shape}, number {number}",
            "question": "what colour is it?",
            "answer": color,
            "phrase": f"the {shape}",
            "box": [14 + number % 3, 10, 12, 9],
            "label": shape,
            "messages": [
                {"role": "user", "content": "what colour is it?"},
                {"role": "assistant", "content": color},
                {"role": "user", "content": "and its shape?"},
                {"role": "assistant", "content": f"a {shape}"},
            ],
        }
        lines.append(json.dumps({"image": f"{number}.png"} | {column: known[column] for column in columns}))
    path = folder / name
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("columns", "tasks"),
    [
        (["caption"], {"itc": 1, "itm": 1, "mlm": 1}),
        (["question", "answer"], {"vqa": 1}),
        (["phrase", "box"], {"grounding": 2}),
        (["label"], {"vqa": 1}),
        (["caption", "question", "answer"], {"itc": 1, "itm": 1, "mlm": 1, "vqa": 1}),
        (["messages"], {"chat": 1}),
        (["messages", "label"], {"chat": 1}),
    ],
)
def test_the_columns_choose_the_tasks(columns, tasks, tmp_path):
    path = write_table(tmp_path, *columns)
    config = training_config("data=table", f"data.files={path}")
    assert config.objectives == {"table": tasks}
    assert set(config.task) == set(tasks)
    counts = config.data.sources.table.texts_per_image
    there = {"caption": "captions", "question": "questions", "label": "questions", "phrase": "expressions"}
    there |= {"messages": "conversations"} | ({"label": "conversations"} if "messages" in columns else {})
    assert {kind for kind, count in counts.items() if count} == {there[column] for column in columns if column in there}
    assert (config.fusion._target_.rpartition(".")[2] == "Prefix") == ("messages" in columns)
    assert "matrices" in config.optimizer  # Muon's


def test_what_the_user_says_stays(tmp_path):
    path = write_table(tmp_path, "caption", "question", "answer")
    said = ["task=[itc,itm]", "+objectives.table.itc=0.5", "optimizer=adamw", "optimizer.lr=0.5", "data.image_size=96"]
    config = training_config(
        "data=table", f"data.files={path}", *said, "data.sources.table.batch_size=7", "trainer.max_epochs=3"
    )
    assert set(config.task) == {"itc", "itm"}
    assert (config.optimizer.lr, config.data.image_size, config.data.sources.table.batch_size) == (0.5, 96, 7)
    assert "matrices" not in config.optimizer
    assert config.trainer.max_epochs == 3
    assert config.objectives.table.itc == 0.5
    assert "vqa" not in config.objectives.table


def test_sizes_follow_from_the_table(tmp_path):
    small = Table(str(write_table(tmp_path / "small", "question", "answer")))
    chosen = choices_for(small.opened)
    assert "data.image_size=64" in chosen
    assert "data.sources.table.batch_size=4" in chosen  # an eighth of 26 to 32 pictures, and four at least
    assert "trainer.max_epochs=" in " ".join(chosen)
    assert not any(text.startswith("image_encoder") for text in chosen)
    large = choices_for(Table(str(write_table(tmp_path / "large", "question", "answer", size=(160, 120)))).opened)
    assert {"data.image_size=128", "image_encoder.stage=3"} <= set(large)


def test_of_shards_damaged_pictures_are_left_out(tmp_path):
    web = write_shards(tmp_path / "web", count=4, samples=10)
    config = training_config("data=table", f"data.files='{web}/{{00000..00004}}.tar'")
    assert config.data.missing == config.data.sources.table.reader.missing == "skip"
    assert training_config("data=table", f"data.files={web}", "data.missing=error").data.missing == "error"
    assert training_config("data=table", f"data.files={write_table(tmp_path, 'caption')}").data.missing == "error"


def sample(*texts: Text, kind: str = "questions") -> Sample:
    return Sample(1, Path("none.png"), {kind: texts})


def test_rare_answers_are_left_out_where_there_are_too_many():
    many = [Text(n, "q", {"multiple_choice_answer": f"word{n}"}) for n in range(4000)]
    often = [Text(9000 + n, "q", {"multiple_choice_answer": f"word{n}"}) for n in range(100)]
    assert least_count([sample(*many[:3129])]) == 1
    assert least_count([sample(*many)]) == 2
    assert least_count([sample(*many, *often)]) == 2
    assert least_count([sample(*often, *often)]) == 1


def test_nearly_all_texts_fit():
    assert longest_text([sample(Text(1, "one two"))], ["questions"]) == 16
    assert longest_text([sample(Text(1, "word " * 20))], ["questions"]) == 32
    assert longest_text([sample(Text(1, "word " * 200))], ["questions"]) == 64
    assert longest_text([sample(Text(1, "word " * 200), kind="conversations")], ["conversations"]) == 160
    assert longest_text([sample(Text(1, "word " * 20), kind="captions"), sample(Text(1, "one"))], ["questions"]) == 16


def test_pictures_are_small_up_to_96_pixels(tmp_path):
    for side, size in ((96, 64), (97, 128)):
        write_photo(tmp_path / f"{side}.png", 1, (200, side))
        assert side_for([Sample(1, tmp_path / f"{side}.png", {})]) == size


def test_a_missing_split_is_that_of_the_other(tmp_path):
    path = write_table(tmp_path, "caption")
    config = training_config("data=table", f"data.files={path}", "data.split_by.test=0", "data.split_by.val=0.3")
    assert config.data.sources.table.splits == {"train": ["train"], "val": ["val"], "test": ["val"]}
    assert config.data.allow_overlap == [["table/val", "table/test"]]
    with pytest.raises(
        ConfigError, match=r"the splits are train; training needs 'train', and 'val' or 'test' beside it"
    ):
        choices_for(Table(str(path), split_by={"val": 0, "test": 0}).opened)


def test_texts_that_no_task_reads_are_told(tmp_path):
    path = write_table(tmp_path, "question")
    with pytest.raises(
        ConfigError, match=r"has questions, which no task trains on without answers; say what its columns are"
    ):
        choices_for(Table(str(path)).opened)


def test_an_experiment_says_all_itself(tmp_path):
    path = write_table(tmp_path, "question", "answer")
    config = training_config("experiment=quickstart", "data=table", f"data.files={path}")
    assert set(config.task) == {"itc", "itm", "mlm", "vqa", "grounding"}


SMALL = [
    "text_encoder.config.hidden_size=32",
    "fusion.num_layers=1",
    "model.embed_size=16",
    "trainer=cpu",
    "logger=csv",
]


@pytest.mark.slow
def test_one_command_trains_scores_and_evaluates_a_table(tmp_path, capsys):
    path = write_table(tmp_path, "caption", "question", "answer", "phrase", "box")
    options = [f"data.files={path}", "data.boxes=xywh", f"output_dir={tmp_path}/run", "trainer.max_steps=2", *SMALL]
    assert run(["train", "data=table", *options]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "chosen by the table: task=[itc,itm,mlm,vqa,grounding]" in out
    assert "table: texts: captions, questions, expressions" in out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {"table/vqa_agreement", "table/text_to_image_r1"} <= metrics.keys()
    new = write_table(tmp_path, "caption", "question", "answer", "phrase", "box", name="new.jsonl")
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.ckpt"
    assert run(["evaluate", checkpoint, "data.files={test: " + str(new) + "}", f"output_dir={tmp_path}/again"]) == 0
    assert json.loads((tmp_path / "again/metrics.json").read_text()).keys() >= {"table/vqa_agreement"}


@pytest.mark.slow
def test_a_table_of_messages_is_learnt_and_talked_with(tmp_path, capsys):
    """Trained, scored, asked over several turns in both ways, and evaluated again."""
    path = write_table(tmp_path, "messages")
    options = [f"data.files={path}", f"output_dir={tmp_path}/run", "trainer.max_steps=2", "model.embed_size=16"]
    options += [
        "text_encoder.config.hidden_size=32",
        "trainer=cpu",
        "logger=csv",
        "task=[chat]",
        "task.chat.max_length=4",
    ]
    assert run(["train", "data=table", *options]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "chosen by the table: objectives=none objectives.table={chat: 1}" in out
    assert "table: texts: conversations" in out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {"table/chat_rouge_l", "table/chat_exact_match", "table/chat_bleu_4"} <= metrics.keys()
    assert (tmp_path / "run/gallery/table_chat.png").is_file()
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    image, asked = str(tmp_path / "images/1.png"), [{"role": "user", "content": "what colour is it?"}]
    talk = [*asked, {"role": "assistant", "content": "blue"}, {"role": "user", "content": "and its shape?"}]
    lines = [{"image": image, "question": given} for given in ("what colour is it?", asked, talk)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = [f"checkpoint={checkpoint}", f"image={tmp_path}/q.jsonl", f"output={tmp_path}/r.jsonl"]
    assert run(["predict", *given]) == 0, capsys.readouterr().err
    replies = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [reply["question"] for reply in replies] == ["what colour is it?"] * 2 + ["and its shape?"]
    first, second, third = (reply["answer"] for reply in replies)
    assert first == second
    model = api.load(checkpoint, "cpu")
    assert model.answer(image, "what colour is it?") == model.answer(image, asked) == first
    assert model.answer([image, image], talk) == [third, third]
    assert model.answer(image, [asked, talk]) == [first, third]
    assert model.ask(image, question=talk)["answer"] == third
    again = [f"checkpoint={checkpoint}", f"output_dir={tmp_path}/again"]
    assert run(["evaluate", *again]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "again/metrics.json").read_text()).keys() >= {"table/chat_rouge_l"}


def test_a_look_prints_what_is_there_and_writes_what_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_table(tmp_path, "caption", "phrase", "box")
    (tmp_path / "images/35.png").write_bytes((tmp_path / "images/34.png").read_bytes())
    with path.open("a") as file:
        file.write('\n{"image": "gone.png", "caption": "gone", "phrase": "gone", "box": [1, 2, 3, 4]}\n')
    assert run(["data", "look", "t.jsonl", "boxes=xywh"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "image=image, caption=caption, expression=phrase, box=box" in out
    assert "captions, " in out
    assert "missing: 1 rows of train name a picture that is not there" in out
    assert "duplicates: 1 pictures are there under several names, such as " in out
    assert "34.png" in out.partition("duplicates")[2]
    assert "languages, most probably: English" in out
    assert out.count(" image ") == 5
    assert (tmp_path / "look/t.png").read_bytes().startswith(b"\x89PNG")
    assert out.splitlines()[-1] == "train it: fusionkit train --config-dir look experiment=t"
    options = ["data.missing=skip", "trainer.fast_dev_run=1", *SMALL]
    assert run(["train", "--config-dir", "look", "experiment=t", *options]) == 0, capsys.readouterr().err


def test_a_look_counts_a_damaged_picture_and_reads_the_keys_of_a_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, "caption")
    (tmp_path / "images/3.png").write_bytes(b"no picture")
    options = ["data.split_by.test=0.3", "split_by.val=0", "data.columns.caption=caption", "filters.words=[1,9]"]
    assert run(["data", "look", "t.jsonl", *options]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "damaged: 1 of the 24 pictures that were drawn for the sheet, such as images/3.png cannot be decoded" in out
    assert "splits: train, test; test 0.3 of" in out
    data = yaml.safe_load((tmp_path / "look/experiment/t.yaml").read_text())["data"]
    assert data["split_by"] == {"val": 0, "test": 0.3}
    assert data["filters"] == {"words": [1, 9]}
    assert (tmp_path / "look/t.png").is_file()


def test_what_a_look_cannot_read_is_one_sentence(tmp_path, capsys):
    assert run(["data", "look", f"{tmp_path}/none.csv"]) == 1
    assert "none.csv does not exist; known: " in capsys.readouterr().err
    assert run(["data", "lok", "x"]) == 2
    assert "fusionkit data cannot 'lok'; did you mean 'look'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "words"), [("none.jsonl", "none.jsonl does not exist"), ("t.jsonl", "1 of 37 pictures of ")]
)
def test_what_is_wrong_with_the_files_is_told_by_the_training(file, words, tmp_path, capsys):
    path = write_table(tmp_path, "caption")
    with path.open("a") as lines:
        lines.write('\n{"image": "gone.png", "caption": "gone"}')
    assert training_config("data=table", f"data.files={tmp_path}/{file}").data.files == f"{tmp_path}/{file}"
    assert (
        run(["train", "data=table", f"data.files={tmp_path}/{file}", f"output_dir={tmp_path}/run", "trainer=cpu"]) == 1
    )
    error = capsys.readouterr().err
    assert words in error
    assert len([line for line in error.splitlines() if line.startswith("error")]) == 1
