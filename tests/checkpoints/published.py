"""The parameter lists of the published base models, names and shapes, without numbers and without a download.

They are put together from models of timm and transformers of the same names, built without memory.
"""

import functools
from typing import Any

import timm
import torch
import transformers
from torch import nn
from transformers import BertConfig, BertLMHeadModel, BertModel, RobertaConfig, RobertaModel
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

Shapes = dict[str, tuple[int, ...]]
DETECTED, CLASSES, ANSWERS = 2048, 1601, 3129  # features and classes of a detector, answers of VQA v2


def shapes_of(module: nn.Module, prefix: str) -> Shapes:
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def linear(name: str, out: int, width: int = 768) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int = 768) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def perceptron(name: str, out: int, width: int = 768, place: int = 1, inner: int = 1536) -> Shapes:
    """Two linear layers with a norm at number ``place`` between them."""
    return linear(f"{name}.0", inner, width) | norm(f"{name}.{place}", inner) | linear(f"{name}.3", out, inner)


def joined(*lists: Shapes) -> Shapes:
    return {name: shape for found in lists for name, shape in found.items()}


def without(shapes: Shapes, part: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if part not in name}


@functools.cache
def bert(prefix: str, layers: int = 12, text_layers: int = 0, words: int = 30522, is_headless: bool = False) -> Shapes:
    """A BERT whose layers from ``text_layers`` on attend to an image of the same width, under its published names."""
    config = BertConfig(vocab_size=words, num_hidden_layers=layers, is_decoder=True, add_cross_attention=True)
    with torch.device("meta"):
        found = shapes_of(BertLMHeadModel(config), "")
    for layer in range(text_layers):
        found = without(found, f"bert.encoder.layer.{layer}.crossattention")
    found |= {"cls.predictions.decoder.weight": (words, 768), "cls.predictions.decoder.bias": (words,)}
    if is_headless:
        found = {name.removeprefix("bert."): shape for name, shape in found.items() if not name.startswith("cls.")}
    return {prefix + name: shape for name, shape in found.items()}


@functools.cache
def vit(prefix: str, name: str = "vit_base_patch16_224", **options: Any) -> Shapes:
    with torch.device("meta"):
        return shapes_of(timm.create_model(name, num_classes=0, **options), prefix)


