"""What a frozen image encoder makes of images is computed once, and read in place of pixels: the same numbers."""

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tokenizers.normalizers import Lowercase
from torch import nn

from fusionkit.assembly.image_tokens import ImageTokens, image_tokens_of
from fusionkit.data.cleaning import Clean
from fusionkit.data.datamodule import DataModule
from fusionkit.data.pixels.stored import StoredImage
from fusionkit.data.sample import Sample, Text
from fusionkit.data.source import Source
from fusionkit.data.transforms import Augment
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.region_encoder import ViewEncoder
from fusionkit.errors import ConfigError, DataError
from fusionkit.tasks.base import Task
from fusionkit.types import Stored, Tokens
from tests.data.worlds import Listed
from tests.toys import toy_model

CPU = torch.device("cpu")
SIDE = 32
VIT = {"name": "vit_tiny_patch16_224", "img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4}
PLACES = [("pairs", "train"), ("pairs", "val")]


def samples(folder: Path, ids: range) -> list[Sample]:
    """Noisy photos of 48 x 40 pixels with a second one each, a caption and, but for the first, two boxes."""
    found = []
    for number in ids:
        paths = [folder / f"{number}{side}.png" for side in ("a", "b")]
        for place, path in enumerate(paths):
            noise = np.random.default_rng(2 * number + place).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            if not path.exists():
                Image.fromarray(noise).save(path)
        boxes = [(4.0, 6.0, 20.0, 10.0), (10.0, 12.0, 16.0, 20.0)] if number else []
        expressions = tuple(Text(10 * number + k, f"thing {k}", {"box": box}) for k, box in enumerate(boxes))
        texts = {"captions": (Text(number, f"photo {number}"),), "expressions": expressions}
        found.append(Sample(number, paths[0], texts, (48, 40), others=(paths[1],)))
    return found


def data_of(folder: Path, augment: Augment | None = None, **options) -> DataModule:
    reader = Listed(train=samples(folder, range(5)), val=samples(folder, range(5, 8)))
    roles = {"train": ["train"], "val": ["val"]}
    source = Source(reader, roles, 2, {"captions": 1, "expressions": 1}, augment=augment)
    return DataModule(str(folder), {"pairs": source}, image_size=SIDE, **options)


def frozen(**options) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(**VIT | {"frozen": True} | options).train()


def kept(folder: Path, data: DataModule, encoder: nn.Module, views: int | None = None, **recipe) -> ImageTokens:
    return ImageTokens(folder / "tokens", views, data, encoder, recipe)


def train_batches(data: DataModule, steps: int | None = None) -> list[dict]:
    data.steps_per_epoch = steps
    return [batch["pairs"] for batch, _, _ in iter(data.train_dataloader())]


def assert_same(stored: list[dict], plain: list[dict], encoder: nn.Module) -> None:
    model = toy_model()
    model.image_encoder = encoder.eval()
    assert len(stored) == len(plain)
    for one, other in zip(stored, plain, strict=True):
        assert one.keys() - {"stored"} == other.keys() - {"pixel_values"}
        assert "pixel_values" not in one
        assert one["image_ids"] == other["image_ids"]
        assert torch.equal(one["image_keys"], other["image_keys"])
        assert torch.equal(one["image_sizes"], other["image_sizes"])
        for kind in ("captions", "expressions"):
            assert one[kind]["ids"] == other[kind]["ids"]
            assert torch.equal(one[kind]["other_index"], other[kind]["other_index"])
        assert torch.equal(one["expressions"]["boxes"], other["expressions"]["boxes"])
        found, expected = (model.encode_image(model.images_of(batch)) for batch in (one, other))
        for part, right in zip(found, expected, strict=True):
            assert (part is None) == (right is None)
            if part is not None:
                torch.testing.assert_close(part, right, atol=1e-5, rtol=1e-5)


class Whole(nn.Module):
    """An encoder that says nothing of two halves: all that it gives is kept, its mask too."""

    hidden_size, reads = 3, "pixel_values"

    def __init__(self, mask: bool) -> None:
        super().__init__()
        self.has_mask = mask

    def forward(self, pixel_values: torch.Tensor) -> Tokens:
        cells = nn.functional.adaptive_avg_pool2d(pixel_values, 2).flatten(2).transpose(1, 2)
        mask = (cells[:, :, 0] > 0).long() if self.has_mask else None
        return Tokens(cells, mask, cells.amax(dim=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_the_states_of_the_images_that_they_would_have_shown(tmp_path, workers):
    encoders = {
        "timm": frozen(),
        "trained behind": frozen(pool="mean", grid_size=4),
        "views": ViewEncoder(**VIT, frozen=True),
        "whole": Whole(mask=False),
        "masked": Whole(mask=True),
    }
    for name, encoder in encoders.items() if not workers else [("timm", encoders["timm"])]:
        plain, data = data_of(tmp_path), data_of(tmp_path, num_workers=workers)
        kept(tmp_path / name, data, encoder).fill(PLACES, CPU, "32-true")
        assert_same(train_batches(data, 6), train_batches(plain, 6), encoder)
        assert_same(list(data.eval_loader("pairs", "val")), list(plain.eval_loader("pairs", "val")), encoder)


def test_what_follows_the_tower_trains_on(tmp_path):
    encoder, data = frozen(pool="mean", grid_size=4), data_of(tmp_path)
    kept(tmp_path, data, encoder).fill(PLACES, CPU, "32-true")
    model = toy_model()
    model.image_encoder = encoder
    (batch, *_) = train_batches(data)
    before = model.encode_image(batch["stored"]).pooled
    before.sum().backward()
    assert encoder.position.grad.abs().sum() > 0
    with torch.no_grad():
        encoder.position += 1
    torch.testing.assert_close(model.encode_image(batch["stored"]).pooled, before + 1)


def test_views_are_kept_and_drawn_from(tmp_path, monkeypatch):
    augment, encoder = Augment(crop_scale=(0.6, 0.9)), Whole(mask=False)
    data = data_of(tmp_path, augment, seed=3)
    tokens = kept(tmp_path, data, encoder, views=3)
    tokens.fill(PLACES, CPU, "32-true")
    images = data.images.images("pairs", "train", 0)
    first = images.load(1).image
    assert isinstance(first, StoredImage)
    assert [part.shape[0] for part in first.parts] == [3, 3]
    assert len({tuple(view.flatten().tolist()) for view in first.parts[0]}) == 3
    assert first.boxes["expressions", 10].shape == (3, 4)
    # each view holds every box of its image whole, as any of the texts may be drawn with it
    for number in range(5):
        for box in images.load(number).image.boxes.values():
            corners = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], dim=1)
            assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()
            assert (box[:, 2:] > 0.2).all()  # none is cut to nothing
    # the pair of a view and its boxes is drawn together
    seen: dict[int, set] = {}
    for batch in train_batches(data, 60):
        for row, number in enumerate(batch["image_ids"][:2]):
            image, at = images.load(number).image, batch["expressions"]["image_index"].tolist()
            view = next(k for k in range(3) if torch.equal(image.parts[0][k], batch["stored"].states[0][row]))
            seen.setdefault(number, set()).add(view)
            if row in at:
                text = at.index(row)
                key = ("expressions", batch["expressions"]["ids"][text])
                assert torch.equal(batch["expressions"]["boxes"][text], image.boxes[key][view])
    assert all(views == {0, 1, 2} for views in seen.values())
    assert len(seen) == 5
    # the draws hang on the seed alone, those of validation on nothing
    again = data_of(tmp_path, augment, seed=3)
    monkeypatch.setattr(Whole, "forward", lambda *_: pytest.fail("computed again"))
    kept(tmp_path, again, encoder, views=3).use(PLACES, CPU, "32-true")
    one, other = train_batches(data), train_batches(again)
    assert all(torch.equal(a["stored"].states[0], b["stored"].states[0]) for a, b in zip(one, other, strict=True))
    assert data.images.images("pairs", "val", 0).load(0).image.parts[0].shape[0] == 1
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_a_view_is_what_the_augmentation_makes(tmp_path):
    """The mirror image and its boxes, computed by hand."""
    augment = Augment(crop_scale=None, flip=1.0, num_ops=0)
    plain, data = data_of(tmp_path), data_of(tmp_path, augment)
    kept(tmp_path, data, Whole(mask=False), views=1).fill(PLACES, CPU, "32-true")
    found, expected = train_batches(data), train_batches(plain)
    for one, other in zip(found, expected, strict=True):
        grid = other["pixel_values"].flip(3)
        torch.testing.assert_close(one["stored"].states[0], Whole(False)(grid).embeds, atol=1e-5, rtol=0)
        right = other["expressions"]["boxes"] * torch.tensor([-1.0, 1, 1, 1]) + torch.tensor([1.0, 0, 0, 0])
        torch.testing.assert_close(one["expressions"]["boxes"], right)


def test_no_view_is_mirrored_where_any_text_names_a_side(tmp_path):
    for word, is_mirrored in (("left", False), ("big", True)):
        data = data_of(tmp_path, Augment(crop_scale=None, flip=1.0, num_ops=0))
        train = data.sources["pairs"].reader.splits["train"]
        texts = {**train[1].texts, "captions": (Text(1, "a"), Text(99, f"the {word} one"))}
        train[1] = replace(train[1], texts=texts)
        kept(tmp_path / word, data, Whole(mask=False), views=1).fill([("pairs", "train")], CPU, "32-true")
        box = data.images.images("pairs", "train", 0).load(1).image.boxes["expressions", 10][0]
        assert box[0].item() == pytest.approx(1 - 14 / 48 if is_mirrored else 14 / 48)


def test_a_table_is_computed_once_and_anew_where_what_it_hangs_on_changed(tmp_path, capsys):
    encoder = frozen()

    def tables(encoder=encoder, precision="32-true", touch=False, recipe=None, **options) -> int:
        data = data_of(tmp_path, **options)
        if touch:
            Image.new("RGB", (48, 40), "red").save(tmp_path / "0b.png")
        kept(tmp_path, data, encoder, **recipe or {}).fill([("pairs", "train")], CPU, precision)
        capsys.readouterr()
        return len(list((tmp_path / "tokens").iterdir()))

    assert tables() == 1
    stamp = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")}
    assert tables() == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")} == stamp
    assert tables(precision="bf16-mixed") == 2
    other = frozen()
    other.backbone.cls_token.data += 1
    assert tables(other) == 3
    assert tables(std=(0.4, 0.4, 0.4)) == 4
    assert tables(recipe={"stage": 1}) == 5
    assert (
        tables(recipe={"pretrained": True}) == tables(recipe={"pretrained": False}) == 6
    )  # it only says who brings the weights
    assert tables(touch=True) == 7


def test_a_damaged_table_is_computed_again_and_the_time_is_told(tmp_path, capsys):
    encoder, data = frozen(), data_of(tmp_path)
    tokens = kept(tmp_path, data, encoder)
    tokens.fill([("pairs", "val")], CPU, "32-true")
    assert "image tokens of pairs/val: 6 images, 0 MB" in capsys.readouterr().out  # 3 and 3 others
    (table,) = (tmp_path / "tokens").iterdir()
    right = (table / "part0").read_bytes()
    for name, content in (
        ("part0", right[:-4]),
        ("about.json", b"{"),
        ("about.json", b'{"images": -1, "views": 1, "boxes": 0, "parts": [1]}'),
    ):
        (table / name).write_bytes(content)
        tokens.use([("pairs", "val")], CPU, "32-true")
        assert "pixel_values" in next(iter(data.eval_loader("pairs", "val")))
        tokens.fill([("pairs", "val")], CPU, "32-true")
        assert (table / "part0").read_bytes() == right
        assert "stored" in next(iter(data.eval_loader("pairs", "val")))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DataError, match=r"No space left on device.*image_tokens.folder=FOLDER"):
        kept(tmp_path, data_of(tmp_path), frozen()).fill(PLACES, CPU, "32-true")
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_corrupt_image_is_named(tmp_path):
    data = data_of(tmp_path)
    (tmp_path / "3b.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"3b.png cannot be decoded .*image_tokens needs every image"):
        kept(tmp_path, data, frozen()).fill(PLACES, CPU, "32-true")


class Drops(Whole):
    def __init__(self) -> None:
        super().__init__(False)
        self.drop = nn.Dropout(0.1)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:
        tokens = super().forward(pixel_values)
        return tokens._replace(embeds=self.drop(tokens.embeds))


class Counts(Whole):
    def __init__(self) -> None:
        super().__init__(False)
        self.norm = nn.BatchNorm2d(3, momentum=1e-6)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:
        self.norm(pixel_values)
        return super().forward(pixel_values)


class More(TimmEncoder):
    def forward(self, pixel_values: torch.Tensor) -> Tokens:
        return super().forward(pixel_values)._replace(pooled=torch.zeros(len(pixel_values), 32))


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        (Drops, "computes otherwise while it trains .dropout"),
        (lambda: Counts().requires_grad_(False), "computes otherwise while it trains .norm.running_mean moves"),
        (lambda: More(**VIT, frozen=True), "More does more than its 'states' and 'tokens' tell"),
    ],
)
def test_an_encoder_whose_tokens_change_while_it_trains_is_refused(tmp_path, encoder, sentence):
    built = encoder()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    with pytest.raises(ConfigError, match=sentence):
        kept(tmp_path, data_of(tmp_path), built).fill(PLACES, CPU, "32-true")
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert built.training
    assert not (tmp_path / "tokens").exists()


