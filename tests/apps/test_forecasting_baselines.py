"""Baselines against what they are by definition, intervals, losses and pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_apps.errors import UserError
from mamba_apps.forecasting import BaselineCandidate, WindowData, create_baseline
from mamba_apps.forecasting.baselines import evaluate
from mamba_apps.forecasting.intervals import (
    around,
    checked_levels,
    conformal_radius,
    from_quantiles,
    level_names,
    level_quantiles,
    quantile_levels,
    relative_reach,
)
from mamba_apps.forecasting.losses import MaskedErrors, MaskedLoss, point_forecast
from mamba_apps.forecasting.models import Sizes
from mamba_datasets.series import SeriesSet, read_series

HOURS = 24 * 40


def hourly(missing: int = 0, series: int = 1, covariate: bool = False) -> SeriesSet:
    rng = np.random.default_rng(0)
    frames = []
    for number in range(series):
        step = np.arange(HOURS)
        promo = (rng.random(HOURS) > 0.7).astype(float)
        y = 50 + 10 * np.sin(2 * np.pi * step / 24) + rng.normal(0, 1, HOURS) + (20 * promo if covariate else 0)
        y[rng.choice(np.arange(24, HOURS), missing, replace=False)] = np.nan
        ds = pd.date_range("2021-01-01", periods=HOURS, freq="h")
        frames.append(pd.DataFrame({"unique_id": f"s{number}", "ds": ds, "y": y, "promo": promo}))
    future = ("promo",) if covariate else ()
    return read_series(pd.concat(frames), freq="h", missing="mask" if missing else "error", future=future)


def data_of(series_set: SeriesSet, **options: Any) -> WindowData:
    return WindowData(series_set, **{"lookback": 96, "horizon": 30, "val_steps": 100, "test_steps": 100, **options})


def by_definition(series_set: SeriesSet, origin: int, lookback: int, horizon: int, season: int, n: int) -> list[float]:
    one = series_set.series[0]
    found = []
    for h in range(horizon):
        places = [origin + h % season - season * k for k in range(1, lookback // season + 1)]
        seen = [p for p in places if one.observed[p]]
        recent = [p for p in places[:n] if one.observed[p]] or seen[:1]
        window = [p for p in range(origin - lookback, origin) if one.observed[p]]
        found.append(float(np.mean(one.y[recent or window])))
    return found


@pytest.mark.parametrize("name", ["repeat_last", "seasonal_naive", "seasonal_mean"])
@pytest.mark.parametrize("missing", [0, 400])
def test_seasonal_forecasts_by_definition(name: str, missing: int) -> None:
    series_set = hourly(missing)
    data = data_of(series_set)
    n, season = 3 if name == "seasonal_mean" else 1, 1 if name == "repeat_last" else 24
    options = {"repeat_last": {}, "seasonal_naive": {"season": 24}, "seasonal_mean": {"season": 24, "n": n}}[name]
    model = create_baseline(name, data.sizes, **options)
    model.fit(data)
    windows = data.test
    batch = windows.batch(range(len(windows)))
    got = data.scaler.inverse_y(model(batch), batch["series"])[..., 0]
    cut = HOURS - 100 - 96
    for number in (0, 17, len(windows) - 1):
        origin = cut + int(batch["origin"][number])
        expected = by_definition(series_set, origin, 96, 30, season, n)
        np.testing.assert_allclose(got[number], expected, rtol=1e-5)


def test_a_place_that_was_never_observed_takes_the_mean() -> None:
    sizes = Sizes(8, 4)
    model = create_baseline("seasonal_naive", sizes, season=4)
    past = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])[..., None]
    observed = torch.tensor([[True, False, True, True, True, False, False, True]])[..., None]
    got = model({"past_y": past, "past_observed": observed})[0, :, 0]
    torch.testing.assert_close(got, torch.tensor([5.0, (1 + 3 + 4 + 5 + 8) / 5, 3.0, 8.0]))


def test_ridge_finds_a_linear_rule() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=600)
    promo = rng.normal(size=600)
    for t in range(8, 600):
        y[t] = 0.5 * y[t - 8] - 0.3 * y[t - 5] + 2 * promo[t] + 1
    ds = pd.date_range("2021-01-01", periods=600, freq="D")
    frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": y, "promo": promo})
    data = data_of(read_series(frame, freq="D", future=("promo",)), lookback=16, horizon=4)
    model = create_baseline("ridge", data.sizes, ridge=1e-9)
    model.fit(data)
    assert evaluate(model, data, data.test)["mae"] < 1e-3
    assert model.learned == model.weight_DH.numel() > 0


def test_ridge_chooses_its_penalty_on_the_validation_part() -> None:
    data = data_of(hourly(missing=40, covariate=True))
    chosen = create_baseline("ridge", data.sizes)
    chosen.fit(data)
    scores = []
    for ridge in (1e-4, 1e-3, 1e-2, 1e-1):
        model = create_baseline("ridge", data.sizes, ridge=ridge)
        model.fit(data)
        scores.append(evaluate(model, data, data.val)["mae"])
    assert evaluate(chosen, data, data.val)["mae"] == min(scores)


def test_ridge_uses_what_is_known_ahead() -> None:
    data = data_of(hourly(covariate=True))
    model = create_baseline("ridge", data.sizes)
    model.fit(data)
    with_promo = evaluate(model, data, data.test)["mae"]
    without = data_of(hourly(covariate=False))
    naive = create_baseline("seasonal_naive", data.sizes, season=24)
    assert with_promo < 2.0 < evaluate(naive, data, data.test)["mae"]
    assert without.sizes.n_future == 0


def test_masked_targets_do_not_reach_the_fit() -> None:
    series_set = hourly(missing=60)
    other = hourly(missing=60)
    other.y[~other.observed] = 1e4
    weights = []
    for one in (series_set, other):
        data = data_of(one)
        model = create_baseline("ridge", data.sizes, ridge=1e-2)
        model.fit(data)
        weights.append(model.weight_DH)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rigde", {}, "ridge"),
        ("seasonal_naive", {}, "season"),
        ("seasonal_naive", {"season": 97}, "lookback"),
        ("seasonal_mean", {"season": 24, "n": 0}, "at least 1"),
        ("ridge", {"ridge": 0.0}, "positive"),
        ("ridge", {"alpha": 1.0}, "no option"),
    ],
)
def test_baselines_refuse_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_baseline(name, Sizes(96, 24), **options)


def test_a_baseline_is_a_candidate() -> None:
    data = data_of(hourly(missing=20))
    for name, options in (("ridge", {}), ("seasonal_naive", {"season": 24}), ("seasonal_mean", {"season": 24})):
        candidate = BaselineCandidate(name, options)
        candidate.fit(data, None, 0)
        scores = candidate.evaluate()
        assert set(scores) == {"mae", "rmse"}
        assert 0 < scores["mae"] <= scores["rmse"] < 3
        panels = candidate.plots()
        assert len(panels) == 3
        for panel in panels:
            assert list(panel.lines) == ["observed", name]
            assert panel.shared == ("observed",)
            assert {len(line) for line in panel.lines.values()} == {len(panel.x)} == {90}
            forecast = np.array(panel.lines[name])
            assert np.isnan(forecast[:60]).all()
            assert np.isfinite(forecast[60:]).all()
    assert candidate.parameters == 0


def test_pictures_of_two_candidates_show_the_same_windows() -> None:
    data = data_of(hourly(series=2))
    titles = []
    for name, options in (("ridge", {}), ("seasonal_naive", {"season": 24})):
        candidate = BaselineCandidate(name, options)
        candidate.fit(data, None, 0)
        titles.append([(p.title, p.lines["observed"]) for p in candidate.plots()])
    assert titles[0] == titles[1]
    assert titles[0][0][0].startswith("s0: ")


# Intervals


def test_levels_quantiles_and_names() -> None:
    levels = checked_levels([95, 80])
    assert levels == (80, 95)
    quantiles = level_quantiles(levels)
    np.testing.assert_allclose(quantiles, [0.025, 0.1, 0.5, 0.9, 0.975])
    assert quantile_levels(quantiles) == (80, 95)
    assert quantile_levels((0.1, 0.5)) == quantile_levels(None) == quantile_levels((0.2, 0.5, 0.9)) == ()
    assert level_names((80, 97.5), "m") == ["m", "m-lo-80", "m-hi-80", "m-lo-97.5", "m-hi-97.5"]
    values = torch.arange(5.0)
    assert from_quantiles(values, levels).tolist() == [2, 1, 3, 0, 4]


@pytest.mark.parametrize("levels", [[0], [100], [80, 80], ["80"], [True], [-5], [0.8]])
def test_levels_that_are_none_are_refused(levels: list[Any]) -> None:
    with pytest.raises(UserError, match="level"):
        checked_levels(levels)


def test_conformal_intervals_cover_as_often_as_they_say() -> None:
    g = torch.Generator().manual_seed(0)
    scale_H = torch.tensor([1.0, 2.0, 4.0])
    errors = torch.randn(500, 3, generator=g) * scale_H
    radius = conformal_radius(errors, torch.ones(500, 3, dtype=torch.bool), (50, 90))
    fresh = torch.randn(20_000, 3, generator=g) * scale_H
    covered = (fresh.abs()[None] <= radius[:, None]).float().mean(1)
    torch.testing.assert_close(covered, torch.tensor([[0.5] * 3, [0.9] * 3]), rtol=0, atol=0.06)
    intervals = around(torch.zeros(2, 3), radius, torch.tensor([1.0, 0.5]))
    assert intervals.shape == (2, 3, 5)
    assert (intervals[..., 3] <= intervals[..., 1]).all()
    torch.testing.assert_close(intervals[1], 0.5 * intervals[0])


def test_intervals_reach_as_far_as_a_series_errors_do() -> None:
    error_BH = torch.tensor([[1.0, -1.0], [1.0, torch.nan], [3.0, 3.0]])
    seen_BH = ~error_BH.isnan()
    # The mean error is 9 / 5, and eight such stand beside the own.
    expected = torch.tensor([(3 / 1.8 + 8) / 11, (6 / 1.8 + 8) / 10, 1.0])
    series_B = torch.tensor([0, 0, 1])
    torch.testing.assert_close(relative_reach(error_BH, seen_BH, series_B, 3), expected)
    assert relative_reach(error_BH[:1], seen_BH[:1], series_B[:1], 1).tolist() == [1.0]
    assert relative_reach(torch.zeros(3, 2), seen_BH, series_B, 2).tolist() == [1.0, 1.0]


def test_conformal_intervals_pool_few_errors() -> None:
    errors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = torch.tensor([[True, True], [True, False]])
    assert conformal_radius(errors, seen, (50,)).tolist() == [[2.0, 2.0]]
    with pytest.raises(UserError, match="val_steps"):
        conformal_radius(errors, torch.zeros_like(seen), (50,))


# Losses and scores


@pytest.mark.parametrize("kind", ["mae", "mse", "huber"])
def test_losses_leave_out_what_was_not_observed(kind: str) -> None:
    torch.manual_seed(0)
    forecast = torch.randn(4, 6, 1, requires_grad=True)
    target = torch.randn(4, 6, 1)
    observed = torch.rand(4, 6, 1) > 0.5
    target = target.masked_fill(~observed, math.nan)
    loss = MaskedLoss(kind)(forecast, target, observed)
    error = (forecast - target)[observed]
    expected = {
        "mae": error.abs(),
        "mse": error**2,
        "huber": torch.where(error.abs() < 0.2, error**2 / 2, 0.2 * (error.abs() - 0.1)),
    }[kind].mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (forecast.grad[~observed] == 0).all()
    assert MaskedLoss(kind)(forecast, target, torch.zeros_like(observed)).item() == 0


def test_the_pinball_loss_of_the_median_is_the_mae() -> None:
    torch.manual_seed(0)
    forecast, target = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    observed = torch.rand(4, 6, 1) > 0.3
    pinball = MaskedLoss("mae", (0.5,))(forecast[..., None], target, observed)
    torch.testing.assert_close(pinball, MaskedLoss("mae")(forecast, target, observed))


def test_the_pinball_loss_is_lowest_at_the_quantile() -> None:
    target = torch.arange(101.0).reshape(101, 1, 1)
    observed = torch.ones_like(target, dtype=torch.bool)
    loss = MaskedLoss("mae", (0.2,))
    at = [loss(torch.full((101, 1, 1, 1), value), target, observed).item() for value in (10.0, 20.0, 30.0)]
    assert at[1] < min(at[0], at[2])


@pytest.mark.parametrize(("kind", "quantiles"), [("l1", None), ("mse", (0.5,))])
def test_losses_that_are_none_are_refused(kind: str, quantiles: Any) -> None:
    with pytest.raises(UserError):
        MaskedLoss(kind, quantiles)


def test_scores_weigh_every_observed_step_alike() -> None:
    scores = MaskedErrors()
    observed = torch.tensor([[True], [True], [False]])
    scores.update(torch.tensor([[1.0], [2.0], [9.0]]), torch.zeros(3, 1), observed)
    scores.update(torch.tensor([[6.0]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    found = scores.compute()
    assert found["mae"].item() == 3
    assert math.isclose(found["rmse"].item(), math.sqrt(41 / 3))


def test_the_point_forecast_is_the_median() -> None:
    values = torch.arange(6.0).reshape(1, 2, 1, 3)
    assert point_forecast(values, (0.1, 0.5, 0.9)).flatten().tolist() == [1, 4]
    assert point_forecast(values[..., 0], None).shape == (1, 2, 1)
