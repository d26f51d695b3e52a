"""`mamba-apps classify` on series: files and folders as people have them, and what is wrong with them in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mamba_apps.series_classification import SeriesClassifier
from mamba_datasets.series.cases import read_labelled
from mamba_recipes.cli import main

TS = "@dimensions 2\n@classLabel false\n@data\n1,2,3:1,2,3\n3,2,1,0:1,1,1,1\n"


def rising(up: bool, steps: int = 12) -> pd.DataFrame:
    return pd.DataFrame({"ds": range(steps), "level": np.arange(steps) * (1.0 if up else -1.0), "other": 1.0})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frame = pd.concat(
        rising(number % 2 == 0, 8 + number).assign(unique_id=f"s{number}", label=("up", "down")[number % 2])
        for number in range(12)
    )
    classifier = SeriesClassifier(options={"d_model": 8, "layers": 1}, epochs=15, lr=1e-2).fit(read_labelled(frame))
    return classifier.save(tmp_path_factory.mktemp("runs") / "trend")


def test_a_file_of_one_series(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.csv"
    rising(False).assign(note="left out").to_csv(path, index=False)
    assert main(["classify", str(path), "--model", str(trained), "--top", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split()[:2] == [str(path), "down"]
    assert captured.err.startswith(f"classify {path} · series[mamba1] · ")
    assert "2 classes" in captured.err


def test_a_folder_as_json(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.concat([rising(up).assign(unique_id=name) for up, name in ((True, "a"), (False, "b"))]).to_csv(
        tmp_path / "many.csv", index=False
    )
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "two.ts").write_text(TS)
    (tmp_path / "notes.md").write_text("nothing")
    assert main(["classify", str(tmp_path), "--model", str(trained), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [one["series"] for one in document["series"]]
    ts = tmp_path / "deeper" / "two.ts"
    assert names == [f"{ts}:1", f"{ts}:2", f"{tmp_path / 'many.csv'}:a", f"{tmp_path / 'many.csv'}:b"]
    assert [one["classes"][0]["label"] for one in document["series"][2:]] == ["up", "down"]
    assert sum(one["probability"] for one in document["series"][0]["classes"]) == pytest.approx(1)


def test_a_file_with_decimal_commas(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.csv"
    frame = (rising(False) + 0.25).assign(ds=[f"{day:02}.03.2024" for day in range(1, 13)], unique_id="NA")
    frame.to_csv(path, index=False, sep=";", decimal=",")
    assert main(["classify", str(path), "--model", str(trained), "--top", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split()[:2] == [f"{path}:NA", "down"]
    assert "columns separated by ';' · 'ds' read as day month year" in captured.err
    assert "a decimal comma" in captured.err


@pytest.mark.parametrize(
    ("frame", "words", "says"),
    [
        (rising(True).drop(columns="level"), [], "there is no column 'level'"),
        (rising(True).assign(level="high"), [], "a number was expected"),
        (rising(True).assign(level=[np.nan, *range(11)]), [], "line 2, column 'level'"),
        (rising(True).iloc[::-1], [], "time order"),
        (rising(True).assign(ds="soon"), [], "write ISO 8601 (2020-01-31 13:00)"),
        (rising(True).iloc[:0], [], "at least one row"),
        (rising(True), ["--every", "1s"], "--every is for sounds"),
    ],
    ids=["column", "text", "nan", "unsorted", "date", "empty", "sounds"],
)
def test_what_cannot_be_classified_is_one_line(
    frame: pd.DataFrame, words: list[str], says: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.csv"
    frame.to_csv(path, index=False)
    assert main(["classify", str(path), "--model", str(trained), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err.splitlines()[-1]
    assert "time_format" not in captured.err  # which nothing here takes


def test_other_variates_and_empty_folders(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, says in (("none", "no such file"), (".", "found none")):
        assert main(["classify", str(tmp_path / name), "--model", str(trained)]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "one.ts").write_text(
        TS.replace("dimensions 2", "dimensions 1").replace(":1,2,3", "").replace(":1,1,1,1", "")
    )
    assert main(["classify", str(tmp_path / "one.ts"), "--model", str(trained)]) == 2
    assert "one.ts:1: 2 variates were expected, found 1" in capsys.readouterr().err.splitlines()[-1]
