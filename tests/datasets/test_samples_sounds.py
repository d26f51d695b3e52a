"""The sample of sounds that is made."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from mamba_datasets.audio import AudioFolder
from mamba_datasets.errors import DataError
from mamba_datasets.registry import check
from mamba_datasets.samples import sounds_path, write_sounds
from mamba_datasets.samples.sounds import SOUNDS, make_sound


def test_it_is_a_set_that_the_check_accepts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_sounds(tmp_path / "new" / "sounds")
    data = AudioFolder(folder, rate=16000)
    assert data.classes == ["falling", "noise", "rising", "tone"]
    assert data.splits == ["train"] * 80 + ["test"] * 40
    assert data.counts == [30] * 4
    with caplog.at_level(logging.WARNING):
        seconds = sum(len(data[index].samples_S) for index in range(len(data))) / 16000
    assert not caplog.messages  # nothing was resampled
    assert 40 < seconds < 50
    report = check(folder)
    assert (report.kind, report.findings) == ("audio", ())
    assert not [note for note in report.notes if "silent" in note or "clipped" in note or "content" in note]
    assert [path.name for path in folder.parent.iterdir()] == ["sounds"]


def test_a_seed_makes_the_same_sounds_again_and_another_makes_others() -> None:
    np.testing.assert_array_equal(make_sound("tone", 3), make_sound("tone", 3))
    assert len({make_sound(name, seed).tobytes() for name in SOUNDS for seed in range(50)}) == 200


def _pitch(wave_S: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(wave_S * np.hanning(len(wave_S)))) ** 2
    return float(np.argmax(power) / len(wave_S) * 16000)


@pytest.mark.parametrize(("name", "least", "most"), [("tone", 0.97, 1.03), ("rising", 1.2, 8), ("falling", 1 / 8, 0.8)])
def test_pitch_moves_as_the_name_says(name: str, least: float, most: float) -> None:
    for seed in range(20):
        wave_S = make_sound(name, seed)
        third = len(wave_S) // 3
        assert least < _pitch(wave_S[-third:]) / _pitch(wave_S[:third]) < most


def test_the_cache_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = sounds_path()
    assert folder.parent == tmp_path / "mamba-apps"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}
    assert len(before) == 120
    assert sounds_path() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")} == before


def test_what_exists_is_not_overwritten_and_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already; name another"):
        write_sounds(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: "):
        write_sounds(tmp_path / "file" / "sounds")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
