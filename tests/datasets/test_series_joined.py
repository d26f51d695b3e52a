"""Series made longer at either end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.series import SeriesSet, read_series


def frame(lengths: tuple[int, ...] = (40, 25), freq: str = "D", zone: str | None = None) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "unique_id": f"s{number}",
                "ds": pd.date_range("2021-03-20", periods=length, freq=freq, tz=zone),
                "y": np.arange(length) + 100.0 * number,
                "rain": rng.normal(size=length),
                "promo": rng.random(length).round(),
                "kind": "big" if number else "small",
            }
        )
        for number, length in enumerate(lengths)
    ]
    return pd.concat(parts, ignore_index=True)


def read(source: pd.DataFrame, **options: Any) -> SeriesSet:
    columns = {"past": ["rain"], "future": ["promo"], "static": ["kind"]}
    return read_series(source, **{"freq": "D", **columns, **options}).with_calendar()


def same(a: SeriesSet, b: SeriesSet) -> None:
    assert a.ids == b.ids
    for one, other in zip(a.series, b.series, strict=True):
        assert (one.index == other.index).all()
        for name in ("y", "observed", "past", "future", "static"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    ("freq", "zone"), [("D", None), ("D", "Europe/Berlin"), ("h", "Europe/Berlin"), ("MS", None), ("W-SAT", None)]
)
def test_steps_before_the_start(freq: str, zone: str | None) -> None:
    whole = read(frame(freq=freq, zone=zone), freq=freq)
    led = whole.lead_in([0, 30])
    same(led.cut([0, 30], led.lengths), whole)
    first = led.series[1]
    assert not first.observed[:30].any()
    assert first.index[30] == whole.series[1].index[0]
    expected = read(frame((55,), freq=freq, zone=zone).assign(ds=first.index), freq=freq)
    # The calendar is that of the steps before; the other covariates hold their first value.
    np.testing.assert_array_equal(first.future[:, 1:], expected.series[0].future[:, 1:])
    assert (first.future[:30, 0] == first.future[30, 0]).all()
    assert (first.past[:30] == first.past[30]).all()


def test_whole_numbers_go_back_too() -> None:
    source = pd.DataFrame({"ds": range(100, 120, 2), "y": np.arange(10.0)})
    led = read_series(source, freq=2).lead_in([3])
    assert led.series[0].index.tolist() == list(range(94, 120, 2))


def test_new_observations_make_the_set_that_all_rows_make() -> None:
    source = frame()
    cut = pd.Timestamp("2021-04-05")
    old, new = read(source[source.ds < cut]), read(source[source.ds >= cut])
    same(old.append(new), read(source))
    one = old.append(new.select(["s1"]))
    assert one.lengths.tolist() == [16, 25]


@pytest.mark.parametrize("missing", ["mask", "seasonal"])
def test_a_gap_before_and_within_new_observations_is_filled_as_the_reader_fills_it(missing: str) -> None:
    source = frame().drop(index=[20, 21, 30, 55])
    cut = pd.Timestamp("2021-04-09")  # rows 20 and 21 of the first series
    old, new = source[source.ds < cut], source[source.ds >= cut]
    got = read(old, missing=missing).append(read(new, missing="mask"), missing)
    whole = read(source, missing=missing)
    for one, other in zip(got.series, whole.series, strict=True):
        assert (one.index == other.index).all()
        np.testing.assert_array_equal(one.y, other.y)
        np.testing.assert_array_equal(one.observed, other.observed)
        np.testing.assert_array_equal(one.past, other.past)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda f: f.assign(unique_id="s9"), {}, ("'s9'", "'s1'")),
        (lambda f: f.assign(ds=f["ds"] - pd.Timedelta(days=2)), {}, ("s0", "2021-04-05", "leave out the rows")),
        (lambda f: f.assign(ds=f["ds"] + pd.Timedelta(days=2)), {}, ("s0", "2021-04-05", "2 steps missing")),
        (lambda f: f.assign(kind="big"), {"categories": {"kind": ["big", "small"]}}, ("s0", "static", "fit anew")),
    ],
    ids=["unknown", "early", "late", "static"],
)
def test_new_observations_that_do_not_fit_are_refused(change: Any, options: Any, says: tuple[str, ...]) -> None:
    source = frame()
    cut = pd.Timestamp("2021-04-05")
    old, new = read(source[source.ds < cut]), change(source[(source.ds >= cut) & (source.unique_id == "s0")])
    with pytest.raises(DataError) as caught:
        old.append(read(new, **{"categories": old.categories, **options}))
    assert all(word in str(caught.value) for word in says), caught.value


def test_an_hour_off_the_grid_is_refused() -> None:
    old = read(frame((40,)))
    new = read(frame((40,)).assign(ds=pd.date_range("2021-05-01 07:00", periods=40, freq="D")))
    with pytest.raises(DataError, match="a step of freq='D' after"):
        old.append(new, "mask")
