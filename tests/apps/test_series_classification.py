"""Series of any length, packed into a row: none sees another, and classes are learned."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_apps.errors import UserError
from mamba_apps.series_classification import SeriesClassifier, SeriesNetwork
from mamba_apps.series_classification import classifier as classification
from mamba_apps.series_classification.network import pack
from mamba_datasets.errors import DataError
from mamba_datasets.series.cases import read_labelled
from mamba_datasets.series.ts_format import LabelledSeries, read_ts

MIXERS = [("mamba1", {"d_state": 4}), ("mamba2", {"d_state": 4, "headdim": 8}), ("attention", {})]
SMALL = {"d_model": 8, "layers": 1}


def tones(cases: int = 60, seed: int = 0) -> LabelledSeries:
    """Return noisy waves of 5 to 20 steps, whose third variate lies a little lower or higher by class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, cases)
    series = []
    for label in labels:
        angle_T = rng.uniform(0, 6) + 0.7 * np.arange(rng.integers(5, 21))
        waves_TC = np.stack([np.sin(angle_T), np.cos(angle_T), 0 * angle_T + 0.2 * label], axis=1)
        series.append((10 + waves_TC + rng.normal(0, 0.1, waves_TC.shape)).astype(np.float32))
    return LabelledSeries("tones", tuple(series), labels, ("low", "high"))


