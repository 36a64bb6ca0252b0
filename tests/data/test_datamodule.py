import dataclasses
import functools
import itertools
import re
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from fusionkit.assembly.composition import training_config
from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.collate import Collate
from fusionkit.data.datamodule import DataModule
from fusionkit.data.dataset import NO_BOXES
from fusionkit.data.loader import cores_granted, workers_of
from fusionkit.data.sample import Sample, Text
from fusionkit.data.source import Source
from fusionkit.data.texts.conversations import Conversation
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.data.transforms import Augment
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import Listed, make_samples, write_photo
from tests.toys import choices


def make_source(folder, train=range(23), val=range(23, 30), batch_size=4, **options) -> Source:
    reader = Listed(train=make_samples(folder, train), val=make_samples(folder, val))
    return Source(reader, {"train": ["train"], "val": ["val"]}, batch_size, {"captions": 2}, **options)


def make_module(folder, sources=None, **options) -> DataModule:
    sources = sources or {
        "a": make_source(folder, augment=Augment()),
        "b": make_source(folder, range(7), range(40, 41)),
    }
    return DataModule(str(folder), sources, image_size=8, **options)


def train_batches(module, epochs=1) -> list[dict]:
    loader = module.train_dataloader()
    return [batch for _ in range(epochs) for batch, _, _ in iter(loader)]


def same(one, two) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and one and isinstance(one[0], dict):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_every_source_has_a_batch_in_every_step(tmp_path):
    batches = train_batches(make_module(tmp_path))
    assert len(batches) == 6  # the 23 images of the longer source
    seen = {name: [number for batch in batches for number in batch[name]["image_ids"]] for name in ("a", "b")}
    assert set(seen["a"]) == set(range(23))
    assert sorted(seen["b"][:7]) == sorted(seen["b"][7:14]) == list(range(7))
    assert len(batches[0]["a"]["captions"]["ids"]) == 8
    assert make_module(tmp_path, steps_per_epoch=3).steps == 3


def test_workers_make_the_very_same_batches(tmp_path):
    expected = train_batches(make_module(tmp_path))
    for workers in (1, 2):
        assert same(train_batches(make_module(tmp_path, num_workers=workers)), expected)
    assert not same(train_batches(make_module(tmp_path, seed=1))[0], expected[0])


def test_a_loaded_state_goes_on_with_the_next_batch(tmp_path):
    expected = train_batches(make_module(tmp_path))
    module = make_module(tmp_path)
    module.load_state_dict(make_module(tmp_path).state_dict() | {"batches": 4})
    assert same(train_batches(module), expected[4:])
    assert len(module.train_dataloader().flattened[0]) == 6
    changed = make_module(tmp_path, {"a": make_source(tmp_path, batch_size=2)})
    changed.load_state_dict(module.state_dict())
    with pytest.warns(UserWarning, match="global batch size .*goes on with the samples that are due, but its steps"):
        changed.train_dataloader()


def test_a_run_that_goes_on_in_other_batches_trains_on_the_samples_that_are_due(tmp_path):
    def images(module, batches):
        return [image for batch in batches for image in batch["a"]["image_ids"]]

    def going_on(state, batch_size):
        module = make_module(tmp_path, {"a": make_source(tmp_path, batch_size=batch_size)}, steps_per_epoch=20)
        module.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module, train_batches(module)

    whole = make_module(tmp_path, {"a": make_source(tmp_path, batch_size=4)}, steps_per_epoch=20)
    expected = images(whole, train_batches(whole))
    state = whole.state_dict() | {"batches": 3}
    assert state["begin"] == {"a": [0, 0]}
    smaller, found = going_on(state, 2)
    assert images(smaller, found) == expected[12 : 12 + 34]  # 17 batches are left of 20
    state = smaller.state_dict() | {"batches": 8}  # 5 more
    assert state["begin"] == {"a": [3, 12]}
    same_again, found = going_on(state, 2)
    assert images(same_again, found) == expected[22 : 22 + 24]
    larger, found = going_on(state, 4)
    assert images(larger, found)[:48] == expected[22 : 22 + 48]
    assert larger.state_dict()["begin"] == {"a": [8, 22]}
    del state["begin"]  # of an earlier version: all batches were of one size
    _, found = going_on(state | {"order": whole.state_dict()["order"]}, 2)
    assert images(larger, found) == expected[32 : 32 + 24]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_every_text_once_and_repeats_itself(tmp_path, workers):
    module = make_module(tmp_path, num_workers=workers)
    batches = list(module.eval_loader("a", "val"))
    assert [number for batch in batches for number in batch["image_ids"]] == list(range(23, 30))
    assert [number for batch in batches for number in batch["captions"]["ids"]] == list(range(115, 150))
    assert same(batches, list(module.eval_loader("a", "val")))
    assert [loader.dataset.samples for loader in module.val_dataloader()] == [module.samples(s, "val") for s in "ab"]


