"""``activation_checkpointing``: which parts it names, what it says of those without blocks, and whole runs with it."""

from pathlib import Path

import pytest
import torch

from fusionkit.cli.main import run
from fusionkit.encoders.recompute import MARK
from fusionkit.errors import ConfigError
from fusionkit.training.recompute import recompute_parts
from tests.commands.test_train import SMALL
from tests.toys import toy_dims, toy_model, toy_task

Capture = pytest.CaptureFixture[str]


def marked(module):
    return sorted({name.partition(".")[0] for name, part in module.named_modules() if hasattr(type(part), MARK)})


def test_parts_are_chosen_by_name():
    for chosen, parts in [
        (True, ["fusion", "image_encoder", "text_encoder"]),
        (False, []),
        (None, []),
        ("fusion", ["fusion"]),
        (["image_encoder", "text_encoder"], ["image_encoder", "text_encoder"]),
    ]:
        model = toy_model()
        assert recompute_parts(chosen, model, {}) == []
        assert marked(model) == parts, chosen


def test_decoders_of_tasks_are_parts_too():
    model = toy_model()
    tasks = {name: toy_task(name, toy_dims(model)) for name in ("itm", "vqa_decoder")}
    assert recompute_parts("task", model, tasks) == []
    assert (marked(model), marked(tasks["itm"]), marked(tasks["vqa_decoder"])) == ([], [], ["head"])


def test_a_part_without_blocks_is_told_and_refused_where_it_is_named():
    told = "activation_checkpointing: fusion Late has no blocks of layers to compute anew"
    assert recompute_parts(True, toy_model("late"), {}) == [f"{told}; it keeps all"]
    with pytest.raises(ConfigError, match=f"^{told}; leave fusion out$"):
        recompute_parts(["text_encoder", "fusion"], toy_model("late"), {})
    with pytest.raises(
        ConfigError,
        match=r"activation_checkpointing is 'text'; give true, false or parts: known: fusion, image_encoder, task",
    ):
        recompute_parts(["text"], toy_model(), {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["text_encoder.config.hidden_dropout_prob=0.2", "fusion.dropout=0.2", "teacher=momentum"],
        ["balance=pcgrad", "stages=heads_first", "stages.heads.steps=2", "fusion=co_attention", "fusion.num_layers=2"],
        [
            "text_encoder=tiny_llama",
            "fusion=prefix",
            "task=[itc,captioning]",
            "+objectives.shapes.captioning=1",
            "adapters=lora",
            "text_encoder.frozen=true",
        ],
    ],
    ids=["dropout and a teacher", "single gradients and stages", "adapters in a frozen language model"],
)
def test_a_run_trains_the_same(world: Path, options: list[str], request: pytest.FixtureRequest) -> None:
    states = []
    kept = [o for o in SMALL if not o.startswith(("fusion.", "text_encoder.config")) or "fusion=prefix" not in options]
    for number, switch in enumerate(("false", "true", "text_encoder")):
        folder = world / f"{request.node.callspec.id}{number}"
        line = [
            *kept,
            f"data.root={world}/shapes",
            f"output_dir={folder}",
            "evaluation.roles=[]",
            "trainer.max_steps=4",
        ]
        line += ["trainer.limit_val_batches=0", f"activation_checkpointing={switch}", *options]
        assert run(["train", *line]) == 0
        states.append(torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        for name, tensor in states[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_says_which_part_keeps_all(world: Path, capsys: Capture) -> None:
    line = [
        *[o for o in SMALL if not o.startswith("fusion")],
        "fusion=late",
        "task=[itc,itm]",
        "trainer.fast_dev_run=1",
    ]
    line += [f"data.root={world}/shapes", f"output_dir={world}/late"]
    assert run(["train", *line, "activation_checkpointing=true"]) == 0
    assert "fusion Late has no blocks of layers to compute anew; it keeps all" in capsys.readouterr().out
    assert run(["train", *line, "activation_checkpointing=[fusion]"]) == 2
