"""Folders of sounds: classes, other rates, the check; and resampling."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from mamba_datasets.audio import AudioFolder, resample
from mamba_datasets.audio.resampling import _say
from mamba_datasets.broken import write_broken
from mamba_datasets.errors import DataError
from mamba_datasets.registry import check


def tone(hertz: float, seconds: float = 0.5, rate: int = 16000) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sounds"
    for name, hertz in (("high", 1000), ("low", 100)):
        (root / name).mkdir(parents=True)
        for number in range(3):
            soundfile.write(root / name / f"{number}.wav", tone(hertz + number), 16000)
    return root


def test_a_folder_is_a_class(root: Path) -> None:
    data = AudioFolder(root, rate=16000)
    assert (data.classes, data.labels.tolist(), len(data)) == (["high", "low"], [0, 0, 0, 1, 1, 1], 6)
    clip = data[4]
    np.testing.assert_allclose(clip.samples_S, tone(101), atol=1e-4)
    assert clip.samples_S.dtype == torch.float32
    assert clip[1:] == (1, str(root / "low" / "1.wav"), 0.0, 0.5)
    assert AudioFolder(root, rate=8000, classes=["low", "high"]).labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert AudioFolder(root, rate=8000)[0][0].shape == (4000,)


def test_splits_are_folders_of_classes(root: Path) -> None:
    outer = root.parent / "set"
    for name in ("validation", "train"):
        shutil.copytree(root, outer / name)
    data = AudioFolder(outer, rate=16000)
    assert data.splits == ["train"] * 6 + ["val"] * 6
    assert [place.path for place in data.in_split("validation").places] == sorted(map(str, outer.glob("v*/*/*")))
    with pytest.raises(DataError, match=r"split 'trian'.*did you mean 'train'"):
        data.in_split("trian")
    with pytest.raises(DataError, match=r"split 'train'.*it comes in no parts: use hold_back"):
        AudioFolder(root, rate=16000).in_split("train")
    (outer / "validation" / "low").rename(outer / "validation" / "lower")
    with pytest.raises(DataError, match=r"class 'low' has no folder"):
        AudioFolder(outer, rate=16000)


def test_the_check_tells_what_there_is(root: Path) -> None:
    soundfile.write(root / "low" / "stereo.flac", np.stack([tone(50, 2.0, 44100)] * 2, axis=1), 44100)
    soundfile.write(root / "low" / "silent.wav", np.zeros(8000, np.float32), 16000)
    soundfile.write(root / "high" / "loud.wav", np.clip(5 * tone(300), -1, 1), 16000)
    same, _ = soundfile.read(root / "low" / "1.wav", dtype="int16")
    soundfile.write(root / "high" / "copy.flac", same, 16000)
    report = check(root)
    assert report.ok
    assert (report.kind, report.summary) == ("audio", "10 sounds of 2 classes")
    notes = "\n".join(report.notes)
    assert "high (5), low (5)" in notes
    assert "lengths: 0.5 s to 2 s, the middle one 0.5 s, 0.00181 h in all" in notes
    assert "several rates, which training resamples to one: 16000 Hz (9), 44100 Hz (1)" in notes
    assert "channels: 1 (9), 2 (1)" in notes
    assert f"1 silent: {root / 'low' / 'silent.wav'}" in notes
    assert f"1 clipped (0.1% of samples or more): {root / 'high' / 'loud.wav'}" in notes
    assert "1 content is in several classes" in notes


def test_every_broken_file_is_found_and_can_be_left_out(root: Path) -> None:
    (root / "low" / "letter.wav").write_text("dear all, this is a letter and no sound at all")
    path = root / "high" / "1.wav"
    path.write_bytes(path.read_bytes()[:-1000])
    (root / "high" / "notes.pdf").write_text("x")
    report = check(root, "audio")
    found = {(Path(finding.path).name, finding.where) for finding in report.findings}
    assert found == {("letter.wav", "file"), ("1.wav", "end"), ("notes.pdf", "name")}
    with pytest.raises(DataError, match=r"notes.pdf: name: expected a sound's ending \(.wav .flac"):
        AudioFolder(root, rate=16000)
    broken = root.parent / "broken.json"
    assert write_broken(report, broken) == 3
    data = AudioFolder(root, rate=16000, leave_out=broken)
    assert len([data[index] for index in range(len(data))]) == 5
    with pytest.raises(DataError, match=r"1.wav: end: is truncated: its header claims 8000 frames, 7500 are there"):
        AudioFolder(_without(root, "letter.wav", "notes.pdf"), rate=16000)[1]


def _without(root: Path, *names: str) -> Path:
    for path in root.rglob("*"):
        if path.name in names:
            path.unlink()
    return root


def test_an_empty_class_and_a_class_alone_are_refused(root: Path) -> None:
    (root / "none").mkdir()
    with pytest.raises(DataError, match="none: class: holds no sound"):
        AudioFolder(root, rate=16000)
    assert [finding.expected for finding in check(root, "audio").findings] == ["holds no sound"]
    with pytest.raises(DataError, match="sort the sounds into class folders"):
        AudioFolder(root / "low", rate=16000)


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_another_rate_is_resampled_and_said(rate: int, caplog: pytest.LogCaptureFixture) -> None:
    _say.cache_clear()
    time = torch.arange(rate) / rate
    with caplog.at_level(logging.WARNING):
        found = [resample(torch.sin(2 * math.pi * 440 * time), rate, 16000) for _ in range(2)]
    assert caplog.messages == [f"sounds of {rate} Hz are resampled to 16000 Hz"]
    expected = torch.sin(2 * math.pi * 440 * torch.arange(16000) / 16000)
    assert found[1].shape == (16000,)
    torch.testing.assert_close(found[0][100:-100], expected[100:-100], rtol=0, atol=5e-3)


def test_the_same_rate_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    wave = torch.randn(3, 100)
    assert resample(wave, 16000, 16000) is wave
    assert not caplog.messages


@pytest.mark.parametrize("rate", [-1, 0, 1, 999, 10_000_000])
def test_an_absurd_rate_is_refused(rate: int) -> None:
    with pytest.raises(DataError, match=f"a.wav: rate: expected 1000 to 768000 samples a second, found {rate}"):
        resample(torch.randn(100), rate, 16000, "a.wav")


def test_rates_that_share_no_factor_are_refused() -> None:
    with pytest.raises(DataError, match="44101 and 16000 samples a second have no large common factor"):
        resample(torch.randn(100), 44101, 16000)
