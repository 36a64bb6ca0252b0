import random
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fusionkit.data.cleaning import Clean, Ending
from fusionkit.data.images import decode
from fusionkit.data.transforms import Augment, Finish, choose_crop, kept_size, names_side
from fusionkit.errors import ConfigError

BOX = (30, 20, 60, 75)  # xyxy in an image of 120 x 90
PLAIN = {"num_ops": 0}


def painted() -> tuple[Image.Image, torch.Tensor]:
    """A white box in a black image, and its coordinates."""
    image = Image.new("RGB", (120, 90))
    ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill="white")
    return image, torch.tensor([BOX], dtype=torch.float)


def measure(pixel_values: torch.Tensor) -> torch.Tensor:
    """The box of the bright pixels, cxcywh in 0..1."""
    rows, columns = torch.where(pixel_values[0] > 0.5)
    size = pixel_values.shape[-1]
    x0, x1, y0, y1 = columns.min() / size, (columns.max() + 1) / size, rows.min() / size, (rows.max() + 1) / size
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


def apply(augment: Augment, seed: int, words=()) -> tuple[torch.Tensor, torch.Tensor]:
    image, boxes = augment(*painted(), words, 100, random.Random(seed))
    return Finish(100, (0, 0, 0), (1, 1, 1))(image, boxes)


def test_without_augmentation_the_image_is_squashed_and_its_box_with_it():
    pixel_values, boxes = Finish(100, (0.5, 0.25, 0), (0.5, 0.25, 1))(*painted())
    assert pixel_values.shape == (3, 100, 100)
    assert pixel_values.dtype == torch.float32
    assert pixel_values[:, 50, 38].tolist() == pytest.approx([1, 3, 1])
    assert pixel_values[:, 5, 5].tolist() == pytest.approx([-1, -1, 0])
    assert torch.allclose(boxes, torch.tensor([[45 / 120, 47.5 / 90, 30 / 120, 55 / 90]]))
    assert torch.allclose(measure(pixel_values), boxes[0], atol=0.011)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_follow_crop_and_mirror(flip):
    augment = Augment(crop_scale=(0.5, 1.0), flip=flip, num_ops=2, magnitude=7)
    found = set()
    for seed in range(40):
        pixel_values, boxes = apply(augment, seed)
        assert torch.allclose(measure(pixel_values), boxes[0], atol=0.025), seed
        found.add(tuple(boxes[0].tolist()))
    assert len(found) > 20  # there were crops


def test_a_crop_keeps_all_boxes_or_there_is_none():
    rng = random.Random(0)
    whole = 0
    for _ in range(300):
        left, top, width, height = choose_crop((120, 90), (10.5, 20.0, 80.5, 70.0), (0.3, 1.0), (3 / 4, 4 / 3), rng)
        assert left <= 10
        assert top <= 20
        assert 81 <= left + width <= 120
        assert 70 <= top + height <= 90
        whole += (width, height) == (120, 90)
    assert 0 < whole < 150
    assert choose_crop((120, 90), (0, 0, 120, 90), (0.3, 0.5), (1, 1), rng) == (0, 0, 120, 90)


def test_a_crop_without_boxes_has_the_area_that_was_asked_for():
    rng = random.Random(0)
    areas = [
        w * h / 10_000 for _, _, w, h in (choose_crop((100, 100), None, (0.2, 0.6), (0.5, 2), rng) for _ in range(200))
    ]
    assert min(areas) == pytest.approx(0.2, abs=0.02)
    assert max(areas) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    "words", [["a cat", "Leftmost one"], ["first rowleft"], ["the right-hand dog"], ["is it red?", "LEFT"]]
)
def test_no_mirror_where_a_text_or_an_answer_names_a_side(words):
    assert names_side(words)
    plain = Augment(crop_scale=(1.0, 1.0), crop_ratio=(4 / 3, 4 / 3), flip=1.0, **PLAIN)
    assert apply(plain, 0, words)[1][0, 0] == pytest.approx(45 / 120)
    assert apply(plain, 0, ["a cat"])[1][0, 0] == pytest.approx(75 / 120)


