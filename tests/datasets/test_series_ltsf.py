"""The long-term forecasting benchmarks' files: borders, marks, and what is wrong with a file that is not one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.registry import check
from mamba_datasets.series.ltsf import SETS, LtsfSeries, LtsfSet, read_ltsf


def frame(rows: int = 200, columns: tuple[str, ...] = ("a", "b")) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(rows, len(columns)))
    found = pd.DataFrame(values, columns=list(columns))
    found.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h").astype(str))
    return found


def series(known: LtsfSet, rows: int) -> LtsfSeries:
    return LtsfSeries("x", known, Path("x"), ("a",), np.arange(rows, dtype=float)[:, None], None)


def test_borders_of_every_split() -> None:
    ratio = series(LtsfSet("x"), 7588)
    assert ratio.borders == ((0, 5311), (5311, 6071), (6071, 7588))
    assert series(SETS["ETTh1"], 17420).borders == ((0, 8640), (8640, 11520), (11520, 14400))
    assert series(SETS["ETTm1"], 69680).borders == ((0, 34560), (34560, 46080), (46080, 57600))
    pems = series(SETS["PEMS08"], 17856)
    assert pems.borders == ((0, 10713), (10713, 14284), (14284, 17856))
    # The first window of a part begins a lookback before it, except with PEMS.
    assert (ratio.starts("val", 96, 24)[0], pems.starts("val", 96, 24)[0]) == (5311 - 96, 10713)
    assert ratio.starts("test", 96, 24)[-1] + 96 + 24 == 7588


def test_scale_and_marks_are_those_of_the_training_part(tmp_path: Path) -> None:
    table = frame()
    table.loc[150:, "a"] = 1e6
    table["b"] = 3.0
    table.to_csv(tmp_path / "mine.csv", index=False)
    found = read_ltsf(tmp_path, "mine")
    np.testing.assert_allclose(found.scaled[:140, 0].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(found.scaled[:140, 0].std(), 1)
    assert (found.scaled[:, 1] == 0).all()
    assert found.marks is not None
    np.testing.assert_allclose(found.marks[23], [0.5, 2 / 6 - 0.5, -0.5, -0.5])  # 2020-01-01 23:00, a Wednesday
    assert np.abs(found.marks).max() <= 0.5


def test_files_without_dates(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(17856, 170, 3)).astype(np.float32)
    (tmp_path / "PEMS").mkdir()
    np.savez(tmp_path / "PEMS" / "PEMS08.npz", data=values)
    found = read_ltsf(tmp_path, "PEMS08")
    np.testing.assert_array_equal(found.values, values[..., 0])
    assert found.marks is None
    pd.DataFrame(values[:50, :137, 0]).to_csv(tmp_path / "solar_AL.txt", header=False, index=False)
    with pytest.raises(DataError, match="52560 rows were expected, found 50"):
        read_ltsf(tmp_path, "solar")
    (tmp_path / "PEMS04.npz").write_bytes(b"PK damaged")
    with pytest.raises(DataError, match="an array 'data'"):
        read_ltsf(tmp_path, "PEMS04")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(DataError, match=r"there is no mien.csv.*did you mean 'mine'"):
        read_ltsf(tmp_path, "mien")
    with pytest.raises(DataError, match="no such folder"):
        read_ltsf(tmp_path / "none", "ETTh1")
    with pytest.raises(DataError, match=r"val part: windows of 96 \+ 96 steps were expected"):
        read_ltsf(tmp_path, "mine").starts("val", 96, 96)


def test_check_gathers_every_way_in_which_a_file_is_not_the_benchmarks(tmp_path: Path) -> None:
    path = tmp_path / "ETTh1.csv"
    table = frame().astype({"a": object})
    table.loc[3, "a"], table.loc[4, "b"] = "many", np.nan
    table.to_csv(path, index=False)
    report = check(path, "ltsf")
    assert [finding.where for finding in report.findings] == [
        "line 5, column 'a'", "line 6, column 'b'", "columns", "columns", "rows",
    ]  # fmt: skip
    whole = frame(17420, SETS["ETTh1"].columns)
    whole.to_csv(path, index=False)
    (finding,) = check(path, "ltsf").findings
    assert "a mean of 5.211888 was expected in the training part" in finding.expected
    whole.rename(columns={"date": "time"}).to_csv(path, index=False)
    assert "a first column 'date'" in check(path, "ltsf").findings[0].expected
    other = check(path.rename(tmp_path / "other.csv"), "ltsf")
    assert "--set name=NAME" in other.findings[0].remedy


def test_check_of_a_good_file(tmp_path: Path) -> None:
    table = frame(966, tuple("abcdefg"))
    table.to_csv(tmp_path / "national_illness.csv", index=False)
    report = check(tmp_path / "national_illness.csv", "ltsf")
    assert report.ok
    assert report.summary == "illness: 966 rows of 7 variates; train, val, test: 676, 97, 193 rows"
