"""The versions of libraries that are pinned, and the oldest that are promised."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def test_every_dependency_is_pinned_to_a_version_that_is_allowed():
    pins = {_name(name): Version(version) for name, version in (line.split("==") for line in PINNED)}
    wanted = [
        Requirement(line)
        for line in [
            *PROJECT["dependencies"],
            *EXTRAS["pretrained"],
            *EXTRAS["regions"],
            *EXTRAS["adapters"],
            *EXTRAS["quantised"],
            *EXTRAS["search"],
            *EXTRAS["graphs"],
            *EXTRAS["dev"],
        ]
    ]
    assert len(wanted) > 20
    refused = [str(one) for one in wanted if _name(one.name) not in pins or pins[_name(one.name)] not in one.specifier]
    assert not refused


def test_the_pins_hold_names_and_versions_and_no_addresses():
    assert len(PINNED) > 80
    assert not [line for line in PINNED if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]


def test_the_oldest_versions_are_the_lower_bounds():
    said = subprocess.run([sys.executable, ROOT / ".ci/oldest.py"], capture_output=True, text=True, check=True).stdout
    oldest = dict(line.split("==") for line in said.splitlines())
    for line in [
        *PROJECT["dependencies"],
        *EXTRAS["pretrained"],
        *EXTRAS["regions"],
        *EXTRAS["adapters"],
        *EXTRAS["quantised"],
        *EXTRAS["search"],
        *EXTRAS["graphs"],
    ]:
        wanted = Requirement(line)
        assert Version(oldest[wanted.name]) in wanted.specifier
        assert str(wanted.specifier).count(f">={oldest[wanted.name]}") == 1
    assert "mypy" not in oldest
