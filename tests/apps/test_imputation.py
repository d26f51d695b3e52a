"""Imputation: what was observed stays, what is hidden reaches nothing, holes are filled better than by a line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_apps import Imputer
from mamba_apps.errors import UserError
from mamba_apps.imputation import FILLS, ImputationNetwork
from mamba_apps.imputation.gaps import any_gaps, fixed_gaps
from mamba_datasets.errors import DataError

MIXERS = [("mamba1", {"d_state": 4}), ("mamba2", {"d_state": 4, "headdim": 8}), ("attention", {})]
SMALL: dict[str, Any] = {
    "window": 24,
    "model_options": {"d_model": 16, "layers": 1, "dropout": 0.0},
    "max_steps": 60,
    "lr": 1e-2,
    "accelerator": "cpu",
    "progress": False,
}


def waves(days: int = 20, names: str = "ab", seed: int = 0) -> pd.DataFrame:
    """Return two daily waves of opposite sign a series, so that one column tells of the other."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, name in enumerate(names):
        step = np.arange(24 * days)
        level = np.sin(2 * np.pi * step / 24) * (1 + 0.5 * np.sin(step / 17 + number))
        ds = pd.date_range("2024-01-01", periods=len(step), freq="h")
        noise = rng.normal(0, 0.02, (2, len(step)))
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "up": 10 + level, "down": -3 * level}))
        parts[-1][["up", "down"]] += noise.T
    return pd.concat(parts, ignore_index=True)


def holed(frame: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    """Return a frame with missing values and missing rows."""
    rng = np.random.default_rng(seed)
    found = frame.copy()
    for column in ("up", "down"):
        found.loc[rng.random(len(found)) < 0.1, column] = np.nan
    return found.drop(index=[*range(100, 110), *rng.integers(200, 400, 20)]).reset_index(drop=True)


@pytest.mark.parametrize(("mixer", "options"), MIXERS)
def test_what_is_hidden_reaches_nothing_and_both_sides_reach_a_gap(mixer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = ImputationNetwork(2, 1, mixer=mixer, mixer_options=options, d_model=16, layers=1, dropout=0.0).eval()
    torch.nn.init.normal_(network.head.weight)
    y, known = torch.randn(2, 20, 2), torch.randn(2, 20, 1)
    seen = torch.ones(2, 20, 2, dtype=torch.bool)
    seen[:, 8:12, 0] = False
    expected = network(y, seen, known)
    for hidden in (1e6, float("nan")):
        torch.testing.assert_close(network(y.masked_fill(~seen, hidden), seen, known), expected, rtol=0, atol=0)
    y.requires_grad_()
    network(y, seen, known)[:, 10, 0].sum().backward()
    assert y.grad is not None
    assert not y.grad[~seen].any()
    for reached in (y.grad[:, 2], y.grad[:, 17], y.grad[:, 10, 1]):
        assert reached.any()


def test_an_untrained_network_is_a_line_through_the_gap() -> None:
    network = ImputationNetwork(1, 0, d_model=8, layers=1).eval()
    y = torch.arange(10.0)[None, :, None]
    seen = torch.ones(1, 10, 1, dtype=torch.bool)
    seen[:, 3:7] = False
    torch.testing.assert_close(network(y.masked_fill(~seen, 99.0), seen, torch.zeros(1, 10, 0)), y)


@pytest.mark.parametrize(("share", "run", "together"), [(0.2, 1, False), (0.2, 12, False), (0.5, 30, True)])
def test_gaps_hide_the_share_that_is_asked_for(share: float, run: int, together: bool) -> None:
    observed = torch.rand(1, 100_000, 2) < 0.9
    hidden = fixed_gaps(observed, share, run, together, seed=0)
    assert not (hidden & ~observed).any()
    assert abs(float(hidden.sum() / observed.sum()) - share) < 0.03
    assert torch.equal(hidden, fixed_gaps(observed, share, run, together, seed=0))
    both = observed.all(-1)[0]
    assert bool((hidden[0, both, 0] == hidden[0, both, 1]).all()) == together
    drawn = any_gaps(observed[:, :200].expand(64, -1, -1))
    assert 0.2 < float(drawn.float().mean()) < 0.5


@pytest.mark.parametrize("model", [*FILLS, "mamba1"])
def test_what_was_observed_stays_and_every_hole_is_filled(model: str) -> None:
    options = {**SMALL, "max_steps": 2}
    if model in FILLS:
        del options["model_options"]
    data, whole = holed(waves()), waves()
    filled = Imputer(model, **options).fit(data).impute(data)
    assert list(filled.columns) == ["unique_id", "ds", "up", "down"]
    assert filled[["unique_id", "ds"]].equals(whole[["unique_id", "ds"]])
    assert np.isfinite(filled[["up", "down"]].to_numpy()).all()
    given = whole[["unique_id", "ds"]].merge(data, how="left")
    for column in ("up", "down"):
        kept = given[column].notna()
        assert (filled.loc[kept, column] == given.loc[kept, column]).all()
        assert 0 < (~kept).sum()


def test_fills_are_what_they_say() -> None:
    ds = pd.date_range("2024-01-01", periods=8, freq="h")
    frame = pd.DataFrame({"ds": ds, "y": [np.nan, 1.0, np.nan, np.nan, 4.0, 6.0, np.nan, np.nan]})
    options: dict[str, Any] = {"window": 2, "progress": False}
    last, linear = (Imputer(model, **options).fit(frame).impute(frame)["y"].tolist() for model in ("last", "linear"))
    assert last == [1, 1, 1, 1, 4, 6, 6, 6]
    assert linear == [1, 1, 2, 3, 4, 6, 6, 6]
    step = np.arange(24 * 21)
    weekly = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=len(step), freq="h"), "y": step % 168 + step / 9})
    lost = weekly.assign(y=weekly["y"].where((step < 170) | (step >= 200)))
    got = Imputer("seasonal", **options).fit(lost).impute(lost)["y"]
    np.testing.assert_allclose(got, weekly["y"], atol=0.5)


