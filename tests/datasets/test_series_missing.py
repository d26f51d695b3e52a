"""Missing steps: refused, masked, or filled from one season before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.series import read_series
from mamba_datasets.series.fill import carry_forward, fill_seasonal

LOST = [30, 31, 50, *range(60, 90)]


def hourly(n: int = 120) -> pd.DataFrame:
    index = pd.date_range("2020-01-01", periods=n, freq="h")
    return pd.DataFrame({"ds": index, "y": np.arange(n) + 1.0, "heat": np.arange(n) * 2.0, "promo": np.arange(n) % 3.0})


def by_hand(values: np.ndarray, season: int) -> np.ndarray:
    filled = values.copy()
    for step in range(len(filled)):
        if np.isnan(filled[step]):
            filled[step] = filled[step - season] if step >= season else filled[step - 1]
    return filled


@pytest.mark.parametrize("rows", ["absent", "empty"])
@pytest.mark.parametrize("missing", ["mask", "seasonal"])
def test_missing_rows(missing: str, rows: str) -> None:
    full = hourly()
    if rows == "absent":
        frame = full.drop(LOST)
    else:
        frame = full.copy()
        frame.loc[LOST, ["y", "heat", "promo"]] = np.nan
    read = read_series(frame, freq="h", past=["heat"], future=["promo"], missing=missing)  # type: ignore[arg-type]
    one = read.series[0]
    assert len(one) == 120
    lost = np.isin(np.arange(120), LOST)
    np.testing.assert_array_equal(one.observed, ~lost if missing == "mask" else np.ones(120, dtype=bool))
    target = np.where(lost, np.nan, full["y"])
    np.testing.assert_array_equal(one.y, by_hand(target, 24).astype(np.float32))
    np.testing.assert_array_equal(one.past[:, 0], full["heat"].where(~lost).ffill())
    np.testing.assert_array_equal(one.future[:, 0], full["promo"].where(~lost).ffill())
    assert read.filled == {"series": len(LOST)}
    assert read.season == 24
    how = "masked" if missing == "mask" else "filled and counted as data"
    assert read.notes == (
        f"{len(LOST)} of 120 targets in 1 series were missing: {how}, from 24 steps before",
        f"covariates of {len(LOST)} steps were missing: the last value was carried forward",
    )


def test_missing_targets_alone() -> None:
    frame = hourly().assign(y=lambda f: f["y"].where(~f.index.isin(LOST)))
    read = read_series(frame, freq="h", future=["promo"], missing="mask", season=10)
    np.testing.assert_array_equal(read.y, by_hand(frame["y"].to_numpy(), 10).astype(np.float32))
    np.testing.assert_array_equal(read.series[0].future[:, 0], frame["promo"])


def test_fill_uses_the_past_only() -> None:
    frame = hourly().drop(LOST)
    one = read_series(frame, freq="h", past=["heat"], missing="mask").series[0]
    later = frame.copy()
    later.loc[later.index > 65, ["y", "heat"]] += 1000
    other = read_series(later, freq="h", past=["heat"], missing="mask").series[0]
    np.testing.assert_array_equal(one.y[:66], other.y[:66])
    np.testing.assert_array_equal(one.past[:66], other.past[:66])


def test_first_season_takes_the_last_value_when_masked() -> None:
    read = read_series(hourly().drop([3, 4]), freq="h", missing="mask")
    assert read.y[:6].tolist() == [1, 2, 3, 3, 3, 6]


def test_steps_before_the_first_target_are_left_out() -> None:
    frame = hourly().assign(y=lambda f: f["y"].where(f.index >= 7))
    read = read_series(frame, freq="h", past=["heat"], missing="mask")
    assert read.series[0].start == pd.Timestamp("2020-01-01 07:00")
    assert read.y[0] == 8
    assert read.series[0].past[0, 0] == 14
    assert read.notes == ("7 steps before the first observed target were left out",)
    assert read.filled == {}


def test_steps_after_the_last_target_stay() -> None:
    frame = hourly().assign(y=lambda f: f["y"].where(f.index < 110))
    read = read_series(frame, freq="h", missing="mask")
    assert len(read.series[0]) == 120
    assert read.observed[-11:].tolist() == [True] + [False] * 10


def test_missing_past_covariates_carry_forward() -> None:
    frame = hourly().assign(heat=lambda f: f["heat"].where(~f.index.isin([0, 1, 5, 6])))
    read = read_series(frame, freq="h", past=["heat"], missing="mask")
    assert read.series[0].past[:8, 0].tolist() == [4, 4, 4, 6, 8, 8, 8, 14]
    assert read.observed.all()


def test_missing_categories_carry_forward() -> None:
    frame = hourly().assign(sky=["sun", None, "rain", None] * 30)
    read = read_series(frame, freq="h", past=["sky"], missing="mask")
    np.testing.assert_array_equal(read.series[0].past[:4], [[0, 1], [0, 1], [1, 0], [1, 0]])
    with pytest.raises(DataError, match=r"past covariate 'sky'"):
        read_series(frame, freq="h", past=["sky"])


def test_missing_values_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "ds,y,kind\n2020-01-01,1,None\n2020-01-02,NA,None\n2020-01-03,,b\n2020-01-04,null,b\n2020-01-05,5,b\n"
    )
    read = read_series(path, freq="D", past=["kind"], missing="mask")
    assert read.observed.tolist() == [True, False, False, False, True]
    assert read.past_names == ("kind=None", "kind=b")


def test_to_frame_shows_what_was_observed() -> None:
    frame = read_series(hourly().drop(LOST), freq="h", missing="mask").to_frame()
    assert np.flatnonzero(frame["y"].isna()).tolist() == LOST


def test_carry_forward() -> None:
    nan = np.nan
    got = carry_forward(np.array([[nan, 1], [2, nan], [nan, nan], [3, 4]]))
    np.testing.assert_array_equal(got, [[2, 1], [2, 1], [2, 1], [3, 4]])


def test_fill_seasonal_says_where_there_was_no_season() -> None:
    nan = np.nan
    filled, without = fill_seasonal(np.array([1, nan, 3, nan, nan, nan]), 2)
    assert filled.tolist() == [1, 1, 3, 1, 3, 1]
    assert without == 1
    assert fill_seasonal(np.array([1, 2, nan]), 2)[1] is None
