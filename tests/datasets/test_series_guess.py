"""Files that people really have are read as they are meant, and what was guessed is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.series import SeriesSet, dates, read_series
from mamba_datasets.series.dates import _parsed
from mamba_datasets.series.guess import Guess, guess_table

DAYS = pd.date_range("2024-01-01", periods=60, freq="D")
LEVEL = {"north": 1200.5, "south": 80.25}


def values(name: str) -> np.ndarray:
    return LEVEL[name] + np.arange(60) * 0.5


def german(value: float) -> str:
    return f"{value:,.2f}".replace(",", " ").replace(".", ",").replace(" ", ".")


def table(
    day: str = "%Y-%m-%d",
    number: Any = str,
    separator: str = ",",
    header: str = "shop,date,sales",
    newest: bool = False,
) -> str:
    rows = []
    for name in LEVEL:
        own = [f"{name}\x00{stamp:{day}}\x00{number(v)}" for stamp, v in zip(DAYS, values(name), strict=True)]
        rows += own[::-1] if newest else own
    return "\n".join([header.replace(",", separator), *(row.replace("\x00", separator) for row in rows)]) + "\n"


def wide(separator: str = ",", number: Any = str, day: str = "%Y-%m-%d", header: str = "date,north,south") -> str:
    north, south = values("north"), values("south")
    rows = [separator.join([f"{s:{day}}", number(a), number(b)]) for s, a, b in zip(DAYS, north, south, strict=True)]
    return "\n".join([header.replace(",", separator), *rows]) + "\n"


def across() -> str:
    rows = [",".join([name, "big", *(str(v) for v in values(name))]) for name in LEVEL]
    return "\n".join([",".join(["shop", "size", *(f"{s:%Y-%m-%d}" for s in DAYS)]), *rows]) + "\n"


def read(guess: Guess, **options: Any) -> SeriesSet:
    return read_series(
        guess.table, freq=None, id_col=guess.id_col, time_col=guess.time_col, target_col=guess.target_col, **options
    )


FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "long": (table(), ("time in 'date'", "series in 'shop'", "target in 'sales'")),
    "semicolons and decimal commas": (
        table("%d.%m.%Y", german, ";", "Filiale,Datum,Umsatz"),
        ("separated by ';'", "'Datum' read as day month year", "a decimal comma", "target in 'Umsatz'"),
    ),
    "tabs": (table(separator="\t"), ("separated by tabs",)),
    "pipes": (table(separator="|"), ("separated by '|'",)),
    "day first": (table("%d/%m/%Y"), ("'date' read as day month year",)),
    "month first": (table("%m/%d/%Y"), ("'date' read as month day year",)),
    "short years": (table("%d.%m.%y"), ("'date' read as day month year",)),
    "names of months": (table("%d %b %Y"), ("'date' read as day month year",)),
    "dates as whole numbers": (table("%Y%m%d"), ("year month day without marks",)),
    "with the time of day": (table("%m/%d/%Y 12:00 AM"), ("'date' read as month day year",)),
    "marks between thousands": (table(number=lambda v: f'"{v:,.2f}"'), ("target in 'sales'",)),
    "the newest first": (table(newest=True), ("rows sorted by time",)),
    "wide": (wide(), ("a series a column, 2 of them", "time in 'date'")),
    "wide with decimal commas": (wide(";", german, "%d.%m.%Y"), ("a decimal comma", "a series a column")),
    "a date a column": (across(), ("a date a column, 60 of them", "series in 'shop'")),
    "a saved row number": ("," + table().replace("\n", "\n0,").removesuffix("0,"), ("series in 'shop'",)),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_read_as_it_is_meant(name: str, tmp_path: Path) -> None:
    text, notes = FILES[name]
    if name == "a saved row number":
        lines = table().splitlines()
        text = "\n".join(["," + lines[0], *(f"{number},{line}" for number, line in enumerate(lines[1:]))]) + "\n"
    path = tmp_path / ("x.tsv" if name == "tabs, by its name" else "x.csv")
    path.write_text(text, encoding="utf-8")
    guess = guess_table(path)
    found = read(guess)
    assert found.ids == list(LEVEL)
    for one in found.series:
        np.testing.assert_allclose(one.y, values(one.id), rtol=1e-5)
        assert (one.index == DAYS).all()
    assert found.freq == "D"
    said = "; ".join(guess.notes)
    assert all(note in said for note in notes), said


def test_parquet_needs_no_guess_of_its_dialect(tmp_path: Path) -> None:
    frame = pd.concat([pd.DataFrame({"when": DAYS, "store": name, "qty": values(name)}) for name in LEVEL])
    frame.to_parquet(tmp_path / "x.parquet")
    guess = guess_table(tmp_path / "x.parquet")
    assert (guess.id_col, guess.time_col, guess.target_col) == ("store", "when", "qty")
    assert read(guess).lengths.tolist() == [60, 60]


MONTHS = "".join(f"{m:%b %Y},{m.month}\n" for m in pd.date_range("2020", periods=30, freq="MS"))
YEAR_FIRST = "".join(f"{m:%Y %b},{m.month}\n" for m in pd.date_range("2020", periods=30, freq="MS"))
YEAR_M = "".join(f"{m:%YM%m},{m.month}\n" for m in pd.date_range("2020", periods=30, freq="MS"))
# One of 53 weeks among them.
WEEKS = "".join(f"{w:%G}-W{w:%V},{w.day}\n" for w in pd.date_range("2020-06-01", periods=60, freq="W-MON"))
YEARS = "".join(f"{year},{year % 7}\n" for year in range(1850, 1900))
QUARTERS = "".join(f"{y}Q{q},{q}\n" for y in range(2015, 2021) for q in (1, 2, 3, 4))
HOURS = "".join(f"{h:%Y-%m-%dT%H:%M},{h.hour}\n" for h in pd.date_range("2020", periods=50, freq="h"))
STEPS = "".join(f"{5 * i},{i % 3}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "freq", "steps"),
    [
        ("month,value\n" + MONTHS, "MS", 30),
        ("month,value\n" + MONTHS.replace(" 20", "-"), "MS", 30),
        ("month,value\n" + YEAR_FIRST, "MS", 30),
        ("month,value\n" + YEAR_M, "MS", 30),
        ("q,value\n" + QUARTERS, "QS-OCT", 24),
        ("week,value\n" + WEEKS, "W-MON", 60),
        (",value\n" + YEARS, 1, 50),
        ("hour,value\n" + HOURS, "h", 50),
        ("step,value\n" + STEPS, 5, 40),
    ],
    ids=[
        "months",
        "months of short years",
        "months after their year",
        "months as 2020M01",
        "quarters",
        "weeks",
        "a saved index of years",
        "hours",
        "whole numbers",
    ],
)
def test_other_steps(text: str, freq: str | int, steps: int, tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text(text)
    found = read(guess_table(tmp_path / "sales.csv"))
    assert found.ids == ["sales"]
    assert found.freq == freq
    assert len(found.series[0]) == steps


@pytest.mark.parametrize("written", ["%H:%M", "%H:%M:%S", "%H"])
def test_the_time_of_day_may_stand_in_a_column_of_its_own(written: str, tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-01", periods=60, freq="h")
    rows = [f"{at:%d.%m.%Y};{at.strftime(written)};{shop};2,5;08:00" for shop in "ab" for at in hours]
    (tmp_path / "x.csv").write_text("Datum;Stunde;Laden;Umsatz;opens\n" + "\n".join(rows))
    guess = guess_table(tmp_path / "x.csv")
    assert "time of day in 'Stunde'" in guess.notes
    found = read(guess)
    assert (found.ids, found.freq) == (["a", "b"], "h")
    assert found.series[0].index[-1] == hours[-1]


def test_two_columns_tell_the_series_apart(tmp_path: Path) -> None:
    rows = [f"{d:%Y-%m-%d},{s},{i},3" for s in ("s1", "s2") for i in ("i1", "i2") for d in DAYS]
    (tmp_path / "x.csv").write_text("date,store,item,sold\n" + "\n".join(rows))
    guess = guess_table(tmp_path / "x.csv")
    assert read(guess).ids == ["s1/i1", "s1/i2", "s2/i1", "s2/i2"]
    assert "series in 'store' and 'item' together" in guess.notes


@pytest.mark.parametrize("shops", [("A", "B"), ("1", "2")])
def test_when_a_shop_opens_is_no_time_of_its_rows(shops: tuple[str, str], tmp_path: Path) -> None:
    rows = [
        f"{day:%Y-%m-%d},{shop},{opens},3.5"
        for shop, opens in zip(shops, ("00:00", "12:00"), strict=True)
        for day in DAYS
    ]
    (tmp_path / "x.csv").write_text("date,shop,opens,sales\n" + "\n".join(rows))
    guess = guess_table(tmp_path / "x.csv")
    assert guess.id_col == "shop"
    assert read(guess).freq == "D"


def test_dollars_and_euros_are_not_added(tmp_path: Path) -> None:
    rows = [f"{day:%Y-%m-%d},{'$' if day.day % 2 else '€'}5" for day in DAYS]
    (tmp_path / "x.csv").write_text("date,sales\n" + "\n".join(rows))
    with pytest.raises(DataError, match="column 'sales': a number was expected"):
        read(guess_table(tmp_path / "x.csv"))


@pytest.mark.parametrize(("written", "unit"), [("${:,.1f}", "$"), ("-{:.1f} €", "€"), ("{:.1f}%", "%")])
def test_numbers_may_have_a_unit_that_is_said(written: str, unit: str, tmp_path: Path) -> None:
    values = [1000.5 + day for day in range(len(DAYS))]
    rows = [f'{d:%Y-%m-%d},"{written.format(value)}",0' for d, value in zip(DAYS, values, strict=True)]
    path = tmp_path / "x.csv"
    path.write_text("date,sales,promo\n" + "\n".join(rows))
    guess = guess_table(path, covariates=["promo"])
    assert f"'sales' in {unit}" in guess.notes
    sign = -1 if written[0] == "-" else 1
    assert read(guess).series[0].y.tolist() == [sign * value for value in values]
    path.write_text("date,sales,promo\n" + "\n".join([*rows[:-1], f"{DAYS[-1]:%Y-%m-%d},7,0"]))
    assert guess_table(path).target_col == "sales"
    with pytest.raises(DataError, match="column 'sales': a number was expected for the target"):
        read(guess_table(path))


def test_one_shop_with_a_column_of_its_own_is_no_wide_table(tmp_path: Path) -> None:
    rows = [f"{d:%Y-%m-%d},a,3.5,{int(d.day == 1)}" for d in DAYS]
    (tmp_path / "x.csv").write_text("date,shop,sold,promo\n" + "\n".join(rows))
    guess = guess_table(tmp_path / "x.csv")
    assert (guess.id_col, guess.target_col) == ("shop", "sold")


def test_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [f"{d:%Y-%m-%d},{i},3.5" for i in ("007", "010") for d in DAYS]
    (tmp_path / "x.csv").write_text("date,sku,sold\n" + "\n".join(rows))
    assert read(guess_table(tmp_path / "x.csv")).ids == ["007", "010"]


def test_the_id_of_namibia_is_an_id(tmp_path: Path) -> None:
    path = tmp_path / "countries.csv"
    path.write_text("date,country,y\n" + "".join(f"2024-01-0{d},{c},{d}\n" for c in ("NA", "ZA") for d in (1, 2, 3)))
    found = guess_table(path)
    assert (found.id_col, found.table.frame["country"].tolist()) == ("country", ["NA"] * 3 + ["ZA"] * 3)
    assert found.notes == ("time in 'date'", "series in 'country'")


def test_what_is_named_is_not_guessed(tmp_path: Path) -> None:
    frame = pd.DataFrame({"date": DAYS, "other": DAYS + pd.Timedelta(days=400), "a": 1.0, "b": 2.0, "temp": 3.0})
    frame.to_csv(tmp_path / "x.csv", index=False)
    guess = guess_table(tmp_path / "x.csv", time_col="other", target_col="b", covariates=["temp"])
    assert (guess.time_col, guess.target_col) == ("other", "b")
    found = read(guess, past=["temp"])
    assert str(found.series[0].index[0])[:4] == "2025"
    assert found.past_names == ("temp",)
    both = read(guess_table(tmp_path / "x.csv", covariates=["temp"]), future=["temp"])
    assert both.ids == ["a", "b"]
    assert both.future_names == ("temp",)


TWO_TARGETS = table().replace("sales", "one").replace("\n", ",1\n").replace("one,1", "one,two")


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (TWO_TARGETS, {}, ("'one', 'two'", "--target-col")),
        ("a,b\n1,2\n3,4\n", {}, ("column of dates", "--time-col")),
        (table(), {"id_col": "shops"}, ("no column 'shops'", "'shop'")),
        (table(), {"covariates": ["price"]}, ("no column 'price'",)),
        (table().replace("north,2024-01-07,1203.5", "north,2024-01-07,many"), {}, ("line 8", "'many'")),
        (table().replace("north,2024-01-07", "north,2024-01-06"), {}, ("2024-01-06", "line 8")),
        (table().replace("2024-01-07", "2024-01-72", 1), {"time_col": "date"}, ("line 8", "'2024-01-72'")),
        (
            table("%m/%d/%Y") + "Total,Total,99\n",
            {},
            ("line 122, column 'date'", "found 'Total'; remove the row, or write ISO"),
        ),
        ("date,y\n", {}, ("row",)),
        ("", {}, ("empty",)),
    ],
    ids=[
        "two-targets",
        "no-dates",
        "no-such-id",
        "no-such-covariate",
        "text",
        "twice",
        "no-date",
        "total",
        "no-rows",
        "empty",
    ],
)
def test_what_cannot_be_told_is_asked_for(text: str, options: Any, says: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(guess_table(path, **options))
    assert caught.value.path == str(path)
    assert all(word in str(caught.value) for word in says), caught.value


def test_a_column_is_read_as_dates_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_as: list[str] = []

    def parsed(text: pd.Series, pattern: str) -> pd.Series | None:
        read_as.append(pattern)
        return _parsed(text, pattern)

    monkeypatch.setattr(dates, "_parsed", parsed)
    shops = [f"shop {number}" for number in range(50)]
    rows = [f"{day:%d.%m.%Y};" + ";".join(["1,5"] * len(shops)) for day in DAYS]
    (tmp_path / "x.csv").write_text("\n".join([f"Datum;{';'.join(shops)}", *rows]), encoding="utf-8")
    assert len(read(guess_table(tmp_path / "x.csv")).ids) == len(shops)
    assert len(read_as) < 4 * len(shops)  # pandas takes milliseconds each time, and there may be thousands of columns


def test_a_day_that_could_be_a_month_is_said(tmp_path: Path) -> None:
    days = ["01/02/2024", "03/04/2024", "05/06/2024"]
    (tmp_path / "x.csv").write_text("date,y\n" + "".join(f"{day},1\n" for day in days))
    assert any("could be" in note for note in guess_table(tmp_path / "x.csv").notes)
