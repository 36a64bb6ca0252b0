"""What else lies in a folder of transformers: how images are read, and the tokenizer."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from fusionkit.checkpoints.folder import images_of, own_tokenizer
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError

HALF = [0.5, 0.5, 0.5]
SIGLIP = {"do_resize": True, "size": {"height": 48, "width": 48}, "resample": 2, "do_rescale": True}
SIGLIP |= {
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": HALF,
}
CLIP = SIGLIP | {"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}}


def read(folder: Path, content: dict, name: str = "preprocessor_config.json") -> dict:
    (folder / name).write_text(json.dumps(content))
    return images_of(Source(folder, {"x": torch.ones(1)}, {}, ""), 48, HALF, HALF)


def test_settings_of_an_image_processor(tmp_path):
    found = {"image_size": 48, "mean": [0.1, 0.2, 0.3], "std": HALF, "resample": "bilinear", "fit": "squash"}
    assert read(tmp_path, SIGLIP) == found
    assert read(tmp_path, CLIP) == found | {"fit": "crop"}
    assert read(tmp_path, CLIP | {"size": 48, "crop_size": 48, "resample": 1}) == found | {
        "fit": "crop",
        "resample": "lanczos",
    }
    assert read(tmp_path, SIGLIP | {"do_normalize": False})["std"] == [1.0] * 3


def test_a_processor_of_newer_versions_holds_that_of_images(tmp_path):
    content = {"image_processor": SIGLIP, "processor_class": "SiglipProcessor"}
    assert read(tmp_path, content, "processor_config.json")["mean"] == [0.1, 0.2, 0.3]


def test_a_folder_without_settings(tmp_path):
    source = Source(tmp_path, {"x": torch.ones(1)}, {}, "")
    assert images_of(source, 48, HALF, HALF, fit="crop") == {
        "image_size": 48,
        "mean": HALF,
        "std": HALF,
        "resample": "bicubic",
        "fit": "crop",
    }
    assert own_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert own_tokenizer(tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, but pixels are divided by 255"),
        ({"do_rescale": False}, "do_rescale is False, but images are read with do_rescale true"),
        ({"resample": 0}, "resample is 0, but images are resized with 1 (lanczos), 2 (bilinear), 3 (bicubic)"),
        ({"size": {"height": 32, "width": 48}}, "but the image encoder reads squares of 48 pixels"),
        ({"size": {"shortest_edge": 48}}, "but the image encoder reads squares of 48 pixels"),
        ({"size": "large"}, "but the image encoder reads squares of 48 pixels"),
        ({"do_pad": True}, "do_pad is true, but images are not padded to squares"),
        ({"do_pad": "false"}, "do_pad is 'false', but has to be true or false"),
        ({"do_normalize": 0}, "do_normalize is 0, but has to be true or false"),
        ({"do_center_crop": "no"}, "do_center_crop is 'no', but has to be true or false"),
        ({"image_std": [0.5, 0.5]}, "image_std is [0.5, 0.5], but has to be three numbers"),
        ({"image_std": [0.0, 1, 1]}, "has to be three numbers"),
        ({"image_mean": ["${x}", 1, 1]}, "has to be three numbers"),
    ],
)
def test_what_no_option_gives(change, words, tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, SIGLIP | change)
    assert words in str(caught.value)
    assert f"{tmp_path}/preprocessor_config.json: " in str(caught.value)


def test_an_image_that_would_be_split_is_told(tmp_path):
    tiles = {key: value for key, value in SIGLIP.items() if key != "size"} | {"max_image_size": {"longest_edge": 48}}
    source = Source(tmp_path, {"x": torch.ones(1)}, {}, "")
    for is_split in (True, False):
        file = tmp_path / "preprocessor_config.json"
        file.write_text(json.dumps(tiles | {"do_pad": True, "do_image_splitting": is_split}))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            images_of(source, 48, HALF, HALF, size="max_image_size")
        assert [str(one.message).startswith(f"{file}: do_image_splitting is true") for one in told] == [True] * is_split
