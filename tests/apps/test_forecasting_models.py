"""What is particular to single forecasting models, and their adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models import (
    DLinear,
    ITransformer,
    MambaSimple,
    PatchTST,
    Sizes,
    SMamba,
    TimeMachine,
    create,
    from_reference,
)
from mamba_apps.forecasting.models.adapters import our_names
from mamba_apps.forecasting.models.base import checked_quantiles, interpolated, masked_mean
from mamba_apps.forecasting.models.patchtst import sinusoid


def batch_of(lookback: int, horizon: int, n_future: int = 0, batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "past_y": torch.randn(batch, lookback, 1),
        "past_observed": torch.ones(batch, lookback, 1, dtype=torch.bool),
        "past_x": torch.randn(batch, lookback, n_future),
        "future_x": torch.randn(batch, horizon, n_future),
        "static": torch.zeros(batch, 0),
    }


def test_interpolation_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 31))
    observed = rng.random((20, 31)) > 0.6
    observed[0], observed[1, :5], observed[2, 20:] = True, False, False
    observed[:, 7] |= ~observed.any(1)
    got = interpolated(torch.from_numpy(values), torch.from_numpy(observed)).numpy()
    steps = np.arange(31)
    for row in range(20):
        seen = observed[row]
        np.testing.assert_allclose(got[row], np.interp(steps, steps[seen], values[row][seen]), rtol=1e-12, atol=1e-12)


def test_nothing_observed_is_zero() -> None:
    none = torch.zeros(1, 5, dtype=torch.bool)
    assert (interpolated(torch.full((1, 5), float("nan")), none) == 0).all()
    assert masked_mean(torch.full((1, 5), float("nan")), none, dim=1).item() == 0


@pytest.mark.parametrize("bad", [(), (0.0,), (1.0, 1.2), (0.5, 0.5), (0.9, 0.1)])
def test_quantiles_that_are_none_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="increasing probabilities"):
        checked_quantiles(bad)


@pytest.mark.parametrize("name", ["lookback", "horizon", "n_past"])
@pytest.mark.parametrize("bad", [-1, 1.5, True])
def test_sizes_out_of_range_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(UserError, match=name):
        Sizes(**{"lookback": 4, "horizon": 2, name: bad})


# The patch forecaster


@pytest.mark.parametrize("mixer", ["mamba1", "attention"])
def test_patch_is_the_same_shell_for_every_mixer(mixer: str) -> None:
    other = {"mamba1": "attention", "attention": "mamba1"}[mixer]
    parts = [
        {key for key, _ in create("patch", 24, 6, mixer=m, patch=6).named_parameters() if ".mixer." not in key}
        for m in (mixer, other)
    ]
    assert parts[0] == parts[1]


def test_patch_passes_options_to_its_mixer() -> None:
    model = create("patch", 24, 6, mixer="attention", mixer_options={"causal": True, "heads": 2}, d_model=32)
    assert all(layer.mixer.causal and layer.mixer.heads == 2 for layer in model.layers)
    looks_both_ways = create("patch", 24, 6, mixer="attention", d_model=32)
    assert not looks_both_ways.layers[0].mixer.causal


@pytest.mark.parametrize("d_model", [10, 32, 50, 97])
def test_attention_has_heads_at_any_width(d_model: int) -> None:
    model = create("patch", 24, 6, mixer="attention", d_model=d_model)
    assert model(batch_of(24, 6)).shape == (2, 6, 1)


def test_patch_without_a_mixer_of_that_name() -> None:
    with pytest.raises(UserError, match="mamba1"):
        create("patch", 24, 6, mixer="mamba")


def test_patch_forecast_follows_a_shift_of_the_level() -> None:
    batch = batch_of(24, 6)
    moved = {**batch, "past_y": batch["past_y"] + 100}
    scaled = {**batch, "past_y": batch["past_y"] * 3 + 100}
    mean = create("patch", 24, 6, patch=6, norm="mean").eval()
    torch.testing.assert_close(mean(moved), mean(batch) + 100, rtol=1e-4, atol=1e-4)
    standard = create("patch", 24, 6, patch=6, norm="standard").eval()
    torch.testing.assert_close(standard(scaled), standard(batch) * 3 + 100, rtol=1e-4, atol=1e-4)
    none = create("patch", 24, 6, patch=6, norm="none").eval()
    assert not torch.allclose(none(moved), none(batch) + 100, rtol=1e-2, atol=1e-2)


def test_the_seasonal_skip_reads_the_past_patches() -> None:
    model = create("patch", 24, 6, patch=6, norm="none").eval()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    with torch.no_grad():
        model.skip_MN.copy_(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    batch = batch_of(24, 6)
    torch.testing.assert_close(model(batch), batch["past_y"][:, 12:18])


@pytest.mark.parametrize(
    "options",
    [
        {"d_model": 0},
        {"layers": 0},
        {"decoder": 0},
        {"dropout": 1.0},
        {"d_model": 2.5},
        {"patch": 0},
        {"patch": 25},
        {"norm": "batch"},
        {"mixer_options": {"no_such": 1}},
        {"no_such": 1},
    ],
)
def test_patch_refuses_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        create("patch", 24, 6, **options)


# The published forecasters


def test_attention_over_variates_does_not_know_their_order_and_mamba_does() -> None:
    torch.manual_seed(0)
    x_BLC = torch.randn(2, 24, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    attention = ITransformer(24, 6, d_model=16, heads=2).eval()
    torch.testing.assert_close(attention(x_BLC[..., order]), attention(x_BLC)[..., order], rtol=1e-4, atol=1e-5)
    mamba = SMamba(24, 6, d_model=16).eval()
    assert not torch.allclose(mamba(x_BLC[..., order]), mamba(x_BLC)[..., order], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("cls", [SMamba, ITransformer])
def test_marks_are_tokens_that_are_cut_off(cls: Any) -> None:
    torch.manual_seed(0)
    model = cls(24, 6, d_model=16).eval()
    x_BLC, marks_BLM = torch.randn(2, 24, 3), torch.randn(2, 24, 2)
    y = model(x_BLC, marks_BLM)
    assert y.shape == (2, 6, 3)
    assert not torch.allclose(y, model(x_BLC), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("lookback", "patch", "stride"), [(24, 8, 4), (25, 8, 4), (8, 8, 3), (24, 7, 7)])
def test_patchtst_has_as_many_tokens_as_patches(lookback: int, patch: int, stride: int) -> None:
    model = PatchTST(lookback, 6, patch=patch, stride=stride, d_model=16, heads=2).eval()
    assert model.position_TD.shape[0] == (lookback - patch) // stride + 2
    assert model(torch.randn(2, lookback, 3)).shape == (2, 6, 3)


def test_sinusoid() -> None:
    table = sinusoid(50, 8)
    place, pair = 7, 2
    angle = place / 10000 ** (2 * pair / 8)
    np.testing.assert_allclose(table[place, 2 * pair], np.sin(angle), rtol=1e-5)
    np.testing.assert_allclose(table[place, 2 * pair + 1], np.cos(angle), rtol=1e-5)


def test_dlinear_begins_as_the_mean_of_the_past() -> None:
    model = DLinear(24, 6)
    for linear in (*model.seasonal, *model.trend):
        nn.init.zeros_(linear.bias)
    x_BLC = torch.randn(2, 24, 3)
    torch.testing.assert_close(model(x_BLC), x_BLC.mean(1, keepdim=True).expand(-1, 6, -1), rtol=1e-4, atol=1e-5)


def test_dlinear_individual_maps() -> None:
    model = DLinear(24, 6, channels=3, individual=True)
    x_BLC = torch.randn(2, 24, 3)
    changed = x_BLC.clone()
    changed[..., 1] += 1
    differs = (model(changed) - model(x_BLC)).abs().amax((0, 1)) > 1e-6
    assert differs.tolist() == [False, True, False]
    with pytest.raises(UserError, match="2 variates"):
        model(x_BLC[..., :2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: DLinear(24, 6, moving_average=4),
        lambda: DLinear(24, 6, individual=True),
        lambda: PatchTST(8, 6, patch=9),
        lambda: PatchTST(24, 6, d_model=15),
        lambda: PatchTST(24, 6, stride=0),
        lambda: PatchTST(24, 6, layers=0),
        lambda: SMamba(24, 6, d_model=0),
        lambda: SMamba(24, 6, d_ff=-1),
        lambda: ITransformer(24, 6, dropout=-0.1),
        lambda: ITransformer(24, 6, activation="tanh"),
        lambda: ITransformer(24, 6, d_model=16, heads=3),
    ],
)
def test_published_models_refuse_bad_options(make: Any) -> None:
    with pytest.raises(UserError):
        make()


# Adapters

ARGUMENTS: dict[str, dict[str, Any]] = {
    "smamba": {"seq_len": 12, "pred_len": 3, "d_model": 8, "d_state": 2, "d_ff": 10, "e_layers": 1},
    "itransformer": {"seq_len": 12, "pred_len": 3, "d_model": 8, "d_ff": 10, "e_layers": 1, "n_heads": 2},
    "patchtst": {
        "task_name": "long_term_forecast", "seq_len": 12, "pred_len": 3, "enc_in": 2, "d_model": 8, "d_ff": 10,
        "e_layers": 1, "n_heads": 2, "patch_len": 4, "stride": 2,
    },
    "dlinear": {"task_name": "long_term_forecast", "seq_len": 12, "pred_len": 3, "enc_in": 2, "moving_avg": 5},
}  # fmt: skip
MAMBA = {
    "A_log": (8, 2), "D": (8,), "conv1d.weight": (8, 1, 2), "conv1d.bias": (8,), "in_proj.weight": (16, 8),
    "x_proj.weight": (5, 8), "dt_proj.weight": (8, 1), "dt_proj.bias": (8,), "out_proj.weight": (8, 8),
}  # fmt: skip
LAYER = {
    "conv1.weight": (10, 8, 1), "conv1.bias": (10,), "conv2.weight": (8, 10, 1), "conv2.bias": (8,),
    "norm1.weight": (8,), "norm1.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,),
}  # fmt: skip
ATTENTION = {
    f"attention.{part}_{'projection'}.{kind}": (8, 8) if kind == "weight" else (8,)
    for part in ("query", "key", "value", "out")
    for kind in ("weight", "bias")
}
INVERTED = {
    "enc_embedding.value_embedding.weight": (8, 12), "enc_embedding.value_embedding.bias": (8,),
    "encoder.norm.weight": (8,), "encoder.norm.bias": (8,), "projector.weight": (3, 8), "projector.bias": (3,),
}  # fmt: skip


def reference_state(family: str) -> dict[str, Tensor]:
    """Random weights under the names and shapes that the reference code has."""
    layer = "encoder.attn_layers.0."
    shapes: dict[str, tuple[int, ...]] = {}
    if family == "smamba":
        for part in ("attention", "attention_r", "man", "man2"):
            shapes |= {f"{layer}{part}.{name}": shape for name, shape in MAMBA.items()}
        shapes |= {f"{layer}a.query_projection.weight": (8, 8)}
        shapes |= {layer + name: shape for name, shape in LAYER.items()} | INVERTED
    elif family == "itransformer":
        shapes = {layer + name: shape for name, shape in (LAYER | ATTENTION).items()} | INVERTED
    elif family == "patchtst":
        shapes = {layer + name: shape for name, shape in (LAYER | ATTENTION).items()} | {
            "patch_embedding.value_embedding.weight": (8, 4), "encoder.norm.1.weight": (8,),
            "encoder.norm.1.bias": (8,), "encoder.norm.1.running_mean": (8,), "encoder.norm.1.running_var": (8,),
            "head.linear.weight": (3, 48), "head.linear.bias": (3,),
        }  # fmt: skip
    else:
        for part in ("Linear_Seasonal", "Linear_Trend"):
            shapes |= {f"{part}.weight": (3, 12), f"{part}.bias": (3,)}
    g = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=g) for name, shape in shapes.items()}


@pytest.mark.parametrize("family", list(ARGUMENTS))
def test_reference_weights_find_their_place(family: str) -> None:
    state = reference_state(family)
    model = from_reference(family, ARGUMENTS[family], state).eval()
    loaded = model.state_dict()
    total = sum(v.numel() for name, v in state.items() if not any(dead in name for dead in (".man", ".a.")))
    counted = {name: v for name, v in loaded.items() if not name.endswith("num_batches_tracked")}
    assert sum(v.numel() for v in counted.values()) == total
    for name, value in our_names(family, state).items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)
    assert model(torch.randn(2, 12, 2)).shape == (2, 3, 2)


@pytest.mark.parametrize("family", list(ARGUMENTS))
def test_the_adapter_is_strict(family: str) -> None:
    state = reference_state(family)
    first = next(iter(state))
    with pytest.raises(UserError, match="missing"):
        from_reference(family, ARGUMENTS[family], {name: v for name, v in state.items() if name != first})
    with pytest.raises(UserError, match=r"unexpected.*extra"):
        from_reference(family, ARGUMENTS[family], {**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="shape"):
        from_reference(family, {**ARGUMENTS[family], "pred_len": 4}, state)
    with pytest.raises(UserError, match="unsupported argument new_option"):
        from_reference(family, {**ARGUMENTS[family], "new_option": 1}, state)


def test_a_head_for_another_task_is_refused() -> None:
    with pytest.raises(UserError, match="task_name='imputation' is not supported"):
        from_reference("patchtst", {**ARGUMENTS["patchtst"], "task_name": "imputation"}, {})


def test_a_family_without_adapter_is_refused() -> None:
    with pytest.raises(UserError, match="smamba"):
        from_reference("timemixer", {}, {})


def test_individual_dlinear_maps_find_their_place() -> None:
    shapes = {"weight": (3, 12), "bias": (3,)}
    parts = ("Linear_Seasonal", "Linear_Trend")
    state = {f"{part}.{i}.{kind}": torch.rand(shapes[kind]) for part in parts for i in range(2) for kind in shapes}
    model = from_reference("dlinear", {**ARGUMENTS["dlinear"], "individual": True}, state)
    torch.testing.assert_close(model.state_dict()["trend.1.weight"], state["Linear_Trend.1.weight"])


@pytest.mark.parametrize("card", ["timemachine_ci", "timemachine_mix", "tslib_mambasimple", "patchtst_cls"])
def test_the_adapters_of_recorded_models_are_strict(card: str) -> None:
    folder = Path(__file__).parents[1] / "parity" / "data"
    entries = json.loads((folder / f"{card}.json").read_text(encoding="utf-8"))
    family = {"tslib_mambasimple": "mambasimple"}.get(card, card.split("_")[0])
    kinds = ("param.", "buffer.")
    held = load_file(folder / f"{card}.safetensors")
    state = {key.partition(".")[2]: value for key, value in held.items() if key.startswith(kinds)}
    from_reference(family, entries["args"], state)
    with pytest.raises(UserError, match="missing"):
        from_reference(family, entries["args"], dict(list(state.items())[1:]))
    with pytest.raises(UserError, match=r"unexpected.*extra"):
        from_reference(family, entries["args"], {**state, "extra.weight": torch.zeros(1)})


def test_timemachine_with_a_scale_a_variate_refuses_another_number_of_variates() -> None:
    with pytest.raises(UserError, match="got 3 variates"):
        TimeMachine(12, 3, channels=2, n1=4, n2=2, d_state=2)(torch.randn(1, 12, 3))


def test_mambasimple_refuses_a_horizon_longer_than_its_lookback() -> None:
    with pytest.raises(UserError, match="longer than the lookback"):
        MambaSimple(12, 13)
