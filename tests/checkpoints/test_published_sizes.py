"""The key tables cover the published base models: every name and shape, with the defaults of conf/import."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipModel

from fusionkit.checkpoints.base import convert
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.possible import require_possible_parts
from fusionkit.checkpoints.runs import repeated
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError, UserError
from tests.checkpoints.published import (
    Shapes,
    albef,
    albef_assignment,
    blip,
    coca,
    meter,
    of_transformers,
    shapes_of,
    uniter,
    vilt,
    xvlm,
)
from tests.parity.imported import planned

pytestmark = pytest.mark.usefixtures("fast")
PAIRED = {"bert": {"num_hidden_layers": 18}}
FINE = {"image_size": 384, "swin": {"window_size": 12}}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BERT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {  # the list, and the options of the import
    "albef pretrain": (albef, {}),
    "albef retrieval": (partial(albef, "retrieval"), {"image_size": 384}),
    "albef vqa": (partial(albef, "vqa"), {"image_size": 384}),
    "albef ve": (partial(albef, "ve"), {"image_size": 384}),
    "albef nlvr": (partial(albef, "nlvr"), {"image_size": 384} | PAIRED),
    "albef text assignment": (albef_assignment, PAIRED),
    "albef pretrain, start of vqa": (albef, {"image_size": 384, "start": "vqa"}),
    "albef pretrain, start of nlvr": (albef, {"image_size": 384, "start": "nlvr"}),
    "coca ViT-B-32": (coca, {}),
    "blip pretrain": (blip, {}),
    "blip retrieval": (partial(blip, "retrieval"), {"image_size": 384}),
    "blip vqa": (partial(blip, "vqa"), {"image_size": 480}),
    "blip caption": (partial(blip, "caption"), {"image_size": 384}),
    "blip pretrain, start of vqa": (blip, {"image_size": 480, "start": "vqa"}),
    "blip pretrain, start of caption": (blip, {"image_size": 384, "start": "caption"}),
    "xvlm pretrain": (xvlm, {}),
    "xvlm pretrain, to fine-tune at 384": (xvlm, FINE),
    "xvlm retrieval": (partial(xvlm, "retrieval"), FINE),
    "xvlm grounding": (partial(xvlm, "grounding"), FINE),
    "xvlm vqa": (partial(xvlm, "vqa"), FINE),
    "xvlm nlvr": (partial(xvlm, "nlvr"), FINE | PAIRED),
    "xvlm caption": (partial(xvlm, "caption"), FINE),
    "meter with all heads": (partial(meter, "vqa", "nlvr2", "snli", "retrieval"), {"image_size": 576}),
    "meter with Swin": (partial(meter, is_swin=True), {"image_size": 384}),
    "meter with BERT": (partial(meter, text="bert"), {"text": BERT}),
    "meter pretrain, start of nlvr2": (meter, {"start": "nlvr2"}),
    "vilt with all heads": (partial(vilt, "vqa", "nlvr2", "retrieval"), {}),
    "vilt pretrain, start of nlvr2": (vilt, {"start": "nlvr2"}),
    "uniter with all heads": (partial(uniter, "vqa", "expressions", "retrieval", "nlvr2"), {}),
    "uniter entailment and pair": (partial(uniter, "entailment", "nlvr2_pair"), {}),
    "uniter large": (partial(uniter, width=1024, layers=24), {"bert": LARGE}),
    "uniter pretrain, start of nlvr2": (uniter, {"start": "nlvr2"}),
}
CLASSES = {
    "blip2": "Blip2ForConditionalGeneration",
    "bridgetower": "BridgeTowerForImageAndTextRetrieval",
    "clip": "CLIPModel",
    "flava": "FlavaForPreTraining",
    "git": "GitForCausalLM",
    "idefics": "IdeficsForVisionText2Text",
    "instructblip": "InstructBlipForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "lxmert": "LxmertForPreTraining",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "siglip": "SiglipModel",
    "vilt": "ViltForMaskedLM",
    "visualbert": "VisualBertForPreTraining",
}


def source_of(shapes: Shapes, config: Any = None) -> Source:
    """A checkpoint that holds one number a tensor."""
    return Source(Path("x"), {n: torch.zeros(()).expand(shape) for n, shape in shapes.items()}, config, "")


def covered(family: str, source: Source, options: dict[str, Any]) -> dict[str, Tensor]:
    """Our tensors of a checkpoint, after it is clear that none is missing, foreign or of another shape."""
    plan = planned(family, options)(source)
    config = compose_plan(plan, plan.tokenizer)
    expected = empty_network(config, plan.ids, plan.answers).module.state_dict()
    require_possible_parts(config, expected, "x")
    found = convert(source, plan, expected)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_the_published_model_has_its_place(name: str) -> None:
    listed, options = CASES[name]
    found = covered(name.partition(" ")[0], source_of(listed()), options)
    numbers = sum(tensor.numel() for part, tensor in found.items() if part.startswith("model."))
    assert 80e6 < numbers < 350e6  # a base model, or UNITER's large one


@pytest.mark.parametrize(("family", "name"), [*CLASSES.items(), ("bridgetower", "BridgeTowerForContrastiveLearning")])
def test_transformers_own_defaults(family: str, name: str) -> None:
    """The defaults of transformers' configurations are the base models; and so are ours, where a folder says nothing."""
    needed = {
        "visualbert": {"visual_embedding_dim": 2048},
        "bridgetower": {"contrastive_hidden_size": 512, "logit_scale_init_value": 2.6592},
    }  # no defaults
    shapes, config = of_transformers(name, **needed.get(family, {}))
    assert max(tensor.numel() for tensor in covered(family, source_of(shapes, config), {}).values()) > 1e7