@pytest.mark.parametrize("mixer", ["mamba1", "attention"])
def test_it_learns_to_fill_better_than_a_line(mixer: str) -> None:
    known, asked = waves(), waves(days=24).groupby("unique_id").tail(24 * 6).reset_index(drop=True)
    imputer = Imputer(mixer, **{**SMALL, "max_steps": 200}).fit(holed(known))
    gaps: dict[str, Any] = {"share": 0.3, "run": 10}
    line = Imputer("linear", window=24, progress=False).fit(known).score(asked, **gaps)
    found = imputer.score(asked, **gaps)
    assert list(found["hidden"]) == list(line["hidden"])
    assert (found["mae"] < 0.6 * line["mae"]).all()
    assert imputer.metrics["val/mae"] > 0


def test_saved_and_loaded_it_fills_alike(tmp_path: Path) -> None:
    data = holed(waves())
    imputer = Imputer("mamba1", **{**SMALL, "max_steps": 2}, holidays="US", tz="Europe/Berlin").fit(data)
    loaded = Imputer.load(imputer.save(tmp_path / "saved"), accelerator="cpu", progress=False)
    pd.testing.assert_frame_equal(loaded.impute(data), imputer.impute(data))
    assert loaded.metrics == imputer.metrics
    assert (loaded.max_steps, loaded.lr) == (2, SMALL["lr"])
    one = data[data["unique_id"] == "b"]
    expected = imputer.impute(data).query("unique_id == 'b'").reset_index(drop=True)
    pd.testing.assert_frame_equal(loaded.impute(one), expected)
    line = Imputer("linear", window=24).fit(data)
    again = Imputer.load(line.save(tmp_path / "line"), progress=False)
    pd.testing.assert_frame_equal(again.impute(data), line.impute(data))


def test_series_without_holes_come_back_as_they_are() -> None:
    data = holed(waves())
    imputer = Imputer("mamba1", **{**SMALL, "max_steps": 2}).fit(data)
    pd.testing.assert_frame_equal(imputer.impute(waves()), waves())
    mixed = pd.concat([waves(names="a"), data[data["unique_id"] == "b"]], ignore_index=True)
    filled = imputer.impute(mixed)
    pd.testing.assert_frame_equal(filled[filled["unique_id"] == "a"], waves(names="a"))
    expected = imputer.impute(data[data["unique_id"] == "b"])
    pd.testing.assert_frame_equal(filled[filled["unique_id"] == "b"].reset_index(drop=True), expected)


def test_a_step_is_taken_from_the_window_that_holds_it_best() -> None:
    imputer = Imputer("mamba1", **{**SMALL, "max_steps": 2}).fit(waves(names="a"))
    filler = imputer._known()
    asked = waves(names="a", days=3)
    asked.loc[[5, 40, 50, 71], "up"] = np.nan
    data = filler.read(asked)
    scaled = torch.from_numpy(filler.scales.scaled(data)[0])
    from mamba_apps.imputation.scales import known_columns

    known = torch.from_numpy(known_columns(data, filler.calendar)[0][0])
    assert filler.network is not None
    # Windows of 24 begin at 0, 12, ..., 48: a step in the middle of one is at the edge of its neighbours.
    for step, start in ((5, 0), (40, 24), (50, 36), (71, 48)):
        part = slice(start, start + 24)
        with torch.no_grad():
            y = filler.network(scaled[None, part].nan_to_num(), ~scaled[None, part].isnan(), known[None, part])
        expected = y[0, step - start, 0].item() * filler.scales.std_SC[0, 0] + filler.scales.mean_SC[0, 0]
        assert imputer.impute(asked)["up"][step] == pytest.approx(expected, rel=1e-6)


def test_series_shorter_than_the_window_are_filled() -> None:
    short = waves(names="c", days=1).iloc[:10]
    data = pd.concat([holed(waves()), short.assign(up=short["up"].where(short.index != 4))], ignore_index=True)
    filled = Imputer("mamba1", **{**SMALL, "max_steps": 2}).fit(data).impute(data)
    assert np.isfinite(filled[filled["unique_id"] == "c"]["up"]).all()


