"""Mamba-2 against its formulas written out, and its start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import Mamba2Mixer, RoutedMixer, no_weight_decay
from mamba_apps.mixers.ssm_parameters import decay_rates
from mamba_kernels import BackendError, Route

OPTIONS: list[dict[str, Any]] = [
    {"d_model": 8, "d_state": 4, "headdim": 4},
    {"d_model": 8, "d_state": 3, "headdim": 2, "ngroups": 4, "norm_before_gate": True, "D_has_hdim": True},
    {"d_model": 6, "d_state": 1, "d_conv": 1, "headdim": 2, "d_ssm": 4, "bias": True, "conv_bias": False},
    {"d_model": 8, "d_state": 4, "headdim": 4, "rmsnorm": False, "dt_limit": (0.02, 0.05), "chunk_size": 3},
    {
        "d_model": 8,
        "d_state": 4,
        "headdim": 4,
        "ngroups": 2,
        "norm_groups": 1,
        "norm_eps": 0.1,
        "expand": 1.5,
        "d_ssm": 8,
    },
]
over_options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def written_out(mixer: Mamba2Mixer, options: dict[str, Any], x_BLD: Tensor) -> Tensor:
    """The block's definition, one step after the other."""
    batch, length, _ = x_BLD.shape
    S, H, G, N = mixer.d_ssm, mixer.nheads, mixer.ngroups, mixer.d_state
    M = mixer.d_inner - S
    zxbcdt = F.linear(x_BLD, mixer.in_proj.weight, mixer.in_proj.bias)
    z0, x0, z, xbc, dt = torch.split(zxbcdt, [M, M, S, S + 2 * G * N, H], dim=-1)
    padded = F.pad(xbc.mT, (mixer.d_conv - 1, 0))
    xbc = F.silu(F.conv1d(padded, mixer.conv1d.weight, mixer.conv1d.bias, groups=S + 2 * G * N)).mT
    x = xbc[..., :S].reshape(batch, length, H, S // H)
    B, C = (part.reshape(batch, length, G, N).repeat_interleave(H // G, 2) for part in xbc[..., S:].chunk(2, -1))
    dt = F.softplus(dt + mixer.dt_bias).clamp(*options.get("dt_limit", (0, math.inf)))
    D = mixer.D.view(H, -1)
    state = x.new_zeros(batch, H, S // H, N)
    ys = []
    for t in range(length):
        decay = torch.exp(-dt[:, t] * mixer.A_log.exp())
        state = decay[..., None, None] * state + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        ys.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]) + D * x[:, t])
    y, gate = torch.stack(ys, 1).flatten(2), F.silu(z)
    if mixer.norm is not None:
        before = options.get("norm_before_gate", False)
        parts = (y if before else y * gate).unflatten(-1, (options.get("norm_groups", G), -1))
        scale = (parts.square().mean(-1, keepdim=True) + options.get("norm_eps", 1e-5)).rsqrt()
        y = (parts * scale).flatten(-2) * mixer.norm.weight
        gate = gate if before else 1.0
    return F.linear(torch.cat([F.silu(z0) * x0, y * gate], -1), mixer.out_proj.weight, mixer.out_proj.bias)


def randomised(options: dict[str, Any], **more: Any) -> Mamba2Mixer:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(**options, **more).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


@over_options
@pytest.mark.parametrize("length", [1, 2, 23])
def test_output_and_gradients_follow_the_formulas(options: dict[str, Any], length: int) -> None:
    mixer = randomised(options)
    x = torch.randn(2, length, options["d_model"], dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    inputs = [x, *mixer.parameters()]
    expected, y = written_out(mixer, options, x), mixer(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    slopes = torch.autograd.grad((expected * weight).sum(), inputs)
    for found, wanted in zip(torch.autograd.grad((y * weight).sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@over_options
def test_steps_follow_the_formulas_with_every_option(options: dict[str, Any]) -> None:
    mixer = randomised(options)
    x = torch.randn(2, 9, options["d_model"], dtype=torch.float64)
    with torch.no_grad():
        y, state = mixer.prefill(x[:, :4], mixer.init_state(2))
        ys = [y]
        for t in range(4, 9):
            y, state = mixer.step(x[:, t], state)
            ys.append(y[:, None])
        torch.testing.assert_close(torch.cat(ys, 1), written_out(mixer, options, x), rtol=1e-9, atol=1e-11)


def test_the_limit_is_kept_in_half_precision_steps() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(16, d_state=4, headdim=8, dt_limit=(0.5, 0.6), dtype=torch.bfloat16).bfloat16()
    x = torch.randn(2, 6, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        state, ys = mixer.init_state(2), []
        assert (state.conv_state.dtype, state.ssm_state.dtype) == (torch.bfloat16, torch.float32)
        for t in range(6):
            y, state = mixer.step(x[:, t], state)
            ys.append(y)
        torch.testing.assert_close(torch.stack(ys, 1), mixer(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("route", [Route("bidirectional"), Route("cross"), Route("windowed", window=2)], ids=str)
def test_shared_projections_equal_separate_ones_with_the_same_values(route: Route) -> None:
    # Without a norm all that follows SSD is linear in its output, so that merging before or after it is the same.
    options = {"d_model": 8, "d_state": 4, "headdim": 4, "ngroups": 2, "rmsnorm": False, "dt_limit": (0.02, 0.5)}
    shared = RoutedMixer(lambda: randomised(options), route, "projections", rank=2)
    for parameter in shared.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    separate = RoutedMixer(lambda: randomised(options), route, "none", rank=2)
    first, *_ = shared.sets
    for mixer, values in zip(separate.sets, shared.sets, strict=True):
        mixer.load_state_dict({**first.state_dict(), **values.state_dict()})
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(shared(x), separate(x), rtol=1e-10, atol=1e-11)


def test_parameters_have_their_usual_names_and_start() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(256, d_state=16, headdim=2, ngroups=4, conv_init=0.01)
    shapes = {name: tuple(x.shape) for name, x in mixer.state_dict().items()}
    assert shapes == {
        "dt_bias": (256,),
        "A_log": (256,),
        "D": (256,),
        "in_proj.weight": (2 * 512 + 2 * 4 * 16 + 256, 256),
        "conv1d.weight": (512 + 2 * 4 * 16, 1, 4),
        "conv1d.bias": (512 + 2 * 4 * 16,),
        "norm.weight": (512,),
        "out_proj.weight": (256, 512),
    }
    dt, A = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 0.001 <= dt.min() < 0.0015
    assert 0.07 < dt.max() <= 0.1001
    assert 1 <= A.min() < 1.5
    assert 15.5 < A.max() <= 16
    assert 0.009 < mixer.conv1d.weight.abs().max() <= 0.01
    assert torch.equal(mixer.D, torch.ones(256))
    assert no_weight_decay(mixer) == {"A_log", "D", "dt_bias"}
    assert {decay_rates(mixer.to(torch.bfloat16).A_log).dtype} == {torch.float32}


@pytest.mark.parametrize(("d_model", "headdim"), [(12, 24), (64, 64), (96, 64), (97, 2), (50, 50)])
def test_the_automatic_head_width_divides(d_model: int, headdim: int) -> None:
    assert Mamba2Mixer(d_model, device="meta").headdim == headdim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "mamba2: d_state is 0; give a whole number of at least 1"),
        ({"chunk_size": 0}, "mamba2: chunk_size is 0"),
        ({"d_ssm": 17}, "mamba2: d_ssm is 17, more than expand \\* d_model = 16"),
        ({"headdim": 3}, "mamba2: headdim is 3, and there are 16 channels; give a divisor of 16"),
        ({"headdim": 8, "ngroups": 4}, "mamba2: ngroups is 4, and there are 2 heads; give a divisor of 2"),
        ({"norm_groups": 3}, "mamba2: norm_groups is 3, and there are 16 channels"),
        ({"A_init_range": (0, 1)}, r"mamba2: A_init_range is \(0, 1\)"),
        ({"dt_min": 0.2}, r"mamba2: \(dt_min, dt_max\) is \(0.2, 0.1\)"),
        ({"conv_init": -1.0}, "mamba2: conv_init is -1.0"),
        ({"dt_limit": (0.2, 0.1)}, r"mamba2: dt_limit is \(0.2, 0.1\)"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mamba2Mixer(8, **options)


def test_a_forced_gpu_kernel_is_refused_on_a_cpu() -> None:
    with pytest.raises(BackendError, match="backend"):
        Mamba2Mixer(8, backend="triton")(torch.zeros(1, 2, 8))
