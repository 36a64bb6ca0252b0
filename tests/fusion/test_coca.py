"""CoCa: one reading of a text for contrast and captions, whatever causal text encoder there is; who trains what."""

import pytest
import torch

from fusionkit.encoders.blip import BLIPTextEncoder
from fusionkit.encoders.coca import AttentionPooledEncoder, CausalTextEncoder
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.fusion.coca import CoCa
from fusionkit.model.model import assemble
from fusionkit.tasks.captioning import Captioning
from fusionkit.tasks.itc import ITC
from fusionkit.tasks.mlm import WordProjection
from fusionkit.types import Tokens
from tests.toys import (
    PAD,
    VOCABULARY,
    WIDTH,
    toy_batch,
    toy_dims,
    toy_fusion,
    toy_language_model,
    toy_no_rows,
    toy_task,
)

HF = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOWER = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
TEXTS = {
    "coca_text": lambda: CausalTextEncoder(VOCABULARY, WIDTH, num_layers=2, num_heads=4, max_length=32),
    "clip": lambda: HFTextEncoder(
        VOCABULARY, config={"model_type": "clip_text_model", "max_position_embeddings": 32, **HF}, pool="last"
    ),
    "llama": toy_language_model,
    "bert": lambda: BLIPTextEncoder(VOCABULARY, config={"model_type": "bert", **HF, **QUIET}),
}
IMAGE = torch.tensor([0, 1, 1])


def model_of(text="coca_text", fusion="coca"):
    torch.manual_seed(0)
    images = AttentionPooledEncoder("vit_tiny_patch16_224", num_queries=5, query_size=16, query_heads=4, **TOWER)
    return assemble(images, TEXTS[text](), toy_fusion(fusion), embed_size=16)


def tasks_of(model):
    dims = toy_dims(model)
    return ITC(dims), Captioning(dims, label_smoothing=0.0, head=WordProjection)


def readings(model):
    """A list that grows by one whenever the first layer of the text runs."""
    found = []
    encoder = model.text_encoder
    layers = encoder.layers if isinstance(encoder, CausalTextEncoder) else None
    if layers is None:
        layers = next(m for m in encoder.backbone.modules() if isinstance(m, torch.nn.ModuleList) and len(m))
    layers[0].register_forward_hook(lambda *_: found.append(1))
    return found


@pytest.mark.parametrize(("text", "expected"), [("coca_text", 1), ("clip", 1), ("llama", 1), ("bert", 2)])
def test_one_reading_of_a_text_serves_both_losses(text, expected):
    model = model_of(text).eval()
    itc, captioning = tasks_of(model)
    batch, found = toy_batch(images=4, texts_per_image=2), readings(model)
    encoded = model.encode(batch, ["captions"])
    losses = [task(model, batch, encoded).loss for task in (itc, captioning)]
    assert len(found) == expected
    apart = [
        itc(model, batch, model.encode(batch, ["captions"])).loss,
        captioning(model, batch, model.encode(batch, [])).loss,
    ]
    assert len(found) == expected + 2
    for one, other in zip(losses, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)

    gradients = []
    for pair in (losses, apart):
        model.zero_grad()
        (pair[0] + 2 * pair[1]).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"prompt": "t7 t9"}, {"texts_per_image": 1}])
def test_a_prompt_is_another_text_and_rows_may_be_fewer(options):
    model = model_of().eval()
    batch = toy_batch(images=4, texts_per_image=2)
    task, found = Captioning(toy_dims(model), **options).eval(), readings(model)
    shared, alone = model.encode(batch, ["captions"]), model.encode(batch, [])
    ours, theirs = task(model, batch, shared), task(model, batch, alone)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-6, atol=1e-6)
    assert len(found) == (3 if "prompt" in options else 2)


@pytest.mark.parametrize("name", ["itc", "itm", "captioning", "vqa_generative"])
def test_what_tasks_read_trains_and_nothing_else_is_left_trainable(name):
    model = model_of().train()
    task = toy_task(name, toy_dims(model))
    model.freeze_unused(task.needs)
    for batch in (
        toy_batch(images=4),
        toy_batch(images=4) | {kind: toy_no_rows(kind) for kind in ("captions", "questions")},
    ):
        model.zero_grad()
        task(model, batch, model.encode(batch, [task.reads] if task.encodes else [])).loss.backward()
        idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        unread = {"image_projection", "text_projection"} if batch["captions"]["ids"] == [] and name == "itc" else set()
        assert not [n for n in idle if n.split(".")[0] not in unread]
    is_trained = model.text_encoder.appended.requires_grad
    assert is_trained == (name == "itc")


def test_the_token_behind_a_text_trains_where_the_fusion_reads_it():
    model = model_of(fusion="late")
    model.freeze_unused(frozenset({"pooled"}))
    assert model.text_encoder.appended.requires_grad
    assert not model.text_projection.weight.requires_grad


def test_no_token_sees_a_later_one_whatever_the_mask_says_and_the_last_is_pooled():
    torch.manual_seed(0)
    fusion = CoCa(24, WIDTH, num_layers=2, num_heads=4).eval()
    image = torch.randn(2, 5, 24)
    memory = fusion.prepare(Tokens(image, None, image[:, 0]))
    embeds, mask = torch.randn(3, 6, WIDTH), torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    with torch.no_grad():
        before = fusion(memory, Tokens(embeds, mask, embeds[:, 0]), IMAGE)
        changed = embeds.clone()
        changed[:, 4] = torch.randn(3, WIDTH)
        after = fusion(memory, Tokens(changed, mask, embeds[:, 0]), IMAGE)
    assert after.text[:, :4].equal(before.text[:, :4])
    for row, last in enumerate((5, 3, 5)):
        assert before.pooled[row].equal(before.text[row, last])
    moved = (after.pooled - before.pooled).abs().amax(dim=1)
    assert moved[1] == 0
    assert moved[[0, 2]].min() > 1e-3


def test_captions_are_learnt_and_said_and_found():
    """Both objectives at once on eight captions: each is said, and is the nearest to its image."""
    model = model_of()
    itc, captioning = tasks_of(model)
    batch = toy_batch(images=8)
    parameters = [*model.parameters(), *itc.parameters(), *captioning.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    for _ in range(150):
        encoded = model.encode(batch, ["captions"])
        loss = itc(model, batch, encoded).loss + 2 * captioning(model, batch, encoded).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        encoded = model.encode(batch, ["captions"])
        said = captioning.eval().predict(model, batch, encoded)
        best = (encoded.image_feats @ encoded.text_feats["captions"].T).argmax(dim=1)
    captions = batch["captions"]
    rows = zip(captions["input_ids"], captions["attention_mask"], strict=True)
    wanted = [" ".join(f"t{i}" for i in row[1 : int(mask.sum()) - 1].tolist()) for row, mask in rows]
    long = [i for i, text in enumerate(wanted) if len(text.split()) >= 5]  # shorter ones may not end yet (min_length)
    assert long
    assert [said[i]["caption"] for i in long] == [wanted[i] for i in long]
    assert best.tolist() == list(range(8))
    assert PAD not in captions["input_ids"][captions["attention_mask"].bool()]
