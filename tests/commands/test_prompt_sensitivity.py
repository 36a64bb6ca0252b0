"""Templates: those of the training where a benchmark is scored, and several where one asks how much hangs on them."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from fusionkit.cli.main import run
from fusionkit.commands.prompt_sensitivity import check_prompts, reading, takes_template
from fusionkit.data.collate import Collate
from fusionkit.errors import ConfigError
from fusionkit.inference.all_pairs import AllPairs
from fusionkit.inference.evaluate import OwnSplit
from tests.test_languages import LINE, write

ASKED = "Câu hỏi: {text} Trả lời:"
CLEAN = "+data.sources.vqa.clean._target_=fusionkit.data.cleaning.Clean"


def test_benchmarks_are_read_as_the_training_was_and_prompts_in_its_place(tmp_path, capsys, monkeypatch) -> None:
    write(tmp_path / "data", "train2014", range(6))
    write(tmp_path / "data", "val2014", range(100, 104))
    templates = f"++data.sources.vqa.template={{questions: '{ASKED}'}}"
    line = [*LINE.split(), CLEAN, templates, f"data.root={tmp_path}/data", f"output_dir={tmp_path}/run"]
    assert run(["train", *line]) == 0
    read: list[tuple[Any, Any]] = []
    tokenize = Collate.tokenize

    def noted(self: Collate, texts: Any, template: str | None = None) -> Any:
        read.append((template, type(self.clean).__name__))
        return tokenize(self, texts, template)

    monkeypatch.setattr(Collate, "tokenize", noted)
    shared = [f"checkpoint={tmp_path}/run/checkpoints/last.ckpt", "resamples=5"]
    published = ["benchmark=[vqav2]", f"root={tmp_path}/data", f"output_dir={tmp_path}/scored"]
    assert run(["evaluate", *shared, *published]) == 0
    assert set(read) == {(ASKED, "Clean")}
    first = json.loads((tmp_path / "scored/metrics.json").read_text())

    prompts = f"prompts={{questions: ['{ASKED}', '{{text}}']}}"
    for place, options in (("scored", published), ("own", [f"output_dir={tmp_path}/own"])):
        read.clear()
        assert run(["evaluate", *shared, *options, prompts]) == 0
        assert {template for template, _ in read} == {ASKED, "{text}"}
        told = json.loads((tmp_path / place / "prompts.json").read_text())
        metrics = json.loads((tmp_path / place / "metrics.json").read_text())
        for name, about in told.items():
            assert list(about["scores"]) == [ASKED, "{text}"]
            assert about["scores"][ASKED] == metrics[name]
            assert about["lowest"] <= about["mean"] <= about["highest"]
            assert (about["lowest"], about["highest"]) == (min(about["scores"].values()), max(about["scores"].values()))
        assert told
        assert (tmp_path / place / "prompts/questions_2/predictions").is_dir()
        details = json.loads((tmp_path / place / "prompts/questions_2/details.json").read_text())
        assert all(" 5 draws, " in each["about_intervals"] for each in details.values())
    assert json.loads((tmp_path / "scored/metrics.json").read_text()) == first
    assert "highest less lowest" in capsys.readouterr().out


REPLIES = {"captioning": "caption", "chat": "question"}


def split_of(**reads: str) -> OwnSplit:
    tasks: Any = {name: SimpleNamespace(reads=kind, replies_to=REPLIES.get(name)) for name, kind in reads.items()}
    return OwnSplit("a", "val", tasks, dict.fromkeys(reads), dict.fromkeys(reads, "a"), "a", list)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ("{text}", r"prompts is '\{text\}', but has to be a section"),
        (
            {"question": ["{text}", "Q {text}"]},
            "prompts names 'question', which no task that is scored reads; did you mean",
        ),
        ({"questions": "{text}"}, "prompts.questions is .* has to be a list of two templates at least"),
        ({"questions": ["{text}", "{text}"]}, "two templates at least"),
        ({"questions": 5}, "prompts.questions is 5, but has to be a list of two templates at least"),
        ({"questions": None}, "two templates at least"),
        ({"questions": [{"a": 1}, "{text}"]}, "two templates at least"),
        ({"questions": ["{text}", "Q {text}", 5]}, r"prompts.questions is 5, but has to have \{text\} once"),
        ({"questions": ["{text}", "who?"]}, r"prompts.questions is 'who\?', but has to have \{text\} once"),
    ],
)
def test_a_mistake_in_the_prompts_is_one_sentence(prompts: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_prompts(prompts, [split_of(vqa="questions", itm="captions")])


@pytest.mark.parametrize(("task", "kind"), [("chat", "conversations"), ("captioning", "captions")])
def test_a_template_without_effect_is_refused(task: str, kind: str) -> None:
    prompts = {kind: ["{text}", "Q {text}"]}
    split = split_of(vqa="questions", **{task: kind})
    with pytest.raises(
        ConfigError, match=f"prompts names '{kind}', on which templates have no effect, as task '{task}'"
    ):
        check_prompts(prompts, [split])
    assert reading(split, kind) is None
    with pytest.raises(ConfigError, match="; leave prompts out"):
        check_prompts(prompts, [split_of(**{task: kind})])


def test_captions_that_are_said_do_not_hide_those_that_are_read() -> None:
    split = split_of(itm="captions", captioning="captions")
    check_prompts({"captions": ["a {text}", "{text}"]}, [split])
    found = reading(split, "captions")
    assert found is not None
    assert list(found.tasks) == ["itm"]


def test_only_the_tasks_that_read_a_kind_are_asked_again() -> None:
    split = split_of(vqa="questions", itm="captions")
    check_prompts({"captions": ["a {text}", "{text}"]}, [split])
    found = reading(split, "captions")
    assert found is not None
    assert (list(found.tasks), list(found.scorers), list(found.labels)) == (["itm"], ["itm"], ["itm"])
    assert reading(split, "expressions") is None


def test_what_ranks_all_pairs_reads_as_its_task_does() -> None:
    """Models without contrast (UNITER, ViLT, METER) are evaluated by it."""
    assert takes_template(AllPairs(SimpleNamespace(reads="captions", replies_to="text", encodes=True)))
    assert not takes_template(AllPairs(SimpleNamespace(reads="captions", replies_to="caption", encodes=True)))