@pytest.mark.parametrize(
    "text",
    [
        "người bên trái",
        unicodedata.normalize("NFD", "CON CHÓ Ở PHÍA BÊN PHẢI"),
        "左边的猫",
        "右の犬",
        "the lft one",
        "Links im Bild",
        "à gauche",
        "l'uomo SINISTRO",
        "po lewej stronie",
        "mannen till höger",
        "soldaki kedi",
        "bayan SAĞDA",
        "बाएँ तरफ",
        "праворуч від столу",
        "סמוך לצד שמאל",
        "El de la IZQUIERDA",
        "слева",
        "di sebelah kiri",
        "ด้านขวา",
        "يسار",
    ],
)
def test_sides_are_known_in_other_languages(text):
    assert names_side([text])


def test_a_source_can_name_its_own_words_for_sides():
    options = {"crop_scale": (1.0, 1.0), "crop_ratio": (4 / 3, 4 / 3), "flip": 1.0, **PLAIN}
    own = Augment(**options, sides=["VASEN", unicodedata.normalize("NFD", "höger")])
    kept = [apply(own, 0, [text])[1][0, 0] == pytest.approx(45 / 120) for text in ("vasen", "Höger", "left")]
    assert kept == [True, True, False]
    for wrong in ("left", [""], ["left", 3]):
        with pytest.raises(
            ConfigError, match=r"augment.sides is .* but has to be a list of words, such as \[left, right\]"
        ):
            Augment(sides=wrong)


@pytest.mark.parametrize("text", ["a pedestrian in an orchestra", "a soldier on the sofa", "two boats at sea"])
def test_words_for_sides_of_other_languages_are_not_found_in_english_ones(text):
    assert not names_side([text])


def test_an_augmentation_is_a_function_of_its_seed():
    augment = Augment()
    image, no_boxes = painted()[0], torch.zeros(0, 4)
    made = [augment(image, no_boxes, [], 50, random.Random(seed))[0].tobytes() for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_with_boxes_only_colours_change():
    augment = Augment(crop_scale=(1, 1), crop_ratio=(4 / 3, 4 / 3), flip=0, num_ops=8, magnitude=10)
    for seed in range(10):
        pixel_values, boxes = apply(augment, seed)
        assert torch.allclose(measure(pixel_values), boxes[0], atol=0.03)  # a shift would be 10 of 100 pixels


def test_decoding_is_large_enough_for_the_smallest_crop():
    assert Augment(crop_scale=(0.25, 1.0), crop_ratio=(1, 1)).decode_side(100) == 200


def test_without_a_crop_the_whole_image_is_seen():
    augment = Augment(crop_scale=None, flip=0, num_ops=0)
    assert augment.decode_side(100) == 100
    assert torch.allclose(apply(augment, 0)[1], torch.tensor([[45 / 120, 47.5 / 90, 30 / 120, 55 / 90]]))


def test_an_unknown_style_is_told():
    with pytest.raises(ConfigError, match=r"augment.style: there is no RandAugment 'vlit'; did you mean 'vilt'\?"):
        Augment(style="vlit")


def test_a_crop_to_fit_keeps_proportions_and_refuses_boxes():
    image = Image.new("RGB", (120, 90))
    ImageDraw.Draw(image).rectangle((15, 0, 104, 89), fill="white")  # the middle 90 x 90
    finish = Finish(30, (0, 0, 0), (1, 1, 1), fit="crop")
    assert finish(image, torch.zeros(0, 4))[0].mean() == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"data.fit=crop would cut off what boxes are about; set data.fit=squash"):
        finish(*painted())
    with pytest.raises(ConfigError, match=r"data.fit is 'corp'; did you mean 'crop'\?"):
        Finish(30, (0, 0, 0), (1, 1, 1), fit="corp")


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5,) * 4, (1, 1, 1), r"data.mean is \[0.5, 0.5, 0.5, 0.5\], but has to be three numbers"),
        ((0, 0, 0), (1,), r"data.std is \[1\], but has to be three numbers"),
        ((0, 0, 1.1), (1, 1, 1), r"data.mean is \[0, 0, 1.1\], but is of pixels from 0 to 1"),
        ((-0.1, 0, 0), (1, 1, 1), "data.mean is"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "those of pixels from 0 to 255 divided by 255"),
        ((0, 0, 0), (1, 0, 1), r"data.std is \[1, 0, 1\]"),
        ((0, 0, 0), (1, 1, 10**13), "data.std is"),
        ((0, 0, 0), (1, 1, float("nan")), "data.std is"),
    ],
)
def test_what_no_pixels_have_on_average(mean, std, words):
    with pytest.raises(ConfigError, match=words):
        Finish(30, mean, std)
    Finish(30, (0, 0, 1), (1, 1, 1 / 255))


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
def test_images_are_resized_as_pillow_does(resample):
    image, _ = painted()
    found, _ = Finish(30, (0, 0, 0), (1, 1, 1), resample=resample)(image, torch.zeros(0, 4))
    expected = np.asarray(image.resize((30, 30), Image.Resampling[resample.upper()]))
    torch.testing.assert_close(found.permute(1, 2, 0) * 255, torch.tensor(expected).float(), atol=1e-3, rtol=0)


