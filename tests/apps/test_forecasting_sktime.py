"""The forecasters behind sktime's interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sktime", reason="needs the extra compare")

from mamba_apps import Forecaster
from mamba_apps.forecasting.sktime_adapter import MambaForecaster

# What other libraries' own deprecations say is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:sktime", "ignore::UserWarning:sktime")
RIDGE: dict[str, Any] = {"model": "ridge", "lookback": 14, "accelerator": "cpu"}


def weekly(steps: int = 120, level: float = 10.0) -> np.ndarray:
    rng = np.random.default_rng(int(level))
    return level + 3 * np.sin(2 * np.pi * np.arange(steps) / 7) + rng.normal(0, 0.1, steps)


INDEXES = {
    "days": pd.date_range("2024-01-01", periods=120, freq="D"),
    "periods": pd.period_range("2024-01", periods=120, freq="M"),
    "counted": pd.RangeIndex(120),
    "counted from elsewhere": pd.Index(np.arange(100, 220)),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_series_of_any_index(name: str) -> None:
    index = INDEXES[name]
    y = pd.Series(weekly(), index=index, name="sales")
    steps = [1, 3, 7]
    forecaster = MambaForecaster(**RIDGE).fit(y[:-7], fh=steps)
    got = forecaster.predict()
    assert got.name == "sales"
    expected = y.iloc[[-7, -5, -1]]
    assert (got.index == expected.index).all()
    np.testing.assert_allclose(got, expected, atol=0.6)


def test_it_forecasts_what_the_forecaster_does() -> None:
    y = pd.Series(weekly(), index=INDEXES["days"])
    got = MambaForecaster(**RIDGE).fit(y, fh=range(1, 8)).predict()
    own = Forecaster(
        "ridge", horizon=7, freq="D", lookback=14, missing="mask", short="pad", accelerator="cpu", progress=False
    )
    frame = pd.DataFrame({"unique_id": "series", "ds": y.index, "y": y.to_numpy()})
    np.testing.assert_allclose(got, own.fit(frame).predict()["ridge"], rtol=1e-6)


def test_intervals_of_any_coverage() -> None:
    y = pd.Series(weekly(), index=INDEXES["days"])
    forecaster = MambaForecaster(**RIDGE).fit(y, fh=[1, 2])
    found = forecaster.predict_interval(coverage=[0.5, 0.9])
    low50, high50, low90, high90 = found.to_numpy().T
    point = forecaster.predict().to_numpy()
    assert (low90 < low50).all()
    assert (high50 < high90).all()
    np.testing.assert_allclose((low90 + high90) / 2, point, rtol=1e-6)
    quantiles = forecaster.predict_quantiles(alpha=[0.05, 0.5, 0.95]).to_numpy().T
    np.testing.assert_allclose(quantiles, [low90, point, high90], rtol=1e-6)


def test_what_is_known_ahead_counts() -> None:
    index = pd.date_range("2023-01-01", periods=400, freq="D")
    promo = pd.DataFrame({"promo": np.random.default_rng(0).random(400).round()}, index=index)
    y = pd.Series(weekly(400) + 5 * promo["promo"].to_numpy(), index=index)
    forecaster = MambaForecaster(**RIDGE, calendar=False).fit(y[:-7], X=promo[:-7], fh=range(1, 8))
    with_promo = forecaster.predict(X=promo[-7:].assign(promo=1.0))
    without = forecaster.predict(X=promo[-7:].assign(promo=0.0))
    np.testing.assert_allclose(with_promo - without, 5, atol=1.5)


def test_a_panel_is_learned_as_a_whole() -> None:
    levels = {"a": 10.0, "b": 20.0, "c": 30.0}
    parts = {name: pd.Series(weekly(level=level), index=INDEXES["days"]) for name, level in levels.items()}
    y = pd.concat(parts, names=["shop", "day"]).to_frame("sales")
    got = MambaForecaster(**RIDGE).fit(y, fh=[1, 2]).predict()
    assert got.index.names == ["shop", "day"]
    assert got.groupby("shop")["sales"].mean().round(-1).to_dict() == levels


def test_update_goes_on_from_new_observations() -> None:
    y = pd.Series(weekly(), index=INDEXES["days"])
    forecaster = MambaForecaster(**RIDGE).fit(y[:-14], fh=[1])
    learned = forecaster.forecaster_
    forecaster.update(y[-14:], update_params=False)
    assert forecaster.forecaster_ is learned
    assert forecaster.predict().index[0] == pd.Timestamp("2024-04-30")
    expected = MambaForecaster(**RIDGE).fit(y[:-14], fh=[1]).forecaster_
    past = pd.DataFrame({"unique_id": "series", "ds": y.index, "y": y.to_numpy()})
    np.testing.assert_allclose(forecaster.predict().iloc[0], expected.predict(df=past)["forecast"][0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")  # sktime's checks provoke warnings of sktime, pandas and Lightning on purpose
def test_sktime_own_checks() -> None:
    from sktime.utils.estimator_checks import check_estimator

    check_estimator(MambaForecaster, raise_exceptions=True, verbose=False)
