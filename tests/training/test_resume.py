"""What a run that goes on cannot change is refused by name."""

import re
import reprlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from fusionkit.errors import ConfigError, DataError
from fusionkit.training.optim import build_optimizer
from fusionkit.training.progress_state import count_back, pending_batches, stretch_epoch
from fusionkit.training.resume import KEPT, changed, require_resumable, require_state
from tests.training.fakes import fake_module
from tests.training.test_module import fit, one_cycle

RUN: dict[str, Any] = {
    "seed": 1,
    "output_dir": "a",
    "optimizer": {"_target_": "x.adamw", "lr": 0.1, "rules": [["a", 1, None]]},
    "scheduler": None,
    "objectives": {"coco": {"itc": 1.0, "itm": 0.5, "mlm": 0.0}, "vqa": {"vqa": 1.0}, "none": None},
    "trainer": {"max_steps": 9, "max_epochs": 2, "root": "${output_dir}/root"},
}
HERE = Path("x.ckpt")
STATE: dict[str, Any] = {"state": {}, "param_groups": [{"params": [0, 1]}]}


def run_with(**changes: Any) -> Any:
    return OmegaConf.merge(OmegaConf.create(RUN), OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()]))


def checkpoint(step: int = 5, epoch: int = 1, **more: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {key: {} for key in KEPT} | {
        "global_step": step,
        "epoch": epoch,
        "optimizer_states": [STATE],
        "lr_schedulers": [],
    }
    return kept | {"fusionkit": {"config": OmegaConf.to_yaml(OmegaConf.create(RUN))}} | more


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output_dir": "b", "optimizer.lr": 1, "objectives.coco.itc": 3, "trainer.max_steps": 99},
        {"trainer.max_steps": 5, "trainer.max_epochs": 1},
        {"trainer.max_steps": -1, "trainer.max_epochs": -1},
        {"trainer.max_steps": "null", "trainer.max_epochs": "null"},
    ],
)
def test_what_can_be_applied_passes(changes: dict[str, Any]) -> None:
    require_resumable(run_with(**changes), checkpoint(), HERE)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 2}, r"^seed is 2, but was 1, and draws are a function of it; give data.seed.*checkpoint=x.ckpt"),
        ({"optimizer._target_": "x.muon"}, r"^optimizer._target_ is x.muon, but was x.adamw, and its state"),
        ({"objectives.coco.itm": 0}, r"^objectives: coco/itm was trained and is not; a run that goes on"),
        ({"objectives.coco.mlm": 1}, r"^objectives: coco/mlm is new; a run"),
        (
            {"trainer.max_steps": 4},
            r"^trainer.max_steps is 4, but the run has made 5 already \(checkpoint x.ckpt\); give a later end",
        ),
        ({"trainer.max_steps": 0}, r"^trainer.max_steps is 0, but the run has made 5 already"),
        ({"trainer.max_epochs": 0}, r"^trainer.max_epochs is 0, but the run has made 1 already"),
    ],
)
def test_what_cannot_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        require_resumable(run_with(**changes), checkpoint(), HERE)


def test_objectives_in_another_order_are_refused() -> None:
    """Balancers keep numbers by place."""
    run = OmegaConf.create(RUN | {"objectives": {"vqa": {"vqa": 1.0}, "coco": {"itc": 1.0, "itm": 0.5}}})
    with pytest.raises(
        ConfigError, match=r"they were coco/itc, coco/itm, vqa/vqa, and are vqa/vqa, coco/itc, coco/itm"
    ):
        require_resumable(run, checkpoint(), HERE)


