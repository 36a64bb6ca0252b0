"""open_clip's CoCa, imported: features, logits, both losses, gradients and greedy captions are its own, to 1e-5 in fp32.

The fixture is open_clip's (``tests/parity/make_coca.py``).
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fusionkit.checkpoints.source import read_source
from fusionkit.errors import DataError
from fusionkit.tasks.generation import GenerationConfig, Greedy
from tests.parity.imported import close, compare_gradient_norms, gradient_norms, imported, planned, text_rows
from tests.parity.published import DATA

SIZES = json.loads((DATA / "coca_tiny.json").read_text())
OPTIONS = {name: SIZES[name] for name in ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "ids")}
OPTIONS["text_cfg"] = {name: value for name, value in OPTIONS["text_cfg"].items() if name != "output_tokens"}
OPTIONS["vision_cfg"] = {name: value for name, value in OPTIONS["vision_cfg"].items() if name != "output_tokens"}
OPTIONS["multimodal_cfg"] = {name: SIZES["multimodal_cfg"][name] for name in ("width", "heads", "layers")}
SHARED = pytest.mark.parametrize("kinds", [["captions"], []], ids=["one reading", "two readings"])


@pytest.fixture(scope="module")
def io():
    return load_file(DATA / "coca_tiny.io.safetensors")


@pytest.fixture(scope="module")
def world():
    return imported("coca", DATA / "coca_tiny.pth", OPTIONS)


def batch_of(io):
    rows = text_rows(io["ids"], (io["ids"] != 0).long())
    places = torch.arange(4)
    return {"pixel_values": io["pixels"], "image_keys": places, "image_ids": places.tolist(), "captions": rows}


@torch.no_grad()
def test_features_and_logits(world, io):
    network, *_ = world
    batch = batch_of(io)
    encoded = network.model.encode(batch, ["captions"])
    close(encoded.image_feats, io["image_features"])
    close(encoded.image.embeds, io["image_tokens"])
    close(encoded.text_feats["captions"], io["text_features"])
    causal = encoded.text["captions"]._replace(
        mask=torch.ones(9, 9).tril().long() * batch["captions"]["attention_mask"][:, None]
    )
    fused = network.model.fuse(encoded.memory, causal, torch.arange(4)).text
    logits = network.tasks["captioning"].head(fused, network.model.text_encoder.word_embeddings.weight)
    is_word = batch["captions"]["attention_mask"][:, :-1].bool()  # they predict behind padding too, which nothing reads
    close(logits[:, :-1][is_word], io["logits"][is_word])


@torch.no_grad()
def test_the_mended_mask_is_ours_but_for_the_texts_that_are_padded(io):
    """open_clip's published mask is shifted by one; texts without padding are the same under both."""
    network, *_ = imported("coca", DATA / "coca_tiny.pth", OPTIONS | {"correct_cls_mask": True})
    found = network.model.encode(batch_of(io), ["captions"]).text_feats["captions"]
    close(found, io["mended_text_features"])
    close(found[:1], io["text_features"][:1])
    assert (found[1:] - io["text_features"][1:]).abs().amax(dim=1).min() > 0.1


@SHARED
def test_losses_and_gradients(kinds, world, io):
    """Whether captioning reads what contrast had encoded, or encodes the captions itself."""
    network, source, plan = world
    batch = batch_of(io)
    network.module.zero_grad()
    encoded = network.model.encode(batch, ["captions"])
    itc = network.tasks["itc"](network.model, batch, encoded).loss
    given = encoded if kinds else network.model.encode(batch, [])
    captioning = network.tasks["captioning"](network.model, batch, given).loss
    close(itc, io["loss_itc"])
    close(2 * captioning, io["loss_captioning_twice"])
    (itc + 2 * captioning).backward()
    compare_gradient_norms(gradient_norms(network.module, source, plan), io, "grad_norm.")


@torch.no_grad()
def test_greedy_captions(world, io):
    """Token by token, up to the last one, where open_clip says the end whatever the model does."""
    network, *_ = world
    writer = network.tasks["captioning"].writer
    from fusionkit.tasks.decoding import DecoderInputs, RecomputedDecoderState, decoder_state_of

    model, ids = network.model, SIZES["ids"]
    encoded = model.encode(batch_of(io), [])
    rules = GenerationConfig(ids["sep"], max_length=7, min_length=2, banned=(ids["cls"], ids["pad"], ids["mask"]))
    shared = DecoderInputs(
        model, network.tasks["captioning"].head, encoded.memory, writer.prompts(torch.arange(4), True)
    )
    assert model.is_incremental
    for state in (decoder_state_of(shared), RecomputedDecoderState(shared)):
        found = Greedy()(state, rules).tokens
        theirs = io["generated"][:, 1:8]
        theirs = theirs.where(theirs != 0, ids["sep"])  # they pad behind the end, ours repeat it
        assert F.pad(found, (0, 7 - found.shape[1]), value=ids["sep"]).equal(theirs)


