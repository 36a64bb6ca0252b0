"""A published checkpoint that is sure of one class says the name of that class here, for every head with fixed classes."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fusionkit.checkpoints.base import Key, Plan, convert
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.classes import OURS, named_classes, require_ordered, to_ours, to_theirs
from fusionkit.checkpoints.directory import read_directory, write_directory
from fusionkit.checkpoints.families import albef as albef_layout
from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.checkpoints.source import Source
from fusionkit.checkpoints.write import import_into
from fusionkit.errors import DataError
from fusionkit.types import Regions
from tests.checkpoints.published import albef, blip, meter, of_transformers, uniter, vilt, xvlm
from tests.checkpoints.test_published_sizes import CASES, covered, planned, source_of
from tests.parity.imported import text_rows

pytestmark = pytest.mark.usefixtures("fast")
PAIRED = {"bert": {"num_hidden_layers": 18}}
MATCH, TRUTH = ["mismatch", "match"], ["False", "True"]
LABELS = ["contradiction", "neutral", "entailment"]
HEADS: dict[str, tuple[Any, dict[str, Any], str, str, list[str]]] = {
    # by family and head: its published tensors, options, the head's last bias there, the task here, and what its outputs mean
    "albef itm": (albef, {}, "itm_head.bias", "itm", MATCH),
    "albef ve": (partial(albef, "ve"), {"image_size": 384}, "cls_head.2.bias", "entailment", LABELS),
    "albef nlvr": (partial(albef, "nlvr"), {"image_size": 384} | PAIRED, "cls_head.2.bias", "nlvr2", TRUTH),
    "blip itm": (blip, {}, "itm_head.bias", "itm", MATCH),
    "xvlm itm": (xvlm, {}, "itm_head.3.bias", "itm", MATCH),
    "xvlm nlvr": (
        partial(xvlm, "nlvr"),
        {"image_size": 384, "swin": {"window_size": 12}} | PAIRED,
        "cls_head.3.bias",
        "nlvr2",
        TRUTH,
    ),
    "meter itm": (meter, {}, "itm_score.fc.bias", "itm", MATCH),
    "meter snli": (partial(meter, "snli"), {}, "snli_classifier.3.bias", "entailment", LABELS),
    "meter nlvr2": (partial(meter, "nlvr2"), {}, "nlvr2_classifier.3.bias", "nlvr2", TRUTH),
    "vilt itm": (vilt, {}, "itm_score.fc.bias", "itm", MATCH),
    "vilt nlvr2": (partial(vilt, "nlvr2"), {}, "nlvr2_classifier.3.bias", "nlvr2", TRUTH),
    "uniter itm": (uniter, {}, "itm_output.bias", "itm", MATCH),
    "uniter ve": (
        partial(uniter, "entailment"),
        {},
        "vqa_output.3.bias",
        "entailment",
        ["contradiction", "entailment", "neutral"],
    ),
    "uniter pair": (partial(uniter, "nlvr2_pair"), {}, "nlvr2_output.bias", "nlvr2", TRUTH),
    "uniter paired": (partial(uniter, "nlvr2"), {}, "nlvr2_output.bias", "nlvr2_paired", TRUTH),
    "lxmert itm": ("LxmertForPreTraining", {}, "cls.seq_relationship.bias", "itm", MATCH),
    "visualbert itm": ("VisualBertForPreTraining", {}, "cls.seq_relationship.bias", "itm", ["match", "mismatch"]),
    "flava itm": ("FlavaForPreTraining", {}, "itm_head.seq_relationship.bias", "itm", MATCH),
    "bridgetower itm": ("BridgeTowerForImageAndTextRetrieval", {}, "itm_score.fc.bias", "itm", MATCH),
}


def test_what_stored_heads_mean_never_changes() -> None:
    assert {task: list(labels) for task, labels in OURS.items()} == {
        "itm": ["mismatch", "match"],
        "nlvr2": ["False", "True"],
        "nlvr2_paired": ["False", "True"],
        "entailment": ["contradiction", "neutral", "entailment"],
    }


def listed(published: Any) -> Source:
    if not isinstance(published, str):
        return source_of(published())
    detector = {"visual_embedding_dim": 2048} if published.startswith("VisualBert") else {}
    return source_of(*of_transformers(published, **detector))


@pytest.mark.parametrize("name", HEADS)
def test_each_class_keeps_its_name(name: str) -> None:
    published, options, bias, task, meanings = HEADS[name]
    source = listed(published)
    numbers = torch.arange(1.0, len(meanings) + 1)
    found = covered(name.partition(" ")[0], replace(source, state={**source.state, bias: numbers}), options)
    ours = [tensor for key, tensor in found.items() if key.startswith(f"tasks.{task}.head.")][-1]
    assert dict(zip(OURS[task], ours.tolist(), strict=True)) == dict(zip(meanings, numbers.tolist(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_every_importer_states_what_its_classes_mean(name: str) -> None:
    listed, options = CASES[name]
    plan = planned(name.partition(" ")[0], options)(source_of(listed()))
    fixed = compose_plan(plan, plan.tokenizer).task.keys() & OURS.keys()
    assert fixed <= plan.classes.keys()
    assert all(sorted(plan.classes[task]) == sorted(OURS[task]) for task in fixed)


def test_only_the_last_layer_of_a_head_is_reordered_and_the_teacher_s_with_it() -> None:
    keys = [Key("x.", "tasks.entailment.head."), Key("y.", "teacher.heads.entailment."), Key("z.", "model.")]
    order = {"entailment": ("contradiction", "entailment", "neutral")}
    plan = Plan("x", "x", [], {}, keys, {}, {}, classes=order)
    rows = torch.tensor([0.0, 1, 2])
    state = {f"{part}.{layer}.weight": rows for part in "xyz" for layer in (0, 2)}
    expected = {key.ours + name[2:]: rows for key in keys for name in ("x.0.weight", "x.2.weight")}
    found = convert(Source(None, state, None, ""), plan, expected)  # type: ignore[arg-type]
    changed = {name for name, tensor in found.items() if tensor.tolist() == [0, 2, 1]}
    assert changed == {"tasks.entailment.head.2.weight", "teacher.heads.entailment.2.weight"}
    turned = {"itm": ("match", "mismatch"), "entailment": ("entailment", "contradiction", "neutral")}
    there = to_theirs(found, turned)
    assert there["tasks.entailment.head.2.weight"].tolist() == [1, 0, 2]  # of 0 contradiction, 2 neutral, 1 entailment
    assert all(tensor.equal(found[name]) for name, tensor in to_ours(there, turned).items())


def test_a_published_layout_gets_its_own_order_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        albef_layout, "CLASSES", albef_layout.CLASSES | {"entailment": ("neutral", "entailment", "contradiction")}
    )
    plan = planned("albef", {"image_size": 384})(source_of(albef("ve")))
    config = compose_plan(plan, plan.tokenizer)
    bias = torch.tensor([1.0, 2, 3])
    state = dict(empty_network(config, plan.ids).module.state_dict()) | {"tasks.entailment.head.2.bias": bias}
    published = albef_layout.to_published(state, config)  # type: ignore[arg-type]
    assert published["cls_head.2.bias"].tolist() == [2, 3, 1]


@torch.no_grad()
def test_a_sure_checkpoint_is_asked(tmp_path) -> None:
    """VisualBERT, class 0 of which is a match."""
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.VisualBertConfig(vocab_size=40, visual_embedding_dim=6, **sizes)
    theirs = transformers.VisualBertForPreTraining(config)
    theirs.cls.seq_relationship.weight.zero_()
    theirs.cls.seq_relationship.bias.copy_(torch.tensor([3.0, -3.0]))
    theirs.save_pretrained(tmp_path / "theirs")
    import_into(tmp_path / "ours", str(tmp_path / "theirs"), planned("visualbert", {}))
    network = from_pretrained(tmp_path / "ours")
    assert network.origin is not None
    assert network.origin["classes"] == {"itm": ["match", "mismatch"]}
    ids = torch.tensor([[5, 6, 7]])
    regions = Regions(torch.randn(1, 2, 6), torch.rand(1, 2, 7), torch.ones(1, 2).long())
    batch: Any = {"regions": regions, "captions": text_rows(ids, torch.ones_like(ids))}
    (reply,) = network.tasks["itm"].reply(network.model, batch, network.model.encode(batch, ["captions"]), 1)
    assert reply["match"] == pytest.approx(0.9975, abs=1e-3)
    config, state = read_directory(tmp_path / "ours")
    del config["fusionkit"]["origin"]["classes"]  # as before the classes had names
    write_directory(tmp_path / "earlier", state, config)
    with pytest.raises(
        DataError, match=r"earlier was imported by an earlier version, which .* of itm .*; import theirs again"
    ):
        from_pretrained(tmp_path / "earlier")


def test_earlier_imports_are_refused_for_heads_that_were_turned_alone() -> None:
    head = {"tasks.entailment.head.2.bias": torch.zeros(3)}
    with pytest.raises(DataError, match=r"took the classes of entailment for each other; import x\.pt again"):
        require_ordered(Path("folder"), {"origin": {"family": "uniter", "file": "x.pt"}}, head)
    for content in (
        {},
        {"origin": None},
        {"origin": {"family": "albef"}},
        {"origin": {"family": "uniter", "classes": {}}},
    ):
        require_ordered(Path("folder"), content, head)
    require_ordered(Path("folder"), {"origin": {"family": "uniter"}}, {"tasks.itm.head.bias": torch.zeros(2)})


def saved_labels(**labels: str) -> Source:
    return source_of({}, {"id2label": labels and {name[1:]: label for name, label in labels.items()}})


def test_names_that_a_folder_gives_its_classes_come_first() -> None:
    assert named_classes(saved_labels(_0="True", _1="False"), "nlvr2", TRUTH) == ["True", "False"]
    assert named_classes(saved_labels(_0="false", _1="true"), "nlvr2", TRUTH) == ["False", "True"]
    for unnamed in (saved_labels(_0="LABEL_0", _1="LABEL_1"), saved_labels(), source_of({})):
        assert named_classes(unnamed, "nlvr2", TRUTH) == TRUTH
    with pytest.raises(DataError, match="names right, wrong, but the classes of nlvr2 are False, True"):
        named_classes(saved_labels(_0="right", _1="wrong"), "nlvr2", TRUTH)


def test_three_outputs_are_entailment_unless_answers_are_given(tmp_path) -> None:
    source = source_of(uniter("entailment"))
    assert "entailment" in planned("uniter", {})(source).config["task"]
    (tmp_path / "answers.json").write_text('{"answers": ["yes", "no", "two"]}')
    plan = planned("uniter", {"answers": str(tmp_path / "answers.json")})(source)
    assert list(plan.answers) == ["yes", "no", "two"]
    assert "entailment" not in plan.config["task"]


def test_vilt_reads_the_names_of_its_folder() -> None:
    shapes, config = of_transformers("ViltForImagesAndTextClassification", num_images=2, modality_type_vocab_size=3)
    source = source_of(shapes, config | {"id2label": {"0": "True", "1": "False"}})
    assert planned("vilt", {})(source).classes["nlvr2"] == ["True", "False"]