def test_idefics_9b() -> None:
    """The published sizes: a resampler, norms of queries and keys, two words added, and a block before each fourth layer."""
    perceiver = {"use_resampler": True, "resampler_depth": 6, "qk_layer_norms_perceiver": True}
    options = {
        "vision_config": {"embed_dim": 1280, "num_hidden_layers": 32, "intermediate_size": 5120},
        "perceiver_config": perceiver,
        "use_resampler": True,
        "qk_layer_norms": True,
        "additional_vocab_size": 2,
        "cross_layer_interval": 4,
    }
    shapes, config = of_transformers("IdeficsForVisionText2Text", **options)
    found = covered("idefics", source_of(shapes, config | options), {})
    assert 8.8e9 < sum(tensor.numel() for tensor in found.values()) < 9e9
    assert found["model.text_encoder.head.weight"].shape == (32002, 4096)
    assert sum(name.endswith("cross_gate") for name in found) == 8


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ({"model_type": "llama", "vocab_size": 32001}, 7.9e9),  # vicuna-7b
        (
            {
                "model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32,
                "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
            },
            3.95e9,
        ),  # flan-t5-xl
    ],
)  # fmt: skip
def test_instructblip(text: dict[str, Any], numbers: float) -> None:
    """The published sizes: EVA's giant tower, queries of a BERT that reads [DEC] too, before a Vicuna or a Flan-T5."""
    options = {"text_config": text, "qformer_config": {"vocab_size": 30523}}
    shapes, config = of_transformers("InstructBlipForConditionalGeneration", **options)
    found = covered("instructblip", source_of(shapes, config | options), {})
    assert numbers * 0.99 < sum(tensor.numel() for tensor in found.values()) < numbers * 1.01
    queries = "model.fusion.projector."
    assert found[f"{queries}words.weight"].shape == (30523, 768)
    assert found[f"{queries}word_layers.10.feed_forward.0.weight"].shape == (3072, 768)
    assert f"{queries}word_layers.11.feed_forward.0.weight" not in found
    assert found[f"{queries}layers.10.cross_attention.key.weight"].shape == (768, 1408)


@pytest.mark.parametrize("kind", [BlipForImageTextRetrieval, BlipModel])
def test_blip_of_transformers(kind: Any) -> None:
    with torch.device("meta"):
        shapes = shapes_of(kind(BlipConfig()), "")
    covered("blip", source_of(shapes, BlipConfig().to_dict() | {"architectures": [kind.__name__]}), {})


def test_the_larger_coca_by_the_sizes_of_its_file() -> None:
    """The numbers are those of open_clip's coca_ViT-L-14.json."""
    text = {"width": 768, "heads": 12, "layers": 12}
    sizes = {"vision_cfg": {"layers": 24, "width": 1024, "patch_size": 14}, "text_cfg": text, "multimodal_cfg": text}
    found = covered("coca", source_of(coca(1024, 24, 14, 768)), {"embed_dim": 768, **sizes})
    assert sum(tensor.numel() for tensor in found.values()) > 600e6


def test_a_start_is_what_the_published_code_loads() -> None:
    """The decoder of answers is the fusion; each fusion layer stands twice; a second image begins as the first."""
    name = "text_encoder.bert.encoder.layer.9.crossattention.self.key.bias"
    ninth = torch.randn(768)
    source = source_of(albef())
    source = replace(source, state={**source.state, name: ninth})
    vqa = covered("albef", source, {"start": "vqa"})
    assert vqa["tasks.vqa_decoder.head.reader.fusion.layers.3.cross_attention.key.bias"].equal(ninth)
    assert vqa["model.fusion.layers.3.cross_attention.key.bias"].equal(ninth)
    nlvr = covered("albef", source, {"start": "nlvr"})
    twice = [nlvr[f"model.fusion.layers.{n}.cross_attention.key.bias"].equal(ninth) for n in (5, 6, 7, 8)]
    assert twice == [False, True, True, False]
    types = torch.arange(2.0)[:, None].expand(2, 768)
    assert repeated(types, torch.Size([3, 768]))[:, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize(("family", "listed"), [("meter", meter), ("uniter", uniter), ("vilt", vilt)])
def test_a_checkpoint_of_retrieval_matches_by_the_row_that_retrieval_trained(family: str, listed: Any) -> None:
    """The head that is beside it is that of pre-training."""
    source = source_of(listed("retrieval"))
    row = torch.randn_like(source.state["rank_output.weight"])
    found = covered(family, replace(source, state={**source.state, "rank_output.weight": row}), {})
    assert found["tasks.itm.head.weight"].equal(torch.cat([torch.zeros_like(row), row]))


@pytest.mark.parametrize(
    ("family", "shapes", "options", "words"),
    [
        ("uniter", {"nlvr2_output.weight": (2, 768)}, {}, "is UNITER's triplet model for NLVR2"),
        (
            "blip",
            {"text_encoder.encoder.layer.0.crossattention.self0.key.bias": (768,)},
            {},
            "is BLIP's model for NLVR2",
        ),
        ("albef", {"cls_head.2.weight": (3, 8)}, {"start": "vqa"}, "start=vqa is for checkpoints of pre-training"),
        ("albef", {}, {"start": "vqaa"}, "did you mean 'vqa'?"),
        ("vilt", vilt(), {"start": "vqa"}, "known: nlvr2; all else starts from the import as it is"),
    ],
)
def test_what_cannot_be_imported_is_named(family: str, shapes: Shapes, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        planned(family, options)(source_of(shapes))


def test_a_list_with_another_tensor_is_refused() -> None:
    with pytest.raises(DataError, match="extra is no part of such a checkpoint"):
        covered("vilt", source_of(vilt() | {"extra": (1,)}), {})
