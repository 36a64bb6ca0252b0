"""Two processes on the CPU: gathered gradients, plain DDP, and what happens when a rank is not like the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fusionkit.commands.processes import start_ranks
from fusionkit.commands.worker import run_in_ranks, save
from fusionkit.config import conf_dir, register_resolvers
from fusionkit.distributed import from_rank_zero, gather, gather_objects, gather_with_grad, rank, world_size
from fusionkit.errors import UserError
from fusionkit.scoring.classification import Entailment
from fusionkit.training.processes.ranks import is_rank
from tests.distributed.ranks import (
    BALANCERS,
    Contrast,
    Matching,
    TwoObjectives,
    balance_in_steps,
    contrast_inputs,
    evaluating,
    matching_batch,
)
from tests.toys import choices
from tests.training.fakes import fake_module
from tests.training.test_metrics import answers, samples

pytestmark = pytest.mark.usefixtures("warm")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a case in two ranks; gives what each found, or the exit code where one failed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start(case: str) -> list[dict] | int:
        code = start_ranks([sys.executable, str(Path(__file__).with_name("ranks.py")), case, str(tmp_path)], 2)
        return code or [torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in range(2)]

    return start


def test_alone_every_collective_is_the_identity():
    x = torch.ones(2, 3, requires_grad=True)
    assert gather_with_grad(x) is x
    assert torch.equal(gather(x), x)
    assert not gather(x).requires_grad
    assert gather_objects([1, 2]) == [1, 2]
    assert (from_rank_zero(3), rank(), world_size(), is_rank()) == (3, 0, 1, False)


@pytest.mark.slow
def test_ddp_gradients_are_those_of_one_process_and_parts_may_differ_in_length(run):
    whole = Contrast()
    whole(*contrast_inputs()).backward()
    for number, found in enumerate(run("collectives")):
        for expected, gradient in zip(whole.parameters(), found["gradients"], strict=True):
            torch.testing.assert_close(gradient, expected.grad, atol=1e-6, rtol=1e-6)
        assert found["ragged"].flatten().tolist() == found["constant"].flatten().tolist() == [0, 10, 11, 12]
        assert found["ragged gradient"].flatten().tolist() == [[2], [4, 6, 8]][number]  # the sum over both ranks
        assert found["nothing from rank 0"].tolist() == [[1, 1]]
        assert found["objects"] == ["0a", "1a", "1b"]
        assert found["from rank zero"] == 7
        assert found["by name"] == {"both": 1, "one": 5}
        assert found["world"] == (number, 2)


@pytest.mark.slow
def test_plain_ddp_keeps_the_ranks_alike_and_counts_each_sample_once(run):
    first, second = run("training")
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert first["updates"] == second["updates"] == 3
    assert first["scores"] == second["scores"]
    assert first["scores"]["val/coco/records"] == 8


@pytest.mark.slow
def test_balancers_train_as_one_process_on_the_joint_batch(run):
    first, second = run("balancing")
    for name in BALANCERS:
        alone = TwoObjectives(name)
        balance_in_steps(alone, contrast_inputs()[0])
        for key, value in first[name]["state"].items():
            assert torch.equal(value, second[name]["state"][key]), (name, key)
            torch.testing.assert_close(value, alone.state_dict()[key], atol=1e-5, rtol=1e-5, msg=f"{name} {key}")
        shared = {key for key in alone.metrics if "gradient" in key}
        assert name not in ("fixed", "pcgrad", "gradnorm") or len(shared) == 3
        for key in shared:
            assert first[name]["metrics"][key] == pytest.approx(alone.metrics[key], abs=1e-5), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["matching", "matching anew"])
def test_negatives_of_all_ranks_are_those_of_one_process_on_the_joint_batch(run, case):
    found = run(case)
    for fusion in choices("fusion"):
        alone = Matching(fusion)
        alone(matching_batch(slice(0, 4))).backward()
        for name, parameter in alone.named_parameters():
            for ranked in found:
                if parameter.grad is None:
                    assert ranked[fusion][name] is None, name
                else:
                    torch.testing.assert_close(ranked[fusion][name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_scorer_is_a_metric_over_ranks(run):
    some = samples()
    expected = pytest.approx(Entailment()(answers(some), some))
    for found in run("scoring"):
        assert found["scores"] == [expected, expected]


@pytest.mark.slow
def test_an_evaluation_by_two_ranks_writes_what_one_process_writes(run, tmp_path):
    (tmp_path / "alone").mkdir()
    alone = evaluating(tmp_path / "alone")
    first, second = run("evaluating")
    assert (first["world"], second["world"], alone["world"]) == ((0, 2), (1, 2), (0, 1))
    assert first["metrics"] == alone["metrics"]
    assert second["metrics"] == {}
    assert first["metrics"]["toy/counted"] == 24  # each caption once, though 12 images are 3 batches
    names = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*") if path.is_file()]
    assert len([name for name in names if name.suffix in (".json", ".jsonl", ".pt")]) == 4 + 5 + 3 + 3
    for name in names:
        if name.suffix in (".json", ".jsonl") or name.name.startswith("logits_"):
            assert (tmp_path / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


@pytest.mark.slow
def test_stages_change_what_ddp_waits_for(run):
    first, second = run("stages")
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    start = fake_module(teacher=True).state_dict()
    assert not torch.equal(first["state"]["model.image_encoder.0.weight"], start["model.image_encoder.0.weight"])


@pytest.mark.slow
def test_ranks_with_different_configurations_stop(run, capfd):
    assert run("unequal") == 1
    assert "the ranks hold different configurations" in capfd.readouterr().err


def test_when_a_rank_fails_the_others_are_ended():
    script = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert start_ranks([sys.executable, "-c", script], 2) == 3


def test_interrupted_ranks_may_end_by_themselves(tmp_path):
    """A Ctrl-C reaches the starter and its ranks; a rank that is still saying how to go on must not be ended meanwhile."""
    rank_script = tmp_path / "rank.py"
    rank_script.write_text(
        "import os, pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "try:\n"
        "    (here / f'ready{os.environ[\"RANK\"]}').touch()\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(1)\n"
        "    (here / f'told{os.environ[\"RANK\"]}').touch()\n"
    )
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from fusionkit.commands.processes import start_ranks; start_ranks([sys.executable, {str(rank_script)!r}], 2)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(starter.pid, signal.SIGINT)
        assert b"KeyboardInterrupt" in starter.communicate(timeout=30)[1]
    finally:
        starter.kill()
    assert sorted(path.name for path in tmp_path.glob("told*")) == ["told0", "told1"]


@pytest.mark.parametrize(
    ("code", "mistakes", "sentence", "exit_code"),
    [
        (2, {"mistake_00001": "no such file", "mistake_00000": "no such key"}, "^no such key$", 2),
        (1, {}, "one of the processes failed; its message stands above", 1),
        (-signal.SIGKILL, {}, "was killed, as the system does where memory runs out", 9),
    ],
)
def test_what_ranks_fail_of_is_told_once(monkeypatch, code, mistakes, sentence, exit_code):
    def fail(command, count):
        for name, text in mistakes.items():
            Path(command[-1]).with_name(name).write_text(text)
        return code

    monkeypatch.setattr("fusionkit.commands.worker.start_ranks", fail)
    with pytest.raises(UserError, match=sentence) as caught:
        run_in_ranks("fusionkit.commands.train:train", OmegaConf.create({"seed": 1}), 2)
    assert caught.value.exit_code == exit_code


JOB = """
import json, os
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