def test_held_out_images_of_any_source_are_dropped_from_training(tmp_path):
    sources = {
        "a": make_source(tmp_path, range(10), range(20, 22)),
        "b": make_source(tmp_path, range(6, 22), range(3)),
    }
    module = make_module(tmp_path, sources, drop_overlap=["a", "b"])
    assert module.dropped == {"a": 3, "b": 2}
    assert [sample.image_id for sample in module.samples("a", "train")] == list(range(3, 10))
    assert set(itertools.chain(*(batch["b"]["image_ids"] for batch in train_batches(module, 2)))) == set(range(6, 20))
    with pytest.raises(ConfigError, match=r"data.drop_overlap names 'c', which is no source; known: a, b"):
        make_module(tmp_path, sources, drop_overlap=["c"])
    alone = make_module(tmp_path, {"a": make_source(tmp_path, range(3), range(5))}, drop_overlap=["a"])
    with pytest.raises(DataError, match="all 3 training images of source 'a' are in held-out splits"):
        alone.train_dataloader()


@pytest.mark.parametrize(
    ("train", "val", "test", "sentence"),
    [
        (
            (0, 5),
            (4, 7),
            (8, 9),
            r"^a/train and b/val share 1 of their images, such as image 4: .* with \+\+data.drop_overlap=\[a\]",
        ),
        (
            (0, 5),
            (20, 22),
            (3, 9),
            r"^a/train and b/test share 2 of their images, .* \+\+data.allow_overlap=\[\[a/train,b/test\]\]$",
        ),
        (
            (0, 3),
            (5, 8),
            (6, 9),
            r"^b/val and b/test share 2 of their images, .*; correct data.sources.b.splits, or allow this pair",
        ),
    ],
)
def test_images_shared_by_training_validation_and_test_are_an_error_unless_the_pair_is_named(
    tmp_path, train, val, test, sentence
):
    splits = {name: make_samples(tmp_path, range(*ids)) for name, ids in (("x", train), ("y", val), ("z", test))}
    captions = {"captions": 1}
    sources = {
        "a": Source(Listed(**splits), {"train": ["x"]}, 1, captions),
        "b": Source(Listed(**splits), {"val": ["y"], "test": ["z"]}, 1, captions),
    }
    with pytest.raises(DataError, match=sentence) as told:
        make_module(tmp_path, sources).require_apart()
    one, _, other = str(told.value).split()[:3]
    for pair in ([one, other], [other, one], [one, "*"]):
        make_module(tmp_path, sources, allow_overlap=[pair]).require_apart()
    with pytest.raises(DataError):
        make_module(tmp_path, sources, allow_overlap=[[one, one]]).require_apart()


def test_tests_may_share_images_and_names_of_pairs_are_checked(tmp_path):
    source = make_source(tmp_path)
    source = dataclasses.replace(source, splits={"train": ["train"], "test": ["val"], "test_b": ["val"]})
    make_module(tmp_path, {"a": source}).require_apart()
    with pytest.raises(
        ConfigError, match=r"data.allow_overlap names 'a/tets', which is no source/role; did you mean 'a/test'"
    ):
        make_module(tmp_path, {"a": source}, allow_overlap=[["a/train", "a/tets"]])
    with pytest.raises(ConfigError, match=r"expected pairs such as \[a/train, b/test\], got 'a'"):
        make_module(tmp_path, {"a": source}, allow_overlap=["a"])


