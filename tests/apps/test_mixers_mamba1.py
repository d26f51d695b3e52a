"""Mamba-1 against its formulas written out, and its start."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import Mamba1Mixer, RoutedMixer, no_weight_decay

OPTIONS: list[dict[str, Any]] = [
    {"d_model": 10, "d_state": 4},
    {"d_model": 6, "d_state": 1, "d_conv": 1, "expand": 1, "dt_rank": 2},
    {"d_model": 5, "d_state": 3, "d_conv": 6, "expand": 1.5, "bias": True, "conv_bias": False},
]


def written_out(mixer: Mamba1Mixer, x_BLD: Tensor) -> Tensor:
    """The block's definition, one step after the other."""
    batch, length, _ = x_BLD.shape
    u_BLE, z_BLE = F.linear(x_BLD, mixer.in_proj.weight, mixer.in_proj.bias).chunk(2, -1)
    padded_BEL = F.pad(u_BLE.mT, (mixer.d_conv - 1, 0))
    u_BLE = F.silu(F.conv1d(padded_BEL, mixer.conv1d.weight, mixer.conv1d.bias, groups=mixer.d_inner)).mT
    low_BLR, B_BLN, C_BLN = (u_BLE @ mixer.x_proj.weight.T).tensor_split(
        [mixer.dt_rank, mixer.dt_rank + mixer.d_state], dim=-1
    )
    dt_BLE = F.softplus(low_BLR @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    state_BEN = x_BLD.new_zeros(batch, mixer.d_inner, mixer.d_state)
    ys = []
    for t in range(length):
        decay_BEN = torch.exp(-dt_BLE[:, t, :, None] * mixer.A_log.exp())
        state_BEN = decay_BEN * state_BEN + (dt_BLE[:, t] * u_BLE[:, t])[..., None] * B_BLN[:, t, None]
        ys.append((state_BEN * C_BLN[:, t, None]).sum(-1) + mixer.D * u_BLE[:, t])
    return F.linear(torch.stack(ys, 1) * F.silu(z_BLE), mixer.out_proj.weight, mixer.out_proj.bias)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 23])
