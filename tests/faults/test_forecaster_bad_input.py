"""Bad input to the Forecaster: each is answered in one line with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_apps import Forecaster
from mamba_apps.errors import UserError
from mamba_datasets.errors import DataError

Frame = pd.DataFrame


def daily(length: int = 120, name: str = "a") -> Frame:
    ds = pd.date_range("2021-01-01", periods=length, freq="D")
    return Frame({"unique_id": name, "ds": ds, "y": np.sin(np.arange(length)) + 5})


def make(model: str = "seasonal_naive", **options: Any) -> Forecaster:
    return Forecaster(model, **{"horizon": 7, "freq": "D", "accelerator": "cpu", "progress": False, **options})


def with_value(value: object) -> Frame:
    frame = daily()
    frame["y"] = frame["y"].astype(object)
    frame.loc[40, "y"] = value
    return frame


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises((UserError, DataError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.remedy
    assert text.endswith(caught.value.remedy)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (lambda: pd.concat([daily(), daily().iloc[[30]]]), ("a",)),
        (lambda: daily().drop(index=50), ("missing", "2021-02-20")),
        (lambda: daily().iloc[::-1], ("a",)),
        (lambda: with_value(np.nan), ("missing",)),
        (lambda: with_value(np.inf), ("inf",)),
        (lambda: with_value("many"), ("many",)),
        (lambda: daily().rename(columns={"y": "sales"}), ("y",)),
        (lambda: daily().rename(columns={"ds": "day"}), ("ds",)),
        (lambda: daily().iloc[:0], ()),
        (lambda: daily(5), ("'a'", "8 steps", "found 5")),
        (lambda: daily(14), ("'a'", "14 steps")),
    ],
    ids=[
        "duplicate", "gap", "unsorted", "nan", "inf", "text", "no-target", "no-time", "empty", "short",
        "short-for-validation",
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(frame: Callable[[], Frame], words: tuple[str, ...]) -> None:
    refused(lambda: make().fit(frame()), *words)


def test_a_wrong_frequency() -> None:
    refused(lambda: make(freq="h").fit(daily()), "h")
    refused(lambda: make(freq="fortnight").fit(daily()), "fortnight")


def test_mixed_time_zones() -> None:
    frame = daily()
    zones = ["+01:00" if i % 2 else "+02:00" for i in range(len(frame))]
    frame["ds"] = [f"{stamp:%Y-%m-%dT%H:%M:%S}{zone}" for stamp, zone in zip(frame["ds"], zones, strict=True)]
    refused(lambda: make().fit(frame))


def test_files(tmp_path: Path) -> None:
    refused(lambda: make().fit(tmp_path / "none.csv"), "none.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    refused(lambda: make().fit(empty), "empty.csv")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "pacth"}, ("pacth", "patch")),
        ({"model": "seasonal"}, ("seasonal_naive",)),
        ({"horizon": 0}, ("horizon", "at least 1")),
        ({"horizon": -3}, ("horizon",)),
        ({"horizon": 2.5}, ("horizon",)),
        ({"lookback": 0}, ("lookback", "at least 1")),
        ({"levels": [120]}, ("level", "120")),
        ({"levels": [80, 80]}, ("levels",)),
        ({"levels": 80}, ("levels", "[80, 95]")),
        ({"model": "patch", "model_options": {"dmodel": 3}}, ("dmodel", "d_model")),
        ({"model": "patch", "loss": "mse", "levels": [80]}, ("quantiles",)),
        ({"model": "patch", "loss": "rmse"}, ("rmse", "mse")),
        ({"calendar": False, "holidays": "US"}, ("calendar",)),
    ],
    ids=str,
)
def test_options_are_refused_before_any_data(options: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(lambda: make(**options), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "patch", "model_options": {"mixer": "mambo"}}, ("mambo", "mamba1")),
        ({"model": "patch", "model_options": {"quantiles": [0.5]}}, ("quantiles",)),
        ({"model": "patch", "lr": -1.0}, ("learning rate",)),
        ({"model": "patch", "max_steps": -5}, ("max_steps",)),
        ({"model": "patch", "max_steps": 0}, ("max_steps",)),
        ({"model": "patch", "patience": 0}, ("patience",)),
        ({"model": "patch", "seed": -1}, ("seed",)),
        ({"model": "patch", "batch_size": 0}, ("batch_size",)),
        ({"model": "patch", "batch_size": 1.5}, ("batch_size", "whole number")),
        ({"model": "dlinear", "past": ["temp"]}, ("past covariates", "patch")),
        ({"lookback": 200}, ("lookback", "found 120")),
        ({"model": "patch", "lookback": 113}, ("window",)),
        ({"val_steps": 3}, ("val_steps", "7")),
        ({"val_steps": 0}, ("val_steps",)),
        ({"model_options": {"season": 100}}, ("season", "100")),
        ({"model_options": {"period": 7}}, ("period",)),
        ({"past": ["wind"]}, ("wind",)),
        ({"past": "wind"}, ("'wind'",)),
        ({"val_steps": 130}, ("with 130 held back",)),
        ({"missing": "drop"}, ("drop",)),
        ({"holidays": "FR"}, ("FR",)),
        ({"accelerator": "abacus"}, ("abacus", "auto")),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_data(options: dict[str, Any], words: tuple[str, ...]) -> None:
    frame = daily().assign(temp=1.0)
    refused(lambda: make(**options).fit(frame), *words)


def test_predict_before_fit() -> None:
    refused(lambda: make().predict(), "fit")
    refused(lambda: make().save("nowhere"), "fit")


@pytest.fixture
def fitted() -> Forecaster:
    frame = pd.concat([daily(name="a"), daily(name="b")]).assign(promo=0.0)
    return make(future=["promo"]).fit(frame)


def ahead(**columns: Any) -> Frame:
    days = pd.date_range("2021-05-01", periods=7, freq="D")
    frame = pd.concat([Frame({"unique_id": name, "ds": days, "promo": 0.0}) for name in "ab"], ignore_index=True)
    return frame.assign(**columns)


def stamps(freq: str) -> list[pd.Timestamp]:
    return [*pd.date_range("2021-05-01", periods=7, freq=freq)] * 2


def longer() -> Frame:
    return pd.concat([ahead(), Frame({"unique_id": ["a"], "ds": [pd.Timestamp("2021-05-08")], "promo": [0.0]})])


def test_the_right_future_is_taken(fitted: Forecaster) -> None:
    assert len(fitted.predict(ahead())) == 14
    assert fitted.future_frame().equals(ahead()[["unique_id", "ds"]])
    assert len(fitted.predict(fitted.future_frame().assign(promo=0.0))) == 14


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (lambda: None, ("promo", "futr_df")),
        (lambda: ahead().iloc[:10], ("'b'",)),
        (lambda: ahead()[ahead().unique_id == "a"], ("'b'",)),
        (lambda: ahead().drop(columns="promo"), ("promo",)),
        (lambda: ahead(promo=np.nan), ("promo",)),
        (lambda: ahead(promo="yes"), ("promo",)),
        (lambda: ahead(unique_id="c"), ("c",)),
        (lambda: ahead(ds=lambda f: f["ds"] + pd.Timedelta(days=1)), ("2021-05-01",)),
        (lambda: pd.concat([ahead(), ahead().iloc[[0]]]), ("a",)),
        (lambda: ahead(ds=stamps("h")), ("2021-05-02", "6 of 7 are missing")),
        (lambda: ahead(ds=stamps("W")), ("2021-05-01", "missing")),
        (lambda: longer(), ("only rows", "2021-05-08")),
        (lambda: ahead(ds=range(14)), ("timestamps were expected",)),
        (lambda: ahead(ds=lambda f: f["ds"].dt.tz_localize("Europe/Berlin")), ("without a time zone",)),
    ],
    ids=[
        "none", "too-few", "one-series", "no-column", "nan", "text", "unseen-id", "shifted", "duplicate", "hourly",
        "weekly", "beyond-the-horizon", "whole-numbers", "zoned",
    ],
)  # fmt: skip
def test_futures_that_cannot_be_used(
    fitted: Forecaster, frame: Callable[[], Frame | None], words: tuple[str, ...]
) -> None:
    refused(lambda: fitted.predict(frame()), *words)


def test_series_to_continue_that_cannot_be_used(fitted: Forecaster) -> None:
    unseen = daily(name="c").assign(promo=0.0)
    refused(lambda: fitted.predict(ahead(unique_id="c").iloc[:7], df=unseen), "'c'")
    short = daily(10).assign(promo=0.0)
    refused(lambda: fitted.predict(df=short), "'a'", "lookback")
    refused(lambda: fitted.predict(df=daily()), "promo")


def test_a_past_that_is_no_past_of_the_fit(fitted: Forecaster) -> None:
    hours = pd.date_range("2021-01-01", periods=120, freq="h")
    hourly = daily().assign(ds=hours, promo=0.0)
    refused(lambda: fitted.predict(df=hourly), "freq='D'", "freq='h'")
    counted = daily().assign(ds=range(120), promo=0.0)
    refused(lambda: fitted.predict(df=counted), "timestamps were expected")
    halves = [*hours[:60], *pd.date_range("2021-02-01", periods=60, freq="D")]
    refused(lambda: make(missing="mask", freq="h").fit(daily().assign(ds=halves)), "one frequency", "an id of its own")


def test_clocks_that_change() -> None:
    index = pd.date_range("2021-03-20", periods=24 * 14, freq="h", tz="Europe/Berlin")
    frame = Frame({"unique_id": "a", "ds": index, "y": np.arange(len(index)) % 24 + 1.0})
    got = make(freq="h", horizon=24).fit(frame).predict()
    assert (pd.DatetimeIndex(got["ds"]) == pd.date_range(index[-1], periods=25, freq="h")[1:]).all()
    wall = frame.assign(ds=index.tz_localize(None))
    refused(lambda: make(freq="h", horizon=24).fit(wall), "2021-03-28", "tz=")
    autumn = pd.date_range("2021-10-25", periods=24 * 14, freq="h", tz="Europe/Berlin").tz_localize(None)
    refused(lambda: make(freq="h", horizon=24).fit(frame.assign(ds=autumn)), "2021-10-31 02:00:00", "tz=")
    refused(lambda: make(freq="h", tz="Europe/Bern").fit(wall), "Europe/Bern")


@pytest.mark.parametrize("month", ["2021-03-20", "2021-10-25"])
def test_local_times_over_a_clock_change_where_the_zone_is_told(month: str, tmp_path: Path) -> None:
    index = pd.date_range(month, periods=24 * 14, freq="h", tz="Europe/Berlin")
    frame = Frame({"unique_id": "a", "ds": index, "y": np.arange(len(index)) % 24 + 1.0})
    wall = frame.assign(ds=index.tz_localize(None))
    forecaster = make(freq="h", horizon=24, tz="Europe/Berlin").fit(wall)
    expected = make(freq="h", horizon=24).fit(frame).predict()
    pd.testing.assert_frame_equal(forecaster.predict(), expected)
    loaded = Forecaster.load(forecaster.save(tmp_path / "saved"), accelerator="cpu", progress=False)
    pd.testing.assert_frame_equal(loaded.predict(df=wall), expected)
    later = wall.tail(24).assign(ds=lambda f: f["ds"] + pd.Timedelta(days=1))
    assert loaded.update(later).predict()["ds"].iloc[0] == expected["ds"].iloc[-1] + pd.Timedelta(hours=1)


def test_folders_that_hold_no_forecaster(fitted: Forecaster, tmp_path: Path) -> None:
    refused(lambda: Forecaster.load(tmp_path / "none"), "none")
    refused(lambda: Forecaster.load(tmp_path), "model")
    folder = fitted.save(tmp_path / "saved")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    refused(lambda: Forecaster.load(folder), "model.safetensors")
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    weights.write_bytes(bytes(flipped))
    refused(lambda: Forecaster.load(folder), "model.safetensors")
    weights.write_bytes(whole)
    card = folder / "model.json"
    text = card.read_text()
    card.write_text(text.replace('"seasonal_naive"', '"patch"'))
    refused(lambda: Forecaster.load(folder), str(folder))
    card.write_text(text.replace('"patience"', '"patients"'))
    refused(lambda: Forecaster.load(folder), str(folder), "patients")
    card.write_text(text.replace('"forecasting"', '"classification"'))
    refused(lambda: Forecaster.load(folder), "classification")


def test_a_folder_that_cannot_be_written(fitted: Forecaster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(lambda: fitted.save(tmp_path / "file"), "file")
