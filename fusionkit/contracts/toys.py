"""Toy sizes of the real parts: a tiny model, its plain values, and a batch with every kind of text; what checks compare."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fusionkit.config import conf_dir
from fusionkit.data.sample import Sample, Text
from fusionkit.encoders.base import SupportsMasking
from fusionkit.encoders.blip import BLIPTextEncoder
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.language import LanguageModel
from fusionkit.encoders.regions import RegionEncoder
from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.fusion.base import Fusion, SupportsLanguageModel
from fusionkit.losses import IGNORE
from fusionkit.model.model import VisionLanguageModel, assemble
from fusionkit.tasks.base import Task
from fusionkit.types import Dims, Regions, TextFormat

WIDTH, VOCABULARY, ANSWERS = 32, 60, ("no", "yes", "red", "two")
TEXT_KINDS = ("captions", "questions", "expressions", "hypotheses", "statements", "conversations", "tagged")
LABELS = ("contradiction", "neutral", "entailment")
FEATURES, CLASSES = 12, 5  # of regions
CLS, SEP, PAD, MASK = 2, 3, 0, 4
ANSWER_TOKENS = ((5,), (6, 7), (6,), (9, 10, 11))
# so that a loss can reach 0
TOY_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"label_smoothing": 0.0} for name in ("captioning", "vqa_generative", "vqa_open")
} | {"chat": {"max_length": 20}}


def of_size(name: str, **sections: Any) -> DictConfig:
    """A configuration of these sections, whose numbers are those of conf/size/NAME.yaml."""
    return OmegaConf.create({"size": choice("size", name), **sections})


def choice(group: str, name: str | Path) -> Any:
    """The file of a choice of ours, or one's own by its path."""
    return OmegaConf.load(name if isinstance(name, Path) else conf_dir() / group / f"{name}.yaml")


def toy_fusion(name: str | Path) -> Callable[..., Fusion]:
    """The factory of conf/fusion/NAME.yaml with two layers of four heads and no dropout.

    Gates that start closed are half open: behind a closed one nothing reaches the image, and a check of that would see nothing.
    """
    config = of_size("small", fusion=choice("fusion", name)).fusion
    toy_sizes = {"num_layers": 2, "num_heads": 4, "dropout": 0.0, "gate": 0.5, "num_queries": 4, "image_layers": 1}
    toy_sizes |= {"num_latents": 4, "tokens": 4}
    for part in (config, config.get("projector", {}), config.get("resampler", {})):
        part.update({key: value for key, value in toy_sizes.items() if key in part})
    if name == "prefix_shuffle":
        config.projector.skip = 1  # the class token
    build: Callable[..., Fusion] = instantiate(config)
    return build


def reads_on(build: Callable[..., Fusion]) -> bool:
    """Whether what a fusion's factory builds has a language model read on."""
    return hasattr(getattr(build, "func", build), "join")


