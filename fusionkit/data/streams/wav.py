"""WAV files (RIFF): PCM of 8, 16, 24 or 32 bits and floats, of any rate and number of channels, as one channel."""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.images import CorruptImage
from fusionkit.data.stores import ChangedError, stored_bytes

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
Wave = NDArray[np.float32]


def read_wav(path: Path, rate: int, seconds: float) -> Wave:
    """The first ``seconds`` as the mean of the channels in -1..1 at ``rate`` samples a second. Raises CorruptImage."""
    try:
        return parse_wav(stored_bytes(path), rate, seconds)
    except ChangedError:
        raise
    except ValueError as error:
        raise CorruptImage(f"{path} is no WAV file that can be read ({error})") from error
    except OSError as error:
        raise CorruptImage(f"{path} cannot be read ({error})") from error


def parse_wav(content: bytes, rate: int, seconds: float) -> Wave:
    """As ``read_wav``, of a file's bytes. Raises ValueError, which says what is wrong."""
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("it does not begin as one")
    place, form, data = 12, None, None
    while place + 8 <= len(content) and data is None:
        name, size = content[place : place + 4], struct.unpack_from("<I", content, place + 4)[0]
        body = content[place + 8 :][:size]  # the last may be cut, or have the size of a file that is still written
        form, data = (body if name == b"fmt " else form), (body if name == b"data" else data)
        place += 8 + size + size % 2
    if form is None or len(form) < 16 or data is None:
        raise ValueError("it has no description of its sound, or no sound")
    kind, channels, own_rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if kind == EXTENSIBLE and len(form) >= 26:
        kind = struct.unpack_from("<H", form, 24)[0]
    if not channels or not own_rate:
        raise ValueError(f"it has {channels} channels and {own_rate} samples a second")
    if (kind, bits) not in ((PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)):
        raise ValueError(f"it holds {bits} bits in coding {kind}; write it as PCM of 16 bits")
    width = channels * bits // 8
    count = min(len(data) // width, math.ceil(seconds * own_rate))
    if not count:
        raise ValueError("it holds no sound")
    wave = _numbers(data[: count * width], kind, bits).reshape(count, channels).mean(axis=1)
    if not np.isfinite(wave).all():
        raise ValueError("it holds numbers that are not finite")
    return resample(wave, own_rate, rate).astype(np.float32)


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
