"""The model card of an export: what the model was made of and under whose licences, and no path of this machine."""

import pytest
import yaml

from fusionkit.checkpoints.card import UNKNOWN, model_card
from fusionkit.errors import ConfigError

CONFIG = {
    "image_encoder": {"_target_": "fusionkit.encoders.image.TimmEncoder", "name": "vit_base", "pretrained": True},
    "text_encoder": {"_target_": "fusionkit.encoders.text.HFTextEncoder", "pretrained": "/home/me/bert_folder"},
    "fusion": {"_target_": "fusionkit.fusion.late.Late"},
    "data": {
        "sources": {
            "photos": {"reader": {"_target_": "a.Joined", "readers": [{"_target_": "b.CocoCaptions"}, {"_target_": "b.VQAv2"}]}},
            "mine": {"reader": [{"_target_": "b.Table", "path": "/home/me/secret.csv"}]},
        }
    },
}  # fmt: skip
REPLIES = {"itm": "text", "vqa": "question", "mlm": None}


def card(config=CONFIG, artifacts=None, **options):
    return model_card(
        "mine", config, {"versions": {"fusionkit": "9.9"}, **(artifacts or {})}, REPLIES, "USE", **options
    )


def rows(text: str) -> dict[str, list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return {first: others for first, *others in cells[2:]}


def test_what_the_model_is():
    text = card()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "fusionkit"
    assert head["license"] == "unknown"
    assert head["pipeline_tag"] == "visual-question-answering"
    assert head["tags"] == ["vision-language", "Late", "itm", "vqa", "mlm"]
    assert "TimmEncoder (vit_base) reads images, HFTextEncoder texts, Late brings them together" in text
    assert "fusionkit 9.9" in text
    assert "`itm` (judges texts); `vqa` (answers questions); `mlm`." in text
    assert "\nUSE\n" in text
    assert f"The model: {UNKNOWN}" in text


def test_what_it_was_made_of_is_listed_with_licences():
    found = rows(card())
    assert found["image_encoder"] == ["pretrained weights: vit_base", UNKNOWN]
    assert found["text_encoder"] == ["pretrained weights: bert_folder", UNKNOWN]
    what, licence = found["data `photos`"]
    assert what == "read by CocoCaptions, VQAv2"
    assert "COCO: annotations CC BY 4.0" in licence
    assert "VQA v2: annotations CC BY 4.0" in licence
    assert found["data `mine`"] == ["read by Table", UNKNOWN]
    assert "/home" not in card()
    assert "secret" not in card()


def test_licences_are_those_that_are_given():
    found = card(licence="mit", licences={"photos": "cc-by-4.0", "text_encoder": "apache-2.0"})
    assert yaml.safe_load(found.split("---")[1])["license"] == "mit"
    assert rows(found)["data `photos`"][1] == "cc-by-4.0"
    assert rows(found)["text_encoder"][1] == "apache-2.0"
    assert "The model: mit\n" in found


def test_a_licence_of_what_is_not_there_is_told():
    with pytest.raises(
        ConfigError, match=r"licences names 'fotos', of which the model was not made; did you mean 'photos'"
    ):
        card(licences={"fotos": "mit"})


def test_an_imported_checkpoint_is_named():
    origin = {"release": "ALBEF", "file": "/tmp/albef.pth", "sha256": "12ab"}
    assert rows(card(artifacts={"origin": origin}))["checkpoint"] == ["ALBEF, file albef.pth, sha256 12ab", UNKNOWN]
    went_on = rows(card({**CONFIG, "checkpoint": "me/theirs"}))
    assert went_on["checkpoint"][0] == "me/theirs"
    assert "checkpoint" not in rows(card())


def test_drawn_data_need_no_licence():
    data = {"prepare": {"_target_": "make"}, **CONFIG["data"]}
    found = rows(card({**CONFIG, "data": data}))["data `photos`"]
    assert found == ["drawn by fusionkit, read by CocoCaptions, VQAv2", "none"]


def test_a_model_without_tasks_or_data_has_a_card():
    text = model_card("bare", {}, {}, {}, "USE")
    assert "pipeline_tag" not in text
    assert rows(text) == {}


def test_licences_without_names_are_refused():
    with pytest.raises(ConfigError, match="licences is mit, but has to be names with licences, such as"):
        card(licences="mit")