def test_output_and_gradients_follow_the_formulas(options: dict[str, Any], length: int) -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(**options).double()
    x = torch.randn(2, length, options["d_model"], dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    inputs = [x, *mixer.parameters()]
    expected = written_out(mixer, x)
    slopes = torch.autograd.grad((expected * weight).sum(), inputs)
    y = mixer(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(torch.autograd.grad((y * weight).sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def test_names_and_shapes_are_mamba_ssm_s() -> None:
    mixer = Mamba1Mixer(20, d_state=4, d_conv=3, bias=True)
    assert {name: tuple(value.shape) for name, value in mixer.state_dict().items()} == {
        "A_log": (40, 4),
        "D": (40,),
        "in_proj.weight": (80, 20),
        "in_proj.bias": (80,),
        "conv1d.weight": (40, 1, 3),
        "conv1d.bias": (40,),
        "x_proj.weight": (2 + 8, 40),
        "dt_proj.weight": (40, 2),
        "dt_proj.bias": (40,),
        "out_proj.weight": (20, 40),
        "out_proj.bias": (20,),
    }


def test_the_start_is_mamba_s() -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(512, d_state=8)
    assert mixer.dt_rank == 32
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 9.0).expand(1024, 8))
    assert torch.equal(mixer.D, torch.ones(1024))
    dt = F.softplus(mixer.dt_proj.bias)
    assert dt.min() >= 0.00099
    assert dt.max() <= 0.101
    # Log-uniform: the logarithm has the mean and spread of a uniform draw.
    span = math.log(100)
    assert abs(dt.log().mean() - math.log(0.01)) < 0.05 * span
    assert abs(dt.log().std() - span / math.sqrt(12)) < 0.05 * span
    bound = 32**-0.5
    assert 0.99 * bound < mixer.dt_proj.weight.abs().max() <= bound
    assert abs(mixer.dt_proj.weight.mean()) < 0.02 * bound


def test_the_start_s_options() -> None:
    mixer = Mamba1Mixer(32, dt_rank=4, dt_init="constant", dt_scale=3.0, dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-3)
    torch.testing.assert_close(mixer.dt_proj.weight, torch.full((64, 4), 1.5))
    torch.testing.assert_close(F.softplus(mixer.dt_proj.bias), torch.full((64,), 1e-3))


def test_marks_survive_and_are_found_by_name() -> None:
    model = torch.nn.ModuleDict({"a": Mamba1Mixer(8), "b": RoutedMixer(Mamba1Mixer(8), "bidirectional", "none")})
    model = copy.deepcopy(model)
    expected = {f"{p}.{n}" for p in ("a", "b.sets.0", "b.sets.1") for n in ("A_log", "D")}
    assert no_weight_decay(model) == expected
    assert {n for n, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)} == expected
    assert {n for n, p in model.named_parameters() if getattr(p, "_no_reinit", False)} == {
        f"{p}.dt_proj.bias" for p in ("a", "b.sets.0", "b.sets.1")
    }
    assert no_weight_decay(Mamba1Mixer(8)) == {"A_log", "D"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state is 0"),
        ({"d_conv": 0}, "d_conv is 0"),
        ({"expand": 0}, "expand . d_model is 0"),
        ({"dt_rank": 0}, "dt_rank is 0"),
        ({"dt_rank": "automatic"}, "dt_rank is 'automatic'"),
        ({"dt_init": "zeros"}, "dt_init is 'zeros'"),
        ({"dt_scale": -1.0}, "dt_scale is -1.0"),
        ({"dt_min": 0.0}, "dt_min is 0.0"),
        ({"dt_min": 0.2}, "dt_min is 0.2 and dt_max 0.1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"mamba1: {message}"):
        Mamba1Mixer(8, **options)


def test_a_half_precision_model_keeps_exact_dynamics() -> None:
    mixer = Mamba1Mixer(8, dtype=torch.bfloat16)
    assert mixer.in_proj.weight.dtype == torch.bfloat16
    assert mixer.A_log.dtype == mixer.D.dtype == torch.float32
    assert mixer.init_state(1).ssm_state.dtype == torch.float32
    assert mixer.init_state(1).conv_state.dtype == torch.bfloat16
    wide = copy.deepcopy(mixer).float()
    x = torch.randn(1, 40, 8)
    torch.testing.assert_close(mixer(x.bfloat16()).float(), wide(x), rtol=0.1, atol=0.02)


def test_conv_state_ends_with_the_current_token() -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(6)
    x = torch.randn(2, 7, 6)
    inner = F.linear(x, mixer.in_proj.weight)[..., :12].mT
    with torch.no_grad():
        _, state = mixer.prefill(x[:, :2], mixer.init_state(2))
        torch.testing.assert_close(state.conv_state, F.pad(inner[..., :2], (2, 0)))
        _, state = mixer.prefill(x[:, 2:], state)
        torch.testing.assert_close(state.conv_state, inner[..., -4:])
        token = torch.randn(2, 6)
        _, after = mixer.step(token, state)
        last = F.linear(token, mixer.in_proj.weight)[:, :12]
        torch.testing.assert_close(after.conv_state, torch.cat([inner[..., -3:], last[..., None]], -1))
    assert after.conv_state is state.conv_state, "a step updates its buffers in place"
    assert after.ssm_state is state.ssm_state


def test_saved_without_pickle(tmp_path: Path) -> None:
    mixer = Mamba1Mixer(6)
    save_file(mixer.state_dict(), tmp_path / "mixer.safetensors")
    other = Mamba1Mixer(6)
    other.load_state_dict(load_file(tmp_path / "mixer.safetensors"))
    x = torch.randn(1, 5, 6)
    assert torch.equal(other(x), mixer(x))
