"""TextVQA's and DocVQA's files as published."""

import json
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fusionkit.data.readers.text_questions import TextQuestions
from fusionkit.errors import DataError
from tests.probe_worlds import docvqa, probe_world, textvqa


def test_textvqa_names_pictures_by_their_ids(tmp_path):
    probe_world(tmp_path)
    reader = TextQuestions(f"{tmp_path}/TextVQA_0.5.1_{{split}}.json", f"{tmp_path}/train_images")
    one, two = reader.read("val")
    assert [sample.image.name for sample in (one, two)] == ["0a1.jpg", "ffe2.jpg"]
    (question,) = one.texts["questions"]
    assert (question.id, question.text) == (34602, "what does the sign say?")
    assert question.facts == {"answers": ["stop"] * 7 + ["go", "stop!", "the stop"]}
    assert reader.read("train")[0].texts["questions"][0].facts["answers"] == ["red"] * 10


def test_docvqa_names_pictures_by_their_paths(tmp_path):
    probe_world(tmp_path)
    content = docvqa("val", ["12.50"])
    content["data"].append(content["data"][0] | {"questionId": 7, "question": "Who?"})
    del content["data"][-1]["answers"]  # as in the test split
    (tmp_path / "val.json").write_text(json.dumps(content))
    reader = TextQuestions(f"{tmp_path}/val.json", str(tmp_path), id="questionId", image="image")
    one, two = reader.read("val")
    assert one.image == tmp_path / "documents/xnbl0037_1.png"
    assert [question.id for question in one.texts["questions"]] == [49153, 7]
    assert [question.facts for question in one.texts["questions"]] == [{"answers": ["12.50"]}, {}]
    assert two.image_id == "documents/txpp0227_10.png"
    scored = TextQuestions(f"{tmp_path}/val.json", None, id="questionId", image="image").read(
        "val"
    )  # no picture is looked for
    assert [sample.image_id for sample in scored] == [one.image_id, two.image_id]


def test_docvqa_is_read_without_types_of_questions_too(tmp_path):
    probe_world(tmp_path)
    template = f"{tmp_path}/{{split}}_v1.0_withQT.json"
    names = {"id": "questionId", "image": "image"}
    typed, untyped = tmp_path / "val_v1.0_withQT.json", tmp_path / "val_v1.0.json"
    with_types = TextQuestions(template, str(tmp_path), **names, may_lack="_withQT").read("val")
    untyped.write_text(json.dumps(docvqa("val", ["another"])))
    assert TextQuestions(template, str(tmp_path), **names, may_lack="_withQT").read("val") == with_types  # as before
    typed.rename(untyped)
    assert TextQuestions(template, str(tmp_path), **names, may_lack="_withQT").read("val") == with_types
    with pytest.raises(DataError, match=r"val_v1\.0_withQT\.json"):
        TextQuestions(template, str(tmp_path), **names).read("val")
    untyped.unlink()
    with pytest.raises(DataError, match=r"val_v1\.0_withQT\.json of split 'val' does not exist"):
        TextQuestions(template, str(tmp_path), **names, may_lack="_withQT").read("val")


def test_the_benchmark_takes_either_file_of_docvqa(tmp_path):
    probe_world(tmp_path)
    conf = OmegaConf.load(Path(__file__).parents[3] / "conf/benchmark/docvqa.yaml")
    config = OmegaConf.create({"root": str(tmp_path), "benchmark": {"docvqa": conf}})
    with_types = instantiate(config.benchmark.docvqa.reader).read("val")
    (tmp_path / "val_v1.0_withQT.json").rename(tmp_path / "val_v1.0.json")
    assert len(with_types) == 2
    assert instantiate(config.benchmark.docvqa.reader).read("val") == with_types


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": "stop"}, "question 34602 of .* has no list of texts as answers"),
        ({"answers": []}, "has no list of texts as answers"),
        ({"answers": [{"answer": "stop"}]}, "has no list of texts as answers"),
        ({"image_id": "../secret"}, "outside"),
        ({"image_id": "gone"}, "gone"),
        ({"image_id": None}, "question 34602 about a picture"),
        ({"question_id": 34603}, "34603"),
        ({"question": None}, "34602"),
    ],
)
def test_what_is_wrong_is_named(change, words, tmp_path):
    probe_world(tmp_path)
    content = textvqa("val", ["stop"] * 10)
    content["data"][0] |= change
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as raised:
        TextQuestions(str(path), f"{tmp_path}/train_images").read("val")
    assert "val.json" in str(raised.value)
    path.write_text(json.dumps({"data": []}))
    with pytest.raises(DataError, match="data"):
        TextQuestions(str(path), None).read("val")
