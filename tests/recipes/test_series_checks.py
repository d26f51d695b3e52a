"""The commands behind the figures of the time series pages run, and count what they say."""

from __future__ import annotations

import re

import pytest

from mamba_recipes import imputation_check, many_series_check, weather_check


def test_imputation_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert imputation_check.main(["--candidates", "last,linear,seasonal"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "traffic, hours" in head
    hours = {row.split()[0]: float(row.split()[2]) for row in rows}
    assert hours["seasonal"] < hours["linear"] < hours["last"]


def test_weather_check(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "ridge", "--seeds", "1", "--calibration", "168", "--candidates", "no weather"]
    assert weather_check.main(words) == 0
    covers = [float(cell) for cell in capsys.readouterr().out.splitlines()[-1].split()[4::2]]
    assert covers[0] == pytest.approx(80, abs=3)
    assert covers[1] == pytest.approx(95, abs=3)


def test_many_series_check(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "dlinear", "--series", "20", "--steps", "300", "--batches", "4", "--accelerator", "cpu"]
    assert many_series_check.main([*words, "--batch-size", "8,16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[:2] for line in lines] == [
        ["dlinear, 20 series of 300 steps", f"batches of {size}"] for size in (8, 16)
    ]
    assert all(re.search(r"[\d,]+ windows/s · [\d.]+ ms a step · 2,180 windows an epoch", line) for line in lines)
    assert many_series_check.covered([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4
