"""A linear probe stands in the place of a task: what a linear classifier tells from the frozen image encoder's pooled states.

CLIP, Radford et al. 2021 (https://arxiv.org/abs/2103.00020), appendix A.3: the states before the projection, as they are.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference.embedding import require_finite
from fusionkit.inference.logistic import choose_strength, fit
from fusionkit.model.model import VisionLanguageModel
from fusionkit.scoring.probes.zero_shot import CLASS, own_texts
from fusionkit.scoring.records import Records
from fusionkit.types import Batch, Encoded, at_least_fp32

FIT = "probe_train"  # the role of the pictures that it is fitted to; "train" would be those of a run
POOLED = "pooled"
PART = 5  # one picture in so many of a class is held out


class LinearProbe(nn.Module):
    """Predicts {"caption_id", "pooled"} of each picture, of which ``fitted`` makes what is scored.

    ``notes``  what was chosen, once it is fitted.
    """

    ranks = matches = encodes = False
    distribution = replies_to = None
    reads = "captions"

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, str] = {}

    def predict(self, model: VisionLanguageModel, batch: Batch, encoded: Encoded) -> Records:
        """One record a picture, with its pooled state (D,), on the CPU; ConfigError for an encoder that pools nothing."""
        pooled = encoded.image.pooled
        rows: Any = batch[self.reads]  # type: ignore[literal-required]
        if not isinstance(pooled, Tensor) or pooled.ndim != 2 or pooled.shape[1] == 0:
            name = type(model.image_encoder).__name__
            raise ConfigError(
                f"benchmark linear_probe: image_encoder {name} gives no pooled vector to probe; choose one that pools"
            )
        states = require_finite(at_least_fp32(pooled)).cpu()[rows["image_index"].cpu()]
        return [{"caption_id": key, POOLED: row.clone()} for key, row in zip(rows["ids"], states, strict=True)]

    def fitted(
        self, train: Records, records: Records, train_samples: Sequence[Sample], samples: Sequence[Sample]
    ) -> Records:
        """What is said of each picture, {"image_id", "label", "predicted", "probability"}, and ``notes``."""
        ids, names, features = _table(train, train_samples)
        classes = sorted(set(names))
        targets = torch.tensor([classes.index(name) for name in names])
        held = held_out(ids, names)

        @cache
        def accuracy(strength: float) -> float:
            made = fit(features[~held], targets[~held], len(classes), strength)
            return (made.probabilities(features[held]).argmax(dim=1) == targets[held]).double().mean().item()

        strength = choose_strength(accuracy)
        made = fit(features, targets, len(classes), strength)
        self.notes = {
            "strength": f"L2 of {strength:.6g} (C = {1 / strength:.6g}), by which {accuracy(strength):.2%} of "
            f"{int(held.sum()):,} held-out pictures are right",
            "fit": f"{len(ids):,} pictures, {features.shape[1]:,} features, largest entry of the gradient {made.gradient:.1e}",
        }
        own, labels, tested = _table(records, samples)
        best = made.probabilities(tested).max(dim=1)
        return [
            {"image_id": key, "label": label, "predicted": classes[place], "probability": chance}
            for key, label, place, chance in zip(own, labels, best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def check_folders(train: Sequence[Sample], samples: Sequence[Sample]) -> None:
    """Raise DataError for a class that cannot be learnt, or of which nothing can be held out."""
    names = [text.facts[CLASS] for _, text in own_texts(train)]
    for name in sorted({text.facts[CLASS] for _, text in own_texts(samples)} - set(names)):
        raise DataError(
            f"the class '{name}' has test pictures and no training pictures; add some, or take its folder out"
        )
    for name in sorted(set(names)):
        if names.count(name) < 2:
            raise DataError(
                f"the class '{name}' has one training picture, but two are needed to hold one out; add some"
            )


def held_out(ids: Sequence[Any], names: Sequence[str]) -> Tensor:
    """Bool (N,): of each class a fifth, but at least one, in the order of a hash of their ids."""
    held = torch.zeros(len(ids), dtype=torch.bool)
    for name in set(names):
        own = [at for at, other in enumerate(names) if other == name]
        own.sort(key=lambda at: hashlib.sha256(str(ids[at]).encode()).digest())
        held[own[: max(1, len(own) // PART)]] = True
    return held


def _table(records: Records, samples: Sequence[Sample]) -> tuple[list[Any], list[str], Tensor]:
    """Ids, classes and features (N, D) fp64 of the pictures, in the order of the samples."""
    given = {record["caption_id"]: record[POOLED] for record in records}
    own = own_texts(samples)
    features = torch.stack([given[text.id] for _, text in own]).double()
    return [sample.image_id for sample, _ in own], [text.facts[CLASS] for _, text in own], features