def test_equal_ids_of_different_collections_are_different_images(tmp_path):
    one = [Sample(1, write_photo(tmp_path / "1.png"), {"captions": (Text(1, "x"),)})]
    two = [Sample(1, tmp_path / "1.png", {"captions": (Text(1, "x"),)}, collection="flickr30k")]
    source = Source(Listed(train=one, val=two), {"train": ["train"], "val": ["val"]}, 1, {"captions": 1})
    assert make_module(tmp_path, {"a": source}, drop_overlap=["a"]).dropped == {"a": 0}


def test_splits_of_one_role_are_joined_by_image(tmp_path):
    samples = make_samples(tmp_path, range(3))
    reader = Listed(train=samples, restval=make_samples(tmp_path, range(2, 5)))
    source = Source(reader, {"train": ["train", "restval"]}, 2, {"captions": 1})
    joined = make_module(tmp_path, {"a": source}).samples("a", "train")
    assert [(sample.image_id, len(sample.texts["captions"])) for sample in joined] == [
        (0, 5),
        (1, 5),
        (2, 10),
        (3, 5),
        (4, 5),
    ]


def ask(number: int, folder, answer: str) -> Sample:
    facts = {"answers": [answer] * 10, "multiple_choice_answer": answer}
    return Sample(number, write_photo(folder / f"{number}.png"), {"questions": (Text(number, "is it?", facts),)})


def test_answers_come_from_training_questions_that_are_kept(tmp_path):
    train = [ask(number, tmp_path, "yes" if number < 4 else "no") for number in range(6)]
    reader = Listed(train=train, val=[ask(number, tmp_path, "maybe") for number in (5, 6, 7)])
    source = Source(reader, {"train": ["train"], "val": ["val"]}, 2, {"questions": 1})
    rule, drop = functools.partial(AnswerVocabulary.build, min_count=1), {"drop_overlap": ["a"]}
    assert make_module(tmp_path, {"a": source}, answers=rule, **drop).answers.answers == ["yes", "no"]
    with pytest.raises(ConfigError, match=r"data.answers.min_count=9 leaves no answer"):
        make_module(tmp_path, {"a": source}, **drop).train_dataloader()
    assert make_module(tmp_path).answers is None


def test_evaluation_elsewhere_reads_the_evaluated_split_only(tmp_path):
    reader = Listed(val=[ask(1, tmp_path, "no")])
    source = Source(reader, {"train": ["train"], "val": ["val"]}, 2, {"questions": 1})
    module = make_module(
        tmp_path, {"a": source}, tokenizer=word_tokenizer(["is it"]), answers=AnswerVocabulary(["yes", "no"])
    )
    module.prepare_data()
    module.setup()
    (batch,) = module.eval_loader("a", "val")
    assert batch["questions"]["answer_scores"].tolist() == [[0, 1]]
    assert reader.asked == ["val"]


