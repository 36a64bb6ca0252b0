"""Java programs that fail, hang or say too little end in one sentence."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fusionkit.errors import DataError
from fusionkit.scoring import java
from fusionkit.scoring.captioning import Captions
from tests.scoring.test_captioning import RECORDS, samples


def program(folder: Path, script: str) -> str:
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_each_line_has_its_answer(tmp_path):
    lines = ["a", "", "\u65e5 b"] * 20_000  # more than a pipe holds
    assert java.answer_lines([program(tmp_path, "cat")], tmp_path, lines) == lines


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo one; echo two >&2; echo three >&2; exit 1", "three"),
        ("exit 3", "exit code 3, 0 answers"),
        ("head -n 1", "exit code 0, 1 answers"),
        ("kill -9 $$", "exit code -9"),
        ("exec sleep 20", "timed out after 0.6"),
    ],
)
def test_a_failure_is_one_sentence(script, words, tmp_path, monkeypatch):
    monkeypatch.setattr(java, "START", 0.2 if "sleep" in script else java.START)
    with pytest.raises(DataError, match=words):
        java.answer_lines([program(tmp_path, script)], tmp_path, ["a", "b"])


def test_what_is_no_program_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        java.answer_lines([str(tmp_path / "java")], tmp_path, ["a"])


def test_captions_tell_how_to_go_on_without_it(tmp_path, monkeypatch):
    program(tmp_path, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"score without METEOR: benchmark\.NAME\.scorers\.captioning\.java=false"):
        Captions().rows(RECORDS, samples())


def test_nothing_to_ask_asks_nothing_and_each_line_has_its_time(tmp_path, monkeypatch):
    assert java.answer_lines([str(tmp_path / "no program")], tmp_path, []) == []
    asked = []

    def run(command, **how):
        asked.append((command, how))
        return SimpleNamespace(stdout=b"1\n2\n", stderr=b"", returncode=0)

    monkeypatch.setattr(java.subprocess, "run", run)
    assert java.answer_lines(["java", "-x"], tmp_path, ["a", "é"]) == ["1", "2"]
    ((command, how),) = asked
    assert command == ["java", "-x"]
    assert (how["cwd"], how["input"], how["timeout"]) == (tmp_path, "a\né\n".encode(), 120.4)


@pytest.mark.parametrize(("stdout", "code"), [(b"1\n", 0), (b"1\n2\n3\n", 0), (b"1\n2", 0), (b"1\n2\n", 1)])
def test_too_few_or_many_answers_are_a_failure(stdout, code, tmp_path, monkeypatch):
    done = SimpleNamespace(stdout=stdout, stderr=b" first\nlast one \n", returncode=code)
    monkeypatch.setattr(java.subprocess, "run", lambda command, **how: done)
    with pytest.raises(
        DataError, match=r"^java cannot run pycocoevalcap's programs for captions \(last one\); install"
    ):
        java.answer_lines(["java", "-x"], tmp_path, ["a", "b"])