def toy_language_model(hidden_size: int = WIDTH, **options: Any) -> LanguageModel:
    """A llama of one layer; fields of its ``config`` may be given, and arguments beside it."""
    config = {
        "model_type": "llama", "hidden_size": hidden_size, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    config |= options.pop("config", {})
    return LanguageModel(VOCABULARY, config=config, text_format=TextFormat(CLS, SEP, PAD, MASK, 1), **options)


def toy_encoder_decoder(hidden_size: int = WIDTH, **options: Any) -> EncoderDecoderLM:
    """A T5 of one layer; fields of its ``config`` may be given, and arguments beside it."""
    config = {"model_type": "t5", "d_model": hidden_size, "num_layers": 1, "num_heads": 4, "d_kv": 8, "d_ff": 64}
    config |= {"dropout_rate": 0.0} | options.pop("config", {})
    return EncoderDecoderLM(VOCABULARY, config=config, text_format=TextFormat(CLS, SEP, PAD, MASK, 1), **options)


def toy_text_half(fusion: Any, text_size: int = WIDTH) -> LanguageModel | EncoderDecoderLM:
    """The language model that a fusion, or its factory, has read on."""
    make = toy_encoder_decoder if getattr(fusion, "func", fusion).encodes_prompts else toy_language_model
    return make(text_size)


def joined(fusion: Fusion, text_size: int) -> Fusion:
    """A built fusion, with a language model of this width where it has one read on."""
    if isinstance(fusion, SupportsLanguageModel):
        fusion.join(toy_text_half(fusion, text_size))
    return fusion


def toy_task(name: str | Path, dims: Dims) -> Task[Any]:
    """The task of conf/task/NAME.yaml, without label smoothing and with the default choice of the groups it names."""
    config = of_size("small", negatives=choice("negatives", "in_batch"), task=choice("task", name))
    if "decoder" in config.task:
        config.task.decoder.update(num_layers=1, num_heads=4, dropout=0.0)
    options = TOY_OPTIONS.get(name, {}) if isinstance(name, str) else {}
    task: Task[Any] = instantiate(config.task)(dims=dims, **options)
    task.begin({"toy": toy_samples()})
    return task


def toy_samples(images: int = 16) -> list[Sample]:
    """What the images of ``toy_batch`` show, by two captions each: of every three words in a row an image has its own two."""
    samples = []
    for number in range(100, 100 + images):
        words = [f"t{word}" for word in range(5, VOCABULARY) if (word + number) % 3]
        texts = Text(2 * number, " ".join(words[::2])), Text(2 * number + 1, " ".join(words[1::2]))
        samples.append(Sample(number, Path("x.png"), {"captions": texts}))
    return samples


def toy_model(
    fusion: str | Callable[..., Fusion] = "cross_attention", regions: bool = False, **options: Any
) -> VisionLanguageModel:
    """A model of pixels, 32 x 32 in patches of 8, or of regions with features of width 12."""
    text_config = {
        "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    pixels: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 1, "num_heads": 4}
    make = toy_fusion(fusion) if isinstance(fusion, str) else fusion
    return assemble(
        RegionEncoder(FEATURES, WIDTH, dropout=0.0) if regions else TimmEncoder("vit_tiny_patch16_224", **pixels),
        toy_text_half(make) if reads_on(make) else BLIPTextEncoder(VOCABULARY, config=text_config),
        make,
        **{"embed_size": 16} | options,
    )


def toy_dims(model: VisionLanguageModel) -> Dims:
    """What tasks are built from, of a toy model."""
    images = model.image_encoder
    return Dims(
        hidden_size=model.fusion.hidden_size,
        pooled_size=model.fusion.pooled_size,
        image_size=model.image_encoder.hidden_size,
        text_size=model.text_encoder.hidden_size,
        embed_size=model.embed_size,
        feature_size=images.feature_size if isinstance(images, SupportsMasking) else 0,
        mask_token_size=images.mask_token_size if isinstance(images, SupportsMasking) else 0,
        vocab_size=VOCABULARY,
        predicts_words=model.predicts_words,
        encodes_prompts=model.encodes_prompts,
        cls_token_id=CLS,
        sep_token_id=SEP,
        pad_token_id=PAD,
        mask_token_id=MASK,
        tokens=tuple(f"t{i}" for i in range(VOCABULARY)),
        answers=ANSWERS,
        answer_tokens=ANSWER_TOKENS,
    )


def toy_rows(images: int, texts_per_image: int, length: int = 9) -> dict[str, Any]:
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


def toy_no_rows(kind: str) -> dict[str, Any]:
    """What the collate gives of a kind where no image of the batch has such a text."""
    ids = {name: torch.zeros(0, 1, dtype=torch.long) for name in ("input_ids", "attention_mask", "word_index")}
    facts: dict[str, dict[str, Any]] = {
        "questions": {"answer_scores": torch.zeros(0, len(ANSWERS))},
        "expressions": {"boxes": torch.zeros(0, 4)},
        "hypotheses": dict.fromkeys(LABELS, torch.zeros(0)),
        "statements": {name: torch.zeros(0, dtype=torch.long) for name in ("other_index", "label")},
        "conversations": {
            name: torch.zeros(0, 1, dtype=torch.long) for name in ("targets", "prompt_ids", "prompt_mask")
        }
        | {"end": torch.zeros(0, dtype=torch.long)},
    }
    facts["tagged"] = {"word_labels": [], "word_spans": [], "label_words": ids["input_ids"]}
    return {**ids, "image_index": torch.zeros(0, dtype=torch.long), "ids": [], **facts.get(kind, {})}


def toy_hypotheses(images: int, texts_per_image: int) -> dict[str, Any]:
    """Texts with one of three labels each."""
    rows = toy_rows(images, texts_per_image)
    labels = torch.eye(3)[torch.randint(3, (len(rows["ids"]),))]
    return rows | dict(zip(LABELS, labels.T, strict=True))


def toy_statements(images: int, texts_per_image: int) -> dict[str, Any]:
    """Texts about an image and the next one, true or false."""
    rows = toy_rows(images, texts_per_image)
    return rows | {"other_index": (rows["image_index"] + 1) % images, "label": torch.randint(2, (len(rows["ids"]),))}


def toy_conversations(rows: dict[str, Any]) -> dict[str, Any]:
    """Of the texts the last two tokens are said, and of the longer ones the third too, after prompts of two or three."""
    lengths, places = rows["attention_mask"].sum(dim=1, keepdim=True), torch.arange(rows["input_ids"].shape[1])
    is_said = (places < lengths) & ((places >= lengths - 2) | ((places == 2) & (lengths > 5)))
    prompt = (places[:3] < 2 + rows["image_index"][:, None] % 2).long()
    return rows | {
        "targets": rows["input_ids"].masked_fill(~is_said, IGNORE),
        "prompt_ids": rows["input_ids"][:, :3].masked_fill(prompt == 0, PAD),
        "prompt_mask": prompt,
        "end": torch.full((len(rows["ids"]),), SEP),
    }


def toy_placed_images(rows: dict[str, Any], images: int, count: int) -> dict[str, Any]:
    """Of conversations up to ``count`` images each, its own first, at every second token; every other one has one fewer."""
    numbers, shortest = torch.arange(count), int(rows["prompt_mask"].sum(dim=1).min())
    shown = (rows["image_index"][:, None] + numbers) % images
    shown[1::2, -1] = -1
    firsts = {"images": 2 * numbers, "prompt_images": numbers.clamp(max=shortest)}
    return {name: torch.stack([shown, first.expand(len(shown), -1)], dim=2) for name, first in firsts.items()}


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


def toy_batch(images: int = 8, texts_per_image: int = 1) -> dict[str, Any]:
    """A batch with captions, questions with answers, expressions with boxes, hypotheses, statements of two and conversations."""
    scores = torch.zeros(images * texts_per_image, len(ANSWERS))
    scores[torch.arange(len(scores)), torch.randint(len(ANSWERS), (len(scores),))] = 1.0
    boxes = torch.rand(images * texts_per_image, 4) * 0.3 + torch.tensor([0.3, 0.3, 0.1, 0.1])
    batch: dict[str, Any] = {
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
    tagged = toy_tagged(toy_rows(images, texts_per_image))
    return batch | {"conversations": toy_conversations(batch["captions"]), "tagged": tagged}


def toy_tagged(rows: dict[str, Any]) -> dict[str, Any]:
    """The tokens of the texts as words of one letter each, every third of which is a place."""
    counts = (rows["attention_mask"].sum(dim=1) - 2).tolist()
    return rows | {
        "word_labels": [
            ["B-LOC" if token % 3 == 0 else "O" for token in ids[1 : count + 1]]
            for ids, count in zip(rows["input_ids"].tolist(), counts, strict=True)
        ],
        "word_spans": [[(2 * word, 2 * word + 1) for word in range(count)] for count in counts],
        "label_words": rows["word_index"],
    }


def require(holds: object, sentence: str) -> None:
    """Raise AssertionError with the sentence where something does not hold."""
    if not holds:
        raise AssertionError(sentence)


def module(part: object) -> nn.Module:
    """The part as the module that its contract says it is."""
    if not isinstance(part, nn.Module):
        raise AssertionError(f"{type(part).__name__} is no torch.nn.Module")
    return part


def require_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor], what: str) -> None:
    """Raise AssertionError unless the two are equal to 1e-5."""
    require(len(ours) == len(theirs) > 0, f"{what}: {len(ours)} and {len(theirs)} tensors")
    for one, other in zip(ours, theirs, strict=True):
        require(one.shape == other.shape, f"{what}: shapes {tuple(one.shape)} and {tuple(other.shape)}")
        gap = (one - other).abs()
        require(bool((gap <= 1e-5 + 1e-5 * other.abs()).all()), f"{what} differ by up to {gap.max():.2g}")
