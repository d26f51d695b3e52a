"""The readers' registry: kinds, guesses, and reports that hold every problem."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mamba_datasets import registry
from mamba_datasets.errors import DataError
from mamba_datasets.registry import check, guess_kind, kinds, register_reader
from mamba_datasets.report import Report


def good(n: int = 48) -> pd.DataFrame:
    index = pd.date_range("2020-01-01", periods=n, freq="h")
    parts = [pd.DataFrame({"unique_id": name, "ds": index, "y": np.arange(n) * 1.0}) for name in "abcdef"]
    return pd.concat(parts, ignore_index=True)


def written(frame: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "x.csv"
    frame.to_csv(path, index=False)
    return path


def test_good_file(tmp_path: Path) -> None:
    report = check(written(good(), tmp_path))
    assert report.ok
    assert report.kind == "series"
    assert report.summary == "6 series of 48 steps, freq='h', 2020-01-01 00:00:00 to 2020-01-02 23:00:00"
    assert report.notes == ("freq='h' was inferred from series 'a'",)


def test_every_problem_is_reported(tmp_path: Path) -> None:
    frame = good().astype({"y": object, "ds": object})
    frame.loc[3, "y"] = "many"
    frame.loc[5, "y"] = np.nan
    frame.loc[9, "y"] = np.inf
    frame = frame.drop([48 + 7, 48 + 8])
    frame = frame.loc[[row + {99: 1, 100: -1}.get(row, 0) for row in frame.index]].set_axis(frame.index)
    frame.loc[144 + 6, "ds"] = frame.loc[144 + 5, "ds"]
    frame.loc[192 + 2, "ds"] = "soon"
    frame.loc[240 + 47, "ds"] = "2020-01-03 00:30:00"
    report = check(written(frame, tmp_path), "series")
    got = [(finding.where, finding.expected) for finding in report.findings]
    want = [
        ("line 5, column 'y'", "found 'many'"),
        ("line 194, column 'ds'", "'soon'"),
        ("series 'c', 2020-01-01 03:00:00 (line 100)", "time order"),
        ("series 'd', 2020-01-01 05:00:00 (line 150)", "line 149 again"),
        ("series 'b', 2020-01-01 06:00:00 (line 56)", "2020-01-01 07:00:00 was expected next"),
        ("series 'd', 2020-01-01 05:00:00 (line 149)", "2020-01-01 06:00:00 was expected next"),
        ("series 'f', 2020-01-03 00:30:00 (line 287)", "freq='h'"),
        ("series 'a', 2020-01-01 09:00:00 (line 11)", "infinite"),
        ("series 'a', 2020-01-01 05:00:00 (line 7)", "no value"),
    ]
    assert len(got) == len(want)
    for (where, expected), (want_where, want_expected) in zip(got, want, strict=True):
        assert where == want_where
        assert want_expected in expected
    assert not report.ok
    assert report.summary == ""
    assert all(finding.remedy and str(finding).startswith(finding.path) for finding in report.findings)


def test_every_covariate_problem_is_reported(tmp_path: Path) -> None:
    frame = good().assign(p=1.0, f=1.0, s=1.0)
    frame.loc[3, "p"] = np.inf
    frame.loc[4, "p"] = np.nan
    frame.loc[50, "f"] = np.nan
    frame.loc[100, "s"] = 2.0
    report = check(written(frame, tmp_path), past=["p"], future=["f"], static=["s"])
    assert [finding.where for finding in report.findings] == [
        "line 5, column 'p'",
        "series 'c', static column 's'",
        "series 'a', 2020-01-01 04:00:00 (line 6)",
        "series 'b', 2020-01-01 02:00:00 (line 52)",
    ]


@pytest.mark.parametrize("column", ["ds", "unique_id"])
def test_problems_beside_unusable_timestamps_are_reported(column: str, tmp_path: Path) -> None:
    frame = good().astype({"ds": object})
    frame.loc[7, column] = None
    frame.loc[60, "y"] = np.inf
    places = [finding.where for finding in check(written(frame, tmp_path)).findings]
    assert places[0] == f"line 9, column '{column}'"
    assert "line 62" in places[-1]


def test_first_finding_is_what_reading_raises(tmp_path: Path) -> None:
    from mamba_datasets.series import read_series

    path = written(good().drop([20, 100]), tmp_path)
    report = check(path, freq="h")
    assert len(report.findings) == 2
    with pytest.raises(DataError) as caught:
        read_series(path, freq="h")
    assert str(caught.value) == str(report.findings[0])


@pytest.mark.parametrize("content", [b"", b"unique_id,ds,y\n", bytes(300), b"a,b\n1,2\n"])
def test_unreadable_file_is_a_finding(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert len(check(path).findings) == 1


def test_a_file_as_people_have_it_is_read_as_for_a_forecast(tmp_path: Path) -> None:
    path = tmp_path / "shops.csv"
    days = [f"{day:02}.01.2024;{day},5;{2 * day},5" for day in range(1, 11)]
    path.write_text("\n".join(["Datum;a;b", *days]))
    report = check(path)
    assert (report.ok, report.summary[:20]) == (True, "2 series of 10 steps")
    assert "a decimal comma" in report.notes
    path.write_text("\n".join(["Datum;a;b", *days[:4], *days[5:]]))
    assert [finding.where[-8:] for finding in check(path).findings] == ["(line 5)"] * 2
    assert not check(path, time_col="Datum").ok


def test_missing_file_is_a_finding(tmp_path: Path) -> None:
    assert check(tmp_path / "x.csv").findings[0].expected == "no such file"


def test_kinds(tmp_path: Path) -> None:
    assert "series" in kinds()
    assert guess_kind("a/b.PARQUET") == "series"
    with pytest.raises(DataError, match="did you mean 'series'"):
        check(tmp_path / "x.csv", "serie")
    with pytest.raises(DataError, match="fits no kind of data; name one: --as "):
        check(tmp_path / "x.what")
    with pytest.raises(DataError, match="a spreadsheet is not read; save its table as CSV"):
        check(tmp_path / "Umsatz.XLSX")


def test_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_readers", dict(registry._readers))
    register_reader("table", [".CSV", ".tab"])(lambda path: Report(str(path), "table"))
    assert check("x.tab") == Report("x.tab", "table")
    assert check("x.csv", "table").kind == "table"
    with pytest.raises(DataError, match=r"\['series', 'table'\]"):
        guess_kind("x.csv")
    with pytest.raises(ValueError, match="registered already"):
        register_reader("table")


@pytest.mark.parametrize(
    ("kind", "option", "value", "says"),
    [
        ("image-pairs", "num_classes", "x", r"int \| None was expected, found 'x'"),
        ("image-pairs", "num_classes", True, "found True"),
        ("image-pairs", "foreground", "x", "bool was expected"),
        ("images", "classes", 3, "found 3"),
        ("images", "classes", "cat", "found 'cat'"),
        ("audio", "layout", 3, r"str \| None was expected"),
    ],
)
def test_options_of_another_kind_are_refused(kind: str, option: str, value: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"option '{option}': .*{says}"):
        check(tmp_path, kind, **{option: value})


def test_checking_needs_no_torch() -> None:
    code = "import sys; from mamba_datasets.registry import kinds; kinds(); assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(registry.__file__).parents[1])}
    )
