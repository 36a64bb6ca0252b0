"""WAV files (RIFF): PCM of 8, 16, 24 or 32 bits and floats, of any rate and number of channels, as one channel."""

import io
import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.images import CorruptImage
from fusionkit.data.stores import ChangedError, stored_bytes

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
LOUDEST = 1e12  # of floats, whose full scale is 1, or in some files that of whole numbers
FORM = 40  # bytes at most that describe the sound
Wave = NDArray[np.float32]


def read_wav(path: Path, rate: int, seconds: float) -> Wave:
    """The first ``seconds`` as the mean of the channels in -1..1 at ``rate`` samples a second. Raises CorruptImage."""
    try:
        with path.open("rb") if path.is_file() else io.BytesIO(stored_bytes(path)) as file:
            return parse_wav(file, rate, seconds)
    except ChangedError:
        raise
    except ValueError as error:
        raise CorruptImage(f"{path} is no WAV file that can be read ({error})") from error
    except OSError as error:
        raise CorruptImage(f"{path} cannot be read ({error})") from error


def parse_wav(content: bytes | BinaryIO, rate: int, seconds: float) -> Wave:
    """As ``read_wav``, of a file's bytes, or of an opened one, of which no more is read than is heard.

    Raises ValueError, which says what is wrong.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise ValueError("it does not begin as one")
    place, form, size = 12, b"", 0
    while place + 8 <= end:
        file.seek(place)
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            break
        form = file.read(min(size, FORM)) if name == b"fmt " else form
        place += 8 + size + size % 2
    if len(form) < 16 or place + 8 > end:
        raise ValueError("it has no description of its sound, or no sound")
    kind, channels, own_rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if kind == EXTENSIBLE and len(form) >= 26:
        kind = struct.unpack_from("<H", form, 24)[0]
    if not channels or not own_rate:
        raise ValueError(f"it has {channels} channels and {own_rate} samples a second")
    if (kind, bits) not in ((PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)):
        raise ValueError(f"it holds {bits} bits in coding {kind}; write it as PCM of 16 bits")
    width = channels * bits // 8
    there = min(size, end - place - 8)  # a file may be cut, or have the size of one that is still written
    count = min(there // width, math.ceil(seconds * own_rate))
    if not count:
        raise ValueError("it holds no sound")
    numbers = _numbers(file.read(count * width), kind, bits)
    if not (np.abs(numbers) < LOUDEST).all():
        raise ValueError("it holds numbers that are not finite, or none of a sound")
    return resample(numbers.reshape(count, channels).mean(axis=1), own_rate, rate).astype(np.float32)


def _numbers(data: bytes, kind: int, bits: int) -> NDArray[np.float64]:
    if kind == FLOAT:
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    if bits == 8:  # unsigned, the others are not
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if bits == 24:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0].astype(np.float64) / 2**31
    return np.frombuffer(data, f"<i{bits // 8}").astype(np.float64) / (1 << (bits - 1))


def resample(wave: NDArray[np.float64], old: int, new: int) -> NDArray[np.float64]:
    """A wave at another rate, by its Fourier series: what lies above half of the lower rate is left out.

    The series goes on at the beginning where the wave ends, so that a few samples at either end are heard in each other.
    """
    count = max(1, round(len(wave) * new / old))
    if count == len(wave):
        return wave
    bands = np.fft.rfft(wave)
    kept = np.zeros(count // 2 + 1, dtype=complex)
    both = min(len(bands), len(kept))
    kept[:both] = bands[:both]
    return np.fft.irfft(kept, count) * (count / len(wave))