@pytest.mark.parametrize(("mixer", "options"), MIXERS)
def test_a_series_alone_is_what_it_is_in_a_pack(mixer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = SeriesNetwork(3, 4, mixer=mixer, mixer_options=options, d_model=16).eval()
    series = tones(5).series
    together = network(*pack(series))
    alone = torch.cat([network(*pack([one])) for one in series])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    back = network(*pack(series[::-1])).flip(0)
    torch.testing.assert_close(back, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mixer", "options"), MIXERS)
def test_both_directions_reach_every_parameter(mixer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = SeriesNetwork(3, 4, mixer=mixer, mixer_options=options, d_model=16)
    network(*pack(tones(5).series)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("mixer", ["mamba1", "attention"])
def test_it_learns(mixer: str) -> None:
    small = {"options": {"d_model": 16, "layers": 1}, "epochs": 10, "lr": 1e-2}
    classifier = SeriesClassifier(mixer, **small).fit(tones())
    assert classifier.score(tones(seed=1)) > 0.9
    proba = classifier.predict_proba(tones(5, seed=1).series)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert set(classifier.predict(tones(seed=1).series)) == {"low", "high"}
    again = SeriesClassifier(mixer, **small).fit(tones())
    np.testing.assert_array_equal(again.predict_proba(tones(5, seed=1).series), proba)


def test_a_variate_that_never_changed_has_scale_1() -> None:
    known = tones(8)
    flat = [np.concatenate([one, np.full((len(one), 1), 0.1, dtype=np.float32)], axis=1) for one in known.series]
    classifier = SeriesClassifier(options=SMALL, epochs=1).fit(
        LabelledSeries("flat", tuple(flat), known.labels, known.classes)
    )
    moved = [one + np.float32(1e-3) * (np.arange(4) == 3) for one in flat]
    np.testing.assert_allclose(classifier.predict_proba(moved), classifier.predict_proba(flat), atol=0.01)


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(UserError, match="was not fitted"):
        SeriesClassifier().predict([np.zeros((4, 3))])
    classifier = SeriesClassifier(options={"d_model": 8, "layers": 1}, epochs=1).fit(tones(8))
    for wrong in (np.zeros((4, 2)), np.zeros((0, 3)), np.zeros(3)):
        with pytest.raises(UserError, match=r"give \(steps, 3\)"):
            classifier.predict([np.zeros((4, 3)), wrong])
    with pytest.raises(UserError, match="series 1 has values that are not finite"):
        classifier.predict([np.zeros((4, 3)), np.full((4, 3), np.nan)])
    assert classifier.predict([]) == []
    for known, says in (
        (pd.DataFrame({"a": [1.0]}), "read_labelled"),
        (dataclasses.replace(tones(4), classes=("low",)), "at least two"),
    ):
        with pytest.raises(UserError, match=says):
            SeriesClassifier().fit(known)
    for option in (
        {"epochs": 0},
        {"epochs": 1.5},
        {"lr": 0.0},
        {"batch_size": 0},
        {"noise": -1.0},
        {"mixer": "mamba9"},
        {"options": {"d_modle": 8}},
    ):
        with pytest.raises(UserError):
            SeriesClassifier(**option)
    for option in ({"layers": 0}, {"dropout": 1.0}, {"classes": 0}):
        with pytest.raises(UserError):
            SeriesNetwork(**{"channels": 3, "classes": 2, **option})


def test_long_series_are_asked_for_in_shorter_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = SeriesClassifier(options=SMALL, epochs=1).fit(tones(8))
    asked, rows = tones(12).series, []
    whole = classifier.predict_proba(asked)
    monkeypatch.setattr(classification, "_ROW", 20)
    monkeypatch.setattr(classification, "pack", lambda part: (rows.append(sum(map(len, part))), pack(part))[1])
    np.testing.assert_allclose(classifier.predict_proba(asked), whole, rtol=1e-4)
    assert sum(rows) == sum(map(len, asked))
    assert max(rows) <= 20


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    classifier = SeriesClassifier("mamba2", options=SMALL, epochs=1).fit(tones(8))
    loaded = SeriesClassifier.load(classifier.save(tmp_path / "run" / "model"))
    asked = tones(5, seed=1)
    np.testing.assert_array_equal(loaded.predict_proba(asked.series), classifier.predict_proba(asked.series))
    assert (loaded.classes, loaded.variates, loaded.epochs) == (("low", "high"), (), 1)
    assert SeriesClassifier.load(tmp_path / "run").score(asked) == classifier.score(asked)


def test_folders_that_hold_no_series_classifier(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not fitted"):
        SeriesClassifier().save(tmp_path)
    folder = SeriesClassifier(options=SMALL, epochs=1).fit(tones(8)).save(tmp_path / "model")
    card = folder / "model.json"
    text = card.read_text()
    other = json.loads(text)
    other["preprocessing"]["format_version"] = 7
    for written, says in (
        (json.dumps(other), "format 7, this mamba-apps reads format 1"),
        (text.replace('"series"', '"image"', 1), "classification of image"),
        (text.replace('"channels": 3', '"channels": 4'), "do not fit together"),
        (text.replace('"mamba1"', '"mamba9"'), "do not fit together"),
    ):
        card.write_text(written)
        with pytest.raises(UserError, match=says) as caught:
            SeriesClassifier.load(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no saved model"):
        SeriesClassifier.load(tmp_path / "none")


def test_a_table_to_learn_from(tmp_path: Path) -> None:
    frame = pd.concat(
        pd.DataFrame({"unique_id": number, "ds": range(len(one)), "class": name, "a": one[:, 0], "b": one[:, 2]})
        for number, (one, name) in enumerate(zip(tones(6).series, "xyxyxy", strict=True))
    )
    path = tmp_path / "tones.csv"
    frame.to_csv(path, index=False)
    found = read_labelled(path, label_col="class")
    assert (found.classes, found.variates, found.labels.tolist()) == (("x", "y"), ("a", "b"), [0, 1] * 3)
    np.testing.assert_allclose(found.series[1], tones(6).series[1][:, [0, 2]])
    assert read_labelled(frame, label_col="class", variates=["b"]).channels == 1
    for wrong, says in (
        (frame.drop(columns="class"), "no column 'class'"),
        (frame.drop(columns="unique_id"), "no column 'unique_id'"),
        (frame.assign(**{"class": ["x", *frame["class"][1:-1], "z"]}), "one class was expected"),
        (frame.assign(**{"class": None}), "a class was expected"),
        (frame.assign(a=np.nan), "finite number"),
        (frame.iloc[::-1], "time order"),
        (frame[["unique_id", "class"]], "columns of variates"),
    ):
        with pytest.raises(DataError, match=says):
            read_labelled(wrong, label_col="class")


@pytest.mark.gpu
@pytest.mark.parametrize(("mixer", "options"), MIXERS)
def test_it_learns_on_a_gpu_and_says_the_same_on_a_cpu(mixer: str, options: dict[str, Any], tmp_path: Path) -> None:
    small = {"d_model": 16, "layers": 1, "mixer_options": options}
    classifier = SeriesClassifier(mixer, options=small, epochs=10, lr=1e-2, accelerator="gpu").fit(tones())
    asked = tones(seed=1)
    assert classifier.score(asked) > 0.9
    loaded = SeriesClassifier.load(classifier.save(tmp_path / "model"), accelerator="cpu")
    probabilities = classifier.predict_proba(asked.series)
    np.testing.assert_allclose(loaded.predict_proba(asked.series), probabilities, rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mamba1", "attention"])
def test_japanese_vowels(mixer: str) -> None:
    folder = Path(os.environ.get("MAMBA_APPS_DATA", "")) / "JapaneseVowels"
    if not (folder / "JapaneseVowels_TRAIN.ts").is_file():
        pytest.skip("JapaneseVowels is not in the folder that MAMBA_APPS_DATA names")
    known, asked = (read_ts(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    assert SeriesClassifier(mixer).fit(known).score(asked) >= 0.97