def test_data_are_made_where_there_are_none(tmp_path):
    made = []
    for root in (tmp_path, tmp_path / "none"):
        module = DataModule(str(root), {"a": make_source(tmp_path)}, prepare=functools.partial(made.append, root))
        module.prepare_data()
    assert made == [tmp_path / "none"]
    with pytest.raises(DataError, match=r"the data folder .*none does not exist; .*data.root=FOLDER"):
        module.setup()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_one_sentence_from_a_worker_too(tmp_path, workers):
    module = make_module(tmp_path, num_workers=workers)
    (tmp_path / "25.png").write_bytes(b"bad")
    (tmp_path / "3.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"^[^\n]*25.png cannot be decoded[^\n]*$"):
        list(module.eval_loader("a", "val"))
    with pytest.raises(DataError, match=r"^1 of the (23|7) training images [^\n]*3.png[^\n]*$"):
        train_batches(module)


def test_skipped_images_are_counted_across_workers(tmp_path):
    source = make_source(tmp_path, range(200), range(200, 201), batch_size=50)
    module = make_module(tmp_path, {"a": source}, num_workers=2)
    for number in (3, 77):
        (tmp_path / f"{number}.png").write_bytes(b"bad")
    assert len(train_batches(module, 2)) == 8
    assert module.skipped() == {"a": 2}


def test_cached_images_are_not_read_again(tmp_path):
    module = make_module(tmp_path, {"a": make_source(tmp_path, cache=True)})
    first, scored = train_batches(module), list(module.eval_loader("a", "val"))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert same(train_batches(module), first)
    assert same(list(module.eval_loader("a", "val")), scored)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda m: m.samples("aa", "val"), r"data.sources has no source 'aa'; did you mean 'a'\? known: a"),
        (lambda m: m.eval_loader("a", "tset"), "data.sources.a.splits has no role 'tset'; .*known: train, val"),
        (lambda m: DataModule("x", {"a": Source(None, {}, 0, {"captions": 1})}), "data.sources.a.batch_size is 0"),
        (lambda m: DataModule("x", {"a": Source(None, {}, 1, {"captions": 0})}), "a.texts_per_image asks for no texts"),
        (lambda m: DataModule("x", {"a": Source(None, {}, 1, {"captions": 1}, 2)}), "data.sources.a.max_length is 2"),
        (
            lambda m: DataModule("x", {"a": Source(None, {"val": "val"}, 1, {"captions": 1})}),
            r"splits.val is 'val', but",
        ),
        (
            lambda m: DataModule("x", {"a": Source(None, {}, 1, {"captions": 1}, cache=True)}, fit="crop"),
            "data.sources.a.cache holds images squashed",
        ),
        (
            lambda m: DataModule("x", {"a": Source(None, {}, 1, {"captions": 1}, cache=True)}, fit="keep"),
            "cache holds images squashed, which data.fit=keep must not be",
        ),
        (
            lambda m: DataModule("x", {"a": Source(None, {}, 1, {"captions": 1}, cache=True)}, resample="lanczos"),
            "cache holds images resized bicubically, which data.resample=lanczos must not be",
        ),
        (lambda m: DataModule("x", {}, num_workers=-1), "data.num_workers is -1"),
        (lambda m: DataModule("x", {}, num_workers="many"), "data.num_workers is 'many'"),
        (lambda m: DataModule("x", {}, num_workers=True), "data.num_workers is True"),
        (lambda m: DataModule("x", {}, image_size=0), "data.image_size is 0"),
        (lambda m: DataModule("x", {}, steps_per_epoch=0), "data.steps_per_epoch is 0"),
        (lambda m: DataModule("x", {}).train_dataloader(), "no source of data.sources has a 'train' role"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, use, sentence):
    with pytest.raises(ConfigError, match=sentence):
        use(make_module(tmp_path, {"a": make_source(tmp_path)}))


def test_a_text_that_is_none_is_named(tmp_path):
    class Own:
        def read(self, split):
            return [Sample(0, tmp_path / "0.png", {"captions": (Text(71, None),)})]

    source = Source(Own(), {"train": ["train"]}, 1, {"captions": 1})
    with pytest.raises(DataError, match=r"^source a: text 71 is None, but has to be a string; correct or remove it$"):
        make_module(tmp_path, {"a": source}).samples("a", "train")


def test_a_kind_that_the_reader_does_not_give(tmp_path):
    reader = Listed(train=make_samples(tmp_path, range(2)))
    source = Source(reader, {"train": ["train"]}, 1, {"caption": 1})
    with pytest.raises(ConfigError, match=r"texts_per_image.caption: the reader gives none; did you mean 'captions'\?"):
        make_module(tmp_path, {"a": source}).train_dataloader()


TRAINING_ONLY = ("pretrain_4m", "pretrain_4m_boxes", "pretrain_4m_regions")


