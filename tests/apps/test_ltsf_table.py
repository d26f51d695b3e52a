"""Tables of the benchmark: every row once, as the recipe trains, side by side as alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_apps.forecasting.ltsf import LtsfData
from mamba_apps.forecasting.ltsf.table import Training, main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with toy.csv: 900 hours of two noisy daily waves."""
    folder = tmp_path_factory.mktemp("table")
    hour_T = np.arange(900)
    values_TC = np.sin(2 * np.pi * (hour_T[:, None] + [0, 6]) / 24) + np.random.default_rng(0).normal(0, 0.1, (900, 2))
    table = pd.DataFrame(values_TC, columns=["a", "OT"])
    table.insert(0, "date", pd.date_range("2020-01-01", periods=900, freq="h").astype(str))
    table.to_csv(folder / "toy.csv", index=False)
    return folder


def run(root: Path, out: Path, *options: str) -> list[dict[str, float]]:
    fixed = ["--root", str(root), "--names", "toy", "--horizons", "12", "--device", "cpu", "--drop-last", "16"]
    assert main([*fixed, "--out", str(out), *options]) == 0
    return json.loads(out.read_text("utf-8"))


def test_rows_are_made_once_and_scored(root: Path, tmp_path: Path) -> None:
    options = ["--models", "closed_form,dlinear", "--seeds", "0,1", "--epochs", "2", "--steps", "3"]
    rows = run(root, tmp_path / "t.json", *options)
    assert sorted((row["model"], row["seed"]) for row in rows) == [("closed_form", 0), ("dlinear", 0), ("dlinear", 1)]
    assert all(0 < row["mse"] < 3 and row["mse_drop_last"] > 0 for row in rows)
    assert run(root, tmp_path / "t.json", *options) == rows
    more = run(root, tmp_path / "t.json", *options[:2], "--seeds", "0,1,2", *options[4:])
    assert len(more) == 4
    assert more[:3] == rows


def test_no_row_is_started_when_time_is_up(root: Path, tmp_path: Path) -> None:
    rows = run(root, tmp_path / "t.json", "--models", "repeat_last", "--seconds", "1")
    options = ["--models", "repeat_last,dlinear", "--seconds", "0"]
    assert (
        main(["--root", str(root), "--names", "toy", "--horizons", "12", "--out", str(tmp_path / "t.json"), *options])
        == 0
    )
    assert json.loads((tmp_path / "t.json").read_text("utf-8")) == rows


def test_a_row_of_another_configuration_has_its_own_name(root: Path, tmp_path: Path) -> None:
    small = json.dumps({"model_options": {"d_model": 8, "patch": 8}, "mix": 0.5})
    options = ["--models", "small", "--kind", "anchor", "--overrides", small, "--seeds", "0", "--epochs", "1"]
    (row,) = run(root, tmp_path / "t.json", *options, "--steps", "2")
    assert row["model"] == "small"
    assert row["parameters"] < 10_000


def test_the_best_epoch_is_the_one_that_is_tested(root: Path) -> None:
    data = LtsfData(str(root), "toy", horizon=12)
    training = Training(data, {"model": "dlinear", "seed": 0}, 3, {"lr": 0.03}, torch.device("cpu"))
    seen = []
    score = training._score

    def watched() -> None:
        score()
        seen.append(
            (float(training.total_2[0] / len(training.val_W)), training.task.network.seasonal[0].weight.clone())
        )

    training._score = watched
    list(training.run())
    row = training.result()
    best, weight = min(seen, key=lambda pair: pair[0])
    assert row["val_mse"] == best
    assert 0 < row["val_mae"] < 1
    assert torch.equal(training.task.network.seasonal[0].weight, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["dlinear", "anchor", "smamba", "timemachine"])
def test_a_captured_step_is_the_step(root: Path, model: str) -> None:
    weights = []
    for captured in (True, False):
        data = LtsfData(str(root), "toy", horizon=12)
        options = {} if model == "dlinear" else {"dropout": 0.0}
        overrides = {"model_options": options} | ({"mix": 0.0} if model == "anchor" else {})
        row = {"model": model, "seed": 0}
        with torch.cuda.stream(torch.cuda.Stream()):
            training = Training(data, row, 2, overrides, torch.device("cuda"), steps=8, eager=not captured)
            torch.manual_seed(1)
            list(training.run())
            weights.append(torch.cat([p.detach().flatten() for p in training.learned]))
        torch.cuda.synchronize()
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
