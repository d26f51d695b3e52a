"""The AudioTagger: any sound in, its classes out, or one line on what is wrong with it."""

from __future__ import annotations

import dataclasses
import os
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

from mamba_apps import AudioTagger
from mamba_apps.audio import create_model
from mamba_apps.audio.tagging import BadSoundsError
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard, save_model
from mamba_datasets.audio import resample
from mamba_datasets.errors import DataError

RATE = 16000
LABELS = ["tone", "noise", "sweep"]


def make(
    name: str = "aum_nano_bibi", seconds: float = 0.5, *, long: str = "windows", binary: bool = False, depth: int = 2
) -> AudioTagger:
    torch.manual_seed(0)
    heard = None if name.endswith("causal") else seconds
    network = create_model(name, len(LABELS), seconds=heard, mels=32, depth=depth)
    policy = ClipPolicy(RATE, seconds, long)  # type: ignore[arg-type]
    return AudioTagger(name, network, policy, LABELS, binary=binary, device="cpu")


@pytest.fixture(scope="module")
def tagger() -> AudioTagger:
    return make()


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    wave = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    return wave.astype(np.float32).squeeze(axis=1) if channels == 1 else wave.astype(np.float32)


def long_wav(path: Path, hours: float, rate: int = RATE) -> Path:
    """Write a silent WAV of hours that takes no room on the disk."""
    size = 2 * round(rate * hours * 3600)
    fields = (b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size)
    with path.open("wb") as file:
        file.write(struct.pack("<4sI4s4sIHHIIHH4sI", *fields))
        file.truncate(44 + size)
    return path


def test_a_file_and_its_samples_are_heard_alike(tagger: AudioTagger, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise(0.5), RATE, subtype="FLOAT")
    found = tagger.tag(path, top=3)
    assert sorted(found.labels) == sorted(LABELS)
    assert sum(found.probabilities) == pytest.approx(1)
    assert (found.sound, found.seconds, found.notes) == (str(path), 0.5, ())
    assert tagger.tag(noise(0.5), RATE, top=3).probabilities == found.probabilities
    assert tagger.tag(torch.from_numpy(noise(0.5)), RATE, top=3).probabilities == found.probabilities
    assert found.label == found.classes[0][0]


def test_a_long_sound_is_the_mean_of_its_windows(tagger: AudioTagger) -> None:
    wave = noise(1.2)
    starts = tagger.policy.starts(len(wave))
    assert len(starts) == 3
    parts = [tagger.tag(wave[start : start + 8000], RATE, top=3) for start in starts]
    expected = {label: np.mean([dict(part.classes)[label] for part in parts]) for label in LABELS}
    assert dict(tagger.tag(wave, RATE, top=3).classes) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("channels", "note"), [(2, "the mean of 2 channels"), (6, "the mean of 6 channels")])
def test_channels_are_averaged_and_it_is_said(tagger: AudioTagger, tmp_path: Path, channels: int, note: str) -> None:
    wave = noise(0.5, channels=channels)
    soundfile.write(tmp_path / "many.wav", wave, RATE, subtype="FLOAT")
    found = tagger.tag(tmp_path / "many.wav")
    assert found.notes == (note,)
    expected = tagger.tag(wave.mean(axis=1), RATE)
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert tagger.tag(wave.T, RATE).probabilities == pytest.approx(found.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("rate", "note"),
    [
        (8000, "resampled from 8000 Hz to 16000 Hz, and has nothing above 4 kHz"),
        (192_000, "resampled from 192000 Hz to 16000 Hz"),
        (44_100, "resampled from 44100 Hz to 16000 Hz"),
    ],
)
def test_other_rates_are_resampled_and_it_is_said(tagger: AudioTagger, tmp_path: Path, rate: int, note: str) -> None:
    wave = noise(0.5, rate)
    soundfile.write(tmp_path / "other.wav", wave, rate, subtype="FLOAT")
    found = tagger.tag(tmp_path / "other.wav")
    assert found.notes == (note,)
    whole = resample(torch.from_numpy(wave), rate, RATE)
    assert found.probabilities == pytest.approx(tagger.tag(whole, RATE).probabilities, abs=1e-5)


