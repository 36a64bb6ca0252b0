"""Toy sizes of the real parts, shared by the tests: a tiny model, its dims, and a batch with every text kind."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fusionkit.encoders.blip import BLIPTextEncoder
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.regions import RegionEncoder
from fusionkit.model.model import VisionLanguageModel, assemble
from fusionkit.tasks.base import Task
from fusionkit.types import Dims, Regions, TaskOutput

CONF = Path(__file__).parents[1] / "conf"
WIDTH, VOCABULARY, ANSWERS = 32, 60, ("no", "yes", "red", "two")
LABELS = ("contradiction", "neutral", "entailment")
FEATURES, CLASSES = 12, 5  # of regions
CLS, SEP, PAD, MASK = 2, 3, 0, 4
ANSWER_TOKENS = ((5,), (6, 7), (6,), (9, 10, 11))
# so that a loss can reach 0
TOY_OPTIONS = {name: {"label_smoothing": 0.0} for name in ("captioning", "vqa_generative")}


def scattered(*shape: int, seed: int) -> torch.Tensor:
    """Numbers from -1 to 1, as if drawn, that hang on no generator."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((torch.sin(12.9898 * places + seed) * 43758.5453) % 2 - 1).float().view(shape)


def scatter_weights(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that a formula gives, those of norms around 1; single numbers (a temperature) stay."""
    for place, (name, parameter) in enumerate(sorted(module.named_parameters())):
        if parameter.numel() > 1:
            centre = 1.0 if name.endswith("weight") and parameter.dim() == 1 else 0.05
            parameter.data = 0.4 * scattered(*parameter.shape, seed=seed + place) + centre
    return module


def number_of(tensor: torch.Tensor) -> float:
    """One number that depends on each entry of a tensor and on its place."""
    flat = tensor.detach().double().flatten()
    return round((flat * torch.sin(1.0 + torch.arange(len(flat)))).sum().item(), 4) + 0.0


def choices(group: str) -> list[str]:
    """Names of the files in a config group; a group without files is a broken test, not an empty one."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert names, f"no file in conf/{group}"
    return names


def of_size(name: str, **sections: DictConfig) -> DictConfig:
    """A configuration of these sections, whose numbers are those of conf/size/NAME.yaml."""
    return OmegaConf.create({"size": OmegaConf.load(CONF / "size" / f"{name}.yaml"), **sections})


def toy_fusion(name: str):
    """The factory of conf/fusion/NAME.yaml with two layers of four heads and no dropout.

    Gates that start closed are half open: behind a closed one nothing reaches the image, and a test of that would see nothing.
    """
    config = of_size("small", fusion=OmegaConf.load(CONF / "fusion" / f"{name}.yaml")).fusion
    toy_sizes = {"num_layers": 2, "num_heads": 4, "dropout": 0.0, "gate": 0.5, "num_queries": 4, "image_layers": 1}
    config.update({key: value for key, value in toy_sizes.items() if key in config})
    return instantiate(config)


def toy_task(name: str, dims: Dims):
    """The task of conf/task/NAME.yaml, without label smoothing and with the default choice of the groups it names."""
    groups = {"negatives": OmegaConf.load(CONF / "negatives" / "in_batch.yaml")}
    config = of_size("small", **groups, task=OmegaConf.load(CONF / "task" / f"{name}.yaml"))
    if "decoder" in config.task:
        config.task.decoder.update(num_layers=1, num_heads=4, dropout=0.0)
    return instantiate(config.task)(dims=dims, **TOY_OPTIONS.get(name, {}))


def toy_model(fusion="cross_attention", regions=False, **options) -> VisionLanguageModel:
    """A model of pixels, 32 x 32 in patches of 8, or of regions with features of width 12."""
    text_config = {
        "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    pixels = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 1, "num_heads": 4}
    return assemble(
        RegionEncoder(FEATURES, WIDTH, dropout=0.0) if regions else TimmEncoder("vit_tiny_patch16_224", **pixels),
        BLIPTextEncoder(VOCABULARY, config=text_config),
        toy_fusion(fusion) if isinstance(fusion, str) else fusion,
        **{"embed_size": 16} | options,
    )


def toy_dims(model: VisionLanguageModel) -> Dims:
    return Dims(
        hidden_size=model.fusion.hidden_size,
        pooled_size=model.fusion.pooled_size,
        image_size=model.image_encoder.hidden_size,
        text_size=model.text_encoder.hidden_size,
        embed_size=model.embed_size,
        feature_size=model.image_encoder.feature_size,
        mask_token_size=model.image_encoder.mask_token_size,
        vocab_size=VOCABULARY,
        cls_token_id=CLS,
        sep_token_id=SEP,
        pad_token_id=PAD,
        mask_token_id=MASK,
        tokens=tuple(f"t{i}" for i in range(VOCABULARY)),
        answers=ANSWERS,
        answer_tokens=ANSWER_TOKENS,
    )


def toy_rows(images: int, texts_per_image: int, length: int = 9) -> dict:
    """Random texts of 4 to ``length`` tokens, ``texts_per_image`` for each image."""
    rows = images * texts_per_image
    lengths = torch.randint(4, length + 1, (rows, 1))
    lengths[0] = length
    places = torch.arange(length)[None]
    input_ids = torch.randint(5, VOCABULARY, (rows, length))
    input_ids[:, 0] = CLS
    input_ids = torch.where(places == lengths - 1, SEP, torch.where(places < lengths, input_ids, PAD))
    return {
        "input_ids": input_ids,
        "attention_mask": (places < lengths).long(),
        "word_index": torch.where((places > 0) & (places < lengths - 1), places - 1, -1),
        "image_index": torch.arange(images).repeat_interleave(texts_per_image),
        "ids": list(range(rows)),
    }


def toy_no_rows(kind: str) -> dict:
    """What the collate gives of a kind where no image of the batch has such a text."""
    ids = {name: torch.zeros(0, 1, dtype=torch.long) for name in ("input_ids", "attention_mask", "word_index")}
    facts = {
        "questions": {"answer_scores": torch.zeros(0, len(ANSWERS))},
        "expressions": {"boxes": torch.zeros(0, 4)},
        "hypotheses": dict.fromkeys(LABELS, torch.zeros(0)),
        "statements": {name: torch.zeros(0, dtype=torch.long) for name in ("other_index", "label")},
    }
    return {**ids, "image_index": torch.zeros(0, dtype=torch.long), "ids": [], **facts.get(kind, {})}


def toy_hypotheses(images: int, texts_per_image: int) -> dict:
    """Texts with one of three labels each."""
    rows = toy_rows(images, texts_per_image)
    labels = torch.eye(3)[torch.randint(3, (len(rows["ids"]),))]
    return rows | dict(zip(LABELS, labels.T, strict=True))


def toy_statements(images: int, texts_per_image: int) -> dict:
    """Texts about an image and the next one, true or false."""
    rows = toy_rows(images, texts_per_image)
    return rows | {"other_index": (rows["image_index"] + 1) % images, "label": torch.randint(2, (len(rows["ids"]),))}


def measured(task: Task[Any], output: TaskOutput) -> dict[str, float]:
    """What a task's metrics make of one output alone."""
    found = {}
    for name, value in output.metrics.items():
        if isinstance(value, tuple):
            metric = task.metrics[name].clone()
            metric.update(*value)
            value = metric.compute()
        found[name] = float(value)
    return found


def toy_regions(images: int, longest: int = 6) -> Regions:
    """3 to ``longest`` regions an image, zeros behind them; the first image has most."""
    counts = torch.randint(3, longest + 1, (images, 1))
    counts[0] = longest
    mask = (torch.arange(longest) < counts).long()
    corner, size = torch.rand(images, longest, 2) * 0.5, torch.rand(images, longest, 2) * 0.4 + 0.1
    positions = torch.cat([corner, corner + size, size, size.prod(dim=2, keepdim=True)], dim=2)
    scores = torch.randn(images, longest, CLASSES).softmax(dim=2)
    parts = (torch.randn(images, longest, FEATURES), positions, mask, scores)
    return Regions(*(part * mask[..., None] if part.dim() == 3 else part for part in parts))


def toy_batch(images: int = 8, texts_per_image: int = 1) -> dict:
    """A batch with captions, questions with answers, expressions with boxes, hypotheses with labels and statements of two."""
    scores = torch.zeros(images * texts_per_image, len(ANSWERS))
    scores[torch.arange(len(scores)), torch.randint(len(ANSWERS), (len(scores),))] = 1.0
    boxes = torch.rand(images * texts_per_image, 4) * 0.3 + torch.tensor([0.3, 0.3, 0.1, 0.1])
    return {
        "source": "toy",
        "image_ids": list(range(100, 100 + images)),
        "image_keys": torch.arange(images) + 7,
        "image_sizes": torch.tensor([[64.0, 48.0]]).repeat(images, 1),
        "pixel_values": torch.randn(images, 3, 32, 32),
        "regions": toy_regions(images),
        "captions": toy_rows(images, texts_per_image),
        "questions": toy_rows(images, texts_per_image) | {"answer_scores": scores},
        "expressions": toy_rows(images, texts_per_image) | {"boxes": boxes},
        "hypotheses": toy_hypotheses(images, texts_per_image),
        "statements": toy_statements(images, texts_per_image),
    }
