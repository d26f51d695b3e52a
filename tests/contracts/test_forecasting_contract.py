"""What every registered forecasting model promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mamba_apps.errors import UserError
from mamba_apps.forecasting import ForecastTask
from mamba_apps.forecasting.models import ForecastModel, Sizes, create, names, spec
from mamba_apps.forecasting.models.base import KINDS

SMALL: dict[str, dict[str, Any]] = {
    "anchor": {"patch": 5, "d_model": 16, "decoder": 4, "effect_width": 8},
    "patch": {"patch": 5, "d_model": 16, "decoder": 4},
    "smamba": {"d_model": 16, "d_state": 4},
    "itransformer": {"d_model": 16, "heads": 2},
    "patchtst": {"patch": 6, "d_model": 16, "heads": 2},
    "dlinear": {"moving_average": 5, "effect_width": 8},
    "timemachine": {"n1": 12, "n2": 8, "d_state": 4},
    "mambasimple": {"d_model": 16, "d_state": 4},
}
CASES = [pytest.param(name, {}, id=name) for name in names()] + [
    pytest.param(
        "anchor", {"mixer": "mamba2", "mixer_options": {"headdim": 8}, "norm": "standard"}, id="anchor-mamba2"
    ),
    pytest.param("anchor", {"mixer": "attention"}, id="anchor-attention"),
    pytest.param("patch", {"mixer": "attention"}, id="patch-attention"),
    pytest.param("patch", {"norm": "standard", "ff": 0}, id="patch-standard"),
    pytest.param("patch", {"norm": "none", "seasonal_skip": False}, id="patch-none"),
]
every_model = pytest.mark.parametrize(("name", "options"), CASES)
# The target is S-Mamba's first token: the last forward scan has one step when it reaches it, so its decay is not used.
# TimeMachine's Mambas along the tokens have one token, the series.
DEAD = {
    "smamba": {"network.layers.1.mixer.sets.0.A_log"},
    "timemachine": {"network.along1.A_log", "network.along2.A_log"},
}
PAST = ("past_y", "past_observed", "past_x")
COUNTS = {"past": 2, "future": 3, "static": 2}


def taken(name: str) -> frozenset[str]:
    return spec(name).cls.covariates | spec(name).cls.through_effect


def sizes_for(name: str, lookback: int = 23, horizon: int = 7) -> Sizes:
    counts = [COUNTS[kind] if kind in taken(name) else 0 for kind in KINDS]
    return Sizes(lookback, horizon, *counts)


def build(name: str, sizes: Sizes, seed: int = 0, **options: Any) -> ForecastModel:
    torch.manual_seed(seed)
    return create(name, **vars(sizes), **{**SMALL[name], **options}).eval()


def windows(sizes: Sizes, batch: int = 3, missing: bool = True) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {
        "past_y": (sizes.lookback, 1),
        "past_x": (sizes.lookback, sizes.n_past + sizes.n_future),
        "future_x": (sizes.horizon, sizes.n_future),
        "static": (sizes.n_static,),
        "future_y": (sizes.horizon, 1),
    }
    found = {key: torch.randn(batch, *shape, generator=g) for key, shape in shapes.items()}
    found["past_observed"] = torch.rand(batch, sizes.lookback, 1, generator=g) > (0.3 if missing else -1)
    found["future_observed"] = torch.ones(batch, sizes.horizon, 1, dtype=torch.bool)
    return found


@every_model
@pytest.mark.parametrize("quantiles", [None, (0.1, 0.5, 0.9)])
@pytest.mark.parametrize(("lookback", "horizon"), [(23, 7), (24, 1), (6, 13), (20, 20)])
def test_shapes(name: str, options: dict[str, Any], quantiles: Any, lookback: int, horizon: int) -> None:
    sizes = sizes_for(name, lookback, horizon)
    y = build(name, sizes, quantiles=quantiles, **options)(windows(sizes))
    assert y.shape == ((3, horizon, 1) if quantiles is None else (3, horizon, 1, 3))
    assert y.isfinite().all()
    if quantiles is not None:
        assert (y.diff(dim=-1) >= 0).all()


@every_model
def test_one_variate_without_covariates(name: str, options: dict[str, Any]) -> None:
    sizes = Sizes(23, 7)
    y = build(name, sizes, **options)(windows(sizes))
    assert y.shape == (3, 7, 1)
    assert y.isfinite().all()


@every_model
def test_covariates_it_takes_are_used(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    inputs = {key: batch[key].requires_grad_() for key in ("past_x", "future_x", "static")}
    build(name, sizes, **options)(batch).square().sum().backward()
    used = {
        "past": inputs["past_x"].grad[..., : sizes.n_past],
        "future": inputs["future_x"].grad,
        "static": inputs["static"].grad,
    }
    for kind in taken(name):
        grad = used[kind]
        # Each window and column, not just some: a covariate that is dropped somewhere would show.
        assert (grad.abs().flatten(1, -2).sum(1) if grad.dim() == 3 else grad.abs()).gt(0).all(), kind
    if "future" in taken(name):
        # Each step of the horizon counts, and the past of what is known ahead does too.
        assert inputs["future_x"].grad.abs().sum(-1).gt(0).all()
        assert inputs["past_x"].grad[..., sizes.n_past :].abs().sum().gt(0)


@every_model
def test_covariates_it_does_not_take_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    for place, kind in enumerate(KINDS):
        if kind in taken(name):
            continue
        counts = [0, 0, 0]
        counts[place] = 1
        with pytest.raises(UserError, match=f"takes no {kind} covariates.*patch"):
            build(name, Sizes(23, 7, *counts), **options)


@every_model
@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_what_was_not_observed_does_not_matter(name: str, options: dict[str, Any], value: float) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    model = build(name, sizes, **options)
    expected = model(batch)
    changed = {**batch, "past_y": batch["past_y"].masked_fill(~batch["past_observed"], value).requires_grad_()}
    y = model(changed)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.sum().backward()
    grad = changed["past_y"].grad
    assert grad.isfinite().all()
    assert (grad[~batch["past_observed"]] == 0).all()
    assert (grad[batch["past_observed"]] != 0).any()


@every_model
def test_a_window_without_any_observation_is_finite(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    batch["past_observed"] = torch.zeros_like(batch["past_observed"])
    model = build(name, sizes, **options)
    y = model(batch)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_the_answer_is_not_read(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    model = build(name, sizes, **options)
    known = {key: value for key, value in batch.items() if not key.startswith("future_") or key == "future_x"}
    torch.testing.assert_close(model(known), model(batch), rtol=0, atol=0)


@every_model
def test_gradients_reach_every_parameter(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    model = build(name, sizes, **options).train()
    model(windows(sizes)).square().sum().backward()
    dead = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert dead == DEAD.get(name, set())


@every_model
def test_a_step_reads_nothing_back(name: str, options: dict[str, Any]) -> None:
    # Tensors without values: what a model decided in Python by them, a replayed step would have decided once for all.
    sizes, mode = sizes_for(name), FakeTensorMode(allow_non_fake_inputs=True)
    for loss, quantiles in (("huber", None), ("mae", (0.1, 0.5, 0.9))):
        task = ForecastTask(
            name, model_options={**SMALL[name], **options}, sizes=sizes, loss=loss, quantiles=quantiles
        ).train()
        with mode:
            found = task.loss_of({key: mode.from_tensor(value) for key, value in windows(sizes).items()})
            found.backward()
        assert found.shape == ()


@every_model
def test_a_window_is_forecast_the_same_alone_and_in_a_batch(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    model = build(name, sizes, **options)
    alone = model({key: value[1:2] for key, value in batch.items()})
    torch.testing.assert_close(alone, model(batch)[1:2], rtol=1e-5, atol=1e-5)


@every_model
def test_weights_move_to_another_instance(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    model, other = build(name, sizes, **options), build(name, sizes, seed=5, **options)
    other.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(other(batch), model(batch), rtol=0, atol=0)


@every_model
def test_a_seed_decides_the_weights(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    first, same, other = (build(name, sizes, seed=seed, **options)(batch) for seed in (3, 3, 4))
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", names())
def test_the_registry_describes_it(name: str) -> None:
    known = spec(name)
    assert known.summary.endswith(".")
    assert "quantiles" in known.options
    assert known.cls.covariates | known.cls.through_effect <= set(KINDS)
    assert "future" in taken(name), "the calendar must reach every learned model"
    with pytest.raises(UserError, match="has no option"):
        build(name, Sizes(23, 7), no_such_option=1)


def test_every_model_is_covered() -> None:
    assert set(SMALL) == set(names())


@every_model
def test_a_live_forecast_is_that_of_the_window(name: str, options: dict[str, Any]) -> None:
    sizes = sizes_for(name)
    batch = windows(sizes)
    model = build(name, sizes, **options)
    state = model.init_state(batch["static"])
    for step in range(sizes.lookback):
        y_B, observed_B = batch["past_y"][:, step, 0], batch["past_observed"][:, step, 0]
        state = model.step(state, y_B, observed_B, batch["past_x"][:, step])
        if step in (0, 9, sizes.lookback - 1):
            # The steps before the first were not observed.
            seen = (torch.arange(sizes.lookback) >= sizes.lookback - 1 - step)[:, None]
            so_far = {
                key: value.roll(sizes.lookback - 1 - step, 1) * seen for key, value in batch.items() if key in PAST
            }
            so_far |= {key: batch[key] for key in ("static", "future_x")}
            found = model.forecast(state, batch["future_x"])
            torch.testing.assert_close(found, model(so_far), rtol=1e-4, atol=1e-5)
            assert found.isfinite().all()