def test_a_clip_shorter_than_a_patch_is_filled_up_and_it_is_said(tagger: AudioTagger) -> None:
    found = tagger.tag(noise(0.05), RATE)
    assert found.notes == ("followed by silence up to the 0.5 s that the model hears",)
    assert all(np.isfinite(found.probabilities))


def test_silence_is_told(tagger: AudioTagger) -> None:
    found = tagger.tag(np.zeros(8000, np.float32), RATE)
    assert found.notes == ("it is silent",)
    assert all(np.isfinite(found.probabilities))


def _bad_files(folder: Path) -> dict[str, str]:
    soundfile.write(folder / "a_nan.wav", np.array([0.1, np.nan] * 4000), RATE, subtype="FLOAT")
    (folder / "b_text.wav").write_text("this is no sound at all", encoding="utf-8")
    soundfile.write(folder / "c_cut.wav", noise(1.0), RATE)
    whole = (folder / "c_cut.wav").read_bytes()
    (folder / "c_cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "d_empty.wav").write_bytes(b"")
    soundfile.write(folder / "e_none.wav", np.zeros(0), RATE)
    soundfile.write(folder / "f_short.wav", noise(0.01), RATE)
    (folder / "g_header.wav").write_bytes(b"RIFF\x10\x00\x00\x00WAVEjunk\xff\xff\xff\xff")
    late = np.tile(noise(1.0), 150)
    late[-1] = np.nan  # many windows are heard before
    soundfile.write(folder / "h_late.wav", late, RATE, subtype="FLOAT")
    return {
        "a_nan.wav": "expected finite numbers, found nan",
        "b_text.wav": "is no sound: expected WAV, FLAC, OGG or MP3, found text",
        "c_cut.wav": "is truncated: its header claims 16000 frames",
        "d_empty.wav": "is empty (0 bytes)",
        "e_none.wav": "0 frames",
        "f_short.wav": "expected 0.025 s of sound at least, found 0.01 s",
        "g_header.wav": "is damaged",
        "h_late.wav": "expected finite numbers, found nan",
    }


def test_bad_files_are_refused_each_by_name_and_all_of_a_folder(tagger: AudioTagger, tmp_path: Path) -> None:
    expected = _bad_files(tmp_path)
    soundfile.write(tmp_path / "good.wav", noise(0.5), RATE)
    with pytest.raises(BadSoundsError) as caught:
        tagger.tag_files(tmp_path)
    found = {Path(problem.path).name: str(problem) for problem in caught.value.problems}
    assert list(found) == list(expected)
    for name, says in expected.items():
        assert says in found[name]
        with pytest.raises(DataError) as alone:
            tagger.tag(tmp_path / name)
        assert says in str(alone.value)
        assert alone.value.remedy


@pytest.mark.parametrize(
    ("sound", "rate", "error", "says"),
    [
        (noise(0.5), None, UserError, "an array does not know its rate"),
        (["a.wav", "b.wav"], None, UserError, "a list of files is given, and one sound was expected; use tag_files"),
        ("clip.wav", 8000, UserError, "the file knows its own"),
        ("no.wav", None, DataError, "no such file"),
        (noise(0.5), 3, DataError, "rate"),
        (noise(0.5), 10**7, DataError, "rate"),
        (np.full(8000, np.nan), RATE, DataError, "expected finite numbers, found nan"),
        (np.full(8000, 20000.0), RATE, DataError, "divide 16-bit samples by 32768"),
        (np.zeros(10), RATE, DataError, "expected 0.025 s of sound at least"),
    ],
)
def test_what_cannot_be_heard(
    tagger: AudioTagger, sound: object, rate: int | None, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        tagger.tag(sound, rate)  # type: ignore[arg-type]


def test_top_and_folders_are_checked(tagger: AudioTagger, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="top is 0"):
        tagger.tag(noise(0.5), RATE, top=0)
    with pytest.raises(UserError, match="holds no sounds"):
        tagger.tag_files(tmp_path)


def test_embeddings_are_what_the_classifier_sees(tagger: AudioTagger, tmp_path: Path) -> None:
    embedding = torch.from_numpy(tagger.embed(noise(0.5), RATE))
    with torch.inference_mode():
        logits = tagger.network.backbone.head(embedding)  # type: ignore[operator]
    expected = dict(tagger.tag(noise(0.5), RATE, top=3).classes)
    assert dict(zip(LABELS, logits.softmax(0).tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", noise(0.2 + number), RATE, subtype="FLOAT")
    paths, embeddings = tagger.embed_files(tmp_path)
    assert [Path(path).name for path in paths] == ["0.wav", "1.wav", "2.wav"]
    assert embeddings.shape == (3, 64)
    np.testing.assert_allclose(embeddings[1], tagger.embed(noise(1.2), RATE), atol=1e-5)


def test_probabilities_of_classes_by_themselves() -> None:
    found = make(binary=True).tag(noise(0.5), RATE, top=3)
    assert sum(found.probabilities) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("every", "rows"), [(0.25, 5), (1.0, 2), (0.5, 3)])
def test_a_timeline_has_a_row_for_each_time(tagger: AudioTagger, every: float, rows: int, tmp_path: Path) -> None:
    wave = noise(1.25)
    timeline = tagger.timeline(wave, RATE, every=every)
    assert len(timeline) == rows
    assert timeline.start_R.tolist() == [every * row for row in range(rows)]
    assert timeline.end_R[-1] == 1.25
    assert timeline.probability_RK.shape == (rows, 3)
    if every == 0.5:  # the second row's window is the row itself
        expected = tagger.tag(wave[8000:16000], RATE, top=3)
        assert dict(zip(LABELS, timeline.probability_RK[1].tolist(), strict=True)) == pytest.approx(
            dict(expected.classes), abs=1e-6
        )
    timeline.to_csv(tmp_path / "timeline.csv")
    table = pd.read_csv(tmp_path / "timeline.csv")
    assert list(table.columns) == ["start_s", "end_s", "top", "top_probability", *LABELS]
    assert table["top"].tolist() == [label for label, _ in timeline.top]
    timeline.plot(tmp_path / "timeline.png")
    with Image.open(tmp_path / "timeline.png") as picture:
        assert picture.width > 800


def test_a_timeline_of_any_name_is_drawn(tagger: AudioTagger, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"$_{$ caf\xe9.wav")
    soundfile.write(os.fsencode(path), noise(0.7), RATE, format="WAV")
    timeline = dataclasses.replace(tagger.timeline(path, every=0.5), labels=("US$", "$_{", "$^$"))
    timeline.plot(tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").is_file()


def test_a_row_of_days_is_the_whole_sound(tagger: AudioTagger) -> None:
    wave = noise(0.7)
    timeline = tagger.timeline(wave, RATE, every=1e9)
    assert timeline.end_R.tolist() == pytest.approx([0.7])
    assert np.array_equal(timeline.probability_RK, tagger.timeline(wave, RATE, every=0.7).probability_RK)


@pytest.mark.parametrize("every", [0.0, -1.0, float("nan"), 1e-9])
def test_times_that_mean_nothing(tagger: AudioTagger, every: float) -> None:
    with pytest.raises(UserError, match="every is"):
        tagger.timeline(noise(0.5), RATE, every=every)


def test_a_timeline_of_a_folder_that_is_not_there_leaves_nothing(tagger: AudioTagger, tmp_path: Path) -> None:
    timeline = tagger.timeline(noise(0.5), RATE)
    for write in (timeline.to_csv, timeline.plot):
        with pytest.raises(UserError, match="cannot write"):
            write(tmp_path / "none" / "x")


@pytest.mark.parametrize("name", ["aum_nano_causal", "wave_nano_causal"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_live_pieces_of_100_ms_are_the_whole(name: str, rate: int) -> None:
    tagger = make(name)
    wave = torch.from_numpy(noise(1.7, rate))
    live = tagger.stream(rate)
    assert live.feed(wave[:1]) is None
    for piece in wave[1:].split(rate // 10):
        found = live.feed(piece)
    found = live.finish() or found
    with torch.inference_mode():
        whole = tagger.network(resample(wave, rate, RATE)[None])[0]
    assert live.logits is not None
    torch.testing.assert_close(live.logits, whole, rtol=0, atol=1e-4)
    assert found is not None
    assert found.probability == pytest.approx(float(whole.softmax(0).max()), abs=1e-4)
    assert live.seconds == pytest.approx(1.7, abs=1e-3)
    live.reset()
    assert live.logits is None


def test_live_sound_is_refused_where_a_model_looks_ahead(tagger: AudioTagger) -> None:
    with pytest.raises(UserError, match="cannot read live sound; its blocks look ahead"):
        tagger.stream(RATE)
    with pytest.raises(UserError, match="AST cannot read live sound"):
        make("ast_nano").stream(RATE)
    with pytest.raises(DataError, match="rate"):
        make("aum_nano_causal").stream(2)


def test_a_bad_piece_is_refused_and_not_heard() -> None:
    live = make("aum_nano_causal").stream(RATE)
    live.feed(noise(0.5))
    before = live.logits
    with pytest.raises(DataError, match="finite"):
        live.feed(np.array([np.nan]))
    assert live.logits is before
    assert live.seconds == 0.5


def _saved(folder: Path, **changes: object) -> Path:
    arguments = {"num_classes": 3, "seconds": 0.5, "mels": 32, "depth": 2}
    holder = torch.nn.Module()
    holder.network = make().network  # type: ignore[assignment]
    card = {
        "task": "classification",
        "domain": "audio",
        "model": "aum_nano_bibi",
        "arguments": arguments,
        "preprocessing": {
            "rate": RATE,
            "seconds": 0.5,
            "long": "windows",
            "short": "silence",
            "channel": "mean",
            "binary": False,
        },
        "labels": LABELS,
    }
    return save_model(folder, holder, ModelCard(**{**card, **changes}))  # type: ignore[arg-type]


def test_a_saved_model_is_heard_as_before(tagger: AudioTagger, tmp_path: Path) -> None:
    _saved(tmp_path / "run" / "model")
    loaded = AudioTagger.load(tmp_path / "run", device="cpu")
    assert loaded.tag(noise(0.7), RATE) == tagger.tag(noise(0.7), RATE)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"domain": "image"}, "holds a model for classification of image"),
        ({"preprocessing": {}}, "do not fit together"),
        ({"arguments": {"num_classes": 4, "seconds": 0.5, "mels": 32, "depth": 2}}, "do not fit together"),
        ({"model": "aum_nano"}, "unknown audio model 'aum_nano'"),
    ],
)
def test_models_that_are_none_are_refused(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        AudioTagger.load(_saved(tmp_path, **changes))


def test_an_hour_is_tagged(tmp_path: Path) -> None:
    tagger = make(seconds=60.0, long="middle")
    found = tagger.tag(long_wav(tmp_path / "hour.wav", 1.0))
    assert found.seconds == 3600
    assert found.notes == ("it is silent",)


@pytest.mark.slow
def test_three_hours_are_tagged_in_the_memory_of_a_few_windows(tmp_path: Path) -> None:
    path = long_wav(tmp_path / "long.wav", 3.0)
    tagger = make(seconds=10.0, depth=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timeline = tagger.timeline(path, every=10.0)
    assert len(timeline) == 1080
    assert timeline.seconds == 3 * 3600
    # The whole would be 700 MB of samples (ru_maxrss is in KiB).
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


@pytest.mark.slow
def test_the_ten_thousandth_live_piece_costs_what_the_first_did() -> None:
    live, piece, seconds = make("aum_nano_causal", depth=1).stream(RATE), noise(0.1), []
    for _ in range(10_000):
        start = time.perf_counter()
        live.feed(piece)
        seconds.append(time.perf_counter() - start)
    # The quickest of many is what the work takes; the others waited for the machine.
    assert min(seconds[-500:]) < 1.5 * min(seconds[:500])
