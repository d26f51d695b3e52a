"""Intervals corrected by the latest forecasts: by those alone, the same everywhere, and towards what is nominal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_apps import Forecaster
from mamba_apps.errors import UserError
from mamba_apps.forecasting import forecast_scores
from mamba_apps.forecasting.recent import corrected

LEVELS = (50, 80)


def weeks(count: int = 40, calm: int = 12, names: str = "ab", seed: int = 0) -> pd.DataFrame:
    """Return days whose noise is a third in the last weeks."""
    rng = np.random.default_rng(seed)
    parts = []
    for name in names:
        day = np.arange(7 * count)
        noise = rng.normal(0, 1, len(day)) * np.where(day < 7 * (count - calm), 1.0, 1 / 3)
        ds = pd.date_range("2023-01-01", periods=len(day), freq="D")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": 10 + np.sin(2 * np.pi * day / 7) + noise}))
    return pd.concat(parts, ignore_index=True)


def make(**options: Any) -> Forecaster:
    plain = {"horizon": 7, "freq": "D", "levels": LEVELS, "val_steps": 70, "accelerator": "cpu", "progress": False}
    return Forecaster("seasonal_naive", **{**plain, **options})


def bounds(frame: pd.DataFrame) -> np.ndarray:
    return frame[[f"seasonal_naive-{side}-{level}" for level in LEVELS for side in ("lo", "hi")]].to_numpy()


def test_an_interval_holds_the_forecast_and_the_narrower_ones() -> None:
    values_WHV = np.array([[[5.0, 4.0, 6.0, 3.0, 7.0]]])
    for offsets, expected in (
        ([0.5, 0.5], [5, 3.5, 6.5, 2.5, 7.5]),
        ([-3.0, -0.5], [5, 5, 5, 3.5, 6.5]),
        ([2.0, -1.0], [5, 2, 8, 2, 8]),
    ):
        np.testing.assert_allclose(corrected(values_WHV, np.array([offsets]))[0, 0], expected)


def test_the_correction_is_the_quantile_of_the_forecasts_just_before() -> None:
    frame = weeks()
    plain, moved = make().fit(frame), make(calibration=28).fit(frame)
    found = moved.predict()
    for name in "ab":
        own = frame[frame["unique_id"] == name]
        beyond = []
        for steps in (7, 14, 21, 28):
            before = plain.predict(df=own.iloc[:-steps])
            y = own["y"].to_numpy()[len(own) - steps :][:7, None]
            low, high = bounds(before)[:, 0::2], bounds(before)[:, 1::2]
            beyond.append(np.maximum(low - y, y - high))
        ranks = [np.ceil(29 * level / 100).astype(int) - 1 for level in LEVELS]
        offsets = np.array([np.sort(np.concatenate(beyond)[:, place])[rank] for place, rank in enumerate(ranks)])
        assert (offsets != 0).all()
        expected = bounds(plain.predict(df=own)) + np.repeat(offsets, 2) * np.tile([-1.0, 1.0], len(LEVELS))
        np.testing.assert_allclose(bounds(found[found["unique_id"] == name]), expected, rtol=1e-6)


def test_a_cut_is_corrected_by_what_lies_before_it() -> None:
    frame = weeks()
    found = make(calibration=28).cross_validation(frame, n_windows=6, step_size=3)
    cut = found["cutoff"].unique()[2]
    later = frame.assign(y=frame["y"].where(frame["ds"] <= cut, 1e3))
    again = make(calibration=28).cross_validation(later, n_windows=6, step_size=3)
    upto = found["cutoff"] <= cut
    pd.testing.assert_frame_equal(found[upto].drop(columns="y"), again[upto].drop(columns="y"))
    assert not np.allclose(bounds(found[~upto]), bounds(again[~upto]))


def test_intervals_follow_weeks_that_grow_calm() -> None:
    frame = weeks(60, calm=14, names="abcdef")
    off = []
    for calibration in (0, 42):
        found = make(calibration=calibration, val_steps=84).cross_validation(frame, n_windows=6)
        cover = forecast_scores(found, "seasonal_naive", levels=LEVELS).iloc[0]
        off.append([abs(100 * cover[f"cover-{level}"] - level) for level in LEVELS])
    assert min(off[0]) > 15
    assert max(off[1]) < 8


def test_saved_updated_streamed_and_within_it_is_the_same(tmp_path: Path) -> None:
    frame = weeks()
    before, last = frame[frame["ds"] < "2023-09-24"], frame[frame["ds"] >= "2023-09-24"]
    forecaster = make(calibration=28).fit(before)
    expected = forecaster.predict(df=frame)
    loaded = Forecaster.load(forecaster.save(tmp_path / "saved"), accelerator="cpu", progress=False)
    assert loaded.calibration == 28
    pd.testing.assert_frame_equal(loaded.predict(), forecaster.predict())
    pd.testing.assert_frame_equal(loaded.update(last).predict(), expected)
    stream = loaded.stream("b")
    np.testing.assert_allclose(bounds(stream.forecast()), bounds(expected)[7:], rtol=1e-6)
    within = forecaster.predict_insample(before, step_size=7)
    crossed = make(calibration=28).cross_validation(before, n_windows=1)
    assert set(crossed["cutoff"]) <= set(within["cutoff"])
    first = within[within["cutoff"] == within["cutoff"].min()]
    plain = make().fit(before).predict_insample(before, step_size=7)
    np.testing.assert_allclose(bounds(first), bounds(plain[plain["cutoff"] == within["cutoff"].min()]))
    assert not np.allclose(bounds(within), bounds(plain))


def test_steps_that_nobody_observed_correct_nothing() -> None:
    frame = weeks()
    lost = frame.assign(y=frame["y"].where(frame["ds"] < "2023-09-05"))
    found = make(calibration=28, missing="mask").fit(lost).predict()
    plain = make(missing="mask").fit(lost).predict()
    np.testing.assert_allclose(bounds(found), bounds(plain))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": (), "calibration": 28}, "no intervals"),
        ({"calibration": 5}, "at least 7"),
        ({"levels": (95,), "calibration": 14}, "at least 21"),
        ({"calibration": -7}, "at least 7"),
        ({"calibration": 7.5}, "whole number"),
        ({"calibration": 77}, "70 steps are held back"),
    ],
)
def test_what_cannot_correct_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(**options).fit(weeks())
