"""Sounds that cannot be used, or look as if they could not, in a set: one line each, wherever they are met."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mamba_datasets.audio import AudioFolder, AudioTable, ClipSet
from mamba_datasets.errors import DataError
from mamba_datasets.registry import check
from mamba_recipes.cli.check import main

RATE = 16000


def tone(seconds: float = 0.5, rate: int = RATE) -> NDArray[np.float64]:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4000])


def _corrupt_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20:36] = b"\xff" * 16
    path.write_bytes(data)


def _no_frames(path: Path) -> None:
    soundfile.write(path, np.zeros(0), RATE)


def _not_a_number(path: Path) -> None:
    wave_S = tone()
    wave_S[5000] = np.nan
    soundfile.write(path, wave_S, RATE, subtype="FLOAT")


def _text(path: Path) -> None:
    path.write_text("Dear listener, this is no sound.")


def _absurd_rate(path: Path) -> None:
    soundfile.write(path, tone(), 900)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncated, "end: is truncated: its header claims 8000 frames, 6000 are there"),
    "header": (_corrupt_header, "header: is damaged"),
    "no frames": (_no_frames, "frames: holds no sound (0 frames)"),
    "nan": (_not_a_number, "frame 5000: expected finite numbers, found nan in channel 0"),
    "text": (_text, "file: is no sound: expected WAV, FLAC, OGG or MP3, found text ('Dear listener, this is n')"),
    "empty": (lambda path: path.write_bytes(b"") and None, "file: is empty (0 bytes)"),
    "rate": (_absurd_rate, "rate: expected 1000 to 768000 samples a second, found 900"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sounds"
    for number, name in enumerate(["a/0.wav", "a/1.wav", "b/0.wav", "b/1.wav"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone() * (1 + number / 10), RATE)
    return root


def read(data: ClipSet, workers: int = 0) -> list[int]:
    """Return the lengths of all clips, read as training reads them."""
    loader: DataLoader = DataLoader(data, batch_size=None, num_workers=workers)
    return [len(clip.samples_S) for clip in loader]


@pytest.mark.parametrize("case", BAD)
def test_a_broken_sound_stops_with_its_path(root: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, expected = BAD[case]
    victim = root / "b" / "1.wav"
    make(victim)
    with pytest.raises(DataError) as caught:
        read(AudioFolder(root, rate=RATE))
    line = str(caught.value)
    assert line.startswith(f"{victim}: {expected}")
    assert "\n" not in line
    assert caught.value.remedy.endswith("leave it out (mamba-apps check --write-broken)") or case == "rate"
    assert [str(finding) for finding in check(root).findings] == [line]
    broken = root.parent / "broken.json"
    assert main([str(root), "--write-broken", str(broken)]) == 2
    assert line in capsys.readouterr().out.splitlines()
    assert read(AudioFolder(root, rate=RATE, leave_out=broken)) == [8000] * 3


def test_a_worker_tells_the_same_line(root: Path) -> None:
    _truncated(root / "b" / "1.wav")
    with pytest.raises(DataError) as here:
        read(AudioFolder(root, rate=RATE))
    with pytest.raises(DataError) as there:
        read(AudioFolder(root, rate=RATE), workers=1)
    assert str(there.value) == str(here.value)


def _channels(count: int) -> NDArray[np.float64]:
    return np.stack([tone()] * count, axis=1)


@pytest.mark.parametrize(
    ("wave", "rate", "note"),
    [
        (np.zeros(8000), RATE, "1 silent: "),
        (_channels(2), RATE, "channels: 1 (4), 2 (1)"),
        (_channels(6), RATE, "channels: 1 (4), 6 (1)"),
        (tone(rate=8000), 8000, "several rates, which training resamples to one: 16000 Hz (4), 8000 Hz (1)"),
        (tone(rate=192_000), 192_000, "several rates, which training resamples to one: 16000 Hz (4), 192000 Hz (1)"),
        (tone(0.01), RATE, "1 shorter than a spectrogram's frame (0.025 s): "),
        (np.clip(10 * tone(), -1, 1), RATE, "1 clipped (0.1% of samples or more): "),
    ],
    ids=["silent", "stereo", "6 channels", "8 kHz", "192 kHz", "short", "clipped"],
)
def test_an_odd_sound_is_read_and_the_check_says_what_is_odd(
    root: Path, wave: NDArray[np.float64], rate: int, note: str
) -> None:
    soundfile.write(root / "b" / "2.wav", wave, rate)
    assert read(AudioFolder(root, rate=RATE))[4] == (160 if "shorter" in note else 8000)
    report = check(root)
    assert report.ok
    assert any(line.startswith(note) for line in report.notes)


def test_one_file_in_two_classes_and_splits_is_said(root: Path) -> None:
    (root / "b" / "2.wav").write_bytes((root / "a" / "0.wav").read_bytes())
    assert any(line.startswith("1 content is in several classes: ") for line in check(root).notes)
    table = root / "clips.csv"
    table.write_text("path,label,split\na/0.wav,x,train\nb/0.wav,y,train\nb/2.wav,x,test\n")
    assert any(line.startswith("1 content is in several splits: ") for line in check(table, "audio").notes)


def test_a_class_with_one_sound_is_said(root: Path) -> None:
    (root / "b" / "1.wav").unlink()
    assert "1 with one sound only, to be learned or tested, not both: 'b'" in check(root).notes


def test_a_part_of_an_hour_is_read_without_the_rest(tmp_path: Path) -> None:
    rate = 8000
    with soundfile.SoundFile(tmp_path / "hour.flac", "w", rate, 1) as file:
        minute = tone(60.0, rate)
        for _ in range(60):
            file.write(minute)
    table = tmp_path / "clips.csv"
    table.write_text("path,label,start,end\nhour.flac,a,3000,3002.5\nhour.flac,b,3599,\n")
    data = AudioTable(table, rate=rate)
    assert read(data) == [20000, 8000]
    np.testing.assert_allclose(data[0].samples_S, tone(2.5, rate), atol=1e-3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b/0.wav,c", "label 'c' is none of the 2 classes of classes; choose one of 'a', 'b'"),
        ("../outside.wav,a", "path '../outside.wav' leaves the folder"),
        ("a/0.wav,a", "repeats row 2"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line_of_the_command(
    root: Path, row: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = root / "clips.csv"
    table.write_text(f"path,label\na/0.wav,a\nb/1.wav,b\n{row}\n")
    assert main([str(table), "--as", "audio", "--set", "classes=[a,b]"]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"{table}: row 4")
    assert message in lines[0]