def test_an_unknown_way_to_resize():
    with pytest.raises(ConfigError, match=r"data.resample is 'lancsoz'; did you mean 'lanczos'\?"):
        Finish(30, (0, 0, 0), (1, 1, 1), resample="lancsoz")


@pytest.mark.parametrize(
    ("clean", "read"),
    [
        (Clean(), "a <unk> mans t shirt says hi 5 or so"),
        (Clean(words=3), "a <unk> mans"),
        (Clean(removed="", spaced='.!"()*#:;~'), "a <unk> man's t-shirt, says/ hi? 5, or so"),
        (Ending(), "A  <unk> man's T-shirt says/ (hi) #5 or so! ? [MASK]"),
    ],
    ids=["ALBEF", "ALBEF, 3 words", "BLIP", "VisualBERT"],
)
def test_texts_are_cleaned_as_published(clean, read):
    assert clean("A  <unk> man's T-shirt, says/ (hi?) #5, or so! ") == read


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((640, 480), (512, 384)),
        ((480, 640), (384, 512)),
        ((500, 500), (384, 384)),
        ((20, 30), (384, 576)),
        ((1000, 590), (608, 352)),  # 651 is too long: 639 x 377
        ((590, 1000), (352, 608)),
        ((900, 541), (608, 384)),  # 638.8 is not
        ((900, 540), (608, 352)),  # 640 is: 639 x 383.4
        ((4000, 10), (608, 32)),  # one patch at least
        ((10, 4000), (32, 608)),
    ],
)
def test_proportions_are_kept_as_vilt_keeps_them(size, kept):
    assert kept_size(size, 384, 32) == kept
    pixel_values, boxes = Finish(384, (0, 0, 0), (1, 1, 1), fit="keep")(
        Image.new("RGB", size), torch.tensor([[0.0, 0.0, size[0] / 2, size[1]]])
    )
    assert pixel_values.shape == (3, kept[1], kept[0])
    assert boxes.tolist() == [[0.25, 0.5, 0.5, 1.0]]


def test_sides_are_multiples_of_the_patch():
    assert kept_size((30, 20), 24, 8) == (32, 24)  # 36, of which 32
    assert kept_size((30, 20), 24, 5) == (35, 20)
    assert kept_size((31, 20), 20, 1) == (31, 20)


def test_proportions_decide_on_the_pixels_of_the_file(tmp_path):
    """A JPEG that is decoded at a fraction of its size has other proportions, by a pixel that a side of a patch can hang on."""
    finish = Finish(8, (0, 0, 0), (1, 1, 1), fit="keep", multiple=4)
    assert Finish(8, (0, 0, 0), (1, 1, 1)).decode_side == 8
    Image.new("RGB", (203, 97)).save(tmp_path / "a.jpg")
    image, _ = decode(tmp_path / "a.jpg", finish.decode_side)
    assert image.size == (203, 97)


@pytest.mark.parametrize("multiple", [0, 31])
def test_a_multiple_that_no_side_is(multiple):
    with pytest.raises(
        ConfigError, match=rf"data.multiple is {multiple}, but has to be between 1 and data.image_size, 30"
    ):
        Finish(30, (0, 0, 0), (1, 1, 1), fit="keep", multiple=multiple)
    Finish(30, (0, 0, 0), (1, 1, 1), fit="squash", multiple=multiple)
    for right in (1, 30):
        Finish(30, (0, 0, 0), (1, 1, 1), fit="keep", multiple=right)
