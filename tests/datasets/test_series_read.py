"""What the reader takes: files and frames, ids, covariates, time zones, frequencies."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.series import SeriesSet, read_series


def long_frame() -> pd.DataFrame:
    """Two daily series of unequal lengths, the rows of both interleaved by time."""
    days = pd.date_range("2020-01-01", periods=30, freq="D")
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "unique_id": name,
                "ds": days[first:],
                "y": rng.normal(size=30 - first),
                "heat": rng.normal(size=30 - first),
            }
        )
        for name, first in (("b", 0), ("a", 10))
    ]
    frame = pd.concat(parts).sort_values("ds", kind="stable", ignore_index=True)
    return frame.assign(promo=frame["ds"].dt.day % 5 == 0, size=frame["unique_id"].map({"a": 3.0, "b": 4.0}))


def same(left: SeriesSet, right: SeriesSet) -> None:
    assert left.ids == right.ids
    for one, other in zip(left, right, strict=True):
        assert one.index.equals(other.index)
        for name in ("y", "observed", "past", "future", "static"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


ROLES: dict[str, Any] = {"past": ["heat"], "future": ["promo"], "static": ["size"]}


def test_frame() -> None:
    frame = long_frame()
    read = read_series(frame, freq="D", **ROLES)
    assert read.ids == ["b", "a"]
    assert read.lengths.tolist() == [30, 20]
    one = read["a"]
    rows = frame[frame["unique_id"] == "a"]
    assert one.start == pd.Timestamp("2020-01-11")
    assert list(one.index) == list(rows["ds"])
    np.testing.assert_array_equal(one.y, rows["y"].to_numpy(dtype=np.float32))
    np.testing.assert_array_equal(one.past[:, 0], rows["heat"].to_numpy(dtype=np.float32))
    np.testing.assert_array_equal(one.future[:, 0], rows["promo"].to_numpy(dtype=np.float32))
    np.testing.assert_array_equal(one.static, [3.0])
    assert one.observed.all()
    assert {array.dtype for array in (one.y, one.past, one.future, one.static)} == {np.dtype(np.float32)}
    assert read.binary == {"promo"}
    assert read.notes == ()
    pd.testing.assert_frame_equal(frame, long_frame())


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv", "x.parquet", "X.CSV"])
def test_files_equal_the_frame(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        long_frame().to_parquet(path)
    else:
        long_frame().to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    same(read_series(path, freq="D", **ROLES), read_series(long_frame(), freq="D", **ROLES))
    assert read_series(str(path), freq="D").source == str(path)


def test_index_levels_are_columns(tmp_path: Path) -> None:
    frame = long_frame()
    want = read_series(frame, freq="D", **ROLES)
    same(read_series(frame.set_index("ds"), freq="D", **ROLES), want)
    same(read_series(frame.set_index(["unique_id", "ds"]), freq="D", **ROLES), want)
    frame.set_index(["unique_id", "ds"]).to_parquet(tmp_path / "x.parquet")
    same(read_series(tmp_path / "x.parquet", freq="D", **ROLES), want)


def test_frame_index_does_not_matter() -> None:
    frame = long_frame()
    same(read_series(frame.set_axis([7] * len(frame)), freq="D"), read_series(frame, freq="D"))


def test_other_names_and_one_series(tmp_path: Path) -> None:
    frame = long_frame().query("unique_id == 'b'")[["ds", "y"]].rename(columns={"ds": "day", "y": "sales"})
    assert read_series(frame, freq="D", time_col="day", target_col="sales").ids == ["series"]
    frame.to_csv(tmp_path / "shop.2020.csv", index=False)
    read = read_series(tmp_path / "shop.2020.csv", freq="D", time_col="day", target_col="sales")
    assert read.ids == ["shop"]
    out = read.to_frame()
    assert list(out.columns) == ["unique_id", "day", "sales"]
    np.testing.assert_allclose(out["sales"], frame["sales"], rtol=1e-6)


@pytest.mark.parametrize(
    ("ids", "keys"),
    [
        ([5, 6], (5, 6)),
        (pd.array([5, 6], dtype="Int64"), (5, 6)),
        (pd.Categorical(["x", "y"]), ("x", "y")),
        (pd.array(["x", "y"], dtype="string"), ("x", "y")),
        (np.array(["x", "y"], dtype=object), ("x", "y")),
    ],
)
def test_ids_keep_their_type(ids: Any, keys: tuple[Any, ...]) -> None:
    frame = pd.DataFrame({"unique_id": ids, "ds": pd.Timestamp("2020-01-01"), "y": 1.0})
    frame = pd.concat([frame, frame.assign(ds=pd.Timestamp("2020-01-02"))], ignore_index=True)
    read = read_series(frame, freq="D")
    assert read.keys == keys
    assert [type(key) for key in read.keys] == [type(key) for key in keys]
    assert read.ids == [str(key) for key in keys]
    assert read[keys[0]] is read[str(keys[0])]
    assert set(read.to_frame()["unique_id"]) == set(keys)


def test_ids_of_text_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("unique_id,ds,y\n007,2020-01-01,1\n007,2020-01-02,2\nNA,2020-01-01,3\nNA,2020-01-02,4\n\n\n")
    assert read_series(path, freq="D").ids == ["007", "NA"]


def test_unknown_id_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'a'"):
        read_series(long_frame(), freq="D")["A"]


@pytest.mark.parametrize(
    "values",
    [
        pd.array([1, 2, 3], dtype="Int32"),
        pd.array([1.0, 2.0, 3.0], dtype="Float64"),
        np.array([1, 2, 3], dtype=np.uint8),
        [decimal.Decimal(1), decimal.Decimal(2), decimal.Decimal(3)],
        np.array([1, 2, 3], dtype=object),
        pd.array([1, 2, 3], dtype="int64[pyarrow]"),
    ],
)
def test_number_types(values: Any) -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=3, freq="D"), "y": values})
    assert read_series(frame, freq="D")["series"].y.tolist() == [1, 2, 3]


def test_categories_become_columns() -> None:
    frame = long_frame().assign(
        sky=lambda f: np.where(f["ds"].dt.day % 2 == 0, "sun", "rain"), kind=pd.Categorical(["shop"] * 50)
    )
    read = read_series(frame, freq="D", past=["heat", "sky"], static=["kind", "size"])
    assert read.past_names == ("heat", "sky=rain", "sky=sun")
    assert read.static_names == ("kind=shop", "size")
    assert read.categories == {"sky": ("rain", "sun"), "kind": ("shop",)}
    assert read.binary == {"sky=rain", "sky=sun", "kind=shop"}
    np.testing.assert_array_equal(read["b"].past[:4, 1:], [[1, 0], [0, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(read["a"].static, [1, 3])
    again = read_series(frame[frame["ds"].dt.day % 2 == 0].iloc[:1], freq="D", past=["sky"], categories=read.categories)
    assert again.past_names == ("sky=rain", "sky=sun")
    np.testing.assert_array_equal(again.series[0].past, [[0, 1]])


def test_booleans_in_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("ds,y,promo\n2020-01-01,1,True\n2020-01-02,2,False\n2020-01-03,3,True\n")
    read = read_series(path, freq="D", future=["promo"])
    assert read["x"].future[:, 0].tolist() == [1, 0, 1]
    assert read.binary == {"promo"}
    path.write_text("ds,y,promo\n2020-01-01,1,true\n2020-01-02,2,\n2020-01-03,3,false\n")
    read = read_series(path, freq="D", past=["promo"], missing="mask")
    assert read["x"].past[:, 0].tolist() == [1, 1, 0]
    assert read.binary == {"promo"}


def test_sort_is_open() -> None:
    frame = long_frame()
    mixed = frame.sample(frac=1, random_state=0)
    read = read_series(mixed, freq="D", sort=True, **ROLES)
    assert read.notes == ("the rows of 2 series were sorted by time",)
    same(read.select(["b", "a"]), read_series(frame, freq="D", **ROLES))


@pytest.mark.parametrize(
    ("freq", "start"),
    [
        ("h", "2020-03-28"),
        ("15min", "2020-03-28 00:07"),
        ("s", "2020-01-01"),
        ("D", "2020-02-27 06:00"),
        ("2D", "2020-02-27"),
        ("B", "2020-01-02"),
        ("W-SUN", "2020-01-05"),
        ("W-WED", "2020-01-01"),
        ("MS", "2020-01-01"),
        ("ME", "2020-01-31"),
        ("2MS", "2020-02-01"),
        ("QS-OCT", "2020-01-01"),
        ("QE-DEC", "2020-03-31"),
        ("YS-JAN", "2020-01-01"),
        ("YE-DEC", "2020-12-31"),
        ("BME", "2020-01-31"),
    ],
)
def test_frequencies(freq: str, start: str) -> None:
    index = pd.date_range(start, periods=40, freq=freq)
    frame = pd.DataFrame({"ds": index, "y": np.arange(40.0)})
    for given in (freq, None):
        read = read_series(frame, freq=given)
        assert list(read.series[0].index) == list(index)
        assert read.freq == freq
    assert read.notes == (f"freq='{freq}' was inferred from series 'series'",)
    masked = read_series(frame.drop([7, 8, 30]), freq=freq, missing="mask")
    assert list(masked.series[0].index) == list(index)
    assert np.flatnonzero(~masked.observed).tolist() == [7, 8, 30]


@pytest.mark.parametrize("freq", ["h", "15min", "D", "B", "W-WED", "MS", "QE-MAR", "YS-JAN"])
def test_frequency_is_inferred_around_gaps(freq: str) -> None:
    index = pd.date_range("2019-01-01", periods=60, freq=freq).delete([5, 6, 20, 33])
    assert read_series(pd.DataFrame({"ds": index, "y": 1.0}), freq=None, missing="mask").freq == freq


def test_whole_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"ds": range(5, 25, 2), "y": np.arange(10.0)})
    for given in (2, None):
        read = read_series(frame, freq=given)
        assert read.freq == 2
        assert list(read.series[0].index) == list(range(5, 25, 2))
        assert isinstance(read.series[0].index, pd.RangeIndex)
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert list(read_series(tmp_path / "x.csv", freq=2).series[0].index) == list(range(5, 25, 2))
    assert list(read.before(9).series[0].index) == [5, 7]
    assert read.future_frame(2)["ds"].tolist() == [25, 27]


def test_compact_dates_are_dates_where_freq_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("ds,y\n20200101,1\n20200102,2\n")
    assert read_series(path, freq="D").series[0].start == pd.Timestamp("2020-01-01")


def test_time_format(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("ds,y\n01/02/2020,1\n02/02/2020,2\n")
    assert read_series(path, freq="D", time_format="%d/%m/%Y").series[0].start == pd.Timestamp("2020-02-01")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_units_of_timestamps(unit: str) -> None:
    index = pd.date_range("2020-03-01", periods=50, freq="h").as_unit(unit)
    read = read_series(pd.DataFrame({"ds": index, "y": 1.0}), freq="h")
    assert list(read.series[0].index) == list(index)
    assert list(read.future_frame(2)["ds"]) == [pd.Timestamp("2020-03-03 02:00"), pd.Timestamp("2020-03-03 03:00")]


@pytest.mark.parametrize(("freq", "steps"), [("h", 24 * 30), ("D", 60)])
@pytest.mark.parametrize("month", ["2020-03", "2020-10"])
def test_zones_over_a_clock_change(freq: str, steps: int, month: str) -> None:
    index = pd.date_range(f"{month}-10", periods=steps, freq=freq, tz="Europe/Berlin")
    read = read_series(pd.DataFrame({"ds": index, "y": 1.0}), freq=freq)
    assert list(read.series[0].index) == list(index)
    assert read.observed.all()
    ahead = pd.date_range(f"{month}-10", periods=steps + 30, freq=freq, tz="Europe/Berlin")[steps:]
    assert list(read.future_frame(30)["ds"]) == list(ahead)


def test_local_times_of_a_zone(tmp_path: Path) -> None:
    """Local times as a logger writes them: an hour missing in spring, an hour twice in autumn."""
    index = pd.date_range("2020-03-01", "2020-11-01", freq="h", tz="Europe/Berlin")
    pd.DataFrame({"ds": index.tz_localize(None), "y": np.arange(len(index)) % 1000}).to_csv(
        tmp_path / "x.csv", index=False
    )
    read = read_series(tmp_path / "x.csv", freq="h", tz="Europe/Berlin")
    assert read.series[0].index.equals(index)
    assert len(read.before("2020-03-29 04:00").series[0]) == 28 * 24 + 3
    with pytest.raises(DataError, match=r"pass tz='Europe/Berlin'"):
        read_series(tmp_path / "x.csv", freq="h", missing="mask")


def test_offsets_are_converted_where_asked(tmp_path: Path) -> None:
    index = pd.date_range("2020-03-28", periods=48, freq="h", tz="Europe/Berlin")
    text = [stamp.isoformat() for stamp in index]
    pd.DataFrame({"ds": text, "y": 1}).to_csv(tmp_path / "x.csv", index=False)
    read = read_series(tmp_path / "x.csv", freq="h", tz="Europe/Berlin")
    assert read.series[0].index.equals(index)
    assert str(read.series[0].index.tz) == "Europe/Berlin"


def test_spellings_of_one_offset(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "ds,y\n2020-01-01T00:00Z,1\n2020-01-01T01:00+00:00,2\n2020-01-01 02:00:00+0000,3\n2020-01-01 03:00+00,4\n"
    )
    assert list(read_series(path, freq="h").series[0].index) == list(
        pd.date_range("2020", periods=4, freq="h", tz="UTC")
    )


def test_midnight_that_a_zone_skips() -> None:
    index = pd.date_range("2018-11-01", periods=6, freq="D").tz_localize(
        "America/Sao_Paulo", nonexistent="shift_forward"
    )
    read = read_series(pd.DataFrame({"ds": index, "y": 1.0}), freq="D")
    assert list(read.series[0].index) == list(index)


def test_hour_that_a_zone_has_twice() -> None:
    """A daily reading in the hour that the end of daylight saving repeats, and bounds in the odd hours."""
    wall = pd.date_range("2020-10-20 02:30", periods=9, freq="D")
    index = wall.tz_localize("Europe/Berlin", ambiguous=np.ones(9, dtype=bool))
    read = read_series(pd.DataFrame({"ds": index, "y": 1.0}), freq="D")
    assert list(read.series[0].index) == list(index)
    assert len(read.before("2020-10-25 02:30").series[0]) == 5
    assert len(read.before("2021-03-28 02:30").series[0]) == 9


def test_constant_series_is_fine() -> None:
    assert (read_series(long_frame().assign(y=0.1), freq="D").y == np.float32(0.1)).all()
