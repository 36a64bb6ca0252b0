"""Recordings as log-mel spectrograms, by the formula and with the numbers of Whisper (arXiv 2212.04356)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionkit.data.streams.base import Finishing
from fusionkit.data.streams.wav import Wave, read_wav
from fusionkit.errors import ConfigError, DataError
from fusionkit.types import Sounds

ENDINGS = (".wav", ".wave")


@dataclass(frozen=True)
class Spectrogram:
    """One recording: (M, S) float32, M bands of S steps."""

    values: Tensor
    width: int = 1
    height: int = 1

    def finished(self, finish: Finishing) -> "Spectrogram":
        """As it is."""
        return self

    def pad(self, streams: "Sequence[Spectrogram]") -> Sounds:
        """One batch, padded to the longest."""
        steps = [each.values.T for each in streams]
        mask = pad_sequence([torch.ones(len(each), dtype=torch.long) for each in steps], batch_first=True)
        return Sounds(pad_sequence(steps, batch_first=True).transpose(1, 2).contiguous(), mask)


@dataclass(frozen=True)
class Recordings:
    """WAV files, of each its first ``seconds``.

    ``rate``    samples a second to which all are brought.
    ``mels``    bands of the spectrogram, between 0 and half of the rate.
    ``window``  samples that a step looks at; ``hop`` those between two steps.
    """

    rate: int = 16000
    seconds: float = 10.0
    mels: int = 80
    window: int = 400
    hop: int = 160
    reads: ClassVar[str] = "sounds"

    def __post_init__(self) -> None:
        for name in ("rate", "mels", "window", "hop"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ConfigError(f"stream.{name} is {value!r}, but has to be a whole number from 1 on")
        if not self.seconds > 0 or not np.isfinite(self.seconds):
            raise ConfigError(f"stream.seconds is {self.seconds!r}, but has to be a number above 0")
        if self.hop > self.window:
            raise ConfigError(
                f"stream.hop is {self.hop}, which leaves out sound; give stream.window={self.window} at most"
            )

    @property
    def length(self) -> int:
        """Steps of a recording, at most."""
        return max(1, int(self.seconds * self.rate) // self.hop)

    def load(self, files: Sequence[Path], side: int, rng: Random | None) -> Spectrogram:
        """The spectrogram of the one file. Raises CorruptImage, and DataError for several files."""
        if len(files) > 1:
            raise DataError(
                f"{files[0]} and {len(files) - 1} more are one sample's, but a recording is one WAV file; give one"
            )
        wave = read_wav(files[0], self.rate, self.seconds)
        mel = log_mel(wave, self.rate, self.mels, self.window, self.hop)[:, : self.length]
        return Spectrogram(torch.from_numpy(mel))


def log_mel(wave: Wave, rate: int, mels: int, window: int, hop: int) -> NDArray[np.float32]:
    """A wave (N,) -> (mels, max(1, N // hop)): (x + 4) / 4, x the log10 of the power in each band, at least its largest less 8.

    Whisper's: a periodic Hann window, the wave mirrored by half a window at both ends, the last step left out.
    In numpy, as data workers compute it.
    """
    half = window // 2
    mirrored = np.pad(wave.astype(np.float64), half, mode="reflect" if len(wave) > half else "constant")
    mirrored = np.pad(mirrored, (0, max(0, window - len(mirrored))))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    steps = np.lib.stride_tricks.sliding_window_view(mirrored, window)[::hop][: max(1, len(wave) // hop)]
    power = np.abs(np.fft.rfft(steps * hann, axis=1)) ** 2  # (S, window // 2 + 1)
    heard = np.log10(np.maximum(power @ mel_filters(rate, window, mels), 1e-10)).T
    heard = (np.maximum(heard, heard.max() - 8) + 4) / 4
    return np.ascontiguousarray(heard, dtype=np.float32)


@lru_cache
def mel_filters(rate: int, window: int, mels: int) -> NDArray[np.float64]:
    """Triangles (window // 2 + 1, mels) on Slaney's mel scale, each of area 1 (librosa's and Whisper's): mel = 3 Hz / 200
    up to 1 kHz, then 15 + 27 ln(Hz / 1000) / ln 6.4.
    """
    highest = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4) if rate > 2000 else 3 * rate / 400
    mel = np.linspace(0, highest, mels + 2)
    edges = np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))
    bins = np.fft.rfftfreq(window, 1 / rate)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))
    return filters
