"""The readers on real files in the published formats, which lie beside the repository and are no part of it."""

from collections import Counter

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.images import image_key
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.readers.refcoco import RefCOCO
from tests.toys import CONF

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def data(reference):
    return reference / "data"


def test_both_caption_layouts_say_the_same(data):
    karpathy = CocoCaptions(str(data / "coco/dataset_coco.json"), str(data / "coco/images"))
    official = CocoCaptions(str(data / "coco/annotations/captions_{split}.json"), str(data / "coco/images"))
    for splits, split, images in ((("train", "restval"), "train", 1322), (("val",), "val", 187)):
        one = [sample for name in splits for sample in karpathy.read(name)]
        two = official.read(split)
        assert len(one) == len(two) == images
        assert {s.image_id: Counter(t.text.strip() for t in s.texts["captions"]) for s in one} == {
            s.image_id: Counter(t.text.strip() for t in s.texts["captions"]) for s in two
        }


@pytest.mark.parametrize(
    ("name", "file"), [("refcoco", "refs(unc).p"), ("refcoco+", "refs(unc).p"), ("refcocog", "refs(umd).p")]
)
def test_expressions_of_all_three_data_sets(data, name, file):
    folder = data / "refcoco" / name
    reader = RefCOCO(str(folder / file), str(folder / "instances.json"), str(data / "coco/images"))
    samples = reader.read("val")
    assert len(samples) >= 7
    for sample in samples:
        for text in sample.texts["expressions"]:
            x, y, width, height = text.facts["box"]
            assert -1 <= x < x + width <= sample.size[0] + 1
            assert -1 <= y < y + height <= sample.size[1] + 1


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("uniter_ans2label_3129.json", 3129),
        ("lxmert_vqa_label2ans_3129.json", 3129),
        ("albef_xvlm_answer_list_3128.json", 3128),
    ],
)
def test_published_answer_lists(data, file, count):
    vocabulary = AnswerVocabulary.load(data / "answers" / file)
    assert len(vocabulary) == count
    assert vocabulary.scores(["yes"] * 10) == {vocabulary.index["yes"]: 1.0}


def test_the_small_real_configuration_trains_without_held_out_images(data):
    config = OmegaConf.create({"tokenizer": None, "seed": 1, "data": OmegaConf.load(CONF / "data/real_small.yaml")})
    config.data.root = str(data)
    config.data.image_size = 64
    module = instantiate(config.data)
    assert module.dropped == {"coco": 57, "vqa": 5, "refcoco": 0}
    held_out = {image_key(sample) for source in module.sources for sample in module.samples(source, "val")}
    assert not held_out & {image_key(s) for source in module.sources for s in module.samples(source, "train")}
    batch, _, _ = next(iter(module.train_dataloader()))
    assert batch["vqa"]["questions"]["answer_scores"].shape[1] == len(module.answers) == 18
    assert batch["refcoco"]["expressions"]["boxes"].min() > 0
    assert batch["coco"]["pixel_values"].shape == (48, 3, 64, 64)