def test_the_probe_draws_nothing_of_the_runs_own_numbers(tmp_path):
    tokens = kept(tmp_path, data_of(tmp_path), frozen())
    state, draw = torch.get_rng_state(), random.getstate()
    tokens.fill(PLACES, CPU, "32-true")
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == draw


class Hides(Task):
    needs, reads, reads_images = frozenset(), "captions", True


class Reads(Task):
    needs, reads = frozenset(), "captions"


class Unsaid(Augment):
    """An augmentation of one's own, which nothing but its address tells from another."""

    __repr__ = object.__repr__


def test_what_cannot_be_kept_is_refused_in_a_sentence(tmp_path):
    objectives = {"pairs": ["a"]}
    fine = kept(tmp_path, data_of(tmp_path), frozen())
    fine.check({"a": Reads()}, objectives)
    with pytest.raises(ConfigError, match="task 'a' changes the images at each step"):
        fine.check({"a": Hides()}, objectives)
    with pytest.raises(ConfigError, match=r"the image encoder trains .*image_encoder.frozen=true"):
        kept(tmp_path, data_of(tmp_path), frozen(frozen=False)).check({"a": Reads()}, objectives)
    augmented = data_of(tmp_path, Augment())
    with pytest.raises(
        ConfigError, match=r"data.sources.pairs.augment changes the images at random; set image_tokens.views=N"
    ):
        kept(tmp_path, augmented, frozen()).check({"a": Reads()}, objectives)
    kept(tmp_path, augmented, frozen(), views=1).check({"a": Reads()}, objectives)
    with pytest.raises(ConfigError, match=r"data.fit=keep"):
        kept(tmp_path, data_of(tmp_path, fit="keep"), frozen()).check({"a": Reads()}, objectives)
    with pytest.raises(ConfigError, match=r"Unsaid does not say its options.*give it a __repr__"):
        list(data_of(tmp_path, Unsaid()).view_identity("pairs", "train", 1))
    regions = toy_model(regions=True).image_encoder
    with pytest.raises(ConfigError, match="RegionEncoder reads no pixels"):
        kept(tmp_path, data_of(tmp_path), regions).check({"a": Reads()}, objectives)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("yes", "image_tokens is 'yes', but has to be a section"),
        ({"foldr": "a"}, "image_tokens.foldr: there is no such key; did you mean 'folder'"),
        ({"folder": 3}, "image_tokens.folder is 3, but has to be a folder"),
        ({"folder": "a", "views": 0}, "image_tokens.views is 0, but has to be a whole number from 1"),
        ({"folder": "a", "views": True}, "image_tokens.views is True"),
    ],
)
def test_a_mistake_in_the_section_is_one_sentence(tmp_path, section, sentence):
    config = OmegaConf.create({"image_tokens": section, "image_encoder": {}})
    with pytest.raises(ConfigError, match=sentence):
        image_tokens_of(config, data_of(tmp_path), frozen())


