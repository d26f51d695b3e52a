"""A series that is followed: what the stream forecasts is what `predict` forecasts, at constant cost."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_apps import Forecaster
from mamba_apps.errors import UserError
from mamba_apps.forecasting.baselines import BASELINES
from mamba_apps.forecasting.models import names
from mamba_datasets.errors import DataError

SMALL: dict[str, dict[str, Any]] = {
    "patch": {"d_model": 16, "layers": 1, "decoder": 8},
    "smamba": {"d_model": 16, "d_state": 2, "layers": 1},
    "itransformer": {"d_model": 16, "heads": 2, "layers": 1},
    "patchtst": {"d_model": 16, "heads": 2, "layers": 1},
    "timemachine": {"n1": 16, "n2": 8, "d_state": 2},
    "mambasimple": {"d_model": 16, "d_state": 2, "layers": 1},
}

RECURRENT = {"anchor"}


def series(steps: int = 130, freq: str = "D", zone: str | None = None, ids: tuple[str, ...] = ("a",)) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    parts = []
    for number, name in enumerate(ids):
        step = np.arange(steps)
        frame = pd.DataFrame({"unique_id": name, "ds": pd.date_range("2021-02-01", periods=steps, freq=freq, tz=zone)})
        frame["y"] = 10.0 * (number + 1) + 3 * np.sin(2 * np.pi * step / 7) + rng.normal(0, 0.2, steps)
        frame["promo"] = (rng.random(steps) > 0.7).astype(float)
        frame["rain"] = rng.normal(5, 2, steps)
        frame["sky"] = rng.choice(["sun", "cloud"], steps)
        frame["kind"] = "big" if number else "small"
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def make(model: str = "ridge", **options: Any) -> Forecaster:
    given: dict[str, Any] = {
        "horizon": 7, "freq": "D", "lookback": 28, "max_steps": 5, "accelerator": "cpu", "progress": False,
        "model_options": SMALL.get(model, {}), "levels": [80],
    }  # fmt: skip
    return Forecaster(model, **{**given, **options})


def same(got: pd.DataFrame, expected: pd.DataFrame) -> None:
    expected = expected.reset_index(drop=True)
    assert list(got.columns) == list(expected.columns)
    assert (got["ds"] == expected["ds"]).all()
    np.testing.assert_allclose(got.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [*names(), *BASELINES])
def test_every_model_streams_what_it_predicts(model: str) -> None:
    frame = series()
    known, new = frame[:110], frame[110:]
    forecaster = make(model).fit(known)
    stream = forecaster.stream()
    same(stream.forecast(), forecaster.predict())
    for count, row in enumerate(new.itertuples(), start=1):
        stream.observe(row.y, row.ds)
        if count in (1, 3, len(new)) and model not in RECURRENT:
            same(stream.forecast(), forecaster.predict(df=frame[: 110 + count]))
    if model in RECURRENT:
        # Its state goes further back than a lookback, and what that changes is little.
        close = forecaster.predict(df=frame)[model]
        np.testing.assert_allclose(stream.forecast()[model], close, atol=0.5)
    same(forecaster.stream().forecast(), forecaster.predict())  # the forecaster itself has not moved


@pytest.mark.parametrize(("freq", "zone"), [("D", "Europe/Berlin"), ("h", "Europe/Berlin"), ("W-SUN", None)])
def test_covariates_calendar_and_clock_changes(freq: str, zone: str | None) -> None:
    frame = series(1400 if freq == "h" else 130, freq, zone, ids=("a", "b"))
    roles: dict[str, Any] = {"past": ["rain", "sky"], "future": ["promo"], "static": ["kind"]}
    left = frame.groupby("unique_id").cumcount(ascending=False)
    known, new = frame[left >= 60], frame[(left < 60) & (frame.unique_id == "b")]
    forecaster = make("patch", freq=freq, holidays=None if freq == "W-SUN" else "US", **roles).fit(known)

    def at_end(name: str) -> pd.DataFrame:
        ends = [frame[frame.unique_id == one].iloc[-60:-53].assign(promo=0.0) for one in ("a", "b")]
        found = forecaster.predict(pd.concat(ends)[["unique_id", "ds", "promo"]])
        return found[found.unique_id == name]

    same(forecaster.stream("a").forecast({"promo": [0.0] * 7}), at_end("a"))
    stream = forecaster.stream("b")
    same(stream.forecast({"promo": [0.0] * 7}), at_end("b"))
    for row in new.iloc[:50].itertuples():
        stream.observe(row.y, promo=row.promo, rain=row.rain, sky=row.sky)
    assert stream.next == new["ds"].iloc[50]
    ahead = new.iloc[50:57]
    past = pd.concat([known[known.unique_id == "b"], new.iloc[:50]])
    expected = forecaster.predict(ahead[["unique_id", "ds", "promo"]], df=past)
    same(stream.forecast(ahead), expected)
    same(stream.forecast({"promo": ahead["promo"].tolist()}), expected)


def test_whole_number_steps() -> None:
    frame = pd.DataFrame({"ds": range(0, 200, 2), "y": np.arange(100.0) % 4})
    forecaster = make(freq=2, lookback=8, levels=[]).fit(frame)
    stream = forecaster.stream().observe(0.0, 200).observe(1.0)
    assert stream.next == 204
    assert stream.forecast()["ds"].tolist() == list(range(204, 218, 2))
    np.testing.assert_allclose(stream.forecast()["ridge"], [2, 3, 0, 1, 2, 3, 0], atol=0.05)


@pytest.mark.parametrize("missing", ["mask", "seasonal"])
def test_steps_that_were_not_observed(missing: str) -> None:
    frame = series()
    gaps = frame.drop(index=[112, 113, 118]).assign(y=lambda f: f["y"].where(f.index != 120))
    forecaster = make("patch", missing=missing).fit(frame[:110])
    stream = forecaster.stream()
    for row in gaps[gaps.index >= 110].itertuples():
        stream.observe(row.y, row.ds)
    same(stream.forecast(), forecaster.predict(df=gaps))


def test_observations_that_cannot_be_used_leave_the_stream_as_it_was() -> None:
    frame = series()
    roles: dict[str, Any] = {"past": ["sky"], "future": ["promo"]}
    forecaster = make(**roles).fit(frame)
    stream = forecaster.stream()
    future = {"promo": [0.0] * 7}
    before = stream.forecast(future)
    good = {"promo": 1.0, "sky": "sun"}
    for call, says in (
        (lambda: stream.observe(None, **good), "there is no target"),
        (lambda: stream.observe(float("nan"), **good), "there is no target"),
        (lambda: stream.observe(float("inf"), **good), "infinite"),
        (lambda: stream.observe("1.0", **good), "found '1.0'"),
        (lambda: stream.observe(1.0, "2021-06-13", **good), "2 steps are missing"),
        (lambda: stream.observe(1.0, "2021-06-01", **good), "from 2021-06-11 00:00:00 on"),
        (lambda: stream.observe(1.0, "2021-06-11 07:00", **good), "from 2021-06-11 00:00:00 on"),
        (lambda: stream.observe(1.0, 7, **good), "a timestamp was expected"),
        (lambda: stream.observe(1.0, promo=1.0, sky="hail"), "'hail'"),
        (lambda: stream.observe(1.0, promo=1.0), "found None"),
        (lambda: stream.observe(1.0, promo="yes", sky="sun"), "found 'yes'"),
        (lambda: stream.observe(1.0, **good, wind=3.0), "'wind'"),
        (lambda: stream.forecast(), "7 values of 'promo'"),
        (lambda: stream.forecast({"promo": [1.0]}), "found 1"),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert says in str(caught.value)
        assert caught.value.remedy
        pd.testing.assert_frame_equal(stream.forecast(future), before)


def test_which_series_is_said() -> None:
    forecaster = make().fit(series(ids=("a", "b")))
    with pytest.raises(UserError, match="2 series"):
        forecaster.stream()
    with pytest.raises(DataError, match="'c'"):
        forecaster.stream("c")
    assert forecaster.stream("b").id == "b"
    with pytest.raises(UserError, match="not fitted"):
        make().stream()


def test_an_observation_costs_the_same_after_many() -> None:
    stream = make("dlinear").fit(series()).stream()

    def fastest(count: int) -> float:
        laps = []
        for _ in range(count):
            begin = time.perf_counter()
            stream.observe(1.0)
            laps.append(time.perf_counter() - begin)
        return min(laps)

    early = fastest(100)
    for _ in range(1500):
        stream.observe(1.0)
    assert fastest(100) < 3 * early
    assert stream._state.past_y_BL1.shape == (1, 28, 1)
    assert len(stream._y) == 7
