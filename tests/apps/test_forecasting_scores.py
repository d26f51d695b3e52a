"""Scores of forecasts that have come true."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mamba_apps.forecasting import forecast_scores

FRAME = pd.DataFrame(
    {
        "unique_id": ["a", "a", "a", "b", "b"],
        "y": [1.0, 2.0, np.nan, 10.0, 20.0],
        "m": [1.5, 2.0, 9.0, 14.0, 17.0],
        "m-lo-80": [1.0, 2.5, 0.0, 11.0, 15.0],
        "m-hi-80": [2.0, 3.5, 0.0, 17.0, 25.0],
    }
)


def test_all_at_once_without_what_was_not_observed() -> None:
    (row,) = forecast_scores(FRAME, "m", levels=[80]).to_dict("records")
    assert row["steps"] == 4
    assert row["mae"] == (0.5 + 0 + 4 + 3) / 4
    np.testing.assert_allclose(row["rmse"], np.sqrt((0.25 + 16 + 9) / 4))
    np.testing.assert_allclose(row["wape"], 7.5 / 33)
    assert row["cover-80"] == 0.5
    assert row["width-80"] == (1 + 1 + 6 + 10) / 4


def test_apart_by_a_column_or_by_values() -> None:
    found = forecast_scores(FRAME, "m", by="unique_id")
    assert found.index.tolist() == ["a", "b"]
    assert found["mae"].tolist() == [0.25, 3.5]
    assert list(found.columns) == ["steps", "mae", "rmse", "wape"]
    by_step = forecast_scores(FRAME, "m", by=[1, 2, 3, 1, 2])
    assert by_step["steps"].to_dict() == {1: 2, 2: 2, 3: 0}
    assert np.isnan(by_step.loc[3, "mae"])


def test_nothing_is_divided_by_zero() -> None:
    zeros = FRAME.assign(y=0.0)
    assert np.isnan(forecast_scores(zeros, "m")["wape"][0])
    assert np.isnan(forecast_scores(FRAME.assign(y=np.nan), "m")["mae"][0])
