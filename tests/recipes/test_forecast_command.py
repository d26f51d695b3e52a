"""`mamba-apps forecast`: a file in, a forecast out, and every bad file in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from mamba_recipes.cli import main

QUICK = ["--lookback", "48", "--max-steps", "4", "--option", "d_model=16", "--option", "layers=1"]


def series_text(name: str = "a", hours: int = 240) -> str:
    start = pd.Timestamp("2024-01-01")
    values = (f"{10 + 3 * math.sin(hour / 24 * 2 * math.pi) + hour % 5 * 0.1:.3f}" for hour in range(hours))
    return "".join(f"{name},{start + pd.Timedelta(hours=hour)},{value}\n" for hour, value in enumerate(values))


GOOD = "unique_id,ds,y\n" + series_text("a") + series_text("b")


@pytest.fixture
def sales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sales.csv").write_text(GOOD, encoding="utf-8")
    return tmp_path


def test_forecast_prints_a_row_a_step(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", "sales.csv", "--horizon", "6", "--levels", "80,95", *QUICK]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "unique_id,ds,patch,patch-lo-80,patch-hi-80,patch-lo-95,patch-hi-95"
    assert len(lines) == 1 + 2 * 6
    assert lines[1].startswith("a,2024-01-11 00:00:00,")
    talk = captured.err.splitlines()
    assert talk[0].startswith("forecast sales.csv · patch · horizon 6 · ")
    assert talk[-1] == f"next:  mamba-apps forecast sales.csv --horizon 6 --levels 80,95 {' '.join(QUICK)} --plot"
    assert len(talk) == 3


def test_files_are_written_and_the_model_goes_on(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", "out/f.csv", "--plot", "f.png", "--save", "model", "--seed", "3"]
    assert main(["forecast", "sales.csv", "--horizon", "6", "--levels", "80", *QUICK, *words]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "on the part held back" in captured.err
    first = pd.read_csv("out/f.csv")
    assert Path("f.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in Path("out").iterdir()] == ["f.csv"]
    assert main(["forecast", "sales.csv", "--model", "model", "--json", "--plot", "again.svg"]) == 0
    assert Path("again.svg").read_text(encoding="utf-8").startswith("<?xml")
    captured = capsys.readouterr()
    assert "on the part held back" not in captured.err  # it is of the data that were learned from
    rows = json.loads(captured.out)
    assert len(rows) == 12
    assert [row["patch"] for row in rows] == pytest.approx(first["patch"].tolist(), rel=1e-5)
    assert main(["forecast", "sales.csv", "--model", "model", "--horizon", "9"]) == 2
    assert "the model forecasts 6 steps, --horizon is 9" in capsys.readouterr().err
    assert main(["forecast", "sales.csv", "--model", "model", "--freq", "h", "--out", "h.csv"]) == 0
    for words in (["--lookback", "9"], ["--missing", "mask"], ["--option", "d_model=4"]):
        assert main(["forecast", "sales.csv", "--model", "model", *words]) == 2
        assert f"{words[0]} is given, and model has learned already" in capsys.readouterr().err


def test_a_future_is_refused_before_anything_is_learned(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv("sales.csv", parse_dates=["ds"]).assign(price=1.0)
    frame.to_csv("sales.csv", index=False)
    ahead = frame[frame["ds"] < "2024-01-01 06:00"].assign(ds=lambda rows: rows["ds"] + pd.Timedelta(days=10))
    ahead.to_csv("good.csv", index=False)
    ahead[1:].to_csv("bad.csv", index=False)
    words = ["forecast", "sales.csv", "--horizon", "6", "--model", "ridge", "--future", "price"]
    for futr, says in (([], "give it: --futr FILE"), (["--futr", "bad.csv"], "give a row for each step to come")):
        assert main([*words, *futr, "--save", "model"]) == 2
        captured = capsys.readouterr()
        assert says in captured.err.splitlines()[-1]
        assert "part held back" not in captured.err
    assert main([*words, "--futr", "good.csv", "--save", "model"]) == 0
    assert main(["forecast", "sales.csv", "--model", "model"]) == 2
    assert capsys.readouterr().err.endswith("give it: --futr FILE\n")


def test_both_files_may_have_the_time_of_day_in_a_column_of_its_own(
    sales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = pd.date_range("2024-01-01", periods=246, freq="h")
    frame = pd.DataFrame({"Date": hours.strftime("%d/%m/%Y"), "Time": hours.strftime("%H:%M"), "price": 1.0, "y": 2.0})
    frame[:240].to_csv("power.csv", index=False)
    frame[240:].drop(columns="y").to_csv("ahead.csv", index=False)
    words = ["--horizon", "6", "--model", "ridge", "--future", "price", "--futr", "ahead.csv"]
    assert main(["forecast", "power.csv", *words]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("power,2024-01-11 00:00:00,")


def test_what_is_wrong_is_told_in_the_command_s_options(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sales.csv").write_text(swap(GOOD, "a,2024-01-01 05:00:00", "c,2024-01-01 05:00:00"), encoding="utf-8")
    assert main(["forecast", "sales.csv", "--horizon", "6", "--model", "ridge"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("(1 step missing in 1 gap); add the rows, or pass --missing mask or seasonal")
    Path("sales.csv").write_text(GOOD.replace("2024-01-01", "soon"), encoding="utf-8")
    assert main(["forecast", "sales.csv", "--horizon", "6", "--model", "ridge"]) == 2
    assert capsys.readouterr().err.endswith("; write ISO 8601 (2020-01-31 13:00)\n")


def test_json_has_the_times_of_the_csv(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["forecast", "sales.csv", "--horizon", "2", "--model", "seasonal_naive", "--tz", "Europe/Berlin"]
    assert main(words) == 0
    times = [line.split(",")[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert times[0] == "2024-01-11 00:00:00+01:00"
    assert main([*words, "--json"]) == 0
    assert [row["ds"].replace("T", " ") for row in json.loads(capsys.readouterr().out)] == times


def test_a_folder_hides_no_model_of_its_name(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("seasonal_naive").mkdir()
    words = ["forecast", "sales.csv", "--model", "seasonal_naive"]
    assert main([*words, "--horizon", "6", "--save", "my models/seasonal_naive"]) == 0
    assert capsys.readouterr().err.endswith("next:  mamba-apps forecast FILE --model 'my models/seasonal_naive'\n")
    Path("seasonal_naive").rmdir()
    Path("my models/seasonal_naive").rename("seasonal_naive")  # a saved model stands for itself
    assert main(words) == 0


def test_a_baseline_needs_no_training(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "seasonal_naive", "--option", "season=24", "--lookback", "48"]
    assert main(["forecast", "sales.csv", "--horizon", "24", *words]) == 0
    frame = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    values = [float(row[2]) for row in frame if row[0] == "a"]
    past = [float(line.rsplit(",", 1)[1]) for line in series_text("a").splitlines()[-24:]]
    assert values == pytest.approx(past, rel=1e-5)


def test_other_column_names(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("shop.csv").write_text(GOOD.replace("unique_id,ds,y", "shop,hour,sold"), encoding="utf-8")
    words = ["--id-col", "shop", "--time-col", "hour", "--target-col", "sold", "--model", "seasonal_naive"]
    assert main(["forecast", "shop.csv", "--horizon", "3", "--freq", "h", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "shop,hour,seasonal_naive"


def swap(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (swap(GOOD, "a,2024-01-01 05:00:00", "a,2024-01-01 04:00:00"), "04:00:00"),
        (swap(GOOD, "a,2024-01-01 05:00:00,", "c,2024-01-01 05:00:00,"), "05:00:00"),
        (GOOD.replace("\n", ",1\n").replace("ds,y,1", "ds,one,two"), "several could be it: 'one', 'two'"),
        (swap(GOOD, "a,2024-01-01 07:00:00,", "a,2024-01-01 07:00:00,many"), "many"),
        (swap(GOOD, "a,2024-01-01 07:00:00,", "a,2024-01-01 07:00:00,inf\nx,2024-01-01 07:00:00,"), "inf"),
        (swap(GOOD, "a,2024-01-01 07:00:00,", "a,2024-01-01 07:00:00+02:00,"), "one time zone"),
        ("unique_id,ds,y\n" + series_text("a", 20), "20"),
        ("unique_id,ds,y\n", "row"),
        ("", "empty"),
        ("\0\1\2", "binary"),
    ],
)
def test_bad_files_end_with_one_line_and_code_2(
    text: str, says: str, sales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sales.csv").write_text(text, encoding="utf-8")
    assert main(["forecast", "sales.csv", "--horizon", "6", "--lookback", "48"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("mamba-apps: ")]
    assert line.startswith("mamba-apps: error: sales.csv")
    assert says in line
    assert "Traceback" not in captured.err
    assert [path.name for path in sales.iterdir()] == ["sales.csv"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--horizon", "0"], "expected a whole number of at least 1, found '0'"),
        (["--horizon", "6", "--lookback", "0"], "expected a whole number of at least 1, found '0'"),
        ([], "--horizon is missing"),
        (["--horizon", "6", "--model", "pacth"], "unknown forecasting model 'pacth'; did you mean 'patch'"),
        (["--horizon", "6", "--option", "d_modle=3"], "has no option 'd_modle'; did you mean 'd_model'"),
        (["--horizon", "6", "--option", "mixer=mamba7"], "unknown mixer 'mamba7'"),
        (["--horizon", "6", "--levels", "80,high"], "argument --levels"),
        (["--horizon", "6", "--levels", "180"], "180"),
        (["--horizon", "6", "--freq", "fortnightly"], "fortnightly"),
        (["--horizon", "6", "--out", "f.xlsx"], "unknown ending '.xlsx'"),
        (["--horizon", "6", "--out", "/proc/none/f.csv"], "cannot write to the folder of --out /proc/none"),
        (["--horizon", "6", "--plot", "f.bmp"], "unknown ending '.bmp'"),
        (["--horizon", "6", "--out", "./sales.csv"], "--out sales.csv would overwrite what is read"),
        (["--horizon", "6", "--save", "sales.csv"], "--save sales.csv is a file"),
        (["--horizon", "6", "--future", "price"], "price"),
        (["--horizon", "6", "--futr", "sales.csv"], "no column is known ahead; name those it has: --future"),
        (["--horizon", "6", "--refit"], "--refit is given, and it is for --cross-validate; leave it out"),
        (["--horizon", "6", "--page", "f.html"], "--page is given"),
        (["--model", "no/such/model"], "no saved model in no/such/model"),
        (["--model", "."], "no saved model in ."),
    ],
)
def test_wrong_options_end_with_one_line_and_code_2(
    words: list[str], says: str, sales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forecast", "sales.csv", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("mamba-apps: error: ")
    assert [path.name for path in sales.iterdir()] == ["sales.csv"]


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_damaged_model_is_refused(name: str, sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "seasonal_naive", "--save", "model"]
    assert main(["forecast", "sales.csv", "--horizon", "6", *words]) == 0
    path = Path("model") / name
    path.write_bytes(path.read_bytes()[:-7])
    capsys.readouterr()
    assert main(["forecast", "sales.csv", "--model", "model"]) == 2
    assert name in capsys.readouterr().err


def test_a_name_with_dollars_is_drawn_as_it_is(sales: Path) -> None:
    Path("sales.csv").write_text("unique_id,ds,y\n" + series_text("US$ and $_{", 120), encoding="utf-8")
    assert main(["forecast", "sales.csv", "--horizon", "2", "--model", "repeat_last", "--plot", "p.svg"]) == 0
    assert "US$ and $_{" in Path("p.svg").read_text(encoding="utf-8")


def a_file_of_somebody() -> str:
    """Days and shops side by side, semicolons, decimal commas, the newest first."""
    days = pd.date_range("2024-01-01", periods=120, freq="D")[::-1]
    rows = [
        f"{day:%d.%m.%Y};{10 + day.dayofweek:.2f};{1000 + 20 * day.dayofweek:.2f}".replace(".", ",") for day in days
    ]
    return "Datum;Nord;Süd\n" + "\n".join(row.replace(",", ".", 2) for row in rows) + "\n"


def test_a_file_that_somebody_has(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("umsatz.csv").write_text(a_file_of_somebody(), encoding="utf-8")
    words = ["--horizon", "7", "--levels", "80,95", "--model", "seasonal_naive", "--plot", "--out", "f.parquet"]
    assert main(["forecast", "umsatz.csv", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == (
        "read: columns separated by ';' · 'Datum' read as day month year · a decimal comma · time in 'Datum' · rows "
        "sorted by time · a series a column, 2 of them"
    )
    assert Path("umsatz-forecast.png").read_bytes()[:4] == b"\x89PNG"
    found = pd.read_parquet("f.parquet")
    assert list(found.columns[:4]) == ["unique_id", "Datum", "seasonal_naive", "seasonal_naive-lo-80"]
    assert found["unique_id"].unique().tolist() == ["Nord", "Süd"]
    assert found["Datum"].min() == pd.Timestamp("2024-04-30")
    assert found["seasonal_naive"].iloc[0] == 11
    assert found["seasonal_naive"].iloc[7] == 1020


def test_a_model_goes_on_with_a_file_of_other_shape(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("umsatz.csv").write_text(a_file_of_somebody(), encoding="utf-8")
    assert main(["forecast", "umsatz.csv", "--horizon", "7", "--model", "seasonal_naive", "--save", "model"]) == 0
    first = capsys.readouterr().out
    long = pd.read_csv("umsatz.csv", sep=";", decimal=",").melt("Datum", var_name="shop", value_name="sold")
    long.to_csv("long.csv", index=False)
    assert main(["forecast", "long.csv", "--model", "./model"]) == 0
    assert capsys.readouterr().out == first


def test_cross_validation_writes_a_page_with_the_worst_series(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--horizon", "6", "--model", "ridge", "--levels", "80", "--lookback", "48", "--cross-validate", "3"]
    assert main(["forecast", "sales.csv", *words, "--out", "cv.csv"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "model,steps,mae,rmse,wape,cover-80,width-80"
    assert lines[1].startswith("ridge,36,")
    assert lines[2].startswith("seasonal_naive,36,")
    talk = captured.err.splitlines()
    assert "ridge is off by" in captured.err
    assert talk[-1] == "page: sales-cross-validation.html"
    forecasts = pd.read_csv("cv.csv")
    assert len(forecasts) == 2 * 3 * 6
    page = Path("sales-cross-validation.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1 + 2  # the error over the steps, and each series' worst cut
    assert "The series that went worst" in page
    assert "mamba-apps forecast sales.csv --horizon 6" in page
    assert "http" not in page.replace("http-equiv", "")
    assert float(lines[1].split(",")[2]) == pytest.approx((forecasts["ridge"] - forecasts["y"]).abs().mean(), rel=1e-2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--horizon", "6", "--cross-validate", "500"], "steps were expected"),
        (["--horizon", "6", "--cross-validate", "0"], "at least 1"),
        (["--cross-validate", "2"], "--horizon is missing"),
        (["--horizon", "6", "--cross-validate", "2", "--model", "./runs"], "has learned already"),
        (["--horizon", "6", "--cross-validate", "2", "--save", "m"], "--save is given, and --cross-validate"),
        (["--horizon", "6", "--cross-validate", "2", "--page", "f.pdf"], "unknown ending '.pdf'"),
    ],
)
def test_cross_validation_that_cannot_be_done(
    words: list[str], says: str, sales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forecast", "sales.csv", *words]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in sales.iterdir()] == ["sales.csv"]


def test_markup_in_ids_stays_text(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sales.csv").write_text(GOOD.replace("\na,", "\n<script>a</script>,"), encoding="utf-8")
    words = ["--horizon", "6", "--model", "seasonal_naive", "--lookback", "48", "--cross-validate", "1"]
    assert main(["forecast", "sales.csv", *words]) == 0
    assert "<script>" not in Path("sales-cross-validation.html").read_text(encoding="utf-8")


def test_local_times_over_a_clock_change(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = pd.date_range("2021-10-25", periods=24 * 12, freq="h", tz="Europe/Berlin").tz_localize(None)
    rows = (f"{stamp:%d.%m.%Y %H:%M};{stamp.hour + 0.5}".replace(".5", ",5") for stamp in local)
    Path("power.csv").write_text("time;kWh\n" + "\n".join(rows) + "\n", encoding="utf-8")
    words = ["--horizon", "24", "--model", "seasonal_naive"]
    assert main(["forecast", "power.csv", *words]) == 2
    assert "pass --tz Europe/Berlin" in capsys.readouterr().err
    zone = ["--tz", "Europe/Berlin"]
    assert main(["forecast", "power.csv", *words, *zone, "--levels", "80", "--calibration", "24", "--save", "m"]) == 0
    first = capsys.readouterr().out
    assert first.splitlines()[1].startswith("power,2021-11-05 23:00:00+01:00,")
    assert main(["forecast", "power.csv", "--model", "m", "--plot", "p.png"]) == 0
    assert capsys.readouterr().out == first
    for other in (["--tz", "UTC"], ["--calibration", "48"]):
        assert main(["forecast", "power.csv", "--model", "m", *other]) == 2
        assert f"leave {other[0]} out" in capsys.readouterr().err
    assert main(["forecast", "power.csv", *words, *zone, "--cross-validate", "2"]) == 0
