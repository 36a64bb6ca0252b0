"""What a part takes, read from source, is what importing it would say."""

import inspect
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusionkit.assembly import signatures
from fusionkit.assembly.signatures import Unreadable, attribute_of, signature_of
from fusionkit.config import target_blocks
from tests.toys import CONF, choices

BLOCKS = [block for path in CONF.rglob("*.yaml") for _, block in target_blocks(yaml.safe_load(path.read_text()))]
TARGETS = sorted(name for block in BLOCKS if not (name := block["_target_"]).startswith("hydra_plugins."))


def kinds(annotation: Any) -> Any:
    """What the checks look at: plain types, lists and numbers in these; all others are one."""
    if (origin := typing.get_origin(annotation)) in (tuple, list, Sequence):
        inner = typing.get_args(annotation)
        is_one_kind = origin is not tuple or inner[1:] == (...,)
        return origin, inner[0] if is_one_kind and inner[:1] in ((int,), (float,)) else None
    members = set(typing.get_args(annotation)) if origin in (types.UnionType, typing.Union) else {annotation}
    return members if members <= {int, float, str, bool, type(None)} else None


@pytest.mark.parametrize("name", TARGETS)
def test_source_and_import_agree(name: str) -> None:
    read, imported = signatures._read(signatures._definition(name)) or {}, signatures._inspect(name)
    assert list(read) == list(imported)
    for key, parameter in imported.items():
        assert read[key].kind == parameter.kind
        assert (read[key].default is None) == (parameter.default is None)
        assert (read[key].default is inspect.Parameter.empty) == (parameter.default is inspect.Parameter.empty)
        assert kinds(read[key].annotation) == kinds(parameter.annotation), key


@pytest.mark.parametrize(("group", "attribute"), [("fusion", "provides"), ("task", "needs")])
def test_so_do_sets_of_a_class(group: str, attribute: str) -> None:
    for name in choices(group):
        target = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())["_target_"]
        read = signatures._class_value(signatures._definition(target), attribute)
        module, _, owner = target.rpartition(".")
        assert read == getattr(__import__(module, fromlist=[owner]), owner).__dict__.get(attribute, read)
        assert isinstance(read, frozenset)
        assert read


OWN = """
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Optional
import functools
from torch import nn

Sizes = list[int]

@dataclass
class Above:
    name: str
    count: ClassVar[int] = 3
    hidden: int = field(init=False, default=2)

@dataclass(eq=False)
class Below(Above):
    rate: float | None = None
    sizes: Sizes = ()

class Bare(nn.Module):
    pass

class Deep(Bare):
    provides = frozenset({"pooled"})

class Most(Deep):
    provides = Deep.provides | {"text"}

class Beside(nn.Module):
    pass

class Sized(Most):
    def __init__(self, width): ...

class Several(Beside, Sized):
    pass

class Empty(nn.Module):
    def __init__(self): ...

class EmptyFirst(Empty, Sized):
    pass

if True:
    def late(a: "int", *, b: Optional[str] = None, **more): ...

@functools.lru_cache
def wrapped(x: int): ...

made = functools.partial(late, 1)

class Row(NamedTuple):
    width: int = 1
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts/__init__.py").write_text(
        "from .inner import Below as Renamed\nfrom own_parts import inner\n"
    )
    (tmp_path / "own_parts/inner.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_parts", "own_parts.inner"):  # of the test before
        sys.modules.pop(name, None)
    signatures._file_of.cache_clear()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inner.Below", ["name", "rate", "sizes"]),
        ("Renamed", ["name", "rate", "sizes"]),
        ("inner.Bare", []),
        ("inner.Deep", []),
        ("inner.Several", ["width"]),
        ("inner.EmptyFirst", []),
        ("inner.late", ["a", "b", "more"]),
        ("inner.wrapped", ["x"]),
        ("inner.made", ["b", "more"]),
        ("inner.Row", ["width"]),
    ],
)
def test_of_ones_own_parts(own: None, name: str, expected: list[str]) -> None:
    assert list(signature_of(f"own_parts.{name}")) == expected


def test_what_source_does_not_tell_is_imported(own: None) -> None:
    for name in ("wrapped", "made", "Row", "nothing"):
        with pytest.raises(Unreadable):
            signatures._read(signatures._definition(f"own_parts.inner.{name}"))
    with pytest.raises(ImportError):
        signature_of("own_parts.inner.nothing")
    with pytest.raises(ImportError):
        signature_of("no_such_package.Thing")
    for name in ("Most", "Several"):
        assert signatures._class_value(signatures._definition(f"own_parts.inner.{name}"), "provides") == {
            "pooled",
            "text",
        }
        assert attribute_of(f"own_parts.inner.{name}", "provides") == {"pooled", "text"}
    below = signature_of("own_parts.inner.Below")
    assert (kinds(below["rate"].annotation), kinds(below["sizes"].annotation)) == ({float, type(None)}, (list, int))
