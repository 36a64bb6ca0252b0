"""What ``torch.save`` wrote, read without its code: of foreign classes nothing is imported, and an empty stand-in is built."""

import pickletools
import warnings
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # whose names torch.save writes
PYTHON_2_TYPES = {"long": "int", "unicode": "str", "xrange": "range"}
LEGACY_PICKLES = 4  # of a file that is no zip: a magic number, a protocol, the system, the object


class Ignored:
    """The stand-in of a class: arguments of a run (Namespace, OmegaConf, EasyDict), which lie beside the weights.

    What is built is an empty dict, since nothing else may be filled by ``torch.load``.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """An empty dict."""
        return OrderedDict()


def read_pickled(path: Path) -> Any:
    """The content of a file on the CPU: tensors, plain values, numpy's numbers and arrays, and stand-ins.

    Raises what the unpickling of damaged bytes raises, which may be nearly anything.
    """
    warn_of_other_bytes(path)
    known = numpy_names()
    stand_ins = [(Ignored, name) for name in named_globals(path) - known.keys()]
    with torch.serialization.safe_globals([*stand_ins, *((kind, name) for name, kind in known.items())]):
        return torch.load(path, map_location="cpu", weights_only=True)


def warn_of_other_bytes(path: Path) -> None:
    """Warn where a part of the file is not what was written: torch does not compare the checksums that it writes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if name := archive.testzip():
                warnings.warn(
                    f"{path}: the checksum of {name} is not that of its bytes; it is damaged, or was saved without any",
                    stacklevel=2,
                )


def named_globals(path: Path) -> set[str]:
    """The full names of all classes and functions that a file asks for; they are read, not looked up."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return set().union(*(_globals(file) for _ in range(LEGACY_PICKLES)))
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return set().union(*(_globals(BytesIO(archive.read(name))) for name in names))


def _globals(file: IO[bytes]) -> set[str]:
    """Of one pickle, up to its end."""
    found = set()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            found.add(
                f"{PYTHON_2[module]}.{PYTHON_2_TYPES.get(name, name)}" if module in PYTHON_2 else f"{module}.{name}"
            )
    return found


def numpy_names() -> dict[str, Any]:
    """What numbers and arrays of numpy are built by, under the names of numpy 1 and 2."""
    made: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    found = {f"{place}.multiarray.{each.__name__}": each for place in ("numpy.core", "numpy._core") for each in made}
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}
    found |= {f"numpy.dtypes.{kind.__name__}": kind for kind in kinds}
    return found | {"numpy.dtype": np.dtype, "numpy.ndarray": np.ndarray, "_codecs.encode": _encode}


def _encode(text: str, encoding: str) -> bytes:
    """The bytes of a number that an older pickle holds as text."""
    return text.encode("latin1")
