"""Streams: which frames are seen, what is heard, batches of both, and bad files in a sentence."""

import io
import json
import random
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from fusionkit.data.collate import Collate
from fusionkit.data.dataset import EvalData, TrainData
from fusionkit.data.images import CorruptImage
from fusionkit.data.pixels.damage import fault_of
from fusionkit.data.readers.row_pictures import digest_of
from fusionkit.data.readers.table import Table
from fusionkit.data.sample import Sample, Text
from fusionkit.data.sampler import Draw
from fusionkit.data.source import Source
from fusionkit.data.stores import stamp_of
from fusionkit.data.streams import clips
from fusionkit.data.streams.base import StreamFiles, finish_stream
from fusionkit.data.streams.clips import Clips, choose_frames, frames_of
from fusionkit.data.streams.drawn import make_motion, make_sets, make_tones
from fusionkit.data.streams.recordings import Recordings, log_mel, mel_filters
from fusionkit.data.streams.wav import parse_wav, read_wav, resample
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.data.transforms import Finish
from fusionkit.errors import ConfigError, DataError

FINISH = Finish(8, (0.0,) * 3, (1.0,) * 3)


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def levels(clip) -> list[int]:
    return [frame.getpixel((0, 0))[0] for frame in clip.frames]


def write_gif(path: Path, shown: list[int]) -> Path:
    first, *more = [picture(level) for level in shown]
    first.save(path, save_all=True, append_images=more, duration=100)
    return path


def write_wav(path: Path, values: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(values.tobytes())
    return path


def riff(kind: int, channels: int, rate: int, bits: int, data: bytes, before: bytes = b"", form: bytes = b"") -> bytes:
    width = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * width, width, bits) + form
    body = (
        b"WAVE" + before + b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_frames_are_the_middles_of_stretches_or_any_of_them():
    assert choose_frames(3, 4, None) == [0, 1, 2]
    assert choose_frames(4, 4, random.Random(0)) == [0, 1, 2, 3]
    assert choose_frames(9, 3, None) == [1, 4, 7]
    assert choose_frames(10, 4, None) == [0, 3, 5, 8]
    drawn = [choose_frames(9, 3, random.Random(seed)) for seed in range(60)]
    assert {frames[0] for frames in drawn} == {0, 1, 2}
    assert {frames[2] for frames in drawn} == {6, 7, 8}
    assert choose_frames(9, 3, random.Random(5)) == drawn[5]


def test_a_film_is_a_folder_a_file_of_several_or_a_list(tmp_path):
    shown = [10, 60, 110, 160, 210]
    folder = tmp_path / "film"
    folder.mkdir()
    for number, level in zip((1, 2, 3, 10, 20), shown, strict=True):  # as people count, 10 behind 3
        picture(level).save(folder / f"f{number}.png")
    (folder / "notes.txt").write_text("no picture")
    picture(0).save(folder / ".hidden.png")
    gif = write_gif(tmp_path / "film.gif", shown)
    several = [folder / "f20.png", folder / "f1.png", folder / "f1.png"]
    whole = Clips(length=5)
    assert levels(whole.load([folder], 8, None)) == levels(whole.load([gif], 8, None)) == shown
    assert levels(whole.load(several, 8, None)) == [210, 10, 10]
    assert levels(whole.load([folder / "f2.png", gif], 8, None)) == [60, 10, 60, 110, 160]
    assert levels(Clips(length=2).load([gif], 8, None)) == [10, 160]
    fixed = Clips(length=2, jitter=False)
    assert {tuple(levels(fixed.load([gif], 8, random.Random(seed)))) for seed in range(9)} == {(10, 160)}
    assert len({tuple(levels(Clips(length=2).load([gif], 8, random.Random(seed)))) for seed in range(20)}) > 2


def test_files_without_frames_are_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorruptImage, match="empty is a folder without pictures"):
        frames_of(tmp_path / "empty")
    (tmp_path / "film.mp4").write_bytes(b"0")
    with pytest.raises(DataError, match=r"is a film as \.mp4, which is not read; write its frames"):
        frames_of(tmp_path / "film.mp4")
    (tmp_path / "text.gif").write_text("no picture")
    with pytest.raises(CorruptImage, match=r"text\.gif cannot be decoded \(no known format\)"):
        frames_of(tmp_path / "text.gif")
    cut = write_gif(tmp_path / "cut.gif", [10, 200, 90])
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(CorruptImage, match=r"cut\.gif cannot be decoded"):
        Clips().load([cut], 8, None)
    assert "folder without pictures" in fault_of(tmp_path / "empty", True)
    assert fault_of(tmp_path / "none.wav", True) == f"{tmp_path}/none.wav is missing"
    (tmp_path / "bad.wav").write_text("no sound")
    assert "bad.wav is no WAV file that can be read (it does not begin as one)" in fault_of(tmp_path / "bad.wav", False)
    with pytest.raises(DataError, match="which is not read"):
        fault_of(tmp_path / "film.mp4", False)


