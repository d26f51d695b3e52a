"""The anchored forecaster: its closed form, how much of its network counts, and its live state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mamba_apps import Forecaster
from mamba_apps.errors import UserError
from mamba_apps.forecasting.models import AnchoredForecaster, PatchForecaster, Sizes, create
from mamba_apps.forecasting.models.linear_path import LinearPath

SMALL = {"patch": 6, "d_model": 16, "layers": 1}


def batches(series_ST: Tensor, sizes: Sizes, missing: bool = False) -> dict[str, Tensor]:
    """Return every window of some series, in the order of time."""
    whole_BT = series_ST.unfold(1, sizes.lookback + sizes.horizon, 1).transpose(0, 1).flatten(0, 1)
    past_BL, future_BH = whole_BT.split([sizes.lookback, sizes.horizon], dim=1)
    observed_BL = torch.ones_like(past_BL, dtype=torch.bool)
    if missing:
        observed_BL[:, 3::7] = False
    return {
        "past_y": past_BL[..., None],
        "past_observed": observed_BL[..., None],
        "past_x": torch.zeros(len(past_BL), sizes.lookback, 0),
        "future_x": torch.zeros(len(past_BL), sizes.horizon, 0),
        "static": torch.zeros(len(past_BL), 0),
        "future_y": future_BH[..., None],
        "future_observed": torch.ones_like(future_BH, dtype=torch.bool)[..., None],
    }


def build(seed: int = 0, **options: object) -> AnchoredForecaster:
    torch.manual_seed(seed)
    model = create("anchor", 24, 6, **{**SMALL, **options}).eval()
    assert isinstance(model, AnchoredForecaster)
    return model


def waves(steps: int = 400, noise: float = 0.1) -> Tensor:
    step_T, g = torch.arange(steps), torch.Generator().manual_seed(0)
    phase_S1 = torch.tensor([[0.0], [2.0], [5.0]])
    return torch.sin(2 * torch.pi * (step_T + phase_S1) / 12) + noise * torch.randn(3, steps, generator=g)


def error(model: AnchoredForecaster, batch: dict[str, Tensor]) -> float:
    with torch.no_grad():
        return float((model(batch) - batch["future_y"]).square().mean())


def test_with_nothing_to_choose_on_it_is_ridge_regression() -> None:
    torch.manual_seed(0)
    past_BL, level_B1, future_BH = torch.randn(1, 8), torch.randn(1, 1), torch.randn(1, 3)
    path = LinearPath(8, 3, season=4)
    path.solve((past_BL, level_B1, future_BH), None)
    x_BL, y_BH = past_BL.double(), future_BH.double()
    expected = torch.linalg.solve(x_BL.T @ x_BL + 0.01 * torch.eye(8, dtype=torch.float64), x_BL.T @ y_BH).T
    torch.testing.assert_close(path.weight_HD[:, :-1], expected.float(), rtol=1e-4, atol=1e-5)
    assert path.weight_HD[:, -1].abs().max() < 1e-6


@pytest.mark.parametrize("naive", ["last", "season"])
def test_the_penalty_pulls_toward_the_naive_forecast_that_fits(naive: str) -> None:
    torch.manual_seed(0)
    if naive == "last":
        series_ST = torch.randn(80, 33).cumsum(1)
    else:
        series_ST = torch.randn(80, 9, 4).cumsum(1).flatten(1)[:, :33]
    past_BL, future_BH = series_ST.split([24, 9], dim=1)
    level_B1 = past_BL.mean(1, keepdim=True)
    windows = past_BL - level_B1, level_B1, future_BH - level_B1
    path = LinearPath(24, 9, season=4)
    path.solve(*(tuple(part[half] for part in windows) for half in (slice(40), slice(40, None))))
    weight_HL = path.weight_HD[:, :-1]
    expected = torch.zeros(9, 24)
    expected[torch.arange(9), torch.full((9,), 23) if naive == "last" else 20 + torch.arange(9) % 4] = 1
    assert (weight_HL - expected).norm() < 0.5 * weight_HL.norm()


def test_the_level_pulls_back_only_where_no_period_suffers() -> None:
    g = torch.Generator().manual_seed(0)
    level_B1 = torch.randn(600, 1, generator=g)
    past_BL = 0.1 * torch.randn(600, 12, generator=g)
    reverting_BH = -0.8 * level_B1 + 0.1 * torch.randn(600, 4, generator=g)
    wandering_BH = 0.1 * torch.randn(600, 4, generator=g)

    def pull(future_BH: Tensor, val_BH: Tensor) -> float:
        path = LinearPath(12, 4, season=4)
        path.solve((past_BL, level_B1, future_BH), (past_BL, level_B1, val_BH))
        return float(path.weight_HD[:, -1].mean())

    assert pull(reverting_BH, reverting_BH) < -0.6
    # One period that does not return, the one of validation or one in training, is enough.
    assert abs(pull(reverting_BH, wandering_BH)) < 1e-3
    mixed_BH = torch.cat([reverting_BH[:500], wandering_BH[500:]])
    assert abs(pull(mixed_BH, reverting_BH)) < 1e-3


@pytest.mark.parametrize("missing", [False, True])
def test_the_closed_form_knows_a_wave(missing: bool) -> None:
    model, batch = build(), batches(waves(), Sizes(24, 6), missing)
    before = error(model, batch)
    model.prepare([batch])
    model.gain.zero_()
    assert error(model, batch) < (0.05 if missing else 0.02) < before
    weight = model.anchor.weight_HD.clone()
    model.prepare([batches(waves().flip(1), Sizes(24, 6))])
    assert torch.equal(model.anchor.weight_HD, weight), "training further keeps the closed form"


def test_windows_without_a_whole_target_are_left_out() -> None:
    model, batch = build(), batches(waves(), Sizes(24, 6))
    batch["future_observed"][:, 2] = False
    model.prepare([batch])
    assert not model.solved
    assert not model.anchor.weight_HD.any()


@pytest.mark.parametrize("quantiles", [None, (0.1, 0.5, 0.9)])
def test_a_network_that_knows_nothing_does_not_count(quantiles: tuple[float, ...] | None) -> None:
    model, batch = build(quantiles=quantiles), batches(waves(), Sizes(24, 6))
    model.prepare([batch])
    with torch.no_grad():
        model.correct.weight.normal_(0, 1)
    model.train()
    model.calibrate([batch])
    assert model.training
    assert float(model.gain) <= 0.1
    model.calibrate([])
    assert float(model.gain) <= 0.1, "nothing to choose on changes nothing"


def test_a_network_that_knows_more_counts() -> None:
    model, batch = build(), batches(waves(), Sizes(24, 6))
    model.prepare([batch])
    with torch.no_grad():
        model.correct.weight.zero_()
        model.linear.bias.zero_()
        model.linear.weight.copy_(model.anchor.weight_HD[:, :-1])
        model.correct.bias.fill_(0.7)
    batch["future_y"] = batch["future_y"] + 0.7
    model.gain.zero_()
    model.calibrate([batch])
    assert float(model.gain) == 1
    # Halfway, where the other places are hardly better.
    batch["future_y"] = batch["future_y"] + 5 * torch.randn_like(batch["future_y"])
    model.calibrate([batch])
    assert float(model.gain) == 0.5


def test_on_series_that_wander_the_closed_form_forecasts_alone() -> None:
    g = torch.Generator().manual_seed(0)
    batch = batches(torch.randn(20, 400, generator=g).cumsum(1) / 3, Sizes(24, 6))
    later = batches(torch.randn(20, 200, generator=g).cumsum(1) / 3, Sizes(24, 6))
    model = build()
    model.prepare([batch], [later])
    assert model.anchor.wanders
    model.calibrate([later])
    assert float(model.gain) == 0
    tame = build()
    tame.prepare([batches(waves(600), Sizes(24, 6))], [batches(waves(200), Sizes(24, 6))])
    assert not tame.anchor.wanders
    assert float(tame.gain) == 0.5


def test_covariates_count_on_series_that_wander_only_where_they_clearly_tell_more() -> None:
    torch.manual_seed(0)
    model = create("anchor", 24, 6, n_future=1, **SMALL).eval()
    assert isinstance(model, AnchoredForecaster)
    batch = batches(torch.randn(4, 600).cumsum(1), model.sizes)
    batch["past_x"], batch["future_x"] = torch.zeros(*batch["past_y"].shape), torch.zeros(*batch["future_y"].shape)
    model.prepare([batch])
    assert model.anchor.wanders
    assert float(model.gain) == 0.0
    with torch.no_grad():
        model.gain.fill_(1.0)
        network = model(batch)
        model.gain.fill_(0.0)
        closed = model(batch)
        # What is nearest is the network's, but hardly nearer than the closed form, and then clearly.
        noise = 10 * (network - closed).abs().mean() * torch.randn(closed.shape)
        model.calibrate([{**batch, "future_y": network + noise}])
        assert float(model.gain) == 0.0
        model.calibrate([{**batch, "future_y": network}])
        assert float(model.gain) == 1.0


@pytest.mark.parametrize(("absolute", "gain"), [(True, 1.0), (False, 0.0)])
def test_the_place_is_chosen_by_the_error_that_counts(absolute: bool, gain: float) -> None:
    model = build()
    batch = batches(waves(), model.sizes)
    model.prepare([batch])
    with torch.no_grad():
        model.gain.fill_(1.0)
        network = model(batch)
        model.gain.fill_(0.0)
        closed = model(batch)
    # Mostly what the network says, and now and then so far on the other side that the squares are for the closed form.
    far_BH1 = torch.zeros_like(closed)
    far_BH1[::5] = 1
    target_BH1 = torch.lerp(network, closed + 4 * (closed - network), far_BH1)
    model.calibrate([{**batch, "future_y": target_BH1}], absolute=absolute)
    assert abs(float(model.gain) - gain) < 0.35


def test_patches_have_a_closed_form_beside_them_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    model = create("patch", 24, 6, patch=6, d_model=16, layers=1, closed_form=True).eval()
    alone = create("patch", 24, 6, patch=6, d_model=16, layers=1).eval()
    assert isinstance(model, PatchForecaster)
    assert alone.state_dict().keys() == model.state_dict().keys() - {
        "anchor.weight_HD",
        "anchor.wanders",
        "solved",
        "gain",
    }
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if name in alone.state_dict()})
    batch = batches(waves(), model.sizes)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), alone(batch))
        model.prepare([batch])
        model.calibrate([batch])
        # An untrained network knows nothing, the closed form all but the noise.
        assert float(model.gain) == 0
        assert float((model(batch) - batch["future_y"]).square().mean()) < 0.02
        model.train()
        assert torch.equal(model(batch), alone.train()(batch))


def test_quantiles_beside_patches_are_those_of_the_closed_forms_errors() -> None:
    torch.manual_seed(0)
    model = create("patch", 24, 6, patch=6, d_model=16, layers=1, closed_form=True, quantiles=(0.1, 0.5, 0.9)).eval()
    batch = batches(waves(), model.sizes)
    model.prepare([batch])
    model.calibrate([batch])
    with torch.no_grad():
        inside = (batch["future_y"] > model(batch)[..., 0]) & (batch["future_y"] < model(batch)[..., 2])
    assert float(inside.float().mean()) == pytest.approx(0.8, abs=0.02)


def test_quantiles_begin_at_those_of_the_closed_forms_errors() -> None:
    model, batch = build(quantiles=(0.1, 0.5, 0.9)), batches(waves(2000, noise=0.5), Sizes(24, 6))
    model.prepare([batch])
    model.gain.zero_()
    with torch.no_grad():
        below = (batch["future_y"][..., None] < model(batch)).float().mean((0, 1, 2))
    torch.testing.assert_close(below, torch.tensor([0.1, 0.5, 0.9]), atol=0.02, rtol=0)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_live_it_reads_one_token_a_step_and_remembers_beyond_the_lookback(
    mixer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(mixer=mixer)
    series_ST = waves(100)
    state = model.init_state(torch.zeros(3, 0))
    calls = []
    step = type(model.layers[0].mixer).step
    monkeypatch.setattr(
        type(model.layers[0].mixer), "step", lambda self, *a: (calls.append(a[0].shape), step(self, *a))[1]
    )
    sizes = []
    for y_S in series_ST.T:
        state = model.step(state, y_S, torch.ones(3, dtype=torch.bool), torch.zeros(3, 0))
        sizes.append(sum(part.numel() for turn in state.layers for layer in turn for part in layer))
    assert calls == [(3, 16)] * 100
    assert len(set(sizes)) == 1
    live = model.forecast(state, torch.zeros(3, 6, 0))
    window = {name: value[-3:] for name, value in batches(series_ST[:, -30:], Sizes(24, 6)).items()}
    window["past_y"] = series_ST[:, -24:, None]
    assert live.isfinite().all()
    # What came before the lookback still counts a little: the state was not read anew.
    assert not torch.equal(live, model(window))
    torch.testing.assert_close(live, model(window), atol=0.3, rtol=0)


def test_live_a_series_may_start_later_than_others() -> None:
    model = build()
    series_ST = waves(30)
    both, alone = model.init_state(torch.zeros(3, 0)), model.init_state(torch.zeros(3, 0))
    for number, y_S in enumerate(series_ST.T):
        started = torch.tensor([True, number >= 12, True])
        both = model.step(both, y_S, started, torch.zeros(3, 0))
        if number >= 12:
            alone = model.step(alone, y_S, torch.ones(3, dtype=torch.bool), torch.zeros(3, 0))
    ahead = torch.zeros(3, 6, 0)
    torch.testing.assert_close(model.forecast(both, ahead)[1], model.forecast(alone, ahead)[1], rtol=1e-4, atol=1e-5)


def test_a_mixer_that_looks_ahead_is_refused() -> None:
    with pytest.raises(UserError, match="needs a causal mixer"):
        create("anchor", 24, 6, mixer="attention", mixer_options={"causal": False})


@pytest.mark.parametrize("option", [{"patch": 0}, {"patch": 25}, {"norm": "max"}, {"dropout": 1.0}, {"layers": 0}])
def test_options_out_of_range_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError):
        create("anchor", 24, 6, **option)


def test_it_is_fitted_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-01", periods=24 * 14, freq="h")
    noise = np.random.default_rng(0).normal(0, 0.1, len(hours))
    y = 5 + np.sin(2 * np.pi * np.arange(len(hours)) / 24) + noise
    frame = pd.DataFrame({"unique_id": "a", "ds": hours, "y": y})
    options = {"d_model": 16, "layers": 1, "patch": 24}
    forecaster = Forecaster(
        "anchor",
        horizon=12,
        lookback=72,
        freq="h",
        max_steps=20,
        model_options=options,
        accelerator="cpu",
        progress=False,
    ).fit(frame)
    assert forecaster.metrics["val/mae"] < 0.12
    forecaster.save(tmp_path / "model")
    assert Forecaster.load(tmp_path / "model").predict().equals(forecaster.predict())
