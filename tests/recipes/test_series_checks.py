"""The commands behind the figures of the time series pages run, and count what they say."""

from __future__ import annotations

import re

import pytest

from mamba_recipes import forecast_check, forecast_sets, imputation_check, many_series_check, weather_check


def test_imputation_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert imputation_check.main(["--candidates", "last,linear,seasonal"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "traffic, hours" in head
    hours = {row.split()[0]: float(row.split()[2]) for row in rows}
    assert hours["seasonal"] < hours["linear"] < hours["last"]


def test_weather_check(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "ridge", "--seeds", "1", "--calibration", "168", "--candidates", "no weather"]
    assert weather_check.main(words) == 0
    covers = [float(cell) for cell in capsys.readouterr().out.splitlines()[-1].split()[4::2]]
    assert covers[0] == pytest.approx(80, abs=3)
    assert covers[1] == pytest.approx(95, abs=3)


def test_many_series_check(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "dlinear", "--series", "20", "--steps", "300", "--batches", "4", "--accelerator", "cpu"]
    assert many_series_check.main([*words, "--batch-size", "8,16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[:2] for line in lines] == [
        ["dlinear, 20 series of 300 steps", f"batches of {size}"] for size in (8, 16)
    ]
    assert all(re.search(r"[\d,]+ windows/s · [\d.]+ ms a step · 2,180 windows an epoch", line) for line in lines)
    assert many_series_check.covered([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4


def test_forecast_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert forecast_check.main(["--candidates", "ridge,seasonal_naive", "--sets", "trend-season,many-short"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["set", "ridge", "seasonal_naive"]
    scores = {row.split()[0]: [float(cell) for cell in row.split()[1::2]] for row in rows}
    assert list(scores) == ["trend-season", "many-short"]
    # A season that returns with a trend is what a linear map knows and a repeated season does not.
    assert all(ridge < 0.5 * naive for ridge, naive in scores.values())
    assert float(last.split()[1]) == pytest.approx((scores["trend-season"][0] / scores["trend-season"][1]) ** 0.5
        * (scores["many-short"][0] / scores["many-short"][1]) ** 0.5, abs=0.002)  # fmt: skip


def test_a_scaled_error_is_one_where_the_season_repeats_as_well_as_before() -> None:
    found = forecast_sets.load("random-walk")
    assert found is not None
    known = found.frame.groupby("unique_id")["y"]
    ahead = found.frame[known.cumcount(ascending=False) < found.horizon * found.cuts]
    # Each value forecast by the one before it, as the scale has it.
    forecasts = ahead.assign(forecast=known.shift(1)[ahead.index])
    assert forecast_check.scaled_error(found, forecasts) == pytest.approx(1, abs=0.1)
