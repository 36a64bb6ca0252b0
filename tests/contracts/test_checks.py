"""``fusionkit check``: parts that keep their contracts pass, and each way of breaking one is told."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fusionkit.balance import Balancer
from fusionkit.cli.main import run
from fusionkit.contracts import fusions
from fusionkit.contracts.toys import ANSWERS, TEXT_KINDS, require_equal, toy_batch
from fusionkit.encoders.image import PixelEncoder
from fusionkit.tasks.base import Task
from fusionkit.types import Fused, TaskOutput, Tokens
from tests.toys import CONF, choices

Capture = pytest.CaptureFixture[str]


class Sum(nn.Module):
    """A fusion of a few lines, and with ``fault`` one that breaks its contract."""

    provides = frozenset({"pooled", "text", "causal"})

    def __init__(self, image_size, text_size, fault=""):
        super().__init__()
        self.hidden_size = text_size
        self.pooled_size = text_size + (fault == "width")
        self.project, self.spare = nn.Linear(image_size, text_size), nn.Linear(1, 1) if fault == "idle" else None
        self.fault = fault
        if fault == "provides":
            self.provides = self.provides | {"image"}
        if fault == "word":
            self.provides = self.provides | {"texts"}
        if fault == "maps":
            self.provides = self.provides | {"attention"}

    def prepare(self, image):
        real = torch.ones_like(image.embeds[..., :1]) if image.mask is None else image.mask[..., None]
        if self.fault == "masked image":
            real = torch.ones_like(real)
        return self.project((image.embeds * real).sum(1) / real.sum(1))

    def forward(self, memory, text, image_index):
        if self.fault == "image_index":
            image_index = torch.zeros_like(image_index)
        states = text.embeds + memory[image_index][:, None]
        if self.fault == "rows":
            states = states + states.mean(dim=0, keepdim=True)
        if self.fault == "leak" and text.mask.dim() == 3:
            states = states + states.mean(dim=1, keepdim=True)
        if self.fault == "padding" and text.mask.dim() == 2:
            states = states + states.mean(dim=1, keepdim=True)
        if self.fault == "blind":
            states = text.embeds + 0 * states
        if self.fault == "image alone":
            states = 0 * text.embeds.detach() + memory[image_index][:, None]
        return Fused(pooled=states[:, 0], text=states)


class Counting(nn.Module):
    """A block that counts its calls, and with ``fault`` lets the count in."""

    def __init__(self, fault):
        super().__init__()
        self.map, self.calls, self.fault = nn.Linear(32, 32), 0, fault

    def forward(self, states):
        self.calls += 1
        return torch.tanh(self.map(states) * (self.calls if self.fault == "anew" else 1))


class Layered(Sum):
    """Sum, and a block behind it."""

    def __init__(self, image_size, text_size, fault=""):
        super().__init__(image_size, text_size, fault)
        self.layers = nn.ModuleList([Counting(fault)])

    def forward(self, memory, text, image_index):
        states = self.layers[0](super().forward(memory, text, image_index).text)
        return Fused(pooled=states[:, 0], text=states)


class Growing(Sum):
    """Sum, with a cache of nothing: a token needs no other."""

    def extend(self, memory, text, image_index, past):
        states = text.embeds + memory[image_index][:, None] + (self.fault == "past" and past is not None)
        return states, 1


class Length(Task):
    needs = frozenset({"pooled"})
    reads = "captions"
    replies_to = "text"

    def __init__(self, dims, fault="", scorer=None):
        super().__init__(scorer)
        self.head, self.fault = nn.Linear(dims.pooled_size, 1), fault
        self.matches, self.ranks = fault == "match", fault in ("ranks", "match")
        self.needs = self.needs | {"smell"} if fault == "needs" else self.needs
        self.reads = "lengths" if fault == "reads" else self.reads
        self.replies_to = "taste" if fault == "replies" else self.replies_to
        self.spare = nn.Linear(1, 1) if fault == "idle" else None

    def lengths(self, model, batch, encoded):
        fused = model.fuse(encoded.memory, encoded.text[self.reads], batch["captions"]["image_index"])
        return self.head(fused.pooled).squeeze(1)

    def forward(self, model, batch, encoded, teacher=None):
        lengths, targets = self.lengths(model, batch, encoded), batch["captions"]["attention_mask"].sum(1) / 10
        gaps = (lengths - targets).square()
        loss = {"nan without texts": gaps.mean(), "each": gaps, "nan": gaps.sum() * float("nan")}.get(
            self.fault, gaps.sum() / max(len(gaps), 1)
        )
        loss = loss + (self.fault == "dear without texts" and not len(gaps))
        metrics = {"off": (torch.ones(()), torch.ones(()))} if self.fault == "counts" else {}
        return TaskOutput(loss, lengths[:-1] if self.fault == "logits" else lengths, targets, metrics)

    def predict(self, model, batch, encoded):
        found = self.lengths(model, batch, encoded).tolist()
        name = "caption" if self.fault == "id" else "caption_id"
        records = [{name: i, "length": n} for i, n in zip(batch["captions"]["ids"], found, strict=True)]
        if self.fault == "json":
            records[0]["length"] = torch.ones(1)
        return [{"caption_id": 7, "length": 1.0}] if self.fault == "made up" and not records else records

    def reply(self, model, batch, encoded, top):
        replies = super().reply(model, batch, encoded, top)
        if self.fault == "another":
            replies = [{"length": 1 + reply["length"]} for reply in replies]
        return replies[1:] if self.fault == "few" else replies


class Inverse(Balancer):
    def __init__(self, fault=""):
        super().__init__()
        self.fault, self.seen = fault, 0

    def factors(self, losses, step):
        self.seen += 1
        if self.fault == "state":
            return torch.full_like(losses, float(self.seen))
        return 1 / (0 * losses.detach() if self.fault == "inf" else losses.detach())

    def forward(self, losses, weights, step):
        if self.fault == "weights":
            weights = dict.fromkeys(weights, 1.0)
        balanced = super().forward(losses, weights, step)
        return balanced._replace(metrics={}) if self.fault == "metrics" else balanced


class Patches(PixelEncoder):
    def __init__(self, fault=""):
        super().__init__()
        self.hidden_size, self.num_prefix_tokens, self.fault = 16, 0, fault
        self.patches, self.norm = nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(3, track_running_stats=fault != "batch")
        self.spare = nn.Linear(1, 1) if fault == "idle" else None
        self.reads = "smells" if fault == "reads" else "pixel_values"

    def forward(self, pixel_values):
        if self.fault == "size" and pixel_values.shape[-1] != 100:
            raise ValueError("100 pixels")
        states = self.patches(self.norm(pixel_values)).flatten(2).transpose(1, 2)
        return Tokens(states[..., :8] if self.fault == "width" else states, None, states.mean(dim=1))


OWN = {"fusion": "Growing", "task": "Length", "balance": "Inverse", "image_encoder": "Patches"}


def write(folder: Path, group: str, fault: str = "") -> Path:
    (folder / group).mkdir(parents=True, exist_ok=True)
    partial = "_partial_: true\n" if group in ("fusion", "task") else ""
    (folder / group / "own.yaml").write_text(f"_target_: {__name__}.{OWN[group]}\n{partial}fault: '{fault}'\n")
    return folder


def test_parts_that_keep_their_contracts_pass(tmp_path: Path, capsys: Capture) -> None:
    for group in OWN:
        write(tmp_path, group)
    assert run(["check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "BROKEN" not in said
    assert said.splitlines()[-1] == "4 of 4 parts keep their contracts"


@pytest.mark.parametrize(
    ("group", "fault", "told"),
    [
        ("fusion", "width", "'pooled' is (7, 32), but has to be (7, 33)"),
        ("fusion", "provides", "provides says otherwise of 'image' than what it gives"),
        ("fusion", "word", "provides names ['texts']"),
        ("fusion", "maps", "provides 'attention' where cross_attentions() names layers"),
        ("fusion", "rows", "a pair in a batch and alone differ by up to"),
        ("fusion", "image_index", "a pair in a batch and alone differ by up to"),
        ("fusion", "padding", "a text with and without padding differ by up to"),
        ("fusion", "masked image", "an image with and without masked tokens differ by up to"),
        ("fusion", "idle", "no gradient reaches spare.weight, spare.bias"),
        ("fusion", "blind", "no gradient reaches the image"),
        ("fusion", "image alone", "no gradient reaches the text"),
        ("fusion", "leak", "token 1 changes states before it, although provides says 'causal'"),
        ("fusion", "past", "a text in two pieces and at once differ by up to 1"),
        ("task", "each", "the loss has the shape (12,), but has to be one number, ()"),
        ("task", "nan", "the loss is nan"),
        ("task", "logits", "11 logits for 12 targets"),
        ("task", "idle", "no gradient of the loss reaches spare.weight, spare.bias of the task"),
        ("task", "id", "has no key that ends in _id"),
        ("task", "json", "not JSON serializable"),
        ("task", "ranks", "ranks: whether its records have 'feats'"),
        ("task", "match", "a task ranks or matches, not both"),
        ("task", "replies", "replies_to is 'taste'; known:"),
        ("task", "few", "7 replies, but there are 8 to give"),
        ("task", "another", "the record"),
        ("task", "nan without texts", "the loss of a batch without texts is nan, but has to be 0"),
        ("task", "dear without texts", "the loss of a batch without texts is 1.0, but has to be 0"),
        ("task", "counts", "metrics off count what is not there"),
        ("task", "made up", "predict gives records of texts that are not there"),
        ("task", "needs", "no fusion of ours provides what it needs, pooled, smell"),
        ("task", "reads", "it reads 'lengths', a kind of its own"),
        ("balance", "inf", "the loss of step 0 is"),
        ("balance", "weights", "twice the weight of coco/itc is"),
        ("balance", "metrics", "metrics lack train/coco/itc_weight"),
        ("balance", "state", "after three steps the loss is"),
        ("image_encoder", "width", "tokens are (3, 64, 8), but have to be (3, N, 16)"),
        ("image_encoder", "batch", "an image in a batch and alone differ by up to"),
        ("image_encoder", "idle", "no gradient reaches spare.weight, spare.bias; freeze"),
        ("image_encoder", "reads", "reads is 'smells'; known: pixel_values, regions, frames, sounds"),
        ("image_encoder", "size", "it reads none of the image sizes 64, 224, 32, 384"),
    ],
)
def test_what_breaks_a_contract_is_told(tmp_path: Path, group: str, fault: str, told: str, capsys: Capture) -> None:
    assert run(["check", str(write(tmp_path, group, fault))]) == 1
    said = capsys.readouterr().out
    assert re.search(r"BROKEN: .*" + re.escape(told), said), said
    assert f"0 of 1 parts keep their contracts; not {group}/own" in said
    assert said.startswith(f"{group}/own\n")


@pytest.mark.parametrize("name", choices("balance"))
def test_our_balancers_keep_theirs(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "balance").mkdir()
    (tmp_path / f"balance/{name}.yaml").write_text((CONF / f"balance/{name}.yaml").read_text())
    assert run(["check", str(tmp_path)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["image_encoder/resnet_small", "image_encoder/patches", "text_encoder/bert_small"])
def test_our_small_encoders_keep_theirs(name: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text((CONF / f"{name}.yaml").read_text())
    assert run(["check", str(tmp_path)]) == 0, capsys.readouterr().out


def test_what_there_is_nothing_to_check_of_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "colours").mkdir()
    for arguments, told in (
        ([], "fusionkit check takes one folder"),
        ([str(tmp_path / "none")], "is no folder; give that of --config-dir"),
        (
            [str(tmp_path)],
            "has no choice of fusion, task, balance, image_encoder, text_encoder to check (its folders: colours)",
        ),
    ):
        assert run(["check", *arguments]) == 2
        assert told in capsys.readouterr().err


def test_a_part_that_cannot_be_built_is_told(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion/own.yaml").write_text("_target_: nowhere.at.all.Fusion\n_partial_: true\n")
    assert run(["check", str(tmp_path)]) == 1
    assert "BROKEN: " in capsys.readouterr().out


def test_toy_batches_have_every_kind() -> None:
    batch = toy_batch(images=2, texts_per_image=3)
    assert [len(batch[kind]["ids"]) for kind in TEXT_KINDS] == [6] * len(TEXT_KINDS)
    assert "conversations" in TEXT_KINDS
    assert batch["questions"]["answer_scores"].shape == (6, len(ANSWERS))


def test_equal_means_to_one_in_a_hundred_thousand() -> None:
    one = torch.ones(2)
    require_equal([one], [one + 1e-6], "x")
    for ours, theirs, told in (
        ([one], [one + 1e-3], "x differ by up to 0.001"),
        ([one], [one, one], "x: 1 and 2 tensors"),
        ([], [], "x: 0 and 0 tensors"),
        ([one], [torch.ones(1)], r"x: shapes \(2,\) and \(1,\)"),
    ):
        with pytest.raises(AssertionError, match=told):
            require_equal(ours, theirs, "x")


def test_a_block_that_is_computed_anew_has_to_give_the_same() -> None:
    def build(fault: str) -> Layered:
        torch.manual_seed(0)
        return Layered(fusions.IMAGE, fusions.TEXT, fault).eval()

    fusions.blocks_computed_anew_give_the_same_gradients(lambda: build(""))
    with pytest.raises(
        AssertionError, match="gradients of blocks that are computed anew, and of those that keep all, differ by up to"
    ):
        fusions.blocks_computed_anew_give_the_same_gradients(lambda: build("anew"))