WAVE = np.array([0.0, 0.5, -0.5, 0.25, -1.0])


@pytest.mark.parametrize(
    ("kind", "bits", "data"),
    [
        (1, 8, (WAVE * 128 + 128).astype(np.uint8).tobytes()),
        (1, 16, (WAVE * 2**15).astype("<i2").tobytes()),
        (1, 24, b"".join(int(each).to_bytes(3, "little", signed=True) for each in WAVE * 2**23)),
        (1, 32, (WAVE * 2**31).astype("<i4").tobytes()),
        (3, 32, WAVE.astype("<f4").tobytes()),
        (3, 64, WAVE.astype("<f8").tobytes()),
    ],
)
def test_wav_files_are_read_whatever_their_numbers(kind, bits, data):
    np.testing.assert_allclose(parse_wav(riff(kind, 1, 8000, bits, data), 8000, 1.0), WAVE, atol=1e-6)
    form = struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", kind) + bytes(14)
    extensible = riff(0xFFFE, 1, 8000, bits, data, before=b"LIST\x03\0\0\0abc\0", form=form)
    np.testing.assert_allclose(parse_wav(extensible, 8000, 1.0), WAVE, atol=1e-6)


def test_channels_are_averaged_and_long_recordings_cut():
    both = np.stack([WAVE, -WAVE / 2], axis=1)
    content = riff(1, 2, 8000, 16, (both * 2**15).astype("<i2").tobytes())
    np.testing.assert_allclose(parse_wav(content, 8000, 1.0), WAVE / 4, atol=1e-4)
    np.testing.assert_allclose(parse_wav(content, 8000, 3 / 8000), WAVE[:3] / 4, atol=1e-4)
    np.testing.assert_allclose(parse_wav(content[:-6], 8000, 1.0), WAVE[:3] / 4, atol=1e-4)  # cut within a step


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ID3 something else", "does not begin as one"),
        (riff(1, 1, 8000, 16, b"")[:40], "no description of its sound, or no sound"),
        (riff(1, 1, 8000, 16, b""), "holds no sound"),
        (riff(6, 1, 8000, 8, b"abc"), "8 bits in coding 6; write it as PCM of 16 bits"),
        (riff(1, 0, 8000, 16, b"abcd"), "has 0 channels"),
        (riff(1, 1, 0, 16, b"abcd"), "0 samples a second"),
        (riff(3, 1, 8000, 32, np.array([np.nan], "<f4").tobytes()), "not finite"),
        (riff(3, 1, 8000, 64, np.array([0.1, -1e200], "<f8").tobytes()), "not finite, or none of a sound"),
    ],
)
def test_other_wav_files_are_refused(content, message, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(CorruptImage, match=message):
        read_wav(tmp_path / "a.wav", 8000, 1.0)


@pytest.mark.parametrize(("old", "new"), [(8000, 16000), (16000, 8000), (44100, 16000)])
def test_a_tone_stays_one_at_another_rate(old, new):
    found = resample(np.sin(2 * np.pi * 500 * np.arange(old) / old), old, new)
    np.testing.assert_allclose(found, np.sin(2 * np.pi * 500 * np.arange(new) / new), atol=1e-9)
    too_high = np.sin(2 * np.pi * 3900 * np.arange(8000) / 8000)
    assert abs(resample(too_high, 8000, 4000)).max() < 1e-9


@pytest.mark.parametrize(("rate", "window", "hop", "mels"), [(16000, 400, 160, 80), (8000, 200, 80, 64)])
def test_spectrograms_are_those_of_whisper(rate, window, hop, mels):
    heard = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    filters = mel_filter_bank(1 + window // 2, mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(rate, window, mels), filters, atol=1e-9)
    theirs = spectrogram(
        heard, window_function(window, "hann"), window, hop, power=2.0, mel_filters=filters, log_mel="log10"
    )[:, :-1]  # as WhisperFeatureExtractor goes on
    theirs = (np.maximum(theirs, theirs.max() - 8.0) + 4.0) / 4.0
    np.testing.assert_allclose(log_mel(heard, rate, mels, window, hop), theirs, atol=1e-5)


def test_short_sounds_have_a_step():
    for count in (1, 50, 201, 399):
        assert log_mel(np.ones(count, np.float32), 16000, 8, 400, 160).shape == (8, max(1, count // 160))
    assert Recordings(rate=8000, seconds=1.0, hop=80, window=200).length == 100


def test_a_recording_is_one_file(tmp_path):
    one = write_wav(tmp_path / "a.wav", np.arange(400, dtype="<i2"))
    assert Recordings(rate=8000).load([one], 0, None).values.shape == (80, 2)
    assert Recordings(rate=8000, seconds=0.02).load([one], 0, None).values.shape == (80, 1)
    with pytest.raises(DataError, match="1 more are one sample's, but a recording is one WAV file"):
        Recordings().load([one, one], 0, None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Clips(length=0), "stream.length is 0, but"),
        (lambda: Recordings(rate=0), "stream.rate is 0, but"),
        (lambda: Recordings(seconds=0), "stream.seconds is 0, but"),
        (lambda: Recordings(window=100), "stream.hop is 160, which leaves out sound"),
    ],
)
def test_numbers_that_cannot_work_are_said(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("options", [{"cache": True}, {"augment": object()}, {"regions": object()}, {"shots": 1}])
def test_what_is_for_single_images_is_refused(options):
    source = Source(None, {"train": ["train"]}, 2, {"conversations": 1}, stream=Clips(), **options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        source.check("data.sources.own")


def film_samples(tmp_path: Path) -> list[Sample]:
    asked = {"questions": (Text(1, "which way?"),)}
    files = [write_gif(tmp_path / f"{n}.gif", [10 * k + 30 * n for k in range(1, 3 + 2 * n)]) for n in range(2)]
    several = [tmp_path / f"{level}.png" for level in (50, 90, 130)]
    for path in several:
        picture(int(path.stem)).save(path)
    return [Sample(n, file, asked) for n, file in enumerate(files)] + [
        Sample(2, several[0], asked, others=tuple(several[1:]))
    ]


def test_batches_hold_streams_padded_and_masked(tmp_path):
    samples = film_samples(tmp_path)
    streams = StreamFiles(samples, Clips(length=3), 8)
    data = EvalData(samples, streams, ["questions"], lambda image, boxes: finish_stream(FINISH, image, boxes))
    collate = Collate("own", samples, ["questions"], word_tokenizer(["which way?"]), 8, None)
    batch = collate([data[0], data[1], data[2]])
    assert batch["frames"].mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    shown = (batch["frames"].values[:, :, 0, 0, 0] * 255).round().int().tolist()
    assert shown == [[10, 20, 0], [40, 50, 60], [50, 90, 130]]
    assert batch["questions"]["image_index"].tolist() == [0, 1, 2]
    assert "other_index" not in batch["questions"]
    assert len(batch["image_ids"]) == 3
    train = TrainData(*("own", samples, streams, {"questions": 1}), lambda i, b: finish_stream(FINISH, i, b), 8)
    drawn = [train[Draw(1, seed)].pixel_values.frames for seed in range(20)]
    assert (
        len({tuple(float(frame[0, 0, 0]) for frame in frames) for frames in drawn}) == 2
    )  # of the last stretch either
    again = train[Draw(1, 7)].pixel_values.frames
    assert all(torch.equal(one, other) for one, other in zip(again, drawn[7], strict=True))


def test_batches_hold_recordings_padded_and_masked(tmp_path):
    asked = {"questions": (Text(1, "which?"),)}
    noise = (np.random.default_rng(0).normal(size=800) * 3000).astype("<i2")
    files = [write_wav(tmp_path / f"{count}.wav", noise[:count]) for count in (320, 800)]
    samples = [Sample(n, file, asked) for n, file in enumerate(files)]
    stream = Recordings(rate=8000, window=200, hop=80, mels=8)
    data = EvalData(samples, StreamFiles(samples, stream, 8), ["questions"], lambda i, b: finish_stream(FINISH, i, b))
    batch = Collate("own", samples, ["questions"], word_tokenizer(["which?"]), 8, None)([data[0], data[1]])
    assert batch["sounds"].values.shape == (2, 8, 10)
    assert batch["sounds"].mask.sum(dim=1).tolist() == [4, 10]
    assert not batch["sounds"].values[0, :, 4:].any()
    np.testing.assert_array_equal(batch["sounds"].values[1], stream.load([files[1]], 8, None).values)


def test_boxes_on_streams_are_refused(tmp_path):
    boxed = {"expressions": (Text(1, "it", {"box": (1, 1, 2, 2)}),)}
    samples = [Sample(0, write_gif(tmp_path / "a.gif", [1, 200]), boxed)]
    data = EvalData(
        samples, StreamFiles(samples, Clips(), 8), ["expressions"], lambda i, b: finish_stream(FINISH, i, b)
    )
    with pytest.raises(DataError, match="of a stream none is"):
        data[0]


def test_a_table_of_streams_takes_lists_and_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture(9 if name == "a" else 99).save(tmp_path / name / "1.png")
    picture(30).save(tmp_path / "c.png")
    rows = [
        {"video": "a", "question": "which?", "answer": "one"},
        {"video": ["c.png", "b/1.png", "a/1.png"], "question": "which?", "answer": "two"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"root": str(tmp_path), "split_by": {"val": 0, "test": 0}, "files": "train.jsonl"}
    first, second = Table(streams=True, **options).read("train")
    assert (first.image, first.others) == (tmp_path / "a", ())
    assert (second.image, second.others) == (tmp_path / "c.png", (tmp_path / "b/1.png", tmp_path / "a/1.png"))
    with pytest.raises(DataError, match="has 3 pictures, but questions are about 1"):
        Table(**options).read("train")
    (tmp_path / "copy").mkdir()
    picture(9).save(tmp_path / "copy/1.png")
    assert (
        digest_of(tmp_path / "a") == digest_of(tmp_path / "copy") != digest_of(tmp_path / "b")
    )  # which split it is in


@pytest.mark.parametrize(("make", "column"), [(make_motion, "video"), (make_tones, "audio"), (make_sets, "images")])
def test_drawn_streams_are_what_their_seed_says(make, column, tmp_path):
    make(tmp_path / "one", clips=10, seed=3)
    make(tmp_path / "one", clips=10, seed=3)  # is there
    make(tmp_path / "two", clips=10, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "one/train.jsonl").open()]
    assert (tmp_path / "two/train.jsonl").read_text() == (tmp_path / "one/train.jsonl").read_text()
    files = {name for row in rows for name in ([row[column]] if isinstance(row[column], str) else row[column])}
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(DataError, match="made with seed=3, not seed=4"):
        make(tmp_path / "one", clips=10, seed=4)
    with pytest.raises(ConfigError, match="'clips' must be a whole number from 10 to"):
        make(tmp_path / "three", clips=1)


def test_drawn_films_are_told_by_their_order_alone(tmp_path):
    """A shape is drawn where it was said to go, and each of its places is as likely at any time."""
    make_motion(tmp_path / "films", clips=200)
    rows = [json.loads(line) for line in (tmp_path / "films/train.jsonl").open()]
    answers = {row["answer"] for row in rows}
    assert answers == {"left", "right", "up", "down", "nowhere"}
    still = next(
        one["video"]
        for one, other in zip(rows[::2], rows[1::2], strict=True)
        if one["answer"] == other["answer"] == "nowhere"
    )
    frames = Clips(length=8).load([tmp_path / "films" / still], 32, None).frames
    assert len({frame.tobytes() for frame in frames}) == 1
    moving = next(row["video"] for row in rows if row["answer"] == "left")
    assert len({frame.tobytes() for frame in Clips(length=8).load([tmp_path / "films" / moving], 32, None).frames}) == 8


def test_frames_stand_upright_as_photos_do(tmp_path):
    turned = Image.new("RGB", (8, 4), (200, 0, 0))
    turned.paste((0, 0, 200), (4, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    turned.save(tmp_path / "a.png", exif=exif)
    (frame,) = Clips().load([tmp_path / "a.png"], 4, None).frames
    assert frame.size == (4, 8)
    assert frame.getpixel((0, 0)) == (200, 0, 0)
    assert frame.getpixel((0, 7)) == (0, 0, 200)


def test_a_film_that_is_shown_twice_begins_anew(tmp_path):
    gif = write_gif(tmp_path / "a.gif", [10, 60])
    assert levels(Clips().load([gif, gif], 8, None)) == [10, 60, 10, 60]


def test_the_second_picture_of_a_phones_jpeg_is_no_frame(tmp_path):
    for name in ("photo.jpg", "photo"):  # by its ending, and by what is in it
        picture(90).save(tmp_path / name, format="MPO", save_all=True, append_images=[picture(200)])
        assert Image.open(tmp_path / name).n_frames == 2
        assert [abs(level - 90) < 4 for level in levels(Clips().load([tmp_path / name], 8, None))] == [True]
    write_gif(tmp_path / "film.gif", [10, 60]).rename(tmp_path / "film")
    assert len(frames_of(tmp_path / "film")) == 2


def test_only_frames_that_are_seen_are_opened(tmp_path):
    folder = tmp_path / "film.mp4"  # frames in a folder that is called as their film
    folder.mkdir()
    for number in range(9):
        picture(10 * number).save(folder / f"{number}.png")
    (folder / "x.png").mkdir()  # no frame
    for number in (0, 2, 8):
        (folder / f"{number}.png").write_text("damaged")
    files = [folder / f"{number}.png" for number in range(9)]
    assert levels(Clips(length=3).load([folder], 8, None)) == [10, 40, 70]
    assert levels(Clips(length=3).load(files, 8, None)) == [10, 40, 70]
    assert fault_of(folder, False) is None
    assert "0.png cannot be decoded" in fault_of(folder, True)
    with pytest.raises(CorruptImage, match="gone cannot be read"):
        clips._names_in(tmp_path / "gone")


def test_no_more_of_a_recording_is_read_than_is_heard(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.arange(8000, dtype="<i2"))

    class Counted(io.BytesIO):
        read_bytes = 0

        def read(self, size=-1):
            found = super().read(size)
            self.read_bytes += len(found)
            return found

    file = Counted(path.read_bytes())
    assert len(parse_wav(file, 8000, 0.01)) == 80
    assert file.read_bytes < 300
    np.testing.assert_array_equal(read_wav(path, 8000, 0.01), parse_wav(path.read_bytes(), 8000, 0.01))


def test_declared_sizes_are_not_believed():
    content = riff(1, 1, 8000, 16, (WAVE * 2**15).astype("<i2").tobytes())
    unknown = content[:40] + struct.pack("<I", 0xFFFFFFFF) + content[44:]
    np.testing.assert_allclose(parse_wav(unknown, 8000, 1.0), WAVE, atol=1e-4)
    np.testing.assert_allclose(parse_wav(unknown, 8000, 1e9), WAVE, atol=1e-4)
    with pytest.raises(ValueError, match="no description of its sound, or no sound"):
        parse_wav(riff(1, 1, 8000, 16, b"ab", before=b"junk\xff\xff\xff\xff"), 8000, 1.0)
    ends = np.array([0.5, -0.5], "<f4").tobytes()
    assert len(parse_wav(riff(3, 1, 8000, 32, ends), 8000, 1.0)) == 2


def test_damage_behind_the_beginning_of_a_recording_is_found_where_it_is_scored(tmp_path):
    values = np.zeros(4000, "<f4")
    values[3000] = np.nan
    (tmp_path / "a.wav").write_bytes(riff(3, 1, 8000, 32, values.tobytes()))
    assert fault_of(tmp_path / "a.wav", False) is None
    assert "not finite" in fault_of(tmp_path / "a.wav", True)


def test_the_stamp_of_a_film_tells_when_a_frame_changes(tmp_path):
    (tmp_path / "film").mkdir()
    picture(10).save(tmp_path / "film/1.png")
    first = stamp_of(tmp_path / "film")
    assert first == stamp_of(tmp_path / "film")
    picture(10).resize((30, 20)).save(tmp_path / "film/1.png")
    changed = stamp_of(tmp_path / "film")
    picture(10).save(tmp_path / "film/2.png")
    assert len({first, changed, stamp_of(tmp_path / "film")}) == 3


def test_files_that_are_no_frames_do_not_move_a_film_to_another_split(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture(9).save(tmp_path / name / "1.png")
    (tmp_path / "b/.DS_Store").write_text("x")
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")


def test_boxes_in_a_table_of_streams_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    picture(9).save(tmp_path / "a/1.png")
    row = {"video": "a", "expression": "it", "box": [1, 1, 2, 2], "question": "what?", "answer": "it"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    options = {"root": str(tmp_path), "split_by": {"val": 0, "test": 0}, "files": "train.jsonl", "streams": True}
    with pytest.raises(DataError, match=r"has boxes, but of a stream none is read; leave them unread with"):
        Table(**options).read("train")
    (read,) = Table(**options, columns={"expression": [], "box": []}).read("train")
    assert set(read.texts) == {"questions"}
