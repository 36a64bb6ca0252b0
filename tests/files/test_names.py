"""Names that stand in files lead nowhere else."""

from pathlib import Path

import pytest

from fusionkit.files.names import LONGEST, is_file_name, is_inside, link_out_of


@pytest.mark.parametrize("name", ["vocab.txt", "a b-c_1", "dữ liệu.json", "a..b", "x" * LONGEST])
def test_plain_names_are_file_names(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "../x", "..\\x",
     "a\x00b", "a\nb", "a\x1b[2J", "a\x7f", "x" * (LONGEST + 1), None, 3],
)  # fmt: skip
def test_other_names_are_none(name: object) -> None:
    assert not is_file_name(name)


def test_the_length_of_a_name_is_counted_in_bytes() -> None:
    assert is_file_name("é" * (LONGEST // 2))
    assert not is_file_name("é" * (LONGEST // 2) + "e")


@pytest.mark.parametrize(
    ("name", "is_in"),
    [
        ("a.jpg", True),
        ("train2014/a.jpg", True),
        ("./a.jpg", True),
        ("b/../a.jpg", True),
        ("/data/images/a.jpg", True),
        ("..", False),
        (".", False),
        ("../a.jpg", False),
        ("b/../../a.jpg", False),
        ("/data/other/a.jpg", False),
        ("/data/images2/a.jpg", False),
        ("../images2/a.jpg", False),
        ("a\0.jpg", False),
    ],
)
def test_a_name_lies_in_a_folder_by_its_words(name: str, is_in: bool) -> None:
    assert is_inside("/data/images", name) is is_in
    assert is_inside("/", "/etc/x")


def test_a_link_out_of_a_folder_is_found_at_any_depth(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home / "a/b", other):
        folder.mkdir(parents=True)
    (home / "inner").symlink_to(home / "a")
    places = [home / "a", home / "inner", home / "x"]
    (home / "loop").symlink_to(home / "loop")
    assert link_out_of(home, [*places, home / "loop"]) is None
    (home / "a/b/link").symlink_to(other)
    assert link_out_of(home, places) == home / "a/b/link"
    (home / "x").symlink_to(other)
    assert link_out_of(home, places[1:]) == home / "x"
    assert link_out_of(home / "a", [home / "a"]) == home / "a/b/link"
