"""Sound files: every format and every way of being broken."""

from __future__ import annotations

import mmap
import os
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from mamba_datasets.audio import AudioFile, read_audio
from mamba_datasets.audio.mpeg import _frames
from mamba_datasets.errors import DataError

RATE = 16000
# Lossless, or what a lossy codec may move a tone by.
LOSS = {"wav": 1e-4, "flac": 1e-4, "ogg": 0.05, "mp3": 0.05}
over_formats = pytest.mark.parametrize("suffix", LOSS)


def tone(seconds: float = 3.0, rate: int = RATE) -> NDArray[np.float32]:
    """A sweep, so that no two pieces are alike."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time)).astype(np.float32)


def write(path: Path, wave: NDArray[np.float32], rate: int = RATE, **options: str) -> Path:
    if path.suffix == ".opus":
        options = {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, wave, rate, **options)
    return path


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


@over_formats
def test_each_format_is_read_whole_in_part_and_in_pieces(tmp_path: Path, suffix: str) -> None:
    wave = tone()
    path = write(tmp_path / f"a.{suffix}", wave)
    found, rate = read_audio(path)
    assert (rate, found.dtype, found.shape) == (RATE, np.float32, wave.shape)
    np.testing.assert_allclose(found, wave, rtol=0, atol=LOSS[suffix])
    part, _ = read_audio(path, start=1.25, stop=2.0)
    with AudioFile(path) as file:
        assert (file.seconds, file.channels) == (3.0, 1)
        pieces = list(file.blocks(0.7))
    assert [len(piece) for piece in pieces] == [11200] * 4 + [3200]
    np.testing.assert_array_equal(np.concatenate(pieces), found)
    np.testing.assert_allclose(part, found[20000:32000], rtol=0, atol=1e-3)


@pytest.mark.parametrize("level", [0.0, 0.9])
def test_an_mp3_read_from_its_middle_begins_without_a_gap(tmp_path: Path, level: float) -> None:
    """A decoder needs what earlier frames left for later ones, the more so at low bit rates (level 0.9)."""
    wave = np.tile(tone(), 6) + 0.02 * np.random.default_rng(0).standard_normal(6 * 48000).astype(np.float32)
    path = tmp_path / "a.mp3"
    soundfile.write(path, wave, RATE, compression_level=level)
    whole, _ = read_audio(path)
    with AudioFile(path) as file:
        for start in (11.3, 4.0, 15.123):
            part = file.read(start, start + 1)
            first = round(start * RATE)
            np.testing.assert_allclose(part, whole[first : first + RATE], rtol=0, atol=1e-6)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", tone()).rename(tmp_path / "a.wav")
    with AudioFile(path) as file:
        assert file.format == "FLAC"


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
@pytest.mark.parametrize("suffix", LOSS)
def test_a_name_that_is_no_text_is_read(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"plain.{suffix}", tone())
    path = path.rename(tmp_path / os.fsdecode(b"caf\xe9." + suffix.encode()))
    assert read_audio(path)[0].shape == tone().shape


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_become_their_mean_or_the_one_asked_for(tmp_path: Path, channels: int) -> None:
    wave_SC = np.stack([tone(0.5) * (number + 1) / channels for number in range(channels)], axis=1)
    path = write(tmp_path / "a.wav", wave_SC, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path)[0], wave_SC.mean(1), atol=1e-6)
    np.testing.assert_array_equal(read_audio(path, channel=1)[0], wave_SC[:, 1])
    with pytest.raises(DataError, match=f"there is no channel {channels}, only {channels} of them"):
        read_audio(path, channel=channels)


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_the_rate_is_the_files_own(tmp_path: Path, rate: int) -> None:
    wave, found = read_audio(write(tmp_path / "a.wav", tone(0.5, rate), rate))
    assert (found, len(wave)) == (rate, rate // 2)


def test_silence_is_sound(tmp_path: Path) -> None:
    assert not read_audio(write(tmp_path / "a.wav", np.zeros(500, np.float32)))[0].any()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW", "PCM_U8"])
def test_a_truncated_wav_is_refused_with_both_counts_when_it_is_opened(tmp_path: Path, subtype: str) -> None:
    path = write(tmp_path / "a.wav", tone(), subtype=subtype)
    block = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}.get(subtype, 1)
    size = path.stat().st_size
    with AudioFile(path) as whole:
        frames = whole.frames
    path.write_bytes(path.read_bytes()[: size - 1000 * block])
    with pytest.raises(DataError, match=rf"truncated: its header claims {frames} frames, (\d+) are there") as caught:
        AudioFile(path)
    assert int(caught.value.expected.split()[-3]) == pytest.approx(frames - 1000, abs=50)


@pytest.mark.parametrize("kind", ["RF64", "WAVEX"])
def test_truncated_wavs_of_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), RATE, format=kind)
    assert len(read_audio(path)[0]) == 48000
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"its header claims 48000 frames, 4\d\d\d\d are there"):
        AudioFile(path)


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_what_follows_an_ogg_file_does_no_harm(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", tone())
    path.write_bytes(path.read_bytes() + b"TAG OggS" + bytes(20))
    assert len(read_audio(path)[0]) == 48000


def test_a_wav_from_a_pipe_does_not_know_its_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(0.5))
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4
    path.write_bytes(data)
    assert len(read_audio(path)[0]) == 8000


@pytest.mark.parametrize("part", [0.6, 0.999])
@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg", "opus"])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    path = cut(write(tmp_path / f"a.{suffix}", np.tile(tone(), 10)), part)
    with pytest.raises(DataError) as caught:
        read_audio(path)
    there = {"flac": r"(\d+) can be decoded", "mp3": r"(\d+) are there"}
    if suffix in there:
        counts = re.search(f"its header claims (480000) frames, {there[suffix]}", caught.value.expected)
        assert counts is not None
        assert 0.9 * part * 480000 < int(counts[2]) < 480000
    else:  # Ogg claims no count
        assert "it ends before the end of the page that is marked as its last" in caught.value.expected
    with pytest.raises(DataError), AudioFile(path) as file:
        list(file.blocks(1.0))


def _without_length(path: Path) -> None:
    """Take from an MP3 its first frame, which holds the length and no sound."""
    data = path.read_bytes()
    assert b"Xing" in data[:200] or b"Info" in data[:200]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        end = next(_frames(mapped, 0))[1]
    path.write_bytes(data[end:])


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("tagged", [False, True])
def test_an_mp3_of_constant_bit_rate_that_does_not_say_its_length_is_read_whole(
    tmp_path: Path, rate: int, tagged: bool
) -> None:
    path, wave = tmp_path / "a.mp3", tone(8.0, rate)
    soundfile.write(path, wave, rate, bitrate_mode="CONSTANT", compression_level=0.5)
    _without_length(path)
    if tagged:
        path.write_bytes(b"ID3\3\0\0\0\0\1\0" + bytes(128) + path.read_bytes() + b"TAG" + bytes(125))
    found, _ = read_audio(path)
    delay = len(found) - len(wave)  # the codec's own, which the length's header would have taken off
    assert 0 <= delay < 3 * 1152
    best = int(np.argmax([np.dot(found[shift : shift + 4000], wave[:4000]) for shift in range(delay)]))
    np.testing.assert_allclose(found[best : best + len(wave)][4000:-4000], wave[4000:-4000], rtol=0, atol=0.05)
    with AudioFile(path) as file:
        assert sum(len(piece) for piece in file.blocks(0.3)) == len(found)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_an_mp3_of_varying_bit_rate_that_does_not_say_its_length_is_refused(tmp_path: Path, rate: int) -> None:
    path, wave = tmp_path / "a.mp3", tone(8.0, rate) * np.linspace(0, 1, 8 * rate, dtype=np.float32)
    soundfile.write(path, wave, rate, bitrate_mode="VARIABLE", compression_level=0.5)
    assert len(read_audio(path)[0]) == len(wave)
    _without_length(path)
    message = r"length: its varying bit rate hides its end: it holds (\d+) frames, \d+ can be read; convert it to FLAC"
    with pytest.raises(DataError, match=message):
        AudioFile(path)


def _claiming(path: Path, frames: int) -> Path:
    """Write a FLAC whose header claims a number of frames; 0 for one that does not know."""
    data = bytearray(write(path, tone()).read_bytes())
    data[21:26] = (int.from_bytes(data[21:26], "big") >> 36 << 36 | frames).to_bytes(5, "big")
    path.write_bytes(data)
    return path


def test_a_flac_from_a_pipe_does_not_know_its_length(tmp_path: Path) -> None:
    path = _claiming(tmp_path / "a.flac", 0)
    found, _ = read_audio(path)
    np.testing.assert_allclose(found, tone(), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(read_audio(path, 1.0, 2.5)[0], found[16000:40000])


def test_a_header_that_claims_more_than_memory_holds_takes_none(tmp_path: Path) -> None:
    path = _claiming(tmp_path / "a.flac", 2**36 - 1)
    with pytest.raises(DataError, match=r"its header claims 68719476735 frames, 48000 (are there|can be decoded)"):
        read_audio(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    wave_SC = np.zeros((9000, 2), np.float32)
    wave_SC[8500, 1] = bad
    path = write(tmp_path / "a.wav", wave_SC, subtype="FLOAT")
    with pytest.raises(DataError, match=f"frame 8500: expected finite numbers, found {bad} in channel 1"):
        read_audio(path)
    with pytest.raises(DataError, match="frame 8500"), AudioFile(path) as file:
        list(file.blocks(0.25))
    assert len(read_audio(path, stop=0.5)[0]) == 8000


def _text(path: Path) -> None:
    path.write_text("this is a letter, not a sound\n" * 100)


def _corrupt_header(path: Path) -> None:
    data = bytearray(write(path, tone()).read_bytes())
    data[20:36] = b"\xff" * 16
    path.write_bytes(data)


def _no_frames(path: Path) -> None:
    write(path, np.zeros(0, np.float32))


def _damaged_flac(path: Path) -> None:
    data = bytearray(write(path.with_suffix(".flac"), tone(), format="FLAC").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\0" * 200
    path.write_bytes(data)


def _noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _absurd_rate(path: Path) -> None:
    data = bytearray(write(path, tone()).read_bytes())
    data[24:28] = struct.pack("<I", 10)
    path.write_bytes(data)


def _half_a_header(path: Path) -> None:
    path.write_bytes(write(path, tone()).read_bytes()[:30])


def _other_format(path: Path) -> None:
    write(path, tone(), format="AIFF")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text, r"is no sound: expected WAV, FLAC, OGG or MP3, found text \('this is a letter, not a '\)"),
        (_corrupt_header, "header: is damaged"),
        (_absurd_rate, "rate: expected 1000 to 768000 samples a second, found 10; check the header"),
        (_half_a_header, "header: is damaged"),
        (_no_frames, "holds no sound \\(0 frames\\)"),
        (_damaged_flac, "after frame 24576: is damaged: its header claims 48000 frames, 24576 can be decoded"),
        (_noise, "header: is damaged, or that of no WAV"),
        (_other_format, "found AIFF"),
        (Path.touch, "is empty \\(0 bytes\\)"),
        (Path.mkdir, "found a folder or device"),
        (lambda path: None, "no such file"),
    ],
    ids=["text", "header", "rate", "half", "frames", "flac", "noise", "format", "empty", "folder", "missing"],
)
def test_what_is_no_sound_is_refused_by_name(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        read_audio(path)
    assert caught.value.path == str(path)
    assert caught.value.remedy


@pytest.mark.parametrize(("start", "stop"), [(-1.0, 1.0), (2.0, 1.0), (0.0, 3.1), (3.0, None), (1.0, 1.0)])
def test_times_outside_the_sound_are_refused(tmp_path: Path, start: float, stop: float | None) -> None:
    with pytest.raises(DataError, match="times: expected times within the 3 s that it lasts"):
        read_audio(write(tmp_path / "a.wav", tone()), start, stop)


def test_an_hour_is_read_in_the_memory_of_a_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    seconds, rate = 3600, 8000
    size = seconds * rate
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 1, 8, b"data", size
    )
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    tracemalloc.start()
    with AudioFile(path) as sound:
        total = sum(len(piece) for piece in sound.blocks(10.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size
    assert peak < 4e6
