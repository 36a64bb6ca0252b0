"""What a checkpoint carries, and the commit that it names."""

import subprocess
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from fusionkit.assembly import artifacts
from fusionkit.assembly.artifacts import (
    artifacts_of,
    git_commit,
    is_all,
    is_object,
    tokenizer_files,
    tokenizer_from,
)
from fusionkit.data.tokenizer import COMPANION, build_tokenizer, companion_of, load_tokenizer, word_tokenizer
from fusionkit.errors import DataError


def test_values_of_a_run_without_words(monkeypatch):
    monkeypatch.setattr(artifacts, "git_commit", lambda: "abc+")
    sized = SimpleNamespace(sizes=lambda: {"a": 1}, weightless=lambda config, sizes: config)
    model = SimpleNamespace(text_encoder=sized, image_encoder=SimpleNamespace())
    config = OmegaConf.create({"a": 1, "b": "${a}"})
    found = artifacts_of(config, model, None, None)
    versions = found.pop("versions")
    assert found == {
        "config": "a: 1\nb: ${a}\n",
        "answers": None,
        "tokenizer": None,
        "text_encoder": '{"a": 1}',
        "image_encoder": "{}",
        "git": "abc+",
    }
    assert set(versions) == {"fusionkit", "python", *artifacts.LIBRARIES}
    assert artifacts_of(config, model, None, ("yes",))["answers"] == ["yes"]


@pytest.mark.parametrize(("status", "commit"), [("", "1234"), (" M x.py\n", "1234+")])
def test_the_commit_of_a_source_tree(tmp_path, monkeypatch, status, commit):
    def run(command, cwd, capture_output, text, check):
        assert (cwd, capture_output, text, check) == (tmp_path, True, True, True)
        return SimpleNamespace(stdout="1234\n" if command[1] == "rev-parse" else status)

    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / "fusionkit" / "training" / "artifacts.py"))
    monkeypatch.setattr(artifacts.subprocess, "run", run)
    assert git_commit() is None
    (tmp_path / ".git").mkdir()
    assert git_commit() == commit
    monkeypatch.setattr(
        artifacts.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(subprocess.CalledProcessError(1, "git"))
    )
    assert git_commit() is None


def test_kinds_of_values():
    assert is_all(["a"], list, str)
    assert is_all(("a",), None, str)
    assert not is_all(("a",), list, str)
    assert not is_all(["a", 1], list, str)
    assert is_object("{}", lambda text: {})
    assert not is_object("{}", lambda text: [])
    assert not is_object(3, lambda text: {})


def test_files_of_a_tokenizer_stay_in_their_folder():
    for files in ({"../x": "{}"}, {"x": 3}, {"qformer_tokenizer/../x": "{}"}, {"other/x": "{}"}):
        with pytest.raises(DataError, match=r"has a file named '.*x', which is no plain name of a text file"):
            tokenizer_from(files)


def test_the_tokenizer_of_instructions_travels_along(tmp_path):
    assert companion_of(tokenizer_from(tokenizer_files(word_tokenizer(["a dog"])))) is None
    build_tokenizer(["a dog"], tmp_path)
    build_tokenizer(["is it a cat"], tmp_path / COMPANION)
    found = tokenizer_from(tokenizer_files(load_tokenizer(tmp_path)))
    assert found.tokenize("a dog") == ["a", "dog"]
    assert companion_of(found).tokenize("a dog cat") == ["a", "[UNK]", "cat"]
    assert companion_of(companion_of(found)) is None
