"""The benchmark's comparison: its rows, its sweep over models, a tiny budget end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mamba_recipes import recipe as recipes
from mamba_recipes.cli import main
from mamba_recipes.compare.plan import make_plan


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an otherwise empty working folder with toy.csv in it."""
    values_TC = np.random.default_rng(0).normal(size=(600, 3)).cumsum(axis=0)
    table = pd.DataFrame(values_TC, columns=["a", "b", "OT"])
    table.insert(0, "date", pd.date_range("2020-01-01", periods=600, freq="h").astype(str))
    table.to_csv(tmp_path / "toy.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ["--data.root", ".", "--data.name", "toy", "--data.lookback", "24", "--data.horizon", "12"]
TINY = ["--budget", "2steps", "--trainer.accelerator", "cpu", "--json"]


def rows_of(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, float]]:
    return {row["model"]: row for row in json.loads(capsys.readouterr().out)["rows"]}


def test_a_sweep_over_models_end_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["--sweep", "model=dlinear,itransformer", "--data.drop_last", "16"]
    assert main(["compare", "ltsf", *SMALL, *TINY, *sweep]) == 0
    rows = rows_of(capsys)
    assert list(rows) == ["ltsf[model=dlinear]", "ltsf[model=itransformer]"]
    assert all(row["mse"] > 0 and row["mse_drop_last"] > 0 for row in rows.values())


def test_candidates_that_nothing_trains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "ltsf", *SMALL, *TINY, "--candidates", "closed form,last value"]) == 0
    rows = rows_of(capsys)
    assert rows["closed form"]["parameters"] == 24 * 12
    assert rows["last value"]["mae"] > 0
    assert Path("report.html").read_text(encoding="utf-8").count("<h3>OT: forecast from ") == 3


def test_a_swept_model_has_the_family_of_its_candidate() -> None:
    jobs = make_plan(recipes.load("ltsf"), sweeps=["model=smamba,itransformer,dlinear"]).jobs
    assert [job.family for job in jobs] == ["mamba", "transformer", "linear"]