def test_without_a_folder_nothing_is_kept(tmp_path):
    data, encoder = data_of(tmp_path), frozen()
    for section in ({}, {"image_tokens": None}, {"image_tokens": {"folder": None, "views": 2}}):
        assert image_tokens_of(OmegaConf.create({"image_encoder": {}, **section}), data, encoder) is None
    config = OmegaConf.create({"image_encoder": {"a": 1}, "image_tokens": {"folder": "x", "views": 2}})
    tokens = image_tokens_of(config, data, encoder)
    assert (tokens.folder, tokens.views) == (Path("x"), 2)


def test_two_halves_are_one_encoder():
    encoder = frozen(pool="max", before_norm=True)
    pixels = torch.rand(2, 3, SIDE, SIDE)
    encoder.last_norm.weight.data *= 3
    for part, right in zip(encoder.tokens(encoder.states(pixels)), encoder(pixels), strict=True):
        assert part is right or torch.equal(part, right)
    assert not encoder.states(pixels).requires_grad
    assert toy_model().encode_image(Stored((torch.ones(2, 17, 32),))).pooled.shape == (2, 32)


def test_training_images_are_evaluated_as_they_are_not_as_a_view(tmp_path):
    data, encoder = data_of(tmp_path, Augment(num_ops=0, crop_scale=(0.3, 0.5))), frozen()
    plain = list(data.eval_loader("pairs", "train"))
    kept(tmp_path, data, encoder, views=1).fill(PLACES, CPU, "32-true", lambda pixels: pixels)
    after = list(data.eval_loader("pairs", "train"))
    for one, other in zip(after, plain, strict=True):
        torch.testing.assert_close(one["pixel_values"], other["pixel_values"], rtol=0, atol=0)
        torch.testing.assert_close(one["expressions"]["boxes"], other["expressions"]["boxes"])
    assert "stored" in next(iter(data.eval_loader("pairs", "val")))  # nothing is drawn there


def test_what_encodings_are_kept_by_changes_with_how_texts_are_cleaned_and_spelt(tmp_path):
    data = data_of(tmp_path)
    before = list(data.identity("pairs", "val"))
    # one process may have read batches, another none
    data.tokenizer(["red"], padding=True, truncation=True, max_length=3)
    assert list(data.identity("pairs", "val")) == before
    data.sources["pairs"] = replace(data.sources["pairs"], clean=Clean(words=1))
    cleaned = list(data.identity("pairs", "val"))
    assert cleaned != before
    data.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert list(data.identity("pairs", "val")) != cleaned