GROUP = STATE["param_groups"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, "x") for key in ("epoch", "global_step", "optimizer_states", "lr_schedulers", "progress")),
        *((key, value) for key in ("epoch", "global_step") for value in (True, -1, 2**63, 1.0)),
        ("lr_schedulers", ["x"]),
        ("progress", {"parameters": [{"x": 1}]}),
        ("progress", {"parameters": ["a", [["b"]]]}),
        ("progress", {"parameters": "ab"}),
        *(("progress", {"seed": seed}) for seed in ("", None, -1, True, 2**64)),
        ("optimizer_states", []),
        ("optimizer_states", [[]]),
        ("optimizer_states", [STATE, {}]),
        ("optimizer_states", [{"state": [], "param_groups": GROUP}]),
        ("optimizer_states", [{"state": {0: 1}, "param_groups": GROUP}]),
        ("optimizer_states", [{"state": {}, "param_groups": {}}]),
        ("optimizer_states", [{"state": {}, "param_groups": [1]}]),
        ("optimizer_states", [{"state": {}, "param_groups": [*GROUP, {"params": [0, [1]]}]}]),
        ("optimizer_states", [{"state": {}, "param_groups": [{}]}]),
        ("optimizer_states", [{"parts": STATE}]),
        ("optimizer_states", [{"parts": [STATE, {}]}]),
        *(
            ("DataModule", {"batches": 3, "order": {"global batch size": {"a": 4}}} | wrong)
            for wrong in (
                {"batches": "3"},
                {"batches": -1},
                {"steps": 1.5},
                {"order": None},
                {"order": {"global batch size": 4}},
                {"order": {"global batch size": {"a": "4"}}},
                {"begin": [0, 0]},
                {"begin": {"a": [0]}},
                {"begin": {"a": {"batch": 0}}},
                {"begin": {"a": [0, None]}},
            )
        ),
    ],
)
def test_a_state_of_another_kind_is_damage(key: str, value: Any) -> None:
    told = rf"^checkpoint x.ckpt is damaged: its {key} is {re.escape(reprlib.repr(value))}; start a new run"
    with pytest.raises(DataError, match=told):
        require_resumable(run_with(), checkpoint(**{key: value}), HERE)


@pytest.mark.parametrize(
    "state",
    [
        {"lr_schedulers": [{"lr_lambdas": [None]}], "progress": {"parameters": None}},
        {"progress": {"parameters": ["a", "b"], "more": 1}},
        {"optimizer_states": [{"parts": [STATE, {"state": {0: {"step": 1}}, "param_groups": [{"params": ["a"]}]}]}]},
        {"global_step": 0, "epoch": 0, "progress": {"seed": 0}},
        {"progress": {"seed": 2**64 - 1}},
    ],
)
def test_a_state_of_the_right_kind_is_none(state: dict[str, Any]) -> None:
    require_resumable(run_with(), checkpoint(**state), HERE)


@pytest.mark.parametrize("key", KEPT)
def test_a_checkpoint_without_the_state_of_a_training_is_named(key: str) -> None:
    content = checkpoint()
    del content[key]
    with pytest.raises(DataError, match=rf"checkpoint x.ckpt has no '{key}', so no run can go on from it; start a new"):
        require_resumable(run_with(), content, HERE)


def test_changes_are_told_by_key_where_they_matter() -> None:
    there, here = (
        run_with(),
        run_with(
            **{
                "optimizer.lr": 1,
                "seed": 4,
                "output_dir": "b",
                "scheduler": "{a: 1}",
                "adapters": "{base_weights: nf4}",
            }
        ),
    )
    assert changed(there, here) == [
        "optimizer.lr was 0.1 and is 1",
        "scheduler.a was None and is 1",
        "adapters.base_weights was None and is nf4",
    ]
    assert changed(there, here, ("trainer",)) == []  # which lies in another folder


def test_what_follows_from_a_change_is_not_told_again() -> None:
    data = {"data.root": "x", "data.images": "${data.root}/images", "data.seed": "${seed}"}
    there, here = run_with(**data), run_with(**data | {"data.root": "y", "seed": 2})
    assert changed(there, here) == ["data.root was x and is y", "data.seed was 1 and is 2"]
    moved = run_with(**data | {"data.images": "z", "data.seed": 1})
    assert changed(there, moved) == ["data.images was x/images and is z"]
    assert changed(moved, there) == ["data.images was z and is x/images"]