def test_every_data_configuration_can_be_built():
    names = choices("data")
    assert len(names) >= 7
    for name in names:
        config = training_config(f"data={name}", "data.root=data")
        config.tokenizer = None
        assert {"missing", "max_missing", "num_workers"} <= set(config.data), name
        sources = instantiate(config.data).sources.values()
        assert all("train" in source.splits for source in sources)
        assert name in TRAINING_ONLY or {"val", "test"} <= set().union(*(source.splits for source in sources))


@pytest.mark.parametrize("workers", [0, 2])
def test_cut_texts_are_counted_across_workers_by_role(tmp_path, workers):
    module = make_module(tmp_path, {"a": make_source(tmp_path, max_length=4)}, num_workers=workers)
    assert module.cut_texts("a", "val") == (0, 0, 0)
    for times in (1, 2):
        list(module.eval_loader("a", "val"))
        assert module.cut_texts("a", "val") == (35 * times, 35 * times, 0)  # "photo 23 said 0" and two more
    assert module.cut_texts("a", "train") == (0, 0, 0)
    whole = make_module(tmp_path, {"a": make_source(tmp_path, max_length=6)})
    list(whole.eval_loader("a", "val"))
    assert whole.cut_texts("a", "val") == (35, 0, 0)


def test_a_window_and_weights_order_the_training_images(tmp_path):
    """Two folders one after the other, and none of the images whose weight is 0."""
    samples = [*make_samples(tmp_path / "a", range(8)), *make_samples(tmp_path / "b", range(8, 16))]

    def with_weight(sample: Sample) -> Sample:
        facts = {"sample_weight": float(sample.image_id not in (3, 12))}
        texts = tuple(dataclasses.replace(text, facts=facts) for text in sample.texts["captions"])
        return dataclasses.replace(sample, texts={"captions": texts})

    weighted = list(map(with_weight, samples))

    def drawn(given: list[Sample], **options) -> list[list[int]]:
        source = Source(Listed(train=given), {"train": ["train"]}, 4, {"captions": 1}, **options)
        return [batch["a"]["image_ids"] for batch in train_batches(make_module(tmp_path, {"a": source}), epochs=3)]

    batches = drawn(samples, shuffle_window=8)
    assert [{image // 8 for image in images} for images in batches] == [{batch[0] // 8} for batch in batches]
    assert drawn(samples, shuffle_window=8) == batches
    assert any(len({image // 8 for image in images}) == 2 for images in drawn(samples))
    assert {image for images in drawn(weighted) for image in images} == {*range(16)} - {3, 12}
    with pytest.raises(DataError, match="all images of source 'a' have the sample_weight 0"):
        drawn([weighted[3], weighted[12]])


@pytest.mark.parametrize(
    ("cores", "ranks", "loaders", "workers"),
    [(1, 1, 1, 0), (2, 1, 1, 1), (2, 2, 1, 0), (8, 2, 1, 3), (8, 1, 3, 2), (96, 4, 1, 8), (4, 8, 1, 0)],
)
def test_auto_leaves_each_rank_a_core(monkeypatch, cores, ranks, loaders, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert workers_of("auto", loaders) == workers
    assert workers_of(5, loaders) == 5
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert workers_of("auto", loaders) == min(8, (cores - 1) // loaders)


def test_a_number_of_workers_that_the_machine_says_makes_the_same_batches(tmp_path, monkeypatch):
    expected = train_batches(make_module(tmp_path))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    module = make_module(tmp_path, num_workers="auto")
    assert same(train_batches(module), expected)


def test_sources_that_never_train_take_no_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    held_out = dataclasses.replace(make_source(tmp_path), splits={"val": ["val"]})
    module = make_module(
        tmp_path, {"a": make_source(tmp_path), "b": held_out}, num_workers="auto", allow_overlap=[["*", "*"]]
    )
    (loader,) = module.train_dataloader().iterables.values()
    assert loader.num_workers == workers_of("auto", 1)


def test_a_container_has_the_cores_that_it_is_granted(tmp_path):
    for said, cores in (("200000 100000", 2), ("50000 100000", 1), ("max 100000", 2**20)):
        (tmp_path / "cpu.max").write_text(f"{said}\n")
        assert cores_granted(tmp_path / "cpu.max") == cores
    assert cores_granted(tmp_path / "none") == 2**20


def test_the_time_that_batches_were_waited_for_is_counted(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("fusionkit.data.loader.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    module = make_module(tmp_path)
    batches = len(list(next(iter(module.train_dataloader().iterables.values()))))
    assert batches > 1
    assert module.seconds_waited() == batches + 1  # the last was asked for in vain


def test_a_batch_is_given_up_while_the_next_one_is_made(tmp_path, monkeypatch):
    kept = []

    class Batch(dict):
        pass

    def made(self, items):
        kept.append(all(one() is None for one in refs))
        batch = Batch()
        refs.append(weakref.ref(batch))
        return batch

    refs: list = []
    monkeypatch.setattr(Collate, "__call__", made)
    for batch in make_module(tmp_path).eval_loader("a", "val"):
        assert batch is not None
        del batch
    assert kept == [True, True]


def test_ranks_that_find_other_files_are_one_sentence(tmp_path, monkeypatch):
    module = make_module(tmp_path)
    monkeypatch.setattr("fusionkit.data.tables.order.gather_objects", lambda own: [*own, *own])
    assert module.train_dataloader() is not None
    monkeypatch.setattr("fusionkit.data.tables.order.gather_objects", lambda own: [*own, {**own[0], "b": [6, 18]}])
    with pytest.raises(DataError) as error:
        module.train_dataloader()
    assert str(error.value).startswith("source b: rank 0 found 7 training images with ")
    assert str(error.value).endswith("texts, rank 1 6 with 18; give all ranks the same files")


@pytest.mark.parametrize("cache", [False, True])
def test_evaluated_conversations_stand_behind_worked_examples(tmp_path, cache):
    """Two of them, with the pixels of their pictures; training and scoring know nothing of them."""

    def talking(numbers):
        plain = make_samples(tmp_path, numbers)
        said = [Conversation(("user", "assistant"), (f"what {n}?", f"it {n}")).text(n) for n in numbers]
        return [
            dataclasses.replace(sample, texts={"conversations": (text,)})
            for sample, text in zip(plain, said, strict=True)
        ]

    def module(shots):
        reader = Listed(train=talking(range(9)), val=talking(range(9, 14)))
        splits = {"train": ["train"], "val": ["val"]}
        source = Source(reader, splits, 4, {"conversations": 1}, 60, cache=cache, shots=shots)
        return make_module(tmp_path, {"a": source})

    few, none = module(2), module(0)
    batches, plain = (list(each.eval_loader("a", "val")) for each in (few, none))
    train = next(iter(few.train_dataloader()))[0]["a"]
    assert "images" not in train["conversations"]
    photos = [few.finish(Image.open(sample.image), NO_BOXES)[0] for sample in few.samples("a", "train")]
    for batch, other in zip(batches, plain, strict=True):
        count, rows = len(other["image_ids"]), batch["conversations"]
        assert len(batch["image_ids"]) == 3 * count
        assert torch.equal(batch["pixel_values"][:count], other["pixel_values"])
        assert rows["prompt_images"][..., 0].tolist() == [[count + 2 * n, count + 2 * n + 1, n] for n in range(count)]
        for row, key in enumerate(rows["prompt_images"][..., 0].tolist()):
            text = few.tokenizer.decode(rows["prompt_ids"][row])
            numbers = [int(word) for word in re.findall(r"what (\d+)", text)]
            assert len(set(numbers)) == 2  # the vocabulary, which is of training texts, lacks the third
            for place, number in zip(key[:2], numbers, strict=True):
                torch.testing.assert_close(batch["pixel_values"][place], photos[number])
    assert few.samples("a", "val") == none.samples("a", "val")
    assert list(few.identity("a", "val")) != list(none.identity("a", "val"))
