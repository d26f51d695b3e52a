"""Every kind of bad input is one DataError that names path, place, what was expected and the remedy."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.series import read_series


def hourly(n: int = 48, **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"unique_id": "a", "ds": pd.date_range("2020-01-01", periods=n, freq="h"), "y": np.arange(n) + 1.0}
    )
    return frame.assign(**columns)


def put(frame: pd.DataFrame, column: str, row: int, value: Any) -> pd.DataFrame:
    frame = frame.copy()
    values = frame[column].astype(object).tolist()
    values[row] = value
    dtype = frame[column].dtype if isinstance(value, (float, pd.Timestamp)) else object
    frame[column] = pd.Series(values, dtype=dtype)
    return frame


def refused(source: Any, **options: Any) -> DataError:
    options = {"freq": "h", **options}
    with pytest.raises(DataError) as caught:
        read_series(source, **options)
    error = caught.value
    assert all((error.path, error.where, error.expected, error.remedy))
    assert "\n" not in str(error)
    assert error.path == ("DataFrame" if isinstance(source, pd.DataFrame) else str(source))
    return error


def two_series() -> pd.DataFrame:
    return pd.concat([hourly(), hourly(unique_id="b")], ignore_index=True)


REPEATED = pd.concat([hourly(), hourly().iloc[[7]]], ignore_index=True).sort_values("ds", ignore_index=True)
TWO_FREQUENCIES = hourly(
    77,
    ds=[*pd.date_range("2020-01-01", periods=48, freq="h"), *pd.date_range("2020-01-03 23:00", periods=29, freq="D")],
)
MIXED_ZONES = hourly(
    ds=pd.Series([stamp.tz_localize("UTC" if h != 3 else None) for h, stamp in enumerate(hourly()["ds"])], dtype=object)
)
TWO_ZONES = hourly(
    ds=pd.Series(
        [stamp.tz_localize("UTC" if h != 3 else "Asia/Tokyo") for h, stamp in enumerate(hourly()["ds"])], dtype=object
    )
)
TEXT_ZONES = hourly(
    ds=[f"2020-01-{1 + h // 24:02d} {h % 24:02d}:00:00{'+01:00' if h < 30 else '+02:00'}" for h in range(48)]
)
NAIVE_AMONG_TEXT = hourly(
    ds=[f"2020-01-{1 + h // 24:02d} {h % 24:02d}:00{'' if h == 5 else '+01:00'}" for h in range(48)]
)

FRAMES: dict[str, tuple[pd.DataFrame, dict[str, Any], tuple[str, str, str]]] = {
    "duplicate timestamps": (
        REPEATED,
        {},
        ("series 'a', 2020-01-01 07:00:00 (row 8)", "row 7 again (1 repeated", "keep one row"),
    ),
    "gap": (
        hourly().drop([10, 11, 20]).reset_index(drop=True),
        {},
        ("series 'a', 2020-01-01 09:00:00 (row 9)", "2020-01-01 10:00:00 was expected next", "missing='mask'"),
    ),
    "gap says how much": (hourly().drop([10, 11, 20]), {}, ("", "3 steps missing in 2 gaps", "")),
    "unsorted": (
        hourly().iloc[[0, 2, 1, *range(3, 48)]],
        {},
        ("(row 2)", "01:00:00 after 2020-01-01 02:00:00", "sort=True"),
    ),
    "no id column": (two_series().drop(columns="unique_id"), {}, ("(row 48)", "time order", "id_col")),
    "nan target": (put(hourly(), "y", 5, np.nan), {}, ("05:00:00 (row 5)", "no value", "missing='mask'")),
    "inf target": (put(hourly(), "y", 5, np.inf), {}, ("05:00:00 (row 5)", "infinite", "correct it")),
    "inf target is never masked": (
        put(hourly(), "y", 5, -np.inf),
        {"missing": "mask"},
        ("row 5", "infinite", "correct"),
    ),
    "no observed target": (
        hourly(y=np.nan),
        {"missing": "mask"},
        ("series 'a'", "at least one observed target", "remove"),
    ),
    "string target": (put(hourly(), "y", 6, "12,5"), {}, ("row 6, column 'y'", "'12,5'", "pd.to_numeric")),
    "numbers as text": (hourly(y="3"), {}, ("row 0, column 'y'", "'3' (48 such rows)", "pd.to_numeric")),
    "dates as target": (hourly().assign(y=hourly()["ds"]), {}, ("row 0, column 'y'", "Timestamp", "pd.to_numeric")),
    "wrong freq, too coarse": (hourly(), {"freq": "2h"}, ("01:00:00 (row 1)", "freq='2h'", "fit freq='h'")),
    "wrong freq, too fine": (
        hourly(),
        {"freq": "30min"},
        ("00:00:00 (row 0)", "00:30:00 was expected", "fit freq='h'"),
    ),
    "wrong freq, far too fine": (
        hourly(ds=pd.date_range("2020", periods=48, freq="D")),
        {"freq": "s", "missing": "mask"},
        ("series 'a'", "4060801 steps of 48 rows", "fit freq='D'"),
    ),
    "wrong anchor": (
        hourly(ds=pd.date_range("2020-01-06", periods=48, freq="W-MON")),
        {"freq": "W"},
        ("2020-01-06 00:00:00 (row 0)", "'W-SUN'", "fit freq='W-MON'"),
    ),
    "month starts are no month ends": (
        hourly(ds=pd.date_range("2020", periods=48, freq="MS")),
        {"freq": "ME"},
        ("row 0", "'ME'", "fit freq='MS'"),
    ),
    "no freq at all": (
        hourly()
        .iloc[[0, 1, 2]]
        .assign(ds=pd.to_datetime(["2020-01-01 00:00:00", "2020-01-02 00:00:01", "2020-01-09 00:00:00"])),
        {"freq": "h"},
        ("(row 1)", "expected", "fit no frequency"),
    ),
    "old alias": (hourly(), {"freq": "H"}, ("freq", "has dropped", "freq='h'")),
    "old alias with parts": (hourly(), {"freq": "15T"}, ("freq", "has dropped", "freq='15min'")),
    "old alias with anchor": (hourly(), {"freq": "Q-DEC"}, ("freq", "has dropped", "freq='QE-DEC'")),
    "unknown alias": (hourly(), {"freq": "hourly"}, ("freq", "'hourly'", "15min")),
    "negative freq": (hourly(), {"freq": "-1h"}, ("freq", "positive", "15min")),
    "zero step": (hourly(ds=range(48)), {"freq": 0}, ("freq", "at least 1", "freq=1")),
    "freq of another type": (hourly(), {"freq": 1.5}, ("freq", "1.5", "15min")),
    "whole numbers with an alias": (
        hourly(ds=range(48)),
        {},
        ("column 'ds'", "whole number 0", "whole number as freq"),
    ),
    "timestamps with a whole number": (hourly(), {"freq": 1}, ("column 'ds'", "whole numbers", "freq='h'")),
    "whole numbers off the step": (hourly(ds=[*range(0, 94, 2), 93]), {"freq": 2}, ("93 (row 47)", "freq=2", "freq")),
    "fractions as timestamps": (hourly(ds=np.arange(48) / 2), {}, ("column 'ds'", "float64", "convert")),
    "no frequency to infer": (hourly(1), {"freq": None}, ("series 'a'", "1 timestamps", "freq='h'")),
    "inferred freq that fails": (
        hourly().drop(index=0).assign(ds=[*hourly()["ds"][1:-1], pd.Timestamp("2020-01-03 00:17")]),
        {"freq": None},
        ("2020-01-03 00:17:00 (row 46)", "freq='h' (inferred)", "correct the timestamps"),
    ),
    "one id with two frequencies": (
        TWO_FREQUENCIES,
        {},
        ("2020-01-02 23:00:00 (row 47)", "24 steps apart", "an id of"),
    ),
    "one id with two frequencies, masked": (
        TWO_FREQUENCIES,
        {"missing": "mask"},
        ("2020-01-02 23:00:00 (row 47)", "29 rows", "one frequency"),
    ),
    "a series of another frequency, masked": (
        pd.concat([hourly(), hourly(unique_id="b").assign(ds=pd.date_range("2020-01-01", periods=48, freq="D"))]),
        {"missing": "mask"},
        ("series 'b'", "24 steps apart", "freq='D'"),
    ),
    "mixed time zones": (MIXED_ZONES, {}, ("row 3, column 'ds'", "found none here and UTC before", "one zone")),
    "two time zones": (TWO_ZONES, {}, ("row 3, column 'ds'", "found Asia/Tokyo here and UTC before", "tz='UTC'")),
    "mixed offsets": (TEXT_ZONES, {}, ("row 30, column 'ds'", "+02:00 here and +01:00 before", "tz='UTC'")),
    "naive among aware": (NAIVE_AMONG_TEXT, {"tz": "UTC"}, ("row 5, column 'ds'", "none here", "one zone")),
    "unparsable timestamp": (
        put(hourly(), "ds", 9, "yesterday"),
        {},
        ("row 9, column 'ds'", "'yesterday'", "ISO 8601"),
    ),
    "day first": (
        hourly(2, ds=["01/02/2020", "02/02/2020"]),
        {},
        ("row 0", "'01/02/2020' (2 such", "pass read_series"),
    ),
    "format that does not fit": (
        hourly(2, ds=["01/02/2020", "13/14/2020"]),
        {"time_format": "%d/%m/%Y"},
        ("row 1", "'13/14/2020'", "time_format='%d/%m/%Y'"),
    ),
    "missing timestamp": (put(hourly(), "ds", 9, pd.NaT), {}, ("row 9, column 'ds'", "none", "remove the row")),
    "periods": (
        hourly(ds=pd.period_range("2020", periods=48, freq="h")),
        {},
        ("column 'ds'", "periods", "to_timestamp"),
    ),
    "unknown zone": (hourly(), {"tz": "Mars/Olympus"}, ("tz", "'Mars/Olympus'", "Europe/Berlin")),
    "clock set back": (
        hourly(
            ds=[
                *pd.date_range("2020-10-25", periods=3, freq="h"),
                *pd.date_range("2020-10-25 02:00", periods=45, freq="h"),
            ]
        ),
        {},
        ("2020-10-25 02:00:00 (row 3)", "one row a timestamp", "pass tz='Europe/Berlin'"),
    ),
    "clock set forward": (
        hourly(49, ds=pd.date_range("2020-03-28", periods=49, freq="h")).drop(26),
        {},
        ("2020-03-29 01:00:00 (row 25)", "02:00:00 was expected", "pass missing='mask' or 'seasonal', or tz="),
    ),
    "hour that a zone does not have": (
        hourly(ds=pd.date_range("2020-03-28 12:00", periods=48, freq="h")),
        {"tz": "Europe/Berlin"},
        ("series 'a'", "2020-03-29 02:00:00", "UTC"),
    ),
    "hour that a zone has twice": (
        hourly(ds=pd.date_range("2020-10-24 12:00", periods=48, freq="h")),
        {"tz": "Europe/Berlin"},
        ("series 'a'", "Europe/Berlin", "UTC"),
    ),
    "missing column": (hourly().rename(columns={"y": "Y "}), {}, ("columns", "no column 'y'", "did you mean 'Y '?")),
    "missing columns": (hourly(), {"past": ["heat"]}, ("columns", "no column 'heat'", "'unique_id', 'ds', 'y'")),
    "missing id column by name": (
        hourly(),
        {"id_col": "shop"},
        ("columns", "no column 'shop'", "'unique_id', 'ds', 'y'"),
    ),
    "column twice": (pd.concat([hourly(), hourly()[["y"]]], axis=1), {}, ("columns", "2 columns", "rename")),
    "column in two roles": (hourly(p=1.0), {"past": ["p"], "future": ["p"]}, ("columns", "two roles", "once")),
    "no rows": (hourly().iloc[:0], {}, ("rows", "at least one row", "add")),
    "missing id": (put(hourly(), "unique_id", 4, None), {}, ("row 4, column 'unique_id'", "found none", "remove")),
    "ids of mixed type": (put(hourly(), "unique_id", 4, 7), {}, ("row 4", "found 7 (int)", "astype(str)")),
    "ids with a fraction": (hourly(unique_id=1.5), {}, ("row 0", "1.5 (float)", "astype(str)")),
    "nan known-future covariate": (
        put(hourly(p=1.0), "p", 8, np.nan),
        {"future": "p", "missing": "mask"},
        ("08:00:00 (row 8)", "future covariate 'p'", "known ahead"),
    ),
    "nan past covariate": (
        put(hourly(p=1.0), "p", 8, np.nan),
        {"past": ["p"]},
        ("(row 8)", "past covariate 'p'", "missing='mask'"),
    ),
    "past covariate without any value": (
        hourly(p=np.nan),
        {"past": ["p"], "missing": "mask"},
        ("series 'a'", "past covariate 'p'", "leave the column out"),
    ),
    "infinite past covariate": (
        put(hourly(p=1.0), "p", 8, np.inf),
        {"past": ["p"]},
        ("row 8, column 'p'", "inf", "correct"),
    ),
    "infinite future covariate": (
        put(hourly(p=1.0), "p", 8, -np.inf),
        {"future": ["p"], "missing": "mask"},
        ("row 8, column 'p'", "-inf", "correct"),
    ),
    "dates as covariate": (hourly().assign(p=hourly()["ds"]), {"past": ["p"]}, ("column 'p'", "covariate", "convert")),
    "varying static covariate": (
        put(hourly(size=2.0), "size", 8, 3.0),
        {"static": ["size"]},
        ("series 'a', static column 'size'", "08:00:00", "past or future"),
    ),
    "missing static covariate": (
        put(hourly(size=2.0), "size", 8, np.nan),
        {"static": ["size"]},
        ("static column 'size'", "every row", "fill"),
    ),
    "too many categories": (
        hourly(100, p=[f"k{i}" for i in range(100)]),
        {"past": ["p"]},
        ("column 'p'", "found 100", "group"),
    ),
    "text among numbers in a covariate": (
        hourly(p=[*range(47), "many"]).astype({"p": str}),
        {"past": ["p"]},
        ("row 0, column 'p'", "found '0' (48 such rows)", "pd.to_numeric"),
    ),
    "text where the training data had numbers": (
        hourly(p="many"),
        {"past": ["p"], "categories": {}},
        ("row 0, column 'p'", "found 'many'", "pd.to_numeric"),
    ),
    "unknown category": (
        hourly(p=["sun", "rain"] * 24),
        {"past": ["p"], "categories": {"p": ["sun", "ruin"]}},
        ("row 1, column 'p'", "'rain'", "'ruin'"),
    ),
    "lost in float32": (hourly(y=1e9 + np.arange(48)), {}, ("series 'a'", "float32", "offset")),
    "covariate lost in float32": (
        hourly(p=1e9 + np.arange(48)),
        {"past": ["p"]},
        ("series 'a'", "covariate 'p'", "offset"),
    ),
    "past float32": (put(hourly(), "y", 3, 1e39), {}, ("series 'a'", "float32", "unit")),
    "constant past float32": (hourly(y=1e39), {}, ("series 'a'", "float32", "unit")),
    "unknown way with missing values": (hourly(), {"missing": "drop"}, ("missing", "'drop'", "one of the three")),
    "season of zero": (hourly(), {"season": 0}, ("season", "at least 1", "usual one")),
    "no season to fill from": (
        hourly(ds=pd.date_range("2020", periods=48, freq="YS")),
        {"freq": "YS", "missing": "seasonal"},
        ("season", "no usual season", "mask"),
    ),
    "gap in the first season": (
        hourly().drop(5),
        {"missing": "seasonal"},
        ("series 'a'", "24 steps before was expected to fill step 5", "mask"),
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frame_is_refused(name: str) -> None:
    frame, options, (where, expected, remedy) = FRAMES[name]
    error = refused(frame, **options)
    assert where in error.where
    assert expected in error.expected
    assert remedy in error.remedy


CSV = hourly(6).to_csv(index=False)
FILES: dict[str, tuple[bytes, str, tuple[str, str, str]]] = {
    "empty": (b"", "x.csv", ("file", "empty", "header")),
    "blank": (b"\n\n", "x.csv", ("file", "no columns", "header")),
    "header only": (b"unique_id,ds,y\n", "x.csv", ("rows", "at least one row", "add")),
    "header only in gzip": (gzip.compress(b"unique_id,ds,y\n"), "x.csv.gz", ("rows", "at least one row", "add")),
    "binary": (bytes(range(256)) * 4, "x.csv", ("file", "binary", ".parquet")),
    "latin-1": (
        CSV.encode() + "Müller,2020-01-01 06:00:00,3\n".encode("latin-1"),
        "x.csv",
        ("line 8", "UTF-8", "UTF-8"),
    ),
    "utf-16": (CSV.encode("utf-16"), "x.csv", ("encoding", "UTF-16", "UTF-8")),
    "cut gzip": (gzip.compress(CSV.encode())[:-12], "x.csv.gz", ("file", "whole gzip", "cut short")),
    "no gzip": (CSV.encode(), "x.csv.gz", ("file", "whole gzip", "write or copy")),
    "too many fields": (CSV.encode() + b"a,2020-01-01 06:00:00,3,4\n", "x.csv", ("rows", "line 8", "as many columns")),
    "fields beyond the header": (
        b"unique_id,ds,y\na,2020-01-01,3,4\na,2020-01-02,3,4\n",
        "x.csv",
        ("rows", "regular", "as many"),
    ),
    "too few fields": (CSV.encode() + b"a,2020-01-01 06:00:00\n", "x.csv", ("(line 8)", "no value", "fill it in")),
    "text target": (
        CSV.encode() + b"a,2020-01-01 06:00:00,none at all\n",
        "x.csv",
        ("line 8, column 'y'", "'none at all'", "correct it"),
    ),
    "text covariate": (
        b"unique_id,ds,y,p\na,2020-01-01 00:00,1,2\na,2020-01-01 01:00,1,?\n",
        "x.csv",
        ("line 3, column 'p'", "'?'", "must not look like numbers"),
    ),
    "blank lines count": (
        b"\n".join([*CSV.encode().splitlines(), b"", b"a,2020-01-01 06:00,x"]),
        "x.csv",
        ("line 9", "'x'", "correct"),
    ),
    "other separator": (
        CSV.replace(",", ";").encode(),
        "x.csv",
        ("columns", "column 'ds' and no column 'y'", "separator=';'"),
    ),
    "bad timestamp": (
        CSV.encode() + b"a,2020-13-01 06:00:00,3\n",
        "x.csv",
        ("line 8, column 'ds'", "'2020-13-01", "ISO 8601"),
    ),
    "year out of reach": (
        CSV.encode() + b"a,99999-01-01,3\n",
        "x.csv",
        ("line 8, column 'ds'", "'99999-01-01'", "ISO 8601"),
    ),
    "unknown ending": (CSV.encode(), "x.xlsx", ("file name", ".parquet", "CSV or Parquet")),
    "text as Parquet": (CSV.encode(), "x.parquet", ("file", "whole Parquet", "damaged")),
}


@pytest.mark.parametrize("name", FILES)
def test_file_is_refused(name: str, tmp_path: Path) -> None:
    content, filename, (where, expected, remedy) = FILES[name]
    path = tmp_path / filename
    path.write_bytes(content)
    error = refused(path, past=["p"] if b",p" in content else [])
    assert where in error.where
    assert expected in error.expected
    assert remedy in error.remedy


def test_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text(CSV)
    assert "found a folder" in refused(tmp_path).expected
    assert refused(tmp_path / "sale.csv").remedy == "did you mean 'sales.csv'?"
    assert refused(str(tmp_path / "no" / "sales.csv")).expected == "no such file"


def test_source_of_another_type_is_refused() -> None:
    with pytest.raises(DataError, match=r"found builtins\.dict; make it a frame"):
        read_series({"y": [1]}, freq="D")  # type: ignore[arg-type]


def test_truncated_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    hourly(1000).to_parquet(path)
    assert len(read_series(path, freq="h")["a"]) == 1000
    path.write_bytes(path.read_bytes()[:-500])
    assert "Parquet" in refused(path).expected


def test_parquet_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    hourly(10).rename(columns={"y": "target"}).to_parquet(path)
    error = refused(path)
    assert error.expected == "there is no column 'y'"
    assert "'target'" in error.remedy


def test_parquet_without_pyarrow_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    hourly(10).to_parquet(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    error = refused(path)
    assert "pip install pyarrow" in error.remedy
