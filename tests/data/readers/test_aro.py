"""ARO in its published layout, drawn small, and the parts of photos that it is about."""

import io

import pytest
from PIL import Image

from fusionkit.data.images import CorruptImage, decode
from fusionkit.data.pixels.crops import crop, crop_bytes, is_crop
from fusionkit.data.readers.aro import Aro
from fusionkit.data.stores import stamp_of, stored_bytes
from fusionkit.errors import DataError
from tests.data.worlds import write_json

COLOURS = {(0, 0): (200, 0, 0), (8, 0): (0, 200, 0), (0, 8): (0, 0, 200), (8, 8): (90, 90, 90)}


def quarters(path):
    """A picture of 16 pixels whose quarters have a colour each, stored without loss."""
    picture = Image.new("RGB", (16, 16))
    for place, colour in COLOURS.items():
        picture.paste(colour, (*place, place[0] + 8, place[1] + 8))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def entry(box=(8, 0, 8, 8), photo="2.png", relation="on", **changes):
    row = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True))
    row |= {"image_path": photo, "true_caption": "the cat is on the mat", "false_caption": "the mat is on the cat"}
    return row | {"relation_name": relation} | changes


def aro(root, content):
    quarters(root / "images/2.png")
    return Aro(str(write_json(root / "visual_genome_relation.json", content)), f"{root}/images")


def test_pairs_stand_with_the_part_of_the_photo_that_they_are_about(tmp_path):
    attributes = {key: value for key, value in entry((0, 8, 8, 8)).items() if key != "relation_name"}
    rows = [entry(), {**attributes, "attributes": ["white", "brown"]}, entry(relation="near", image_id=7)]
    samples = aro(tmp_path, rows).read("test")
    assert [sample.image_id for sample in samples] == ["2.png@8,0,16,8", "2.png@0,8,8,16"]
    facts = [text.facts for sample in samples for text in sample.texts["captions"]]
    assert [each["subset"] for each in facts[::2]] == ["on", "near", "white_brown"]
    assert facts[3] == {"pair": "2", "label": "foil", "subset": "near", "photo": "2.png"}
    for sample, place in zip(samples, ((8, 0), (0, 8)), strict=True):
        image, size = decode(sample.image, 8)
        assert size == image.size == (8, 8)
        assert image.getpixel((4, 4)) == COLOURS[place]
    assert stamp_of(samples[0].image) == stamp_of(tmp_path / "images/2.png") is not None


def test_annotations_alone_need_no_photos(tmp_path):
    path = write_json(tmp_path / "a.json", [entry()])
    assert len(Aro(str(path), None).read("test")[0].texts["captions"]) == 2


def test_a_part_is_cut_as_pil_cuts_it(tmp_path):
    picture = quarters(tmp_path / "p.png")
    for box in ((0, 0, 16, 16), (3, 5, 12, 9), (-2, -2, 4, 4), (10, 10, 20, 30)):
        path = crop(picture, box)
        assert is_crop(path)
        with Image.open(picture) as whole, Image.open(io.BytesIO(stored_bytes(path))) as part:
            assert part.tobytes() == whole.convert("RGB").crop(box).tobytes()
    assert not is_crop(picture)
    assert crop_bytes(crop(picture, (0, 0, 2, 2)))[:2] == b"BM"
    with pytest.raises(CorruptImage, match="cannot be decoded"):
        decode(crop(tmp_path / "gone.png", (0, 0, 2, 2)), 8)
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(CorruptImage, match="no known format"):
        decode(crop(tmp_path / "words.png", (0, 0, 2, 2)), 8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"0": entry()}, r"visual_genome_relation\.json is not a list with at least one entry; expected the ARO json"),
        ([], "is not a list with at least one entry"),
        ([entry(), entry((3, 3, 0, 4))], r"entry 1 of .* has the box \[3\.0, 3\.0, 0\.0, 4\.0\], which holds no pixel"),
        ([entry((1, 1, "a", 4))], "is malformed"),
        ([{"image_path": "2.png"}], "has no 'bbox_x'"),
        ([entry(false_caption=3)], "text 0/foil is 3, but has to be a string"),
        ([entry(photo="3.png")], "1 of 1 images of .* are not under"),
        ([entry(photo="../visual_genome_relation.json")], "which lies outside of its folder"),
    ],
)
def test_a_mistake_in_aro_is_one_sentence(tmp_path, content, sentence):
    with pytest.raises(DataError, match=sentence):
        aro(tmp_path, content).read("test")
