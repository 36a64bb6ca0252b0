from pathlib import Path

import pytest

from fusionkit.data.readers.flickr30k_entities import Flickr30kEntities
from fusionkit.errors import DataError

XML = """<annotation><filename>{name}.jpg</filename><size><width>500</width><height>300</height><depth>3</depth></size>
<object><name>11</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>60</xmax><ymax>80</ymax></bndbox></object>
<object><name>11</name><name>12</name><bndbox><xmin>100</xmin><ymin>5</ymin><xmax>140</xmax><ymax>70</ymax></bndbox></object>
<object><name>13</name><nobndbox>1</nobndbox><scene>1</scene></object></annotation>"""
SENTENCES = (
    "[/EN#11/people Two men] stand in [/EN#13/scene a field] near [/EN#12/people/other the tall one] .\nNobody looks .\n"
    "[/EN#0/notvisual It] is [/EN#12/people him] .\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Sentences", "Annotations", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "val.txt").write_text("7\n8\n")
    for name in ("7", "8"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(XML.format(name=name))
        (tmp_path / "Sentences" / f"{name}.txt").write_text(SENTENCES if name == "7" else "Nothing .\n")
        (tmp_path / "images" / f"{name}.jpg").touch()
    return tmp_path


def test_phrases_with_boxes_are_read(folder: Path) -> None:
    (sample,) = Flickr30kEntities(str(folder), f"{folder}/images").read("val")
    assert (sample.image_id, sample.size, sample.image.name) == (7, (500, 300), "7.jpg")
    found = {text.id: (text.text, text.facts["box"], text.facts["entity_id"]) for text in sample.texts["expressions"]}
    assert found == {
        "7/0/0": ("Two men", (10, 5, 130, 75), 11),
        "7/0/2": ("the tall one", (100, 5, 40, 65), 12),
        "7/2/1": ("him", (100, 5, 40, 65), 12),
    }


def test_scoring_needs_no_images(folder: Path) -> None:
    assert len(Flickr30kEntities(str(folder), None).read("val")) == 1


def test_broken_files_are_told(folder: Path) -> None:
    reader = Flickr30kEntities(str(folder), None)
    with pytest.raises(DataError, match=r"test\.txt of split 'test' does not exist; did you mean|known: val"):
        reader.read("test")
    (folder / "Annotations/8.xml").write_text("<annotation><size/></annotation>")
    with pytest.raises(DataError, match=r"8\.xml is malformed"):
        reader.read("val")
    (folder / "Annotations/8.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"8\.xml is not complete XML"):
        reader.read("val")
