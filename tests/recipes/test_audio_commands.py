"""`mamba-apps` on sound: the recipe of the sample from training to labels, timelines, embeddings, a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image
from safetensors import safe_open

from mamba_apps.audio.tagging import AudioTagger
from mamba_apps.errors import UserError
from mamba_datasets.samples.sounds import SOUNDS, make_sound, write_sounds
from mamba_recipes.cli import main
from mamba_recipes.cli.classify_sounds import seconds_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two epochs, which is enough to be saved."""
    run = tmp_path_factory.mktemp("runs") / "sounds"
    assert main(["fit", "sounds", "--trainer.max_epochs", "2", "--out", str(run)]) == 0
    return run


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    for number, name in enumerate(("noise", "tone")):
        soundfile.write(tmp_path / f"{number}.wav", make_sound(name, 100 + number), 16000)
    return tmp_path


def test_one_sound(trained: Path, sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wave = make_sound("tone", 7)
    soundfile.write(sounds / "stereo.flac", np.stack([wave, wave], axis=1), 8000)
    assert main(["classify", str(sounds / "stereo.flac"), "--model", str(trained)]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line.split()[0] == str(sounds / "stereo.flac")
    assert len(line.split()) == 7
    header, *notes = captured.err.splitlines()
    assert header.startswith(f"classify {sounds / 'stereo.flac'} · aum_nano_bibi · 180.7k parameters · 4 classes")
    assert notes[:2] == [
        "the mean of 2 channels",
        "resampled from 8000 Hz to 16000 Hz, and has nothing above 4 kHz",
    ]


def test_a_folder_as_json(trained: Path, sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(sounds), "--model", str(trained / "model"), "--top", "2", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [sound["sound"] for sound in document["sounds"]] == [str(sounds / f"{n}.wav") for n in (0, 1)]
    assert [len(sound["classes"]) for sound in document["sounds"]] == [2, 2]
    assert "followed by silence up to the 0.5 s that the model hears (2 sounds, the first " in captured.err


def test_data_without_a_test_part_have_no_test(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sounds("own")
    shutil.rmtree("own/test")
    assert main(["test", str(trained), "--data.root", "own", "--page", "page.html"]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == (
        "mamba-apps: error: sounds: its data has no test part to test; name a folder of it (--data.test NAME), or hold "
        "one back before training (--data.test 0.1)"
    )
    assert captured.out == ""
    assert not Path("page.html").exists()
    assert main(["predict", str(trained), "--data.root", "own"]) == 2
    assert "there is nothing to predict: the data has no test part" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("predictions.safetensors").exists()


def test_a_timeline_and_its_picture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("long.wav", np.concatenate([make_sound(name, 5) for name in SOUNDS] * 4), 16000)
    assert main(["classify", "long.wav", "--every", "1s", "--model", str(trained)]) == 0
    assert capsys.readouterr().out.split() == ["long_timeline.csv", "long_timeline.png"]
    table = pd.read_csv("long_timeline.csv")
    assert list(table.columns) == ["start_s", "end_s", "top", "top_probability", *SOUNDS]
    assert table["start_s"].tolist() == list(range(len(table)))
    with Image.open("long_timeline.png") as picture:
        assert picture.width > 800
    words = ["--every", "500ms", "--out", "out/x.csv", "--json", "--model", str(trained)]
    assert main(["classify", "long.wav", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["picture"] == "out/x.png"
    assert len(document["rows"]) == len(pd.read_csv("out/x.csv")) in (2 * len(table), 2 * len(table) - 1)


def test_embeddings_to_a_file(trained: Path, sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sounds / "seen.npz"
    assert main(["classify", str(sounds), "--embeddings", str(out), "--model", str(trained)]) == 0
    assert capsys.readouterr().out == f"{out}: 2 x 64\n"
    with np.load(out, allow_pickle=False) as found:
        assert found["paths"].tolist() == [str(sounds / f"{n}.wav") for n in (0, 1)]
        assert found["embeddings"].shape == (2, 64)


def test_bad_sounds_are_all_named_and_nothing_is_printed(
    trained: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sounds / "2.wav").write_text("hello, I am text", encoding="utf-8")
    soundfile.write(sounds / "3.wav", np.array([np.nan] * 8000), 16000, subtype="FLOAT")
    whole = (sounds / "0.wav").read_bytes()
    (sounds / "0.wav").write_bytes(whole[:1000])
    assert main(["classify", str(sounds), "--model", str(trained)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    _, *errors = captured.err.splitlines()
    assert [line.split(": ")[2] for line in errors] == [str(sounds / f"{n}.wav") for n in (0, 2, 3)]
    for line, says in zip(errors, ("is truncated", "is no sound", "found nan"), strict=True):
        assert line.startswith("mamba-apps: error: ")
        assert says in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no.wav"], "no.wav: file: no such file"),
        (["EMPTY"], "holds no sounds"),
        (["EMPTY", "--every", "1s"], "is a folder, and a timeline is of one sound"),
        (["no.wav", "--every", "soon"], "--every 'soon' is not understood"),
        (["no.wav", "--out", "x.csv"], "--out names a timeline"),
        (["no.wav", "--every", "1s", "--out", "x.txt"], "a timeline is written as CSV"),
        (["EMPTY", "--embeddings", "x.csv"], "they are written as NPZ"),
        (["EMPTY", "--embeddings", "x.npz", "--every", "1s"], "give one of them"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str],
    says: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    named = {"EMPTY": str(tmp_path / "empty")}
    assert main(["classify", *(named.get(word, word) for word in words), "--model", str(trained)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("0.5", 0.5), ("250ms", 0.25), ("2min", 120), ("1 h", 3600)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0s", "-1s", "1 day", "s", "nan"])
def test_times_that_mean_nothing(text: str) -> None:
    with pytest.raises(UserError, match="is not understood"):
        seconds_of(text)


def test_a_page_on_the_test(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["test", str(trained), "--page", str(page)]) == 0
    assert "test/accuracy" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 12
    assert 'class="matrix"' in text


def test_predictions_name_their_sounds_and_classes(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.safetensors"
    assert main(["predict", str(trained), "--out", str(out)]) == 0
    with safe_open(out, "pt") as file:
        names, classes = (json.loads(file.metadata()[key]) for key in ("names", "classes"))
        probability_NK, target_N = file.get_tensor("probability"), file.get_tensor("class")
    assert probability_NK.shape == (len(names), len(classes))
    assert [Path(name).parent.name for name in names] == [classes[number] for number in target_N]
    found = AudioTagger.load(trained, device="cpu").tag_files(names[:2])
    for tags, expected_K in zip(found, probability_NK, strict=False):
        assert tags.probabilities[0] == pytest.approx(float(expected_K.max()), abs=1e-4)


def test_a_run_that_could_not_be_kept_is_refused_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert main(["fit", "sounds", "--out", "taken/run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write to the run folder taken/run: Not a directory" in line
    assert main(["fit", "sounds", "--data.root", "none", "--out", "a/run"]) == 2
    assert list(tmp_path.iterdir()) == [Path("taken").resolve()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["precision", "17-true"], "these trainer options do not work: Precision '17-true' is invalid"),
        (["accelerator", "abacus"], "these trainer options do not work: You selected an invalid accelerator name"),
        (["accelerator", "tpu"], "these trainer options do not work: "),
        (["devices", "99"], "99 devices were asked of a CPU"),
        (["strategy", "dpd"], "unknown strategy 'dpd'"),
        (["max_epochs", "0"], "max_epochs is 0"),
    ],
)
def test_what_no_trainer_takes_is_refused_before_data_are_read(
    words: list[str],
    says: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    option, value = words
    monkeypatch.setattr("mamba_apps.audio.tagging.AudioData.parts", property(lambda _: pytest.fail("data were read")))
    for command in (["fit", "sounds"], ["test", str(trained)]):
        assert main([*command, f"--trainer.{option}", value]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_the_model_does_not_compute_in(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    says = "mamba-apps: error: this model does not compute in bf16-true; use bf16-mixed or 32-true"
    for command in (["fit", "sounds"], ["test", str(trained)]):
        assert main([*command, "--trainer.precision", "bf16-true"]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == says
    assert list(Path("runs").iterdir()) == []


def test_a_page_and_predictions_have_their_endings(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["test", "--page", "new/page.txt"], ["predict", "--out", "new/seen.npz"]):
        command, option, name = words
        assert main([command, str(trained), option, str(tmp_path / name)]) == 2
        assert "it is written as " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_of_a_folder_names_the_sound(
    trained: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(sounds / "2.flac", make_sound("tone", 7), 8000)
    soundfile.write(sounds / "3.aiff", make_sound("tone", 7), 16000)
    assert main(["classify", str(sounds), "--model", str(trained)]) == 0
    lines = capsys.readouterr().err.splitlines()[1:]
    assert (
        lines[0]
        == f"not heard, as they end in none of .wav .flac .ogg .oga .opus .mp3: 1, the first {sounds / '3.aiff'}"
    )
    assert f"{sounds / '2.flac'}: resampled from 8000 Hz to 16000 Hz, and has nothing above 4 kHz" in lines


@pytest.mark.slow
def test_the_sample_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "sounds", "--out", "run"]) == 0
    assert main(["test", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["test/accuracy"] > 95
    for name in SOUNDS:
        soundfile.write("clip.wav", make_sound(name, 1000), 16000)
        assert main(["classify", "clip.wav", "--model", "run"]) == 0
        assert capsys.readouterr().out.startswith(f"clip.wav  {name} ")
