"""Rows and captions are left out by what is said of them, and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fusionkit.data.readers.row_filters import Filters
from fusionkit.data.readers.table import Table
from fusionkit.data.readers.table_data import TableData
from fusionkit.data.source import Source, Splits
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import pair, write_photo, write_shard
from tests.toys import CONF

NONE = {"val": 0, "test": 0}


@pytest.fixture
def table(tmp_path):
    """Writes rows as a table of pictures."""

    def write(*rows: dict[str, Any], name: str = "t.jsonl") -> Path:
        for number, row in enumerate(rows):
            write_photo(tmp_path / row.setdefault("image", f"{number}.jpg"), number)
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / name

    return write


def captions(path: Path, **filters: Any) -> list[str]:
    samples = Table(str(path), split_by=NONE, filters=filters).read("train")
    return [text.text for sample in samples for text in sample.texts["captions"]]


@pytest.mark.parametrize(
    ("filters", "kept", "told"),
    [
        ({"words": [2, 3]}, ["two words", "now it is", "so so so"], "2 of 5 captions (words 2)"),
        ({"words": 2}, ["two words", "now it is", "so so so", "a cat, a dog, a cow"], "1 of 5 captions (words 1)"),
        ({"characters": [None, 8]}, ["one", "so so so"], "3 of 5 captions (characters 3)"),
        ({"repeated": 0.4}, ["one", "two words", "now it is", "a cat, a dog, a cow"], "1 of 5 captions (repeated 1)"),
        ({"repeated": 0}, ["one", "two words", "now it is"], "2 of 5 captions (repeated 2)"),
        ({"words": [2, None], "characters": [9, 9]}, ["two words", "now it is"], "3 of 5 captions (words 1, characters 2)"),
    ],
)  # fmt: skip
def test_captions_are_kept_by_their_words(filters, kept, told, table):
    said = ["one", "two words", "now it is", "so so so", "a cat, a dog, a cow"]
    path = table(*({"caption": each} for each in said))
    with pytest.warns(UserWarning, match="data.filters leaves out") as found:
        assert captions(path, **filters) == kept
    assert [str(each.message) for each in found] == [f"{path}, train: data.filters leaves out {told}"]


def test_a_caption_is_read_so_often_as_is_said_over_all_pictures(table):
    path = table(*({"caption": said} for said in ("A dog.", "a  dog", "a cat", "A DOG!", "a dog")))
    with pytest.warns(UserWarning, match=r"leaves out 2 of 5 captions \(copies 2\)"):
        assert captions(path, copies=2) == ["A dog.", "a  dog", "a cat"]


def test_rows_are_kept_by_scores_and_values(table):
    rows = [(0.3, "en"), (0.2, "en"), ("0.5", "EN "), (0.6, "de"), (None, "en"), ("nan", "en"), (0.9, "en")]
    path = table(*({"caption": str(n), "sim": score, "lang": lang} for n, (score, lang) in enumerate(rows)))
    with pytest.warns(UserWarning, match=r"leaves out 5 of 7 rows \(sim 4, lang 1\)"):
        assert captions(path, scores={"sim": [0.25, 0.8]}, values={"lang": "en"}) == ["0", "2"]
    with pytest.warns(UserWarning, match=r"leaves out 1 of 7 rows \(lang 1\)"):
        assert len(captions(path, values={"lang": ["en", "fr"]})) == 6


def test_of_a_list_of_captions_the_good_ones_stay_and_a_question_needs_none(table):
    path = table(
        {"caption": ["a long one", "x"], "question": "what?", "answer": "y"},
        {"caption": "z", "question": "or?", "answer": "y"},
    )
    with pytest.warns(UserWarning, match=r"2 of 3 captions"):
        samples = Table(str(path), split_by=NONE, filters={"words": 2}).read("train")
    assert [len(sample.texts.get("captions", ())) for sample in samples] == [1, 0]
    assert [len(sample.texts["questions"]) for sample in samples] == [1, 1]


def test_counts_are_of_all_shards_and_copies_too(tmp_path):
    for number in range(3):
        write_shard(
            tmp_path / f"web/{number}.tar",
            pair(f"{number}0", number, "same", similarity=number),
            pair(f"{number}1", number + 3),
        )
    table = Table(str(tmp_path / "web"), split_by=NONE, filters={"copies": 1, "scores": {"similarity": 1}})
    with pytest.warns(UserWarning, match="leaves out") as found:
        samples = table.read("train")
    start = f"{tmp_path}/web/0.tar and 2 more, train: data.filters leaves out"
    assert [str(each.message) for each in found] == [
        f"{start} 4 of 6 rows (similarity 4)",
        f"{start} 1 of 2 captions (copies 1)",
    ]
    assert [sample.image_id for sample in samples] == ["10.jpg"]


def test_what_was_left_out_is_told_by_every_run(table):
    path = table({"caption": "one"}, {"caption": "two words"})
    for _ in range(2):
        source = Source(Table(str(path), split_by=NONE, filters={"words": 2}), {"train": ["train"]}, 2, {"captions": 1})
        with pytest.warns(UserWarning, match="leaves out 1 of 2 captions"):
            assert len(Splits({"x": source}).samples("x", "train")) == 1


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"wrds": 2}, "data.filters names 'wrds'; did you mean 'words'"),
        ({"words": "two"}, "data.filters.words is 'two', but has to be the least value, or"),
        ({"characters": [1, 2, 3]}, "data.filters.characters is"),
        ({"scores": 0.3}, "data.filters.scores is 0.3, but has to be a section by column"),
        ({"scores": {"sim": True}}, "data.filters.scores.sim is True"),
        ({"repeated": 2}, "data.filters.repeated is 2, but has to be a share"),
        ([3, 64], "data.filters is [3, 64], but has to be a section of keys"),
        ("words", "data.filters is 'words', but has to be a section of keys"),
        (5, "data.filters is 5, but has to be a section of keys"),
        ({"copies": 0}, "data.filters.copies is 0, but has to be a whole number"),
    ],
)
def test_a_filter_that_is_none_is_told(filters, told):
    with pytest.raises(ConfigError) as error:
        Table(filters=filters)
    assert str(error.value).startswith(told)


def test_a_column_that_is_not_there_is_told(table):
    path = table({"caption": "one", "similarity": 1})
    with pytest.raises(ConfigError, match=r"names the column 'similarty', which .* has not; did you mean 'similarity'"):
        captions(path, scores={"similarty": 0.3})


def test_without_filters_nothing_is_looked_at(table):
    assert captions(table({"caption": "one"}), words=None, scores=None, values={}) == ["one"]
    assert Filters({}).told() == []


def test_a_weight_is_a_number_from_0_on(table):
    rows = [{"caption": "a", "sample_weight": 2}, {"caption": "b"}, {"caption": "c", "sample_weight": "0.5"}]
    path = table(*rows, {"image": "0.jpg", "caption": "d", "sample_weight": 1})
    splits = Splits({"x": Source(Table(str(path), split_by=NONE), {"train": ["train"]}, 2, {"captions": 1})})
    assert splits.samples("x", "train").weights.tolist() == [1.5, 1.0, 0.5]
    for wrong in (-1, "often", "nan"):
        path = table({"caption": "a", "sample_weight": wrong}, name="w.jsonl")
        with pytest.raises(
            DataError, match=f"row 1 of .*w.jsonl has the sample_weight '{wrong}', but that is a number"
        ):
            captions(path)


@pytest.mark.parametrize("filters", [{"words": 2}, {"characters": 2}, {"repeated": 0.5}, {"copies": 1}])
@pytest.mark.parametrize("texts", [{"question": "what?", "answer": "y"}, {"caption": "a", "box": [1, 1, 5, 5]}])
def test_filters_of_captions_are_told_where_there_are_none(filters, texts, table):
    with pytest.raises(ConfigError, match="keeps captions by words, characters, repeated or copies"):
        captions(table(dict(texts), dict(texts)), **filters)


def test_numbers_are_compared_as_numbers(table):
    path = table({"caption": "one", "n": 1.0}, {"caption": "none", "n": None}, {"caption": "half", "n": 1.5})
    with pytest.warns(UserWarning, match=r"2 of 3 rows \(n 2\)"):
        assert captions(path, values={"n": [1]}) == ["one"]


def test_copies_are_those_of_all_splits_packed_or_not(tmp_path):
    samples = [pair(f"{n:02d}", n, f"said {n // 2}") for n in range(40)]
    shard = write_shard(tmp_path / "web/0.tar", *samples)
    (tmp_path / "folder").mkdir()
    for name, content in (each for sample in samples for each in sample.items()):
        (tmp_path / "folder" / name).write_bytes(content)
    for split in ("train", "val", "test"):
        options = {"split_by": {"val": 0.3, "test": 0.3}, "filters": {"copies": 1}}
        with pytest.warns(UserWarning, match="leaves out 20 of 40 captions"):
            packed, unpacked = (Table(str(path), **options).read(split) for path in (shard, tmp_path / "folder"))
        assert [each.image_id for each in packed] == [each.image_id for each in unpacked]


@pytest.mark.parametrize("missing", ["skip", "shards"])
def test_a_copy_without_a_picture_takes_no_place(missing, table, tmp_path):
    options = {"split_by": NONE, "filters": {"copies": 1, "words": 1}, "missing": "skip"}
    if missing == "skip":
        path = table({"caption": "same", "image": "gone.jpg"}, {"caption": "same"}, {"caption": "same"})
        (tmp_path / "gone.jpg").unlink()
    else:
        bare = {name: content for name, content in pair("0", 0, "same").items() if not name.endswith("jpg")}
        path = write_shard(tmp_path / "0.tar", bare, pair("1", 1, "same"), pair("2", 2, "same"))
    reader = Table(str(path), **options)
    with pytest.warns(UserWarning, match=r"leaves out 1 of 3 captions \(copies 1\)"):
        (sample,) = reader.read("train")
    assert sample.texts["captions"][0].text == "same"
    assert reader.opened.skipped == {"train": 1}


def test_a_row_without_a_caption_is_told_though_there_are_filters(table):
    path = table({"caption": "one"}, {"caption": None}, {"caption": "two words"})
    with pytest.warns(UserWarning, match="are left out|leaves out") as found:
        assert captions(path, words=2) == ["two words"]
    assert [str(each.message) for each in found] == [
        f"{path}, train: data.filters leaves out 1 of 2 captions (words 1)",
        f"{path}, train: 1 pictures have no text in the columns that are read (caption), and are left out",
    ]
    with pytest.warns(UserWarning, match="1 pictures have no text"):
        assert captions(path, copies=1) == ["one", "two words"]


@pytest.mark.parametrize(("filters", "count"), [({"copies": 1}, 1), ({"words": 4}, 3)])
def test_a_sentence_names_the_split_of_what_it_counts_and_is_said_once(filters, count, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))
    samples = [pair(f"{n:02d}", n, "said" if filters.get("words") else f"said {n // 2}") for n in range(40)]
    shard = write_shard(
        tmp_path / "web/0.tar", *samples, *(pair(f"x{n}", n, "four words that stay") for n in range(40))
    )
    splits = {name: [name] for name in ("train", "val", "test")}
    for _ in range(2):
        reader = Table(str(shard), split_by={"val": 0.3, "test": 0.3}, filters=filters)
        with pytest.warns(UserWarning, match="leaves out") as found:
            assert Splits({"x": Source(reader, splits, 2, {"captions": 1})}).training
        told = sorted(str(each.message).split(": data.filters leaves out")[0] for each in found)
        assert told == [f"{shard}, {split}" for split in sorted(splits) if count == 3 or split == "train"]


def llava(path: Path, **given: Any) -> TableData:
    config = OmegaConf.create({"tokenizer": None, "seed": 1, "data": OmegaConf.load(CONF / "data/llava.yaml")})
    mine = {"root": str(path.parent), "files": path.name, "split_by": NONE}
    data: TableData = instantiate(OmegaConf.merge(config, {"data": mine | given}).data)
    return data


def test_filters_are_those_of_llavas_layout_too(table):
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
    path = table(*({"conversations": said, "score": n} for n in range(4)))
    data = llava(path, filters={"scores": {"score": 2}})
    with pytest.warns(UserWarning, match=r"leaves out 2 of 4 rows \(score 2\)"):
        assert len(data.sources["llava"].reader.read("train")) == 2


@pytest.mark.parametrize("given", [{"boxes": "xywh"}, {"label_question": "what is it?"}])
def test_what_no_source_reads_is_told(given, table):
    ((name, value),) = given.items()
    place = f"data.sources.llava.reader.{name}"
    with pytest.warns(UserWarning, match="no source reads it") as found:
        llava(table({"caption": "one"}), **given)
    said = f"data.{name} is {value!r}, but no source reads it; to have it read, set ++{place}=VALUE"
    assert [str(each.message) for each in found] == [said]