def test_one_column_may_stand_by_itself() -> None:
    data = holed(waves())
    filled = Imputer("linear", columns="up").fit(data).impute(data)
    assert list(filled.columns) == ["unique_id", "ds", "up"]


def test_whole_numbers_count_steps() -> None:
    frame = waves().assign(ds=lambda f: f.groupby("unique_id").cumcount())
    data = holed(frame)
    filled = Imputer("mamba1", **{**SMALL, "max_steps": 2}).fit(data).impute(data)
    assert filled["ds"].tolist() == frame["ds"].tolist()


def refused(call: Any, *words: str) -> None:
    with pytest.raises((UserError, DataError)) as caught:
        call()
    error = caught.value
    assert isinstance(error, UserError | DataError)
    text = str(error)
    assert "\n" not in text
    assert text.endswith(error.remedy)
    for word in words:
        assert word in text


def test_what_it_cannot_use_is_refused(tmp_path: Path) -> None:
    data = waves()
    refused(lambda: Imputer("mamba"), "mamba1")
    refused(lambda: Imputer(window=1), "window")
    refused(lambda: Imputer(model_options={"d_modle": 8}), "d_modle", "d_model")
    refused(lambda: Imputer(model_options={"mixer": "mamba2"}), "mixer")
    refused(lambda: Imputer("linear", model_options={"layers": 2}), "layers")
    refused(lambda: Imputer(calendar=False, holidays="US"), "calendar")
    refused(lambda: Imputer("linear", holidays="US"), "reads no holidays")
    refused(lambda: Imputer().impute(data), "fit")
    refused(lambda: Imputer().save(tmp_path), "fit")
    refused(lambda: Imputer(columns=["left"]).fit(data), "left")
    refused(lambda: Imputer(columns=["up", "up"]).fit(data), "once")
    refused(lambda: Imputer().fit(data.assign(up="many")), "many")
    refused(lambda: Imputer().fit(data.assign(up=data["up"].where(data.index != 7, np.inf))), "infinite")
    refused(lambda: Imputer().fit(data.assign(up=np.nan)), "'a'", "'up'")
    refused(lambda: Imputer().fit(pd.concat([data, data.iloc[[3]]])), "time")
    refused(lambda: Imputer(freq="D").fit(data), "freq")
    refused(lambda: Imputer(**{**SMALL, "window": 300}).fit(data), "smaller window")
    refused(lambda: Imputer(**{**SMALL, "lr": -1.0}).fit(data), "learning rate")
    refused(lambda: Imputer(**{**SMALL, "model_options": {"layers": 0}}).fit(data), "layers")
    line = Imputer("linear").fit(data)
    refused(lambda: line.impute(data.assign(unique_id="c")), "'c'")
    refused(lambda: line.impute(data.drop(columns="up")), "up")
    refused(lambda: line.impute(data.assign(up=np.nan)), "'up'")
    refused(lambda: line.score(data, share=1.5), "share")
    refused(lambda: line.score(data, run=2.5), "run", "whole number")
    refused(lambda: Imputer("linear", tz="Europe/Berln").fit(data), "Europe/Berln", "time zone")


def test_folders_that_hold_no_imputer(tmp_path: Path) -> None:
    folder = Imputer("linear").fit(waves()).save(tmp_path / "saved")
    card = folder / "model.json"
    text = card.read_text()
    refused(lambda: Imputer.load(tmp_path / "none"), "none")
    other = json.loads(text)
    other["preprocessing"]["format_version"] = 2
    card.write_text(json.dumps(other))
    refused(lambda: Imputer.load(folder), "format 2", "format 1")
    card.write_text(text.replace('"imputation"', '"forecasting"'))
    refused(lambda: Imputer.load(folder), "forecasting")
    card.write_text(text.replace('"linear"', '"mamba1"'))
    refused(lambda: Imputer.load(folder), str(folder))
    other = json.loads(text)
    other["preprocessing"]["reading"]["seperator"] = ";"
    card.write_text(json.dumps(other))
    refused(lambda: Imputer.load(folder), "seperator", str(folder))


def test_the_page_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "imputation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block, scope)  # noqa: S102  (the project's own page)
    assert len(scope["whole"]) == 24 * 28
    assert scope["whole"]["power"].notna().all()


@pytest.mark.gpu
def test_an_imputer_of_the_cpu_fills_the_same_on_a_gpu_and_learns_there(tmp_path: Path) -> None:
    data = holed(waves())
    imputer = Imputer("mamba1", **{**SMALL, "max_steps": 5}).fit(data)
    there = Imputer.load(imputer.save(tmp_path), accelerator="gpu", progress=False)
    pd.testing.assert_frame_equal(there.impute(data), imputer.impute(data), rtol=1e-3, atol=1e-3)
    learned = Imputer("mamba1", **{**SMALL, "accelerator": "gpu"}).fit(data)
    assert np.isfinite(learned.impute(data)[["up", "down"]].to_numpy()).all()
