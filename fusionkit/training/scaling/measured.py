"""What of a step's cost can be known in one process: how long a pass takes, and what ranks would exchange in it."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import Precision

from fusionkit.assembly.parts import Parts
from fusionkit.assembly.precision import exact_inputs
from fusionkit.balance import Step
from fusionkit.distributed import rehearsal
from fusionkit.training.memory.plan import PLUGINS, SMALL, WHOLE, batch_of, context_of, losses_of
from fusionkit.training.module import TrainingModule
from fusionkit.training.scaling.step_time import ALL_REDUCE, Exchange

ROUNDS = 3  # timed passes, behind one that is not
OF_TRAINING = (
    8,
    64,
)  # bytes that ranks sum beside a pass: whether one is asked to stop, and whether all losses are finite


class Passes:
    """Makes passes of a run in this process: forwards, backwards, a step of the optimiser. Trains the module a little."""

    def __init__(self, parts: Parts, module: TrainingModule, precision: str, device: torch.device) -> None:
        self.parts, self.module, self.device = parts, module, device
        self.plugin: Any = PLUGINS.get(precision, Precision)()
        self.context = partial(context_of, precision, device, self.plugin)
        module.to(device, WHOLE.get(precision)).train()
        exact_inputs(self.plugin, getattr(module.model.image_encoder, "reads", "pixel_values"))
        self.optimizer = module.build_optimizer()
        self.sizes = {name: parts.datamodule.sources[name].batch_size for name in module.objectives}

    @property
    def images(self) -> int:
        """Of a batch, over its sources."""
        return sum(self.sizes.values())

    @property
    def buffers(self) -> int:
        """Bytes that DDP gives each rank anew in each pass, from rank 0."""
        return sum(buffer.nbytes for buffer in self.module.buffers())

    def seconds(self) -> float:
        """The median time of passes over the whole batch."""
        batch, found = self._batch(1.0), []
        for _ in range(1 + ROUNDS):
            start = time.perf_counter()
            self._pass(batch)
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])

    def exchanges(self) -> list[Exchange]:
        """What a rank exchanges in a pass over the whole batch, small ones first.

        Bytes are a straight line in the number of rows: read off two small batches, and drawn on to the whole one.
        """
        shares = [1.0] if self.images <= SMALL else [SMALL / 2 / self.images, SMALL / self.images]
        rows, found = [], []
        for share in shares:
            batch = self._batch(share)
            rows.append(sum(len(part["image_ids"]) for part in batch.values()))
            with rehearsal() as seen:
                self._pass(batch)
            found.append(list(seen))
        last = found[-1]
        sizes = [float(size) for _, size in last]
        if len(found) == 2 and len(found[0]) == len(last) and rows[1] > rows[0]:
            slope = (self.images - rows[1]) / (rows[1] - rows[0])
            sizes = [size + (size - less) * slope for (_, less), size in zip(found[0], sizes, strict=True)]
        small = [Exchange(ALL_REDUCE, size) for size in OF_TRAINING]
        return sorted(
            [*small, *(Exchange(kind, size) for (kind, _), size in zip(last, sizes, strict=True))],
            key=lambda one: one.size,
        )

    def _batch(self, share: float) -> Any:
        sizes = {name: max(1, round(size * share)) for name, size in self.sizes.items()}
        return self.plugin.convert_input(move_data_to_device(batch_of(self.parts, sizes), self.device))

    def _pass(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        with self.context():
            step = Step(number=0, total=2, is_first=True, parameters=self.module.stages.training)
            loss = self.module.balance(losses_of(self.module, batch), self.module.weights, step).loss
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def told(exchanges: Sequence[Exchange]) -> str:
    """How many there are of each kind, and their bytes."""
    counts = Counter(one.kind for one in exchanges)
    return ", ".join(
        f"{count} {kind} ({sum(one.size for one in exchanges if one.kind == kind) / 2**20:,.3f} MB)"
        for kind, count in sorted(counts.items())
    )
