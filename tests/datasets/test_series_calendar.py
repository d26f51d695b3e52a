"""Calendar features, and the steps to come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.series import (
    SeriesSet,
    WindowDataset,
    calendar_frame,
    default_features,
    default_season,
    read_series,
)


@pytest.mark.parametrize(
    ("freq", "names"),
    [
        ("min", ("minute", "hour", "dayofweek", "dayofyear", "weekend")),
        ("h", ("hour", "dayofweek", "dayofyear", "weekend")),
        ("15min", ("hour", "dayofweek", "dayofyear", "weekend")),
        ("D", ("dayofweek", "dayofyear", "weekend")),
        ("B", ("dayofweek", "dayofyear")),
        ("W-MON", ("dayofyear",)),
        ("MS", ("dayofyear",)),
        ("QE", ("dayofyear",)),
        ("YS", ()),
        (1, ()),
    ],
)
def test_features_fit_the_frequency(freq: str | int, names: tuple[str, ...]) -> None:
    assert default_features(freq) == names


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        ("h", 24),
        ("2h", 12),
        ("5h", None),
        ("15min", 96),
        ("min", 1440),
        ("s", 3600),
        ("D", 7),
        ("2D", None),
        ("7D", None),
        ("B", 5),
        ("W-SUN", 52),
        ("2W-SUN", 26),
        ("MS", 12),
        ("ME", 12),
        ("3MS", 4),
        ("QS", 4),
        ("QE-MAR", 4),
        ("YS", None),
        (3, None),
        ("24h", None),
    ],
)
def test_seasons(freq: str | int, season: int | None) -> None:
    assert default_season(freq) == season


def test_values() -> None:
    index = pd.DatetimeIndex(["2019-07-01 06:30", "2020-02-29 00:00", "2020-12-31 23:30"])
    features = ["minute", "hour", "dayofweek", "dayofmonth", "dayofyear", "weekend"]
    names, values = calendar_frame(index, "30min", features=features)
    parts = {
        "minute": [0.5, 0, 0.5],
        "hour": [6.5 / 24, 0, 23.5 / 24],
        "dayofweek": [6.5 / 168, 5 / 7, (3 * 24 + 23.5) / 168],
        "dayofmonth": [0, 28 / 29, 30 / 31],
        "dayofyear": [(181 + 6.5 / 24) / 365, 59 / 366, (365 + 23.5 / 24) / 366],
    }
    assert values.dtype == np.float32
    assert names == (*(f"{name}_{wave}" for name in parts for wave in ("sin", "cos")), "weekend")
    for name, part in parts.items():
        angle = 2 * np.pi * np.array(part)
        np.testing.assert_allclose(values[:, names.index(f"{name}_sin")], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(values[:, names.index(f"{name}_cos")], np.cos(angle), atol=1e-6)
    assert values[:, -1].tolist() == [0, 1, 0]


def test_calendar_is_local() -> None:
    index = pd.date_range("2020-06-01", periods=48, freq="h", tz="Asia/Tokyo")
    want = calendar_frame(index.tz_localize(None), "h").values
    np.testing.assert_array_equal(calendar_frame(index, "h").values, want)
    assert not np.array_equal(calendar_frame(index.tz_convert("UTC"), "h").values, want)


@pytest.mark.parametrize("part", [slice(None), slice(100, 101), slice(24 * 30, 24 * 60)])
def test_us_holidays(part: slice) -> None:
    index = pd.date_range("2017-11-01", "2018-02-28", freq="h")[part]
    names, values = calendar_frame(index, "h", features=(), holidays="US")
    assert names == ("holiday", "holiday_before", "holiday_after")
    # Veterans Day fell on a Saturday: the Friday before is observed.
    free = pd.DatetimeIndex(["2017-11-10", "2017-11-23", "2017-12-25", "2018-01-01", "2018-01-15", "2018-02-19"])
    for column, shift in enumerate((0, -1, 1)):
        np.testing.assert_array_equal(values[:, column], index.normalize().isin(free + pd.Timedelta(days=shift)))


def test_whole_numbers_have_no_calendar() -> None:
    names, values = calendar_frame(pd.RangeIndex(5), 1)
    assert names == ()
    assert values.shape == (5, 0)


@pytest.mark.parametrize(
    ("freq", "options", "message"),
    [
        ("h", {"features": ["hours"]}, "did you mean 'hour'"),
        ("h", {"holidays": "DE"}, "known-future covariate"),
        ("MS", {"holidays": "US"}, "a day or less"),
    ],
)
def test_odd_calendars_are_refused(freq: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        calendar_frame(pd.date_range("2020", periods=3, freq=freq), freq, **options)


def test_whole_numbers_with_holidays_are_refused() -> None:
    with pytest.raises(DataError, match="whole numbers"):
        calendar_frame(pd.RangeIndex(5), 1, holidays="US")


def known(**options: Any) -> SeriesSet:
    parts = [
        pd.DataFrame(
            {"unique_id": name, "ds": pd.date_range(start, periods=60, freq="D"), "y": 1.0, "promo": 2.0, "heat": 3.0}
        )
        for name, start in ((1, "2020-01-01"), (2, "2020-02-01"))
    ]
    frame = pd.concat(parts, ignore_index=True).assign(sky=["sun", "rain"] * 60)
    return read_series(frame, freq="D", past=["heat"], **{"future": ["promo", "sky"], **options})


def test_with_calendar() -> None:
    plain = known()
    made = plain.with_calendar(holidays="US")
    assert made.future_names == (
        "promo",
        "sky=rain",
        "sky=sun",
        "dayofweek_sin",
        "dayofweek_cos",
        "dayofyear_sin",
        "dayofyear_cos",
        "weekend",
        "holiday",
        "holiday_before",
        "holiday_after",
    )
    assert np.shares_memory(made.y, plain.y)
    for one, before in zip(made, plain, strict=True):
        np.testing.assert_array_equal(one.past, before.past)
        np.testing.assert_array_equal(one.future[:, :3], before.future)
        np.testing.assert_array_equal(one.future[:, 3:], calendar_frame(one.index, "D", holidays="US").values)
    assert plain.future_names == ("promo", "sky=rain", "sky=sun")
    with pytest.raises(DataError, match="once"):
        made.with_calendar()


def test_with_calendar_on_a_slice() -> None:
    whole = known()
    part = whole.since("2020-02-10").with_calendar()
    np.testing.assert_array_equal(part["1"].future, whole.with_calendar().since("2020-02-10")["1"].future)


def ahead(series_set: SeriesSet, horizon: int = 4) -> pd.DataFrame:
    frame = series_set.future_frame(horizon)
    return frame.assign(promo=np.arange(len(frame)) + 10.0, sky="rain")


def test_future_frame() -> None:
    frame = known().future_frame(2)
    want = pd.to_datetime(["2020-03-01", "2020-03-02", "2020-04-01", "2020-04-02"])
    assert frame["unique_id"].tolist() == [1, 1, 2, 2]
    assert list(frame["ds"]) == list(want)


@pytest.mark.parametrize("shuffled", [False, True])
def test_extend_future(shuffled: bool) -> None:
    made = known().with_calendar()
    frame = ahead(made)
    longer = made.extend_future(frame.sample(frac=1, random_state=0) if shuffled else frame, 4)
    assert longer.lengths.tolist() == [64, 64]
    for number, (one, before) in enumerate(zip(longer, made, strict=True)):
        np.testing.assert_array_equal(one.y[:60], before.y)
        np.testing.assert_array_equal(one.past[:60], before.past)
        np.testing.assert_array_equal(one.future[:60], before.future)
        assert not one.observed[60:].any()
        assert np.isfinite(one.y).all()
        assert one.future[60:, 0].tolist() == [10 + 4 * number + step for step in range(4)]
        assert one.future[60:, 1].tolist() == [1] * 4
        np.testing.assert_array_equal(one.future[60:, 3:], calendar_frame(one.index[60:], "D").values)
        assert list(one.index) == list(pd.date_range(before.start, periods=64, freq="D"))


def test_forecast_window_of_the_extension() -> None:
    made = known().with_calendar()
    short = made.last(10).extend_future(ahead(made), 4)
    assert len(short.y) == 28
    windows = WindowDataset(short, 10, 4, origins="last")
    assert len(windows) == 2
    assert list(windows.horizon_index(1)) == list(pd.date_range("2020-04-01", periods=4, freq="D"))
    np.testing.assert_array_equal(windows[1]["past_y"][:, 0].numpy(), made["2"].y[-10:])


def test_calendar_alone_needs_no_frame() -> None:
    made = known(future=[]).with_calendar()
    assert made.extend_future(None, 3).lengths.tolist() == [63, 63]
    assert known(future=[]).extend_future(None, 3).lengths.tolist() == [63, 63]


def test_single_series_without_ids() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=30, freq="D", tz="UTC"), "y": 1.0, "promo": 2.0})
    made = read_series(frame, freq="D", future=["promo"])
    longer = made.extend_future(made.future_frame(3).drop(columns="unique_id").assign(promo=7.0), 3)
    assert longer.series[0].future[-4:, 0].tolist() == [2, 7, 7, 7]


def changed(frame: pd.DataFrame, column: str, value: Any, row: int = 5) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[row, column] = value
    return frame


def test_future_of_local_times(tmp_path: Path) -> None:
    """Where the data has a zone, the future may come as local times without one, or in another zone."""
    frame = pd.DataFrame(
        {"ds": pd.date_range("2020-10-01", periods=30, freq="D", tz="Europe/Berlin"), "y": 1.0, "promo": 2.0}
    )
    made = read_series(frame, freq="D", future=["promo"])
    ahead = made.future_frame(3).assign(promo=[7.0, 8.0, 9.0])
    path = tmp_path / "ahead.csv"
    ahead.assign(ds=ahead["ds"].dt.tz_localize(None)).to_csv(path, index=False)
    sources = (
        ahead,
        ahead.assign(ds=ahead["ds"].dt.tz_convert("UTC")),
        ahead.assign(ds=ahead["ds"].dt.tz_localize(None)),
        path,
    )
    for source in sources:
        assert made.extend_future(source, 3).series[0].future[-4:, 0].tolist() == [2, 7, 8, 9]
    path.write_text(path.read_text().replace("9.0", "much"))
    with pytest.raises(DataError, match=r"ahead.csv: line 4, column 'promo': a number"):
        made.extend_future(path, 3)


def test_ids_of_a_file_are_text_and_match_whole_numbers(tmp_path: Path) -> None:
    made = known()
    ahead(made).to_csv(tmp_path / "x.csv", index=False)
    longer, want = made.extend_future(tmp_path / "x.csv", 4), made.extend_future(ahead(made), 4)
    np.testing.assert_array_equal(longer.x, want.x)


def test_series_without_steps_has_no_future() -> None:
    with pytest.raises(DataError, match="series '2': at least one step to continue from"):
        known(future=[]).before("2020-01-20").extend_future(None, 2)


def test_column_with_a_calendar_name_is_refused() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=30, freq="D"), "y": 1.0, "weekend": 2.0})
    with pytest.raises(DataError, match="rename that column"):
        read_series(frame, freq="D", past=["weekend"]).with_calendar()


FUTURES: dict[str, tuple[Any, str]] = {
    "no frame": (lambda frame: None, r"\['promo', 'sky'\] were expected, found no frame"),
    "missing column": (lambda frame: frame.drop(columns="promo"), "no column 'promo'"),
    "missing id column": (lambda frame: frame.drop(columns="unique_id"), "no column 'unique_id'"),
    "missing id": (lambda frame: frame.iloc[:4], "series '2': rows for 2020-04-01 00:00:00 to .* found none"),
    "unseen id": (lambda frame: changed(frame, "unique_id", 12), "a series of the data was expected, found 12"),
    "missing timestamps": (
        lambda frame: frame.drop([5, 6]),
        r"series '2': a row for 2020-04-02 .*\(2 of 4 are missing\)",
    ),
    "extra timestamp": (
        lambda frame: pd.concat([frame, frame.iloc[[7]].assign(ds=pd.Timestamp("2020-04-05"))], ignore_index=True),
        r"series '2': only rows for .* found 2020-04-05",
    ),
    "duplicate": (lambda frame: pd.concat([frame, frame.iloc[[7]]], ignore_index=True), "one row a timestamp"),
    "nan": (lambda frame: changed(frame, "promo", np.nan), "series '2', 2020-04-02 00:00:00, column 'promo'"),
    "nan category": (lambda frame: changed(frame, "sky", None), "series '2', 2020-04-02 00:00:00, column 'sky'"),
    "inf": (lambda frame: changed(frame, "promo", np.inf), "row 5, column 'promo'"),
    "unknown category": (lambda frame: changed(frame, "sky", "rains"), "did you mean 'rain'"),
    "time zone": (lambda frame: frame.assign(ds=frame["ds"].dt.tz_localize("UTC")), "without a time zone"),
    "empty": (lambda frame: frame.iloc[:0], "at least one row"),
}


@pytest.mark.parametrize("name", FUTURES)
def test_odd_futures_are_refused(name: str) -> None:
    change, message = FUTURES[name]
    made = known()
    with pytest.raises(DataError, match=message) as caught:
        made.extend_future(change(ahead(made)), 4)
    assert caught.value.remedy


@pytest.mark.parametrize("horizon", [0, -1])
def test_no_horizon_is_refused(horizon: int) -> None:
    with pytest.raises(DataError, match="horizon: at least 1 step"):
        known().future_frame(horizon)