def swin(prefix: str, image_size: int, window: int) -> Shapes:
    """timm puts the merging of patches at the beginning of a stage, the releases at the end of the one before."""
    found = dict(vit(prefix, "swin_base_patch4_window7_224", img_size=image_size, window_size=window))
    merging = {name: found.pop(name) for name in list(found) if ".downsample." in name}
    for name, shape in merging.items():
        stage = int(name.removeprefix(f"{prefix}layers.").partition(".")[0])
        found[name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")] = shape
    return found


def projections(m: str = "", width: int = 768) -> Shapes:
    return linear(f"vision_proj{m}", 256, width) | linear(f"text_proj{m}", 256)


def queues(size: int, pointer: str = "queue_ptr") -> Shapes:
    return {"image_queue": (256, size), "text_queue": (256, size), pointer: (1,), "temp": ()}


def albef(kind: str = "pretrain") -> Shapes:
    found: Shapes = {}
    for m in ("", "_m"):
        found |= vit(f"visual_encoder{m}.", img_size=256 if kind == "pretrain" else 384)
        paired = {"layers": 18} if kind == "nlvr" else {}
        found |= bert(f"text_encoder{m}.", text_layers=6, is_headless=kind != "pretrain", **paired)
        if kind in ("pretrain", "retrieval"):
            found |= projections(m)
        elif kind == "vqa":
            found |= bert(f"text_decoder{m}.", layers=6)
        else:
            head = f"cls_head{m}"
            found |= linear(f"{head}.0", 768) | linear(f"{head}.2", 2 if kind == "nlvr" else 3)
    if kind in ("pretrain", "retrieval"):
        found |= linear("itm_head", 2) | queues(65536)
    return found | ({"idx_queue": (1, 65536)} if kind == "retrieval" else {})


def albef_assignment() -> Shapes:
    tower = vit("visual_encoder.", img_size=256)
    text = bert("text_encoder.", layers=18, text_layers=6, is_headless=True)
    return tower | text | projections() | {"temp": ()} | linear("ta_head", 3)


def blip(kind: str = "pretrain") -> Shapes:
    size = {"pretrain": 224, "vqa": 480}.get(kind, 384)
    found = dict(vit("visual_encoder.", img_size=size))
    if kind != "caption":
        found |= bert("text_encoder.", words=30524, is_headless=True)
    if kind != "retrieval":
        found |= bert("text_decoder.", words=30524)
    if kind in ("pretrain", "retrieval"):
        names = {name: shape for name, shape in found.items() if not name.startswith("text_decoder.")}
        found |= {name.replace("_encoder.", "_encoder_m.", 1): shape for name, shape in names.items()}
        found |= projections() | projections("_m") | linear("itm_head", 2)
        found |= queues(57600, "queue_ptr" if kind == "pretrain" else "ptr_queue")
    if kind == "retrieval":
        found["idx_queue"] = (1, 57600)
    return without(found, "token_type_embeddings")


def xvlm(kind: str = "pretrain") -> Shapes:
    found = swin("vision_encoder.", 224, 7) if kind == "pretrain" else swin("vision_encoder.", 384, 12)
    layers = 18 if kind == "nlvr" else 12
    found |= bert(
        "text_decoder." if kind == "caption" else "text_encoder.",
        layers,
        text_layers=6,
        is_headless=kind not in ("pretrain", "caption"),
    )
    for name in found:
        if "crossattention.self" in name and name.endswith(("key.weight", "value.weight")):
            found[name] = (768, 1024)
    if kind == "vqa":
        found |= bert("text_decoder.", layers=6)
    if kind in ("pretrain", "retrieval"):
        found |= projections(width=1024) | perceptron("itm_head", 2) | {"temp": ()}
    if kind in ("pretrain", "grounding"):
        found |= perceptron("bbox_head", 4)
    return found | (perceptron("cls_head", 2) if kind == "nlvr" else {})


def clip_visual(prefix: str, image_size: int) -> Shapes:
    """OpenAI's names of ViT-B/16 without its last block, and what METER keeps of the text tower."""
    tower = f"{prefix}visual."
    found: Shapes = {
        f"{prefix}positional_embedding": (77, 512),
        f"{tower}class_embedding": (768,),
        f"{tower}positional_embedding": (1 + (image_size // 16) ** 2, 768),
        f"{tower}conv1.weight": (768, 3, 16, 16),
    }
    found |= norm(f"{prefix}ln_final", 512) | norm(f"{tower}ln_pre") | norm(f"{tower}ln_post")
    for number in range(11):
        block = f"{tower}transformer.resblocks.{number}."
        found |= {f"{block}attn.in_proj_weight": (2304, 768), f"{block}attn.in_proj_bias": (2304,)}
        found |= linear(f"{block}attn.out_proj", 768) | norm(f"{block}ln_1") | norm(f"{block}ln_2")
        found |= linear(f"{block}mlp.c_fc", 3072) | linear(f"{block}mlp.c_proj", 768, 3072)
    return found


def meter(*kinds: str, text: str = "roberta", is_swin: bool = False) -> Shapes:
    """Pre-trained and, in one list, fine-tuned for these."""
    found = swin("vit_model.", 384, 12) if is_swin else clip_visual("vit_model.", 288)
    roberta = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        tower = RobertaModel(roberta) if text == "roberta" else BertModel(BertConfig())
        layer = BertLayer(BertConfig(is_decoder=True, add_cross_attention=True))
    found |= shapes_of(tower, "text_transformer.")
    for stream in ("text", "image"):
        for number in range(6):
            found |= shapes_of(layer, f"cross_modal_{stream}_layers.{number}.")
        found |= linear(f"cross_modal_{stream}_pooler.dense", 768)
    words = 50265 if text == "roberta" else 30522
    found |= linear("cross_modal_text_transform", 768)
    found |= linear("cross_modal_image_transform", 768, 1024 if is_swin else 768)
    found |= {"token_type_embeddings.weight": (3 if "nlvr2" in kinds else 2, 768)}
    heads = {
        "vqa": perceptron("vqa_classifier", ANSWERS, 1536),
        "nlvr2": perceptron("nlvr2_classifier", 2, 3072),
        "snli": perceptron("snli_classifier", 3, 1536),
        "retrieval": linear("rank_output", 1, 1536),
    }
    return joined(found, mlm_score(words), linear("itm_score.fc", 2, 1536), *(heads[kind] for kind in kinds))


def mlm_score(words: int) -> Shapes:
    """The head of masked words in ViLT and METER, whose decoder is its own."""
    dense = linear("mlm_score.transform.dense", 768) | norm("mlm_score.transform.LayerNorm")
    return dense | {"mlm_score.bias": (words,), "mlm_score.decoder.weight": (words, 768)}


def vilt(*kinds: str) -> Shapes:
    """As ``meter``."""
    with torch.device("meta"):
        text = BertEmbeddings(BertConfig(max_position_embeddings=40))
    found = vit("transformer.", "vit_base_patch32_384") | shapes_of(text, "text_embeddings.")
    found |= {"token_type_embeddings.weight": (3 if "nlvr2" in kinds else 2, 768)} | linear("pooler.dense", 768)
    heads = {
        "vqa": perceptron("vqa_classifier", ANSWERS),
        "nlvr2": perceptron("nlvr2_classifier", 2, 1536),
        "retrieval": linear("rank_output", 1),
    }
    return joined(found, mlm_score(30522), linear("itm_score.fc", 2), *(heads[kind] for kind in kinds))


def uniter(*kinds: str, width: int = 768, layers: int = 12) -> Shapes:
    """As ``meter``."""
    sizes = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    types = 3 if any(kind.startswith("nlvr2") for kind in kinds) else 2
    config = BertConfig(vocab_size=28996, type_vocab_size=types, **sizes)
    with torch.device("meta"):
        words, layer = BertEmbeddings(config), BertLayer(config)
    found, image = shapes_of(words, "uniter.embeddings."), "uniter.img_embeddings."
    for number in range(layers):
        found |= shapes_of(layer, f"uniter.encoder.layer.{number}.")
    found |= linear(f"{image}img_linear", width, DETECTED) | linear(f"{image}pos_linear", width, 7)
    for name in ("img_layer_norm", "pos_layer_norm", "LayerNorm"):
        found |= norm(f"{image}{name}", width)
    found |= {f"{image}mask_embedding.weight": (2, DETECTED)} | linear("uniter.pooler.dense", width, width)
    return joined(found, *(uniter_heads(width)[kind] for kind in ("pretrain", *kinds)))


def uniter_heads(width: int) -> dict[str, Shapes]:
    told = linear("net.0", width, width) | norm("net.2", width)
    pair = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)} | linear("out_proj", width, width)
    attended = {f"{side}.{name}": shape for side in ("attn1", "attn2") for name, shape in pair.items()}
    heads = {
        "vqa": perceptron("vqa_output", ANSWERS, width, place=2, inner=2 * width),
        "entailment": perceptron("vqa_output", 3, width, place=2, inner=2 * width),
        "expressions": linear("re_output", 1, width),
        "retrieval": linear("rank_output", 1, width),
        "nlvr2_pair": linear("nlvr2_output", 2, 2 * width),
        "nlvr2_triplet": linear("nlvr2_output", 2, width),
        "nlvr2": attended
        | linear("fc.0", width, 2 * width)
        | linear("attn_pool.fc.0", 1, width)
        | linear("nlvr2_output", 2, 2 * width),
    }
    words = {
        f"cls.predictions.transform.{n}": s
        for n, s in (linear("dense", width, width) | norm("LayerNorm", width)).items()
    }
    words |= {"cls.predictions.bias": (28996,), "cls.predictions.decoder.weight": (28996, width)}
    regions = {f"feat_regress.{name}": shape for name, shape in told.items()}
    regions |= {"feat_regress.weight": (width, DETECTED), "feat_regress.bias": (DETECTED,)}
    regions |= {f"region_classifier.{name}": shape for name, shape in told.items()}
    regions |= linear("region_classifier.net.3", CLASSES, width)
    return heads | {"pretrain": words | regions | linear("itm_output", 2, width)}


def of_transformers(name: str, **options: Any) -> tuple[Shapes, dict[str, Any]]:
    """The parameters of a class of transformers at its own defaults, which are a base model's, and the class for config.json."""
    with torch.device("meta"):
        model = getattr(transformers, name)(getattr(transformers, name).config_class(**options))
    found = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith("image_codebook")}
    return found, {"architectures": [name]}