def test_the_sizes_stand_in_the_file_beside_it(tmp_path, io):
    shutil.copy(DATA / "coca_tiny.pth", tmp_path / "open_clip_pytorch_model.pth")
    config = {name: SIZES[name] for name in ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg")}
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": {**config, "custom_text": True}}))
    network, *_ = imported("coca", tmp_path / "open_clip_pytorch_model.pth", {"ids": SIZES["ids"]})
    with torch.no_grad():
        close(network.model.encode(batch_of(io), ["captions"]).text_feats["captions"], io["text_features"])
    for part, odd, message in (
        (
            "text_cfg",
            {"hf_model_name": "roberta-base"},
            "text_cfg.hf_model_name is 'roberta-base', which no CoCa here has",
        ),
        ("vision_cfg", {"attentional_pool": False}, "pools without queries"),
        ("text_cfg", {"layers": "2"}, r"open_clip_config.json: text_cfg.layers is '2', but has to be"),
    ):
        file.write_text(json.dumps({"model_cfg": config | {part: {**config[part], **odd}}}))
        with pytest.raises(DataError, match=message):
            imported("coca", tmp_path / "open_clip_pytorch_model.pth", {"ids": SIZES["ids"]})
    file.write_text(json.dumps({"preprocess_cfg": {}}))
    with pytest.raises(DataError, match="has no model_cfg"):
        imported("coca", tmp_path / "open_clip_pytorch_model.pth", {"ids": SIZES["ids"]})


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of open_clip with these settings, and returns its plan."""
    shutil.copy(DATA / "coca_tiny.pth", tmp_path / "weights.pth")
    sizes = {name: SIZES[name] for name in ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg")}

    def plan(images, **model):
        config = {"model_cfg": sizes | model, "preprocess_cfg": images}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        return planned("coca", {"ids": SIZES["ids"]})(read_source(tmp_path / "weights.pth"))

    return plan


MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # OPENAI_DATASET_MEAN, and _STD


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (None, (MEAN, STD, "bicubic", "crop")),
        (
            {
                "size": 16,
                "mode": "RGB",
                "mean": MEAN,
                "std": STD,
                "interpolation": "bicubic",
                "resize_mode": "shortest",
            },
            (MEAN, STD, "bicubic", "crop"),
        ),
        (
            {
                "mean": [0.5, 0.4, 0.3],
                "std": 0.5,
                "interpolation": "bilinear",
                "resize_mode": "squash",
                "fill_color": 0,
            },
            ([0.5, 0.4, 0.3], [0.5] * 3, "bilinear", "squash"),
        ),
        ({"mean": None, "interpolation": "random"}, (MEAN, STD, "bicubic", "crop")),
    ],
)
def test_images_are_read_as_the_file_says(folder, images, expected):
    data = folder(images).config["data"]
    assert (data["mean"], data["std"], data["resample"], data["fit"], data["image_size"]) == (*expected, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([1], "preprocess_cfg is [1], but has to be an object"),
        ({"resize_mode": "longest"}, "preprocess_cfg.resize_mode is 'longest', but images are read here with shortest"),
        (
            {"interpolation": ["x"]},
            "preprocess_cfg.interpolation is ['x'], but images are read here with bicubic or bilinear",
        ),
        ({"mode": "L"}, "preprocess_cfg.mode is 'L', but images are read here with RGB; choose one"),
        ({"mean": [0.5]}, "preprocess_cfg.mean is [0.5], but has to be three numbers, one a colour"),
        ({"std": 0}, "preprocess_cfg.std is [0, 0, 0], but has to be three numbers"),
        ({"crop_pct": 0.9}, "preprocess_cfg.crop_pct is 0.9, which images are not read by here; leave it out"),
    ],
)
def test_images_that_are_read_otherwise_are_refused(folder, images, message):
    with pytest.raises(DataError, match=re.escape(f"open_clip_config.json: {message}")):
        folder(images)


def test_the_rest_of_the_model_is_understood_or_refused(folder, io):
    folder(
        None, custom_text=True, init_logit_scale=2.0, init_logit_bias=None, nonscalar_logit_scale=True, cast_dtype=None
    )
    with pytest.raises(DataError, match=r"model_cfg.init_logit_bias is -10, but contrast has no bias here"):
        folder(None, init_logit_bias=-10)
    with pytest.raises(DataError, match=r"model_cfg.audio_cfg is \{\}, which no CoCa here has"):
        folder(None, audio_cfg={})
