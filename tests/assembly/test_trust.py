"""A stored configuration builds parts of ours and layers, and nothing else unless it is trusted by name."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

from fusionkit.assembly import trust as module
from fusionkit.assembly.trust import (
    BASES,
    DEEPEST,
    GETTERS,
    METRICS,
    TABLE,
    WEIGHTS,
    as_texts,
    fault_of_yaml,
    foreign_resolver,
    inert,
    packages,
    read_stored,
    require_part,
    require_trusted,
    require_trusted_block,
    targets,
)
from fusionkit.config import conf_dir, register_resolvers
from fusionkit.errors import ConfigError, DataError

EFFECTS = re.compile(
    r"\b(open|write_text|write_bytes|mkdir|unlink|rmtree|system|Popen|savefig|touch|rename|symlink_to|remove|exec|eval)\("
    r"|subprocess|import_module|torch\.save|np\.save|memmap"
)


def blocks(node: Any, place: str = "") -> list[tuple[str, Any]]:
    return list(targets(node, place))


def files_of(groups: list[str]) -> list[tuple[str, Path]]:
    return [(group, path) for group in groups for path in sorted((conf_dir() / group).rglob("*.yaml"))]


@pytest.mark.parametrize(("group", "path"), files_of([g for g in TABLE if (conf_dir() / g).is_dir()]), ids=str)
def test_all_that_our_configurations_name_is_in_the_table(group: str, path: Path) -> None:
    named = blocks(yaml.safe_load(path.read_text(encoding="utf-8")), group)
    for place, name in named:
        is_maker = name == "fusionkit.data.shapes.make_shapes" or name.startswith("fusionkit.data.streams.drawn.make_")
        if not is_maker:  # it writes, and is left out of a stored configuration
            require_part(place, name, path, TABLE[group], ())


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").rglob("*.yaml")), ids=str)
def test_all_that_our_experiments_name_is_in_the_table(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for section, node in content.items():
        for place, name in blocks(node, section):
            require_part(place, name, path, TABLE[section], ())


@pytest.mark.parametrize("path", sorted((conf_dir() / "benchmark").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_reader_of_every_benchmark_is_in_the_table(path: Path) -> None:
    """So that `fusionkit compare` shows the samples of a stored evaluation without being asked to trust anyone."""
    found = blocks(yaml.safe_load(path.read_text(encoding="utf-8"))["reader"])
    assert found
    for place, name in found:
        require_part(place, name, path, TABLE["data"], ())


def test_no_module_in_the_table_has_effects() -> None:
    found = []
    for entry in {entry for entries in TABLE.values() for entry in entries if entry.startswith("fusionkit.")}:
        if not entry.endswith("."):
            continue
        place = Path(module.__file__).parents[2] / entry.replace(".", "/")
        files = sorted(place.rglob("*.py")) if place.is_dir() else [Path(f"{place}.py")]
        found += files
        for path in files:
            if entry.startswith("fusionkit.training."):  # of a run that the user composed, never of a stored one
                continue
            code = (
                path.read_text(encoding="utf-8")
                .replace('open("rb")', "")
                .replace(".eval()", "")
                .replace("model.eval(", "")
            )
            assert not EFFECTS.findall(code), path
    assert len(found) > 50


KIND = {  # what somebody might name: section, name
    "task": [
        "os.system", "subprocess.run", "builtins.exec", "builtins.eval", "functools.partial", "my.fusion.Mine", "print", "",
        "fusionkit.commands.processes.start_ranks", "fusionkit.cli.main.main", "fusionkit.cli.main.load",
        "fusionkit.commands.data.write",
        "fusionkit.scoring.records.write_text", "fusionkit.data.shapes.make_shapes",
        "fusionkit.checkpoints.directory.write_directory",
        "fusionkit.scoring.captioning.meteor_counts", "fusionkit.scoring.scorers.score_vqa",
        "fusionkit.tasks.vqa.torch.os.system", "fusionkit.tasks.vqa.torch", "fusionkit.tasks", "fusionkit.tasks.vqa",
        "fusionkit.tasks.vqa.VQA.__init__", "fusionkit.tasks.vqa.VQA.forward", "fusionkit.tasks.vqa.no_such",
        "fusionkit.tasks.no.X",
        "fusionkit.tasks.vqa.nn.Linear", "fusionkit.tasks.generation.Any", "fusionkit.encoders.text.HFTextEncoder",
        "fusionkit.tasks._hidden.X", "fusionkit.tasks.vqa.__builtins__", "fusionkit.tasks.vqa.__dict__", ".os.system",
        "os..system",
        "torch.load", "torch.save", "torch.hub.load", "torch.nn.functional.os.system", "torch.nn.functional.gelu",
        "torch.nn.Parameter",
        "torch.nn.init.warnings", "torch.nn.modules.module.torch.load", "torch.nn.utils.parametrize.cached", "torch.nn",
        "timm.create_model", "timm.layers.config.os.system", "timm.layers.create_act_layer", "timm.models.load_checkpoint",
        "transformers.utils.hub.os.system", "transformers.AutoModel.from_pretrained",
        "transformers.activations.get_activation",
        "hydra.utils.instantiate", "hydra.utils.call", "hydra._internal.utils._locate", "lightning.Trainer",
        "torchmetrics.text.BERTScore", "torchmetrics.text.bert.BERTScore", "torchmetrics.text.ROUGEScore",
        "torchmetrics.text.bleu.os",
        "torchmetrics.image.FrechetInceptionDistance", "torchmetrics.multimodal.CLIPScore", "torchmetrics.classification.Any",
        "torchmetrics.classification.accuracy.Tensor", "torchmetrics.classification", "torchmetrics.MetricCollection",
        "torchmetrics.functional.accuracy", "torchmetrics.classification.base.plot_single_or_multi_val",
        "torchmetrics.utilities.checks.os.system", "fusionkit.tasks.itm.MetricCollection", "fusionkit.tasks.metrics.Metric",
        "fusionkit.training.metrics.ScorerMetric", "fusionkit.training.metrics.torch.load", "fusionkit.training.metrics.Path",
        None, 3, True, ["os.system"], {"a": 1}, b"os.system", "${name}", "fusionkit.tasks.vqa.VQA ",
        "FUSIONKIT.tasks.vqa.VQA",
    ],
    "data": [
        "fusionkit.data.answers.AnswerVocabulary.save", "fusionkit.data.answers.AnswerVocabulary.load",
        "fusionkit.data.answers.json",
        "fusionkit.data.convert.convert_bottom_up", "fusionkit.data.files.read_pickle",
        "fusionkit.data.tokenizer.load_tokenizer",
        "fusionkit.data.regions.read_regions", "fusionkit.data.readers.coco.CocoCaptions.read", "fusionkit.data.joint.positions",
        "fusionkit.data.readers.coco.Path", "fusionkit.encoders.text.HFTextEncoder",
        "fusionkit.data.shapes.make_shapes", "fusionkit.data.readers.coco.read_json",
    ],
    "trainer": ["lightning.pytorch.callbacks.Callback", "lightning.pytorch.strategies.os", "lightning.Callback"],
    "model": ["fusionkit.model.model.Reader", "fusionkit.model.model.assemble.__globals__", "fusionkit.model.model.assembles"],
    "optimizer": ["torch.optim.lr_scheduler.LRScheduler", "torch.optim.os", "fusionkit.training.optim.parameter_groups"],
    "logger": ["lightning.pytorch.loggers.wandb.os", "lightning.pytorch.loggers.Any", "wandb.init"],
}  # fmt: skip
REFUSED = [(section, name) for section, names in KIND.items() for name in names]


@pytest.mark.parametrize(("section", "name"), REFUSED, ids=str)
def test_what_is_no_part_is_refused_and_not_imported(section: str, name: object) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        require_part(f"{section}.x._target_", name, "checkpoint a.ckpt", TABLE[section], ())
    assert str(caught.value).startswith(f"checkpoint a.ckpt: {section}.x._target_ is ")
    homes = tuple(entry.split(".")[0] for entry in TABLE[section])
    new = {each for each in set(sys.modules) - before if not each.startswith(homes)}
    assert not {each for each in new if str(name).startswith(each)} - {"os", "subprocess", "functools", "builtins"}


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("task", "fusionkit.tasks.vqa.VQA"),
        ("task", "fusionkit.tasks.itm.bernoulli_pairs"),
        ("task", "fusionkit.tasks.heads.relu"),
        ("task", "fusionkit.scoring.scorers.VQA"),
        ("task", "fusionkit.scoring.vqa.VQA"),
        ("task", "fusionkit.negatives.HardNegatives"),
        ("task", "fusionkit.model.model.text_decoder"),
        ("task", "torch.nn.GELU"),
        ("task", "fusionkit.training.metrics.MetricScorer"),
        ("task", "torchmetrics.classification.MulticlassF1Score"),
        ("task", "torchmetrics.regression.MeanAbsoluteError"),
        ("task", "torchmetrics.text.BLEUScore"),
        ("task", "torchmetrics.aggregation.MeanMetric"),
        ("fusion", "torch.nn.modules.linear.Linear"),
        ("fusion", "timm.layers.activations.QuickGELU"),
        ("fusion", "timm.layers.Mlp"),
        ("fusion", "transformers.activations.NewGELUActivation"),
        ("data", "fusionkit.data.answers.AnswerVocabulary.build"),
        ("data", "fusionkit.data.readers.coco.CocoCaptions"),
        ("trainer", "lightning.Trainer"),
        ("trainer", "lightning.pytorch.strategies.DDPStrategy"),
        ("logger", "lightning.pytorch.loggers.CSVLogger"),
        ("optimizer", "torch.optim.AdamW"),
        ("scheduler", "torch.optim.lr_scheduler.CosineAnnealingLR"),
        ("balance", "fusionkit.balance.DWA"),
    ],
)
def test_what_is_a_part_is_built(section: str, name: str) -> None:
    require_part(f"{section}._target_", name, "a.ckpt", TABLE[section], ())


def test_every_library_of_the_table_has_a_base_and_every_base_a_row() -> None:
    rows = {entry for entries in TABLE.values() for entry in entries if entry.endswith(".")}
    assert {row for row in rows if not row.startswith("fusionkit.")} | {"fusionkit.encoders."} == set(BASES)


def test_a_network_of_ours_names_its_arguments_and_no_files() -> None:
    def ask(section: str = "image_encoder", target: str = "fusionkit.encoders.image.TimmEncoder", **block: Any) -> None:
        require_trusted_block({"_target_": target} | block, section, section, "a.ckpt", given={f"{section}.weights"})

    for key in (key for key in WEIGHTS if key != "weights"):
        for empty in (None, False, ""):
            ask(**{key: empty})
        with pytest.raises(ConfigError, match=rf"^a\.ckpt: image_encoder\.{key} is 'x', but .* reads no files"):
            ask(**{key: "x"})
    ask(weights="x")  # the user's own word
    ask("fusion", "torch.nn.GELU", _args_=["tanh"], file="x")
    ask("data", "fusionkit.data.readers.coco.CocoCaptions", file="x")  # which reads data
    with pytest.raises(ConfigError, match=r"data\._args_ is \['x'\]"):
        ask("data", "fusionkit.data.readers.coco.CocoCaptions", _args_=["x"])


def test_references_are_filled_in_before_they_are_checked() -> None:
    for text in ("${name}", "a ${b} c", r"\${name}"):
        with pytest.raises(ConfigError, match="write its value there"):
            require_trusted_block({"x": [text]}, "data", "data.reader", "a.ckpt")
        require_trusted_block({"x": [text]}, "data", "data.reader", "a.ckpt", given=["data.reader.x.0"])
    config = stored(fusion=LAYER | {"size": "${name}"})
    require_trusted(config, ["fusion"], "a.ckpt")
    assert config.fusion.size == "a"
    with pytest.raises(DataError, match="fusion is 'a', but has to be a section"):
        require_trusted(stored(fusion="${name}"), ["fusion"], "a.ckpt")


def test_an_inert_copy_is_what_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    text = "root: ${oc.env:SECRET}\nname: a\nother: ${name}"
    config = OmegaConf.create(text)
    assert OmegaConf.to_container(inert(config), resolve=True) == OmegaConf.to_container(
        read_stored(text, "a"), resolve=True
    )
    assert OmegaConf.to_container(inert(config), resolve=True) == {
        "root": "${oc.env:SECRET}",
        "name": "a",
        "other": "a",
    }
    assert config.root == "hunter2"


def test_trust_is_of_whole_names_and_never_of_what_is_ours() -> None:
    def ask(name: str, *trusted: str) -> None:
        require_part("fusion._target_", name, "a.ckpt", TABLE["fusion"], trusted)

    ask("my.fusion.Mine", "my")
    ask("my.fusion.Mine", "other", "my.fusion")
    ask("my.fusion.Mine", "my.fusion.Mine")
    for trusted in (("my.fus",), ("m",), ("mine",), ("my.fusion.Mine.x",), ("fusionkit",), ()):
        with pytest.raises(ConfigError, match=r"it would run code of my; add trust=\[my\]"):
            ask("my.fusion.Mine", *trusted)
    for trusted in (("fusionkit",), ("fusionkit.training",), ("fusionkit.commands.processes.start_ranks",)):
        with pytest.raises(ConfigError, match="no part that fusionkit builds there"):
            ask("fusionkit.commands.processes.start_ranks", *trusted)


def test_trust_takes_a_name_or_several() -> None:
    assert packages(None) == packages([]) == packages(()) == ()
    assert packages("my") == packages(["my"]) == packages(OmegaConf.create(["my"])) == ("my",)
    assert packages(("a.b", "oc.env")) == ("a.b", "oc.env")
    for wrong in (3, [3], ["a-b"], ["*"], [""], ["a."], ["1a"], [None, "a"], True):
        with pytest.raises(ConfigError, match="takes names of packages"):
            packages(wrong)


@pytest.mark.parametrize("getter", GETTERS)
def test_what_is_looked_up_is_checked_like_what_is_built(getter: str) -> None:
    def ask(**block: Any) -> None:
        require_trusted_block({"_target_": getter} | block, "task", "task.vqa.scorer", "a.ckpt")

    ask(path="fusionkit.scoring.scorers.VQA")
    for block in (
        {"path": "os.system"},
        {},
        {"path": None},
        {"_args_": ["os.system"]},
        {"path": "fusionkit.scoring.scorers.VQA", "_args_": ["os.system"]},
        {"path": "fusionkit.scoring.scorers.VQA", "_partial_": True},
        {"path": {"_target_": "torch.nn.GELU"}},
    ):
        with pytest.raises(ConfigError, match=r"a\.ckpt: task\.vqa\.scorer\.path is "):
            ask(**block)
    ask(path="fusionkit.scoring.scorers.VQA", _partial_=False)
    with pytest.raises(ConfigError):  # a getter is itself no part to look up
        ask(path=getter)


def stored(**sections: Any) -> Any:
    register_resolvers()
    return read_stored(OmegaConf.to_yaml(OmegaConf.create({"name": "a"} | sections)), "a.ckpt")


LAYER, CODE = {"_target_": "torch.nn.GELU"}, {"_target_": "my.Code"}


@pytest.mark.parametrize(
    "fusion",
    [
        CODE,
        LAYER | {"act": CODE},
        LAYER | {"layers": [LAYER, [CODE]]},
        LAYER | {"_args_": [CODE]},
        LAYER | {"_recursive_": False, "act": CODE},
        LAYER | {"_convert_": "all", "_partial_": True, "act": CODE},
        [CODE],
        {1: CODE},
        "${optimizer}",
        LAYER | {"act": "${optimizer}"},
        LAYER | {"act": "${optimizer.inner}"},
        {"_target_": "${optimizer._target_}"},
        {"_target_": "my.${name}"},
    ],
    ids=str,
)
def test_code_is_found_wherever_it_is_named(fusion: Any) -> None:
    config = stored(fusion=fusion, optimizer=CODE | {"inner": CODE})
    require_trusted(config, ["image_encoder", "task"], "checkpoint a.ckpt")  # sections that are not there
    with pytest.raises(ConfigError, match=r"^checkpoint a\.ckpt: fusion.* is 'my\.\w+', .* add trust=\[my\]"):
        require_trusted(config, ["fusion"], "checkpoint a.ckpt")
    require_trusted(config, ["fusion"], "checkpoint a.ckpt", trust=["my"])


def test_what_the_user_laid_over_it_is_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "folder")
    own = {"fusion": {"act": CODE, "root": "${oc.env:MINE}"}}
    config = OmegaConf.merge(stored(fusion=LAYER), own)
    require_trusted(config, ["fusion"], "a.ckpt", (), own)
    assert config.fusion.root == "folder"
    with pytest.raises(ConfigError, match=r"fusion\.other\._target_ is 'my\.Code'"):
        require_trusted(OmegaConf.merge(config, {"fusion": {"other": CODE}}), ["fusion"], "a.ckpt", (), own)


CALLS = {  # a text, and the resolver in it that is not ours
    "${oc.env:SECRET}": "oc.env",
    "a ${oc.env:SECRET} b": "oc.env",
    "${ oc.env : SECRET}": "oc.env",
    "${\toc.env:SECRET}": "oc.env",
    "${name}${oc.env:SECRET}": "oc.env",
    "${oc.select:x,${oc.env:SECRET}}": "oc.env",
    "${first_of:null,${oc.decode:${oc.env:SECRET}}}": "oc.decode",
    "${oc.create:{_target_: os.system}}": "oc.create",
    "${hydra:runtime.cwd}": "hydra",
    "${now:%Y}": "now",
    "${mine:x}": "mine",
    "${${kind}:SECRET}": "${",
    "${oc.${kind}:SECRET}": "${",
    r"\${oc.env:SECRET}": "oc.env",
    r"\\${oc.env:SECRET}": "oc.env",
    r"\\\${oc.env:SECRET}": "oc.env",
}
OURS = [
    "${name}",
    "${a.b}/c",
    "${.x}",
    "${..x}",
    "${list[0]}",
    "${oc.select:x,null}",
    "${first_of:${name},x}",
    "$HOME",
    "a: b",
    "{split}",
    "",
]


@pytest.mark.parametrize(("text", "name"), CALLS.items())
def test_a_stored_configuration_asks_this_machine_nothing(
    text: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    assert foreign_resolver(text) == name
    config = stored(kind="env", fusion=LAYER | {"size": text}, logger={"project": text}, inner={"a": [text]})
    plain = OmegaConf.to_container(config, resolve=True)
    assert "hunter2" not in str(plain)
    assert plain["inner"]["a"] == [plain["logger"]["project"]]
    assert name in plain["logger"]["project"]
    with pytest.raises(ConfigError, match="which a stored configuration does not get from this machine") as caught:
        require_trusted(config, ["fusion"], "a.ckpt")
    assert ("write its value there" if name == "${" else f"add trust=[{name}]") in str(caught.value)
    with pytest.raises(ConfigError, match=r"^a\.ckpt: data\.reader\.path is "):
        require_trusted_block({"path": text}, "data", "data.reader", "a.ckpt")


@pytest.mark.parametrize("text", OURS)
def test_references_within_a_configuration_are_resolved(text: str) -> None:
    assert foreign_resolver(text) is None
    assert as_texts({"a": [text, 3, None]}) == {"a": [text, 3, None]}


def test_a_trusted_resolver_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "folder")
    text = yaml.safe_dump({"fusion": LAYER | {"root": "${oc.env:MINE}"}})
    config = read_stored(text, "a.ckpt", ["oc.env"])
    require_trusted(config, ["fusion"], "a.ckpt", ["oc.env"])
    assert config.fusion.root == "folder"
    assert read_stored(text, "a.ckpt").fusion.root == "${oc.env:MINE}"


def test_a_bomb_of_aliases_and_depth_is_no_configuration() -> None:
    lines = ["a0: &a0 [x, x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    assert "has aliases (*a0)" in str(fault_of_yaml("\n".join(lines)))
    assert fault_of_yaml("[" * DEEPEST + "]" * DEEPEST) is None
    assert f"more than {DEEPEST} levels deep" in str(fault_of_yaml("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)))
    assert fault_of_yaml("[" * 100_000)
    assert fault_of_yaml("\n".join(f"- [{n}]" for n in range(200))) is None  # long, not deep


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not valid yaml"),
        ("a: b: c", "is not valid yaml"),
        ("a: \x00", "is not valid yaml"),
        (None, "is no text but NoneType"),
        ({"a": 1}, "is no text but dict"),
        ("- a", "is no mapping of keys"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "cannot be read"),
        ("a: ${b", "cannot be read"),
    ],
)
def test_what_is_no_configuration_is_one_sentence(text: Any, words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^a\.ckpt: its configuration ") as caught:
        read_stored(text, "a.ckpt")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_numbers_are_read_as_omegaconf_reads_them() -> None:
    assert read_stored("lr: 1e-3\nname: a", "a.ckpt") == {"lr": 0.001, "name": "a"}


def test_every_metric_of_the_table_is_one_and_has_no_effects() -> None:
    """What torchmetrics' own files of these do: they import, and reckon. A new one that reads or fetches is to be noticed."""
    import torchmetrics

    home = Path(torchmetrics.__file__).parent
    files = [
        path for entry in METRICS if entry.endswith(".") for path in _files(home, entry.removeprefix("torchmetrics."))
    ]
    named = [entry for entry in METRICS if not entry.endswith(".")]
    for entry in named:
        require_part("task.x._target_", entry, "a.ckpt", TABLE["task"], ())
        found: Any = get_class(entry)
        assert issubclass(found, torchmetrics.Metric), entry
        files.append(Path(sys.modules[found.__module__].__file__ or ""))
    assert len(files) > 60
    fetches = re.compile(r"from_pretrained|snapshot_download|import nltk|urlretrieve|requests\.|hub\.load")
    for path in files:
        code = path.read_text(encoding="utf-8")
        assert not EFFECTS.findall(code), path
        assert not fetches.findall(code), path


def _files(home: Path, entry: str) -> list[Path]:
    place = home / entry.rstrip(".")
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