def write(config):
    found = OmegaConf.to_container(config, resolve=True), OmegaConf.to_yaml(config), HydraConfig.get().job.name
    with open(f"{config.folder}/{os.environ['RANK']}.json", "w") as file:
        json.dump(found, file)

def share(config):
    from fusionkit.commands.worker import run_in_ranks
    run_in_ranks("asked:write", config, 2)
"""


@pytest.mark.parametrize("is_in_a_sweep", [False, True])
def test_ranks_have_what_resolvers_gave_in_the_first_process(tmp_path, monkeypatch, is_in_a_sweep):
    """Hydra's are unknown to a process that it does not run in, and time goes on; what is kept still has the calls."""
    (tmp_path / "asked.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("ASKED", "of the machine")
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="job"):
        hydra = compose("train", return_hydra_config=True).hydra
    asked = {
        "name": "${hydra:job.name}_x",
        "folder": str(tmp_path),
        "time": ["${now:%Y-%m-%d %H:%M:%S.%f}", "at ${now:%f}"],
        "sweep": "${hydra:sweep.dir}",
        "version": "${python_version:major}",
        "others": {"env": "${oc.env:ASKED}", "name": "${oc.select:name}", "text": r"\${now:%f}"},
    }
    config = OmegaConf.create(asked)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    HydraConfig.instance().set_config(OmegaConf.create({**asked, "hydra": hydra}))
    if is_in_a_sweep:  # whose runs are processes, with ranks of their own
        save(config, tmp_path / "job.yaml")
        command = [sys.executable, "-m", "fusionkit.commands.worker", "asked:share", str(tmp_path / "job.yaml")]
        subprocess.run(command, check=True)
    else:
        run_in_ranks("asked:write", config, 2)
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    expected = OmegaConf.to_container(config, resolve=True)
    assert found == [[expected, OmegaConf.to_yaml(config), "job"]] * 2
    assert (expected["name"], expected["sweep"]) == ("job_x", "multirun/job_x")
    assert expected["others"] == {"env": "of the machine", "name": "job_x", "text": "${now:%f}"}
    assert asked["name"] in found[0][1]


def test_what_calls_no_resolver_is_saved_alone(tmp_path):
    save(OmegaConf.create({"a": "${now:%f}"}), tmp_path / "job.yaml")
    assert len(list(tmp_path.iterdir())) == 2
    save(OmegaConf.create({"a": "${oc.select:b}", "b": 1}), tmp_path / "job.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


@pytest.mark.slow
def test_what_is_not_finite_on_one_rank_is_left_out_on_both(run, capfd):
    first, second = run("spoilt")
    assert first["skipped"] == second["skipped"] == 2
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        assert value.isfinite().all(), name
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: step")]
    assert told == [
        "warning: step 1: the loss of coco/a is not finite (pixels or features that are not finite in images 6 of coco); "
        "the step is left out (1 so far)",
        "warning: step 2: the gradient is not finite (images 8, 9, 10, 11 of coco); the step is left out (2 so far)",
    ]