def coca(width: int = 768, layers: int = 12, patch: int = 32, size: int = 512) -> Shapes:
    """open_clip's coca_ViT-B-32; with 1024, 24, 14, 768 its coca_ViT-L-14. Both have 12 text layers and 12 fused ones."""

    def block(name: str, of: int) -> Shapes:
        found = norm(f"{name}.ln_1", of) | norm(f"{name}.ln_2", of) | linear(f"{name}.attn.out_proj", of, of)
        found |= {f"{name}.attn.in_proj_weight": (3 * of, of), f"{name}.attn.in_proj_bias": (3 * of,)}
        return found | linear(f"{name}.mlp.c_fc", 4 * of, of) | linear(f"{name}.mlp.c_proj", of, 4 * of)

    pool = "visual.attn_pool"
    found: Shapes = {
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (1 + (224 // patch) ** 2, width),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.proj": (size, size),
        f"{pool}.query": (256, size),
        f"{pool}.attn.q_proj_weight": (size, size),
        f"{pool}.attn.k_proj_weight": (size, width),
        f"{pool}.attn.v_proj_weight": (size, width),
        f"{pool}.attn.in_proj_bias": (3 * size,),
        "text.token_embedding.weight": (49408, size),
        "text.positional_embedding": (77, size),
        "text.cls_emb": (size,),
        "text.text_projection": (size, size),
        "text_decoder.text_projection": (size, 49408),
    }
    found |= linear(f"{pool}.attn.out_proj", size, size) | norm(f"{pool}.ln_q", size) | norm(f"{pool}.ln_k", width)
    found |= norm("visual.ln_pre", width) | norm("visual.ln_post", size)
    found |= norm("text.ln_final", size) | norm("text_decoder.ln_final", size)
    for number in range(layers):
        found |= block(f"visual.transformer.resblocks.{number}", width)
    for number in range(12):
        found |= block(f"text.transformer.resblocks.{number}", size) | block(f"text_decoder.resblocks.{number}", size)
        cross = f"text_decoder.cross_attn.{number}"
        found |= block(cross, size) | norm(f"{cross}.ln_1_kv", size)
    return found
