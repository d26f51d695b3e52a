"""The Forecaster: fit, predict, save, load."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_apps import Forecaster
from mamba_apps.errors import UserError
from mamba_apps.forecasting import ForecastTask, SeriesData
from mamba_apps.forecasting.baselines import BASELINES
from mamba_apps.forecasting.defaults import default_lookback, default_options, default_val_steps
from mamba_apps.forecasting.history import from_history_state, history_state
from mamba_apps.forecasting.losses import point_forecast
from mamba_apps.forecasting.models import names
from mamba_apps.training import make_trainer, save_model
from mamba_datasets.errors import DataError
from mamba_datasets.series import WindowDataset, read_series

SMALL: dict[str, dict[str, Any]] = {
    "patch": {"d_model": 16, "layers": 1, "decoder": 8},
    "smamba": {"d_model": 16, "d_state": 2, "layers": 1},
    "itransformer": {"d_model": 16, "heads": 2, "layers": 1},
    "patchtst": {"d_model": 16, "heads": 2, "layers": 1},
    "timemachine": {"n1": 16, "n2": 8, "d_state": 2},
    "mambasimple": {"d_model": 16, "d_state": 2, "layers": 1},
}


def daily(lengths: tuple[int, ...] = (150,), covariates: bool = False, start: str = "2021-01-01") -> pd.DataFrame:
    """A weekly wave a series, its level 10 times its number; with promotions that add 5 and a shop size."""
    rng = np.random.default_rng(0)
    frames = []
    for number, length in enumerate(lengths):
        step = np.arange(length)
        promo = (rng.random(length) > 0.7).astype(float)
        y = 10 * (number + 1) + 3 * np.sin(2 * np.pi * step / 7) + rng.normal(0, 0.2, length)
        frame = pd.DataFrame({"unique_id": f"s{number}", "ds": pd.date_range(start, periods=length, freq="D"), "y": y})
        if covariates:
            frame = frame.assign(y=y + 5 * promo, promo=promo, visits=rng.normal(size=length), size=float(number))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def make(model: str = "patch", **options: Any) -> Forecaster:
    defaults: dict[str, Any] = {
        "horizon": 7, "freq": "D", "max_steps": 20, "accelerator": "cpu", "progress": False,
        "model_options": SMALL.get(model, {}),
    }  # fmt: skip
    return Forecaster(model, **{**defaults, **options})


def truth(frame: pd.DataFrame) -> np.ndarray:
    days = (pd.DatetimeIndex(frame["ds"]) - pd.Timestamp("2021-01-01")).days.to_numpy()
    level = 10 * (frame["unique_id"].str[1:].astype(int).to_numpy() + 1)
    return level + 3 * np.sin(2 * np.pi * days / 7)


@pytest.mark.parametrize("model", [*names(), *BASELINES])
def test_columns_rows_and_a_way_through_a_folder(model: str, tmp_path: Path) -> None:
    frame = daily((150, 120))
    forecaster = make(model, levels=[95, 80]).fit(frame)
    got = forecaster.predict()
    assert list(got.columns) == [
        "unique_id",
        "ds",
        model,
        *(f"{model}-{s}-{v}" for v in (80, 95) for s in ("lo", "hi")),
    ]
    assert got["unique_id"].tolist() == ["s0"] * 7 + ["s1"] * 7
    for name, length in (("s0", 150), ("s1", 120)):
        expected = pd.date_range("2021-01-01", periods=length + 7, freq="D")[length:]
        assert (pd.DatetimeIndex(got.loc[got.unique_id == name, "ds"]) == expected).all()
    ordered = got[[f"{model}-lo-95", f"{model}-lo-80", model, f"{model}-hi-80", f"{model}-hi-95"]].to_numpy()
    assert (np.diff(ordered, axis=1) >= 0).all()
    assert set(forecaster.metrics) == {"val/mae", "val/rmse"}

    forecaster.save(tmp_path / "model")
    loaded = Forecaster.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.predict(), got)
    assert loaded.metrics == forecaster.metrics
    pd.testing.assert_frame_equal(loaded.predict(df=frame), got)


@pytest.mark.parametrize("model", ["patch", "dlinear"])
def test_a_tiny_series_is_forecast_sensibly(model: str) -> None:
    frame = daily((90, 70))
    got = make(model, max_steps=150, lr=1e-2).fit(frame).predict()
    assert np.abs(got[model] - truth(got)).mean() < 1.0


def test_covariates_reach_the_forecast_and_its_future_is_asked_for(tmp_path: Path) -> None:
    frame = daily((150, 120), covariates=True)
    options = {"future": ["promo"], "past": ["visits"], "static": ["size"]}
    forecaster = make(max_steps=120, lr=1e-2, **options).fit(frame)
    ahead = make("seasonal_naive").fit(frame).predict()[["unique_id", "ds"]]
    without = forecaster.predict(ahead.assign(promo=0.0))
    with_promo = forecaster.predict(ahead.assign(promo=1.0))
    assert 3 < (with_promo["patch"] - without["patch"]).mean() < 7
    with pytest.raises(DataError, match="promo"):
        forecaster.predict()
    with pytest.raises(DataError, match="a row for"):
        forecaster.predict(ahead.assign(promo=0.0).iloc[:-1])
    forecaster.save(tmp_path)
    pd.testing.assert_frame_equal(Forecaster.load(tmp_path).predict(ahead.assign(promo=1.0)), with_promo)


def test_text_covariates_come_back_after_loading(tmp_path: Path) -> None:
    frame = daily((120,)).assign(weather=lambda f: np.where(np.arange(len(f)) % 3 == 0, "rain", "sun"))
    forecaster = make(future=["weather"]).fit(frame)
    ahead = pd.DataFrame({"unique_id": "s0", "ds": pd.date_range("2021-05-01", periods=7), "weather": "rain"})
    forecaster.save(tmp_path)
    loaded = Forecaster.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.predict(ahead), forecaster.predict(ahead))
    with pytest.raises(DataError, match="snow"):
        loaded.predict(ahead.assign(weather="snow"))


def test_a_seed_decides_the_forecast() -> None:
    frame = daily()
    # After twenty steps the closed form, which nothing in is random, would forecast alone.
    options = {"model_options": {**SMALL["patch"], "closed_form": False}}
    first, same, other = (make(seed=seed, **options).fit(frame).predict() for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, same)
    assert not np.allclose(first["patch"], other["patch"])


def test_the_forecast_continues_other_data_of_the_same_series() -> None:
    frame = daily((150, 120))
    forecaster = make("seasonal_naive").fit(frame)
    shorter = frame[(frame.unique_id == "s1") & (frame.ds < "2021-04-01")]
    got = forecaster.predict(df=shorter)
    assert got["unique_id"].unique().tolist() == ["s1"]
    assert str(got["ds"].iloc[0])[:10] == "2021-04-01"
    np.testing.assert_allclose(got["seasonal_naive"], shorter["y"].iloc[-7:], rtol=1e-5)
    assert forecaster.predict()["ds"].max() == pd.Timestamp("2021-06-06")


def test_missing_days_are_masked() -> None:
    frame = daily()
    gaps = frame.assign(y=frame["y"].where(np.arange(150) % 11 != 5))
    got = make("seasonal_naive", missing="mask").fit(gaps).predict()
    assert got["seasonal_naive"].notna().all()
    with pytest.raises(DataError, match="missing"):
        make("seasonal_naive").fit(gaps)


@pytest.mark.parametrize(
    ("zone", "freq"), [("Europe/Berlin", "D"), ("UTC", "h"), (None, "MS"), (None, "15min"), (None, "W")]
)
def test_frequencies_and_zones_survive_saving(zone: str | None, freq: str, tmp_path: Path) -> None:
    index = pd.date_range("2021-01-03", periods=200, freq=freq, tz=zone)
    frame = pd.DataFrame({"unique_id": "a", "ds": index, "y": np.arange(200.0) % 7})
    forecaster = make("seasonal_naive", freq=freq).fit(frame)
    forecaster.save(tmp_path)
    got = Forecaster.load(tmp_path).predict()
    pd.testing.assert_frame_equal(got, forecaster.predict())
    expected = pd.date_range(index[-1], periods=8, freq=freq)[1:]
    assert (pd.DatetimeIndex(got["ds"]) == expected).all()


def test_whole_number_steps_and_ids_and_other_column_names() -> None:
    frame = pd.DataFrame({"shop": 3, "step": np.arange(10, 210, 2), "sold": np.arange(100.0) % 4})
    forecaster = make("ridge", freq=2, id_col="shop", time_col="step", target_col="sold", alias="mine", lookback=8)
    got = forecaster.fit(frame).predict()
    assert list(got.columns) == ["shop", "step", "mine"]
    assert got["shop"].tolist() == [3] * 7
    assert got["step"].tolist() == list(range(210, 224, 2))
    np.testing.assert_allclose(got["mine"], [0, 1, 2, 3, 0, 1, 2], atol=0.05)


def test_an_alias_survives_saving(tmp_path: Path) -> None:
    forecaster = make("seasonal_naive", alias="naive", levels=[50]).fit(daily())
    forecaster.save(tmp_path)
    assert list(Forecaster.load(tmp_path).predict().columns)[2:] == ["naive", "naive-lo-50", "naive-hi-50"]


def test_a_loaded_forecaster_learns_again(tmp_path: Path) -> None:
    forecaster = make("dlinear", levels=[80]).fit(daily())
    forecaster.save(tmp_path)
    again = Forecaster.load(tmp_path)
    again.max_steps, again.progress = 5, False
    assert again.fit(daily((160,))).predict()["ds"].max() == pd.Timestamp("2021-06-16")


@pytest.mark.parametrize("quantiles", [None, [0.1, 0.5, 0.9], [0.3, 0.5]])
def test_a_model_trained_by_a_recipe_forecasts_too(quantiles: list[float] | None, tmp_path: Path) -> None:
    frame = daily((150, 120))
    frame.to_csv(tmp_path / "sales.csv", index=False)
    data = SeriesData(str(tmp_path / "sales.csv"), lookback=28, horizon=7, freq="D", val_steps=14, test_steps=14)
    trainer = make_trainer(run_dir=tmp_path / "run", max_steps=3, accelerator="cpu", progress=False, logger=False)
    task = ForecastTask("patch", model_options={**SMALL["patch"], "patch": 7}, quantiles=quantiles)
    trainer.fit(task, datamodule=data)
    save_model(tmp_path / "model", task, task.model_card(data, {"val/mae": 1.0}))
    loaded = Forecaster.load(tmp_path / "model")
    assert loaded.metrics == {"val/mae": 1.0}
    with pytest.raises(UserError, match="pass df"):
        loaded.predict()
    got = loaded.predict(df=frame)
    intervals = ["patch-lo-80", "patch-hi-80"] if quantiles == [0.1, 0.5, 0.9] else []
    assert list(got.columns) == ["unique_id", "ds", "patch", *intervals]
    last = data.series_set.last(28).extend_future(None, 7)
    batch = WindowDataset(data.scaler.transform(last), 28, 7, origins="last").batch([0, 1])
    with torch.no_grad():
        point = point_forecast(task.eval()(batch), task.quantiles)
    expected = data.scaler.inverse_y(point, batch["series"]).flatten().numpy()
    np.testing.assert_allclose(got["patch"], expected, rtol=1e-5)


def test_many_series_at_once() -> None:
    frame = daily(tuple(range(100, 160)))
    got = make(max_steps=10).fit(frame).predict()
    assert len(got) == 60 * 7
    assert got.groupby("unique_id")["patch"].mean().notna().all()
    # Each series keeps its own level.
    level = got.groupby("unique_id", sort=False)["patch"].mean().to_numpy()
    assert np.corrcoef(level, np.arange(1, 61))[0, 1] > 0.99


def test_a_constant_series_is_forecast_as_it_is() -> None:
    frame = daily().assign(y=4.0)
    for model in ("patch", "seasonal_naive", "ridge"):
        np.testing.assert_allclose(make(model).fit(frame).predict()[model], 4.0, atol=0.3)


def test_fit_takes_a_file(tmp_path: Path) -> None:
    frame = daily()
    frame.to_csv(tmp_path / "sales.csv", index=False)
    got = make("seasonal_naive").fit(tmp_path / "sales.csv").predict()
    np.testing.assert_allclose(got["seasonal_naive"], frame["y"].iloc[-7:], rtol=1e-5)


def test_defaults_follow_frequency_and_length() -> None:
    def lookback(freq: str, steps: int, horizon: int) -> int:
        index = pd.date_range("2020-01-05", periods=steps, freq=freq)
        frame = pd.DataFrame({"unique_id": "a", "ds": index, "y": np.arange(float(steps))})
        series_set = read_series(frame, freq=freq)
        found = default_lookback(series_set, horizon, default_val_steps(series_set, horizon))
        assert 1 <= found <= steps - 2 * horizon
        assert default_options("patch", series_set, found)["patch"] <= found
        return found

    assert lookback("h", 5000, 24) == 672
    assert lookback("h", 300, 24) == 120
    assert lookback("D", 1000, 14) == 28
    assert lookback("MS", 300, 12) == 48
    assert lookback("MS", 60, 12) == 12
    assert lookback("D", 30, 14) == 1


def test_history_goes_through_tensors_unchanged() -> None:
    frame = daily((50, 40), covariates=True).assign(kind=lambda f: np.where(f["size"] > 0, "big", "small"))
    frame["ds"] = frame["ds"].dt.tz_localize("America/New_York")
    past = read_series(frame, freq="D", past=("visits",), future=("promo",), static=("kind",)).with_calendar()
    cut = past.last(20)
    again = from_history_state(*history_state(cut))
    for field in (
        "ids",
        "keys",
        "freq",
        "past_names",
        "future_names",
        "static_names",
        "categories",
        "calendar",
        "columns",
    ):
        assert getattr(again, field) == getattr(cut, field), field
    for one, other in zip(cut.series, again.series, strict=True):
        assert (one.index == other.index).all()
        assert one.index.tz == other.index.tz
        for array in ("y", "observed", "past", "future", "static"):
            np.testing.assert_array_equal(getattr(one, array), getattr(other, array))


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, mamba_apps, mamba_apps.forecasting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_and_defaults_of_torch_are_left_alone() -> None:
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    make("dlinear", max_steps=3).fit(daily()).predict()
    assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())


def test_conformal_intervals_of_a_learned_model(tmp_path: Path) -> None:
    frame = daily((150, 120))
    forecaster = make("dlinear", levels=[80], intervals="conformal", loss="mse", model_options={}).fit(frame)
    got = forecaster.predict()
    widths = got["dlinear-hi-80"] - got["dlinear-lo-80"]
    assert (widths > 0).all()
    middle = (got["dlinear-hi-80"] + got["dlinear-lo-80"]) / 2
    np.testing.assert_allclose(middle, got["dlinear"], rtol=1e-5)
    point = make("dlinear", loss="mse", model_options={}).fit(frame).predict()
    np.testing.assert_array_equal(point["dlinear"], got["dlinear"])  # the intervals change nothing about the forecast
    forecaster.save(tmp_path / "saved")
    loaded = Forecaster.load(tmp_path / "saved")
    assert loaded.predict().equals(got)
    assert loaded.conformal
    with pytest.raises(UserError, match="choose quantile or conformal"):
        make(intervals="bayes")


def test_conformal_intervals_are_narrow_where_a_series_is_forecast_well(tmp_path: Path) -> None:
    frame = daily((600, 600))
    loud = np.random.default_rng(1).normal(0, 3, 600)
    frame.loc[frame.unique_id == "s1", "y"] += loud
    forecaster = make("ridge", levels=[80], lookback=14, val_steps=150).fit(frame)
    got = forecaster.predict()
    widths = (got["ridge-hi-80"] - got["ridge-lo-80"]).groupby(got["unique_id"]).mean()
    assert widths["s1"] > 5 * widths["s0"]
    crossed = forecaster.cross_validation(frame, n_windows=30, step_size=7)
    inside = crossed["y"].between(crossed["ridge-lo-80"], crossed["ridge-hi-80"])
    assert inside.groupby(crossed["unique_id"]).mean().between(0.65, 0.92).all()
    stream = forecaster.stream("s1").forecast()
    np.testing.assert_allclose(stream["ridge-hi-80"], got["ridge-hi-80"][got.unique_id == "s1"], rtol=1e-5)
    assert Forecaster.load(forecaster.save(tmp_path / "new")).predict().equals(got)
    # As saved before series had reaches of their own.
    before = dataclasses.replace(forecaster._known(), reach_S=None)
    before.save(tmp_path / "old")
    old = Forecaster.load(tmp_path / "old").predict()
    ratio = (old["ridge-hi-80"] - old["ridge"]) / (got["ridge-hi-80"] - got["ridge"])
    assert (ratio[old.unique_id == "s0"] > 1).all()
    assert old["ridge"].equals(got["ridge"])


def test_cross_validation_forecasts_from_every_cut_what_a_fit_before_it_would() -> None:
    frame = daily((150, 120))
    forecaster = make("ridge", levels=[80], model_options={"ridge": 1e-3}, lookback=14)
    got = forecaster.cross_validation(frame, n_windows=3, step_size=5)
    assert list(got.columns) == ["unique_id", "ds", "cutoff", "y", "ridge", "ridge-lo-80", "ridge-hi-80"]
    assert len(got) == 2 * 3 * 7
    y = got.merge(frame, on=["unique_id", "ds"], suffixes=("", "_given"))
    np.testing.assert_allclose(y["y"], y["y_given"], rtol=1e-6)
    first = got.groupby("unique_id")["cutoff"].min()
    cut = frame[frame["ds"] <= frame["unique_id"].map(first)]
    expected = forecaster.fit(cut).predict()
    # The fit before the first cut forecasts from it, and from the later ones with what has come since.
    at_first = got[got["cutoff"] == got["unique_id"].map(first)].reset_index(drop=True)
    pd.testing.assert_frame_equal(at_first[expected.columns], expected, rtol=1e-5)
    last = got.groupby("unique_id")["cutoff"].max()
    later = forecaster.predict(df=frame[frame["ds"] <= frame["unique_id"].map(last)])
    at_last = got[got["cutoff"] == got["unique_id"].map(last)].reset_index(drop=True)
    pd.testing.assert_frame_equal(at_last[later.columns], later, rtol=1e-5)


@pytest.mark.parametrize(("refit", "fits"), [(False, 1), (True, 3), (2, 2)])
def test_cross_validation_fits_as_often_as_asked(refit: bool | int, fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fit = Forecaster._fit

    def counted(self: Forecaster, series_set: Any) -> Any:
        seen.append(int(series_set.lengths[0]))
        return fit(self, series_set)

    monkeypatch.setattr(Forecaster, "_fit", counted)
    got = make("seasonal_naive", lookback=14).cross_validation(daily(), n_windows=3, refit=refit)
    assert seen == [129, 136, 143][:: {1: 3, 3: 1, 2: 2}[fits]]
    assert len(got) == 21
    assert got["ds"].is_monotonic_increasing


def test_cross_validation_of_what_is_too_short_is_refused() -> None:
    with pytest.raises(DataError, match="21 before the first cut and 35 behind it, found 40; make fewer cuts"):
        make("seasonal_naive", lookback=14).cross_validation(daily((40,)), n_windows=5)
    with pytest.raises(UserError, match="n_windows is 0"):
        make("seasonal_naive").cross_validation(daily(), n_windows=0)
