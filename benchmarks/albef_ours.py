"""The same step in fusionkit's parts, on the same weights, inputs, masks and negatives (benchmarks.albef_step)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.albef_published import Given, Published, Shape
from fusionkit.balance import Fixed, Step
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.fusion.bert import BERT_LAYER
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.model.model import assemble
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.negatives import Drawn, HardNegatives
from fusionkit.tasks.itc import ITC, FeatureQueue
from fusionkit.tasks.itm import ITM
from fusionkit.tasks.mlm import MLM, RandomMasking
from fusionkit.training.module import TrainingModule
from fusionkit.training.optim import build_optimizer
from fusionkit.types import Dims

CLS, SEP, PAD, MASK = 101, 102, 0, 103  # bert-base-uncased's


@dataclass(frozen=True)
class GivenMasking:
    """Draws masks as ever, and gives those that were drawn for both."""

    drawing: RandomMasking
    given: Given

    def __call__(self, input_ids: Tensor, word_index: Tensor) -> tuple[Tensor, Tensor]:
        self.drawing(input_ids, word_index)
        return self.given.input_ids, self.given.labels


class GivenNegatives(HardNegatives):
    """Draws wrong partners as ever, and gives those that were drawn for both: of the texts, then of the images."""

    def __init__(self, given: Given) -> None:
        super().__init__(by_teacher=True)
        self.given, self.calls = given, 0

    def forward(self, similarity: Tensor, is_excluded: Tensor, mined: Tensor | None = None) -> Drawn:
        drawn = super().forward(similarity, is_excluded, mined)
        columns = self.given.texts if self.calls % 2 else self.given.images
        self.calls += 1
        return drawn._replace(columns=columns[:, None])


def build(shape: Shape, queue: int, given: Given) -> TrainingModule:
    """What ``experiment=albef_pretrain_4m`` trains, in these sizes and without dropout."""
    text = {
        "model_type": "bert", "hidden_size": shape.text_width, "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads, "intermediate_size": 4 * shape.text_width,
        "max_position_embeddings": shape.places, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    image = TimmEncoder(
        "deit_base_patch16_224", img_size=shape.image_size, patch_size=shape.patch, embed_dim=shape.image_width,
        depth=shape.depth, num_heads=shape.image_heads,
    )  # fmt: skip
    fusion = partial(CrossAttention, num_layers=shape.fusion_layers, num_heads=shape.text_heads, dropout=0.0)
    model = assemble(image, HFTextEncoder(shape.words, config=text), fusion, embed_size=shape.embed_size)
    dims = Dims(
        hidden_size=shape.text_width, pooled_size=shape.text_width, image_size=shape.image_width,
        text_size=shape.text_width, embed_size=shape.embed_size, vocab_size=shape.words,
        cls_token_id=CLS, sep_token_id=SEP, pad_token_id=PAD, mask_token_id=MASK,
    )  # fmt: skip
    tasks = {
        "itc": ITC(dims, queue_size=queue),
        "itm": ITM(dims, negatives=GivenNegatives(given)),
        "mlm": MLM(dims, masking=GivenMasking(RandomMasking(dims, mask_sep=True), given)),
    }
    rules = [(r"^model\.temperature$", 1.0, 0.02)]
    return TrainingModule(
        model,
        tasks,
        {"pairs": dict.fromkeys(tasks, 1.0)},
        Fixed(),
        partial(build_optimizer, lr=1e-4, rules=rules),
        None,
        MomentumTeacher(model, tasks, momentum=0.995, alpha=0.4),
    ).train()


def losses(module: TrainingModule, batch: dict[str, Any], alpha: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The balanced loss of a step and each task's, up to the backward pass."""
    module.model.clamp_temperature()
    module.teacher.update(module.model, dict(module.tasks.items()))
    outputs = module.outputs("pairs", batch, alpha)  # type: ignore[arg-type]
    found = {name: output.loss for name, output in outputs.items()}
    module.window.drop()
    module.window.note({f"pairs/{name}": output for name, output in outputs.items()})
    step = Step(number=0, total=1, is_first=True, parameters=module.stages.training)
    balanced = module.balance({f"pairs/{name}": loss for name, loss in found.items()}, module.weights, step)
    return balanced.loss, found


def pairs(ours: TrainingModule, theirs: Published) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Each parameter of the published formulation by name, behind ours of the same place; all that trains comes once."""
    model, student = ours.model, theirs.student
    heads: Any = ours.tasks
    bert, head = student.bert, heads["mlm"].head
    alike = {
        "vision": (model.image_encoder.get_submodule("backbone"), student.vision),
        "embeddings": (model.text_encoder.get_submodule("backbone.embeddings"), bert.embeddings),
        "upper": (model.fusion.get_submodule("layers"), bert.upper),
        "vision_proj": (model.image_projection, student.vision_proj),
        "text_proj": (model.text_projection, student.text_proj),
        "itm_head": (heads["itm"].head, theirs.itm_head),
        "dense": (head.dense, bert.dense),
        "norm": (head.norm, bert.norm),
    }
    for place, (own, other) in alike.items():
        table = dict(own.named_parameters())
        for name, parameter in other.named_parameters():
            yield f"{place}.{name}", table[name], parameter
    for number, layer in enumerate(bert.lower):
        source = model.text_encoder.get_submodule(f"backbone.encoder.layer.{number}")
        for name, parameter in layer.named_parameters():
            place, _, kind = name.rpartition(".")
            yield f"lower.{number}.{name}", source.get_parameter(f"{BERT_LAYER[place]}.{kind}"), parameter
    yield "bias", head.bias, bert.head["bias"]
    yield "temp", model.temperature, theirs.temp


@torch.no_grad()
def share(ours: TrainingModule, theirs: Published) -> None:
    """Copy our weights into the published formulation, and its queues into ours, full of features of no image of a batch."""
    found = list(pairs(ours, theirs))
    trained = {id(p) for p in ours.parameters() if p.requires_grad}
    if {id(own) for _, own, _ in found} != trained or len(found) != len(trained):
        raise AssertionError("what trains in the one is not what trains in the other")
    for _, own, other in found:
        other.copy_(own)
    theirs.follow(0.0)
    itc: Any = ours.tasks["itc"]
    for queue, feats in ((itc.image_queue, theirs.image_queue), (itc.text_queue, theirs.text_queue)):
        assert isinstance(queue, FeatureQueue)
        queue.feats.copy_(feats.T)
        queue.keys.copy_(-1 - torch.arange(len(queue.keys)))