def test_a_state_that_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 1, "limit_val_batches": 0}

    def stored(**made: Any) -> dict[str, Any]:
        run = fit(tmp_path, fake_module(**made), **options)
        content: dict[str, Any] = run._checkpoint_connector.dump_checkpoint()
        return content | {"fusionkit": {"config": OmegaConf.to_yaml(OmegaConf.create(RUN))}}

    content = stored()
    require_state(fake_module(), run_with(), content, HERE)
    require_state(fake_module(), run_with(**{"optimizer.lr": 1}), content, HERE)
    with pytest.raises(DataError, match=r"x.ckpt is of another architecture: teacher.mean is missing there"):
        require_state(fake_module(teacher=True), run_with(), content, HERE)
    frozen = fake_module(optimizer=partial(build_optimizer, lr=0.05, rules=[["image_encoder", 0, None]]))
    with pytest.raises(ConfigError, match=r"model.image_encoder.0.weight was trained, and is not any more"):
        require_state(frozen, run_with(), content, HERE)
    own = stored(scheduler=one_cycle)
    require_state(fake_module(), run_with(), own, HERE)
    with pytest.raises(
        ConfigError, match=r"^optimizer.lr was 0.1 and is 1, but this strategy or schedule goes on only"
    ):
        require_state(fake_module(), run_with(**{"optimizer.lr": 1}), own, HERE)


def test_places_are_counted_back() -> None:
    for done, batches, pending in ((5, 9, 2), (6, 9, 0), (8, 9, 2), (8, 8, 0), (1, 9, 1)):
        loop = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done)))
        fit_loop = SimpleNamespace(epoch_loop=loop)
        trainer: Any = SimpleNamespace(fit_loop=fit_loop, accumulate_grad_batches=3, num_training_batches=batches)
        assert pending_batches(trainer) == pending
    counts = {"ready": 5, "started": 5, "processed": 5, "completed": 5}
    progress = {"total": counts | {"processed": 14}, "current": counts, "is_last_batch": False}
    loops = {"fit_loop": {"epoch_loop.batch_progress": progress, "epoch_loop.state_dict": {"_batches_that_stepped": 4}}}
    content: dict[str, Any] = {
        "loops": loops,
        "DataModule": {"batches": 14, "order": {}, "begin": {}},
        "other": {"batches": 3},
    }
    count_back(content, 2)
    assert progress["current"] == {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    assert progress["total"] == {"ready": 12, "started": 12, "processed": 12, "completed": 11}
    assert loops["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] == 3
    assert (content["DataModule"]["batches"], content["other"]["batches"]) == (12, 3)


@pytest.mark.parametrize(
    ("done", "before", "now", "accumulated", "place"),
    [
        (5, 10, 20, 1, 10),  # half an epoch
        (5, 10, 16, 3, 6),  # an optimiser step begins there
        (9, 10, 5, 1, 4),  # no epoch ends that had not
        (10, 10, 5, 3, 5),
        (0, 10, 20, 3, 0),
        (1, 100, 10, 2, 0),  # it begins anew
        (2, 3, 1, 1, 0),
        (2, 6, 8, 4, 0),
    ],
)
def test_the_part_of_an_epoch_that_is_left_stays(
    done: int, before: int, now: int, accumulated: int, place: int
) -> None:
    counts = {"ready": done, "started": done, "processed": done, "completed": done - 1}
    epochs = {which: {"ready": 3, "started": 3, "processed": 2, "completed": 2} for which in ("total", "current")}
    loop = {"epoch_loop.batch_progress": {"current": counts}, "epoch_progress": epochs}
    stretch_epoch({"loops": {"fit_loop": loop}}, before, now, accumulated)
    if place or not done:
        assert counts == {"ready": place, "started": place, "processed": place, "completed": place - 1}
        assert epochs["total"] == epochs["current"] == {"ready": 3, "started": 3, "processed": 2, "completed": 2}
    else:  # as between two epochs
        assert set(counts.values()) == {0}
        assert epochs["total"] == epochs["current"] == dict.fromkeys(epochs["total"], 2)
