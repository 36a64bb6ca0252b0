"""Folders that transformers' classes save, imported: our logits are theirs, to 1e-5 in fp32."""

import pytest
import torch
import transformers
from hydra.utils import instantiate
from torch import nn

from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.checkpoints.write import import_into
from fusionkit.errors import DataError
from fusionkit.types import Regions
from tests.parity.imported import close, imported, planned, text_rows

WIDTH, VOCABULARY, FEATURES = 32, 60, 12
SIZES = {
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "eager",
}
LAYERS = {"num_hidden_layers": 2}
ROWS = torch.arange(3)


def saved(model: nn.Module, folder) -> nn.Module:
    """Saved with every parameter drawn, norms and biases too: one that is left out or swapped then shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, mean=1.0 if name.lower().endswith("norm.weight") else 0.0, std=0.2)
    model.eval().save_pretrained(folder)
    return model


def texts(**facts):
    torch.manual_seed(1)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return text_rows(torch.randint(5, VOCABULARY, (3, 6)) * mask, mask, **facts)


def regions():
    """Three images of five regions, the first with three."""
    corners = torch.rand(3, 5, 2)
    positions = torch.cat([corners, corners + 0.1, torch.full((3, 5, 2), 0.1), torch.full((3, 5, 1), 0.01)], dim=2)
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[0, 3:] = 0
    return Regions(torch.randn(3, 5, FEATURES), positions, mask)


def fuse(network, images, rows, kind="captions"):
    model = network.model
    batch = {model.image_encoder.reads: images, kind: rows}
    encoded = model.encode(batch, [kind])
    return batch, encoded, model.fuse(encoded.memory, encoded.text[kind], rows["image_index"])


def words(network, fused):
    """The MLM logits at every token."""
    return network.tasks["mlm"].head(fused.text, network.model.text_encoder.word_embeddings.weight)


@pytest.fixture
def canvases():
    """Three images on canvases of 32 by 48 pixels, the second smaller."""
    torch.manual_seed(2)
    pixels = torch.randn(3, 3, 32, 48)
    pixels[1, :, 24:], pixels[1, :, :, 16:] = 0, 0
    return pixels, (pixels.sum(dim=1) != 0).long()


VILT = SIZES | LAYERS | {"image_size": 32, "patch_size": 8, "max_position_embeddings": 16}


@pytest.mark.parametrize(
    "name", ["ViltForMaskedLM", "ViltForQuestionAnswering", "ViltForImageAndTextRetrieval", "ViltModel"]
)
@torch.no_grad()
def test_vilt(name, tmp_path, canvases):
    theirs = saved(getattr(transformers, name)(transformers.ViltConfig(**VILT, num_labels=7)), tmp_path)
    network, *_ = imported("vilt", tmp_path, {})
    pixels, pixel_mask = canvases
    rows = texts()
    _, _, fused = fuse(network, pixels, rows)
    out = theirs(rows["input_ids"], rows["attention_mask"], pixel_values=pixels, pixel_mask=pixel_mask)
    if name == "ViltModel":
        close(fused.pooled, out.pooler_output)
        close(fused.text, out.last_hidden_state[:, :6])
    elif name == "ViltForMaskedLM":
        close(words(network, fused), out.logits)
    elif name == "ViltForQuestionAnswering":
        close(network.tasks["vqa"].head(fused.pooled), out.logits)
        assert len(network.tasks["vqa"].answers) == 7
    else:
        close(network.tasks["itm"].head(fused.pooled)[:, 1:], out.logits)


@torch.no_grad()
def test_vilt_of_words(tmp_path, canvases):
    """Labels of words by the names in config.json, at every token; the class has no pooler."""
    names = {0: "O", 1: "B-PER", 2: "I's"}
    theirs = saved(transformers.ViltForTokenClassification(transformers.ViltConfig(**VILT, id2label=names)), tmp_path)
    network, *_ = imported("vilt", tmp_path, {})
    pixels, pixel_mask = canvases
    rows = texts()
    labels = torch.randint(3, rows["input_ids"].shape)
    places = torch.arange(rows["input_ids"].shape[1]).where(rows["attention_mask"] > 0, -1)
    spans = [[(2 * n, 2 * n + 1) for n in range(len(row))] for row in labels]
    tagged = rows | {"word_labels": [[names[n] for n in row] for row in labels.tolist()], "word_spans": spans}
    batch = {"pixel_values": pixels, "pixel_mask": pixel_mask.bool(), "tagged": tagged | {"label_words": places}}
    task, encoded = network.tasks["token_classification"], network.model.encode(batch, ["tagged"])
    assert task.labels == ("O", "B-PER", "I's")
    given = {"pixel_values": pixels, "pixel_mask": pixel_mask, "labels": labels.where(places >= 0, -100)}
    out = theirs(rows["input_ids"], rows["attention_mask"], **given)
    close(task.logits(network.model, batch, encoded), out.logits)
    close(task(network.model, batch, encoded).loss, out.loss)
    (first, *_) = task.predict(network.model, batch | {"tagged": batch["tagged"] | {"ids": [4, 5, 6]}}, encoded)
    assert first["labels"][1] == {"start": 2, "end": 3, "label": names[out.logits[0, 1].argmax().item()]}


@torch.no_grad()
def test_vilt_of_two_images(tmp_path, canvases):
    config = transformers.ViltConfig(**VILT, num_labels=2, num_images=2, modality_type_vocab_size=3)
    theirs = saved(transformers.ViltForImagesAndTextClassification(config), tmp_path)
    network, *_ = imported("vilt", tmp_path, {})
    pixels, other = canvases[0], torch.randn(3, 3, 32, 48)
    rows = texts(other_index=ROWS + 3, label=torch.zeros(3))
    batch = {"pixel_values": torch.cat([pixels, other]), "statements": rows}
    task = network.tasks["nlvr2"]
    logits = task(network.model, batch, network.model.encode(batch, ["statements"])).logits
    both, mask = torch.stack([pixels, other], dim=1), torch.stack([canvases[1], torch.ones(3, 32, 48).long()], dim=1)
    close(logits, theirs(rows["input_ids"], rows["attention_mask"], pixel_values=both, pixel_mask=mask).logits)


@pytest.mark.parametrize("name", ["LxmertForPreTraining", "LxmertForQuestionAnswering", "LxmertModel"])
@torch.no_grad()
def test_lxmert(name, tmp_path):
    sizes = {"l_layers": 2, "x_layers": 2, "r_layers": 1, "visual_feat_dim": FEATURES, "num_qa_labels": 7}
    theirs = saved(getattr(transformers, name)(transformers.LxmertConfig(**SIZES, **sizes)), tmp_path)
    network, *_ = imported("lxmert", tmp_path, {})
    rows, seen = texts(), regions()
    _, _, fused = fuse(network, seen, rows)
    out = theirs(
        rows["input_ids"],
        seen.features,
        seen.positions[..., :4],
        attention_mask=rows["attention_mask"],
        visual_attention_mask=seen.mask,
    )
    if name == "LxmertModel":
        close(fused.pooled, out.pooled_output)
        close(fused.text, out.language_output)
        close(fused.image, out.vision_output)
        return
    close(network.tasks["vqa"].head(fused.pooled), out.question_answering_score)
    if name == "LxmertForPreTraining":
        close(words(network, fused), out.prediction_logits)
        close(network.tasks["itm"].head(fused.pooled), out.cross_relationship_score)


@pytest.mark.parametrize("name", ["VisualBertForPreTraining", "VisualBertForQuestionAnswering", "VisualBertModel"])
@torch.no_grad()
def test_visualbert(name, tmp_path):
    config = transformers.VisualBertConfig(**SIZES, **LAYERS, visual_embedding_dim=FEATURES, num_labels=7)
    theirs = saved(getattr(transformers, name)(config), tmp_path)
    network, _, plan = imported("visualbert", tmp_path, {})
    rows, seen = texts(), regions()
    _, _, fused = fuse(network, seen, rows)
    out = theirs(
        rows["input_ids"],
        rows["attention_mask"],
        visual_embeds=seen.features,
        visual_attention_mask=seen.mask,
    )
    if name == "VisualBertModel":
        close(fused.pooled, out.pooler_output)
        close(torch.cat([fused.text, fused.image], dim=1), out.last_hidden_state)
    elif name == "VisualBertForPreTraining":
        close(words(network, fused), out.prediction_logits[:, :6])
        close(network.tasks["itm"].head(fused.pooled), out.seq_relationship_logits.flip(1))  # 0 is a match there
    else:
        close(network.tasks["vqa"].head(fused.pooled), out.logits)
        clean = instantiate(plan.config["data"]["sources"]["vqa"]["clean"])
        assert clean("Who, is it?").endswith("[MASK]")  # whose state is read


@pytest.fixture
def pixels():
    torch.manual_seed(3)
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_clip(activation, tmp_path, pixels):
    sizes = {n: SIZES[n] for n in ("hidden_size", "num_attention_heads", "intermediate_size")} | LAYERS
    sizes |= {"hidden_act": activation}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": VOCABULARY, "eos_token_id": VOCABULARY - 1, "bos_token_id": 0},
        vision_config=sizes | {"image_size": 32, "patch_size": 8, "hidden_size": 24},
        projection_dim=16,
    )
    theirs = saved(transformers.CLIPModel(config), tmp_path)
    network, *_ = imported("clip", tmp_path, {})
    rows, last = texts(), VOCABULARY - 1
    ids, mask = rows["input_ids"].clamp(max=last - 1), rows["attention_mask"]
    ids[ROWS, mask.sum(dim=1) - 1] = last  # the end of a text, where it is pooled
    _, encoded, _ = fuse(network, pixels, rows | {"input_ids": ids})
    out = theirs(ids, pixels, mask)
    close(encoded.image_feats, out.image_embeds)
    close(encoded.text_feats["captions"], out.text_embeds)
    cosines = encoded.image_feats @ encoded.text_feats["captions"].T
    close(cosines / network.model.temperature, out.logits_per_image)


@pytest.mark.parametrize("name", ["FlavaModel", "FlavaForPreTraining"])
@torch.no_grad()
def test_flava(name, tmp_path, pixels):
    sizes = {n: v for n, v in SIZES.items() if n not in ("vocab_size", "attn_implementation")} | LAYERS
    config = transformers.FlavaConfig(
        image_config=sizes | {"image_size": 32, "patch_size": 8, "hidden_size": 24, "vocab_size": 9},
        text_config=sizes | {"vocab_size": VOCABULARY},
        multimodal_config=sizes,
        hidden_size=WIDTH,
        projection_dim=16,
        init_codebook=False,
    )
    theirs = saved(getattr(transformers, name)(config), tmp_path)
    network, *_ = imported("flava", tmp_path, {})
    rows = texts()
    _, encoded, fused = fuse(network, pixels, rows)
    base = theirs if name == "FlavaModel" else theirs.flava
    out = base(rows["input_ids"], pixels, rows["attention_mask"])
    close(fused.text, out.multimodal_embeddings[:, -6:])
    close(fused.image, out.multimodal_embeddings[:, 1:-6])
    close(encoded.image_feats, nn.functional.normalize(base.image_projection(out.image_embeddings[:, 0]), dim=1))
    close(
        encoded.text_feats["captions"], nn.functional.normalize(base.text_projection(out.text_embeddings[:, 0]), dim=1)
    )
    close(network.model.temperature.log(), -base.logit_scale)
    if name == "FlavaModel":
        close(fused.pooled, out.multimodal_output.pooler_output)
        return
    close(network.tasks["itm"].head(fused.pooled), theirs.itm_head(out.multimodal_embeddings))
    close(words(network, fused), theirs.mmm_text_head(out.multimodal_embeddings[:, -6:]))


BRIDGETOWER = ["MaskedLM", "ImageAndTextRetrieval", "ContrastiveLearning"]


@pytest.mark.parametrize("name", [*(f"BridgeTowerFor{end}" for end in BRIDGETOWER), "BridgeTowerModel"])
@torch.no_grad()
def test_bridgetower(name, tmp_path, pixels):
    width = 64 if "Contrastive" in name else WIDTH  # which adds up what both towers give
    config = transformers.BridgeTowerConfig(
        text_config={n: v for n, v in SIZES.items() if n != "attn_implementation"}
        | {"num_hidden_layers": 3, "hidden_size": width},
        vision_config={"hidden_size": 64, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        contrastive_hidden_size=20,
        logit_scale_init_value=2.6592,
    )
    theirs = saved(getattr(transformers, name)(config), tmp_path)
    network, *_ = imported("bridgetower", tmp_path, {})
    rows = texts()
    rows["input_ids"] = rows["input_ids"].where(rows["attention_mask"].bool(), torch.tensor(1))  # RoBERTa's padding
    _, encoded, fused = fuse(network, pixels, rows)
    out = theirs(rows["input_ids"], rows["attention_mask"], pixel_values=pixels)
    if name == "BridgeTowerForContrastiveLearning":
        close(encoded.image_feats, out.image_embeds)
        close(encoded.text_feats["captions"], out.text_embeds)
        close(network.model.temperature.log(), -theirs.logit_scale)
        close(
            fused.pooled,
            theirs.bridgetower(rows["input_ids"], rows["attention_mask"], pixel_values=pixels).pooler_output,
        )
    elif name == "BridgeTowerModel":
        close(fused.text, out.text_features)
        close(fused.image, out.image_features)
        close(fused.pooled, out.pooler_output)
    elif name == "BridgeTowerForMaskedLM":
        close(words(network, fused), out.logits)
    else:
        close(network.tasks["itm"].head(fused.pooled), out.logits)


@torch.no_grad()
def test_the_command_writes_what_from_pretrained_gives_back(tmp_path):
    """From the folder that transformers saved to ours, and from there the same numbers bit by bit."""
    sizes = {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": FEATURES, "num_qa_labels": 7}
    saved(transformers.LxmertForQuestionAnswering(transformers.LxmertConfig(**SIZES, **sizes)), tmp_path / "theirs")
    network, *_ = imported("lxmert", tmp_path / "theirs", {})
    told = import_into(tmp_path / "ours", str(tmp_path / "theirs"), planned("lxmert", {}))
    assert "every published tensor is accounted for" in told
    again = from_pretrained(tmp_path / "ours")
    logits = []
    for each in (network, again):
        rows = texts()
        _, _, fused = fuse(each, regions(), rows)
        logits.append(each.tasks["vqa"].head(fused.pooled))
    assert torch.equal(*logits)


@pytest.mark.parametrize("family", ["bridgetower", "clip", "flava", "lxmert", "meter", "uniter", "vilt", "visualbert"])
def test_a_foreign_checkpoint_is_told_in_one_sentence(family, tmp_path):
    saved(transformers.BertModel(transformers.BertConfig(**SIZES, **LAYERS)), tmp_path / "bert")
    with pytest.raises(DataError) as caught:
        import_into(tmp_path / "ours", str(tmp_path / "bert"), planned(family, {}))
    assert str(tmp_path / "bert") in str(caught.value)
    assert not (tmp_path / "ours").exists()
