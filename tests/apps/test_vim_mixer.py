"""Vim's mixer: Mamba-1 from both ends, with the reference's parameters and start."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import Mamba1Mixer, VimMixer, create, no_weight_decay
from mamba_kernels import causal_conv1d, selective_scan

D = 12
OPTIONS: list[dict[str, Any]] = [
    {},
    {"d_state": 5, "d_conv": 2, "expand": 1, "dt_rank": 3, "conv_bias": False},
]


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(seed: int = 0, **options: Any) -> VimMixer:
    torch.manual_seed(seed)
    mixer = VimMixer(D, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def one_way(mixer: VimMixer, backwards: bool) -> Mamba1Mixer:
    """Return a Mamba-1 with the parameters of one of the two readings."""
    theirs = mixer.state_dict()
    names = {"A_b_log": "A_log", "D_b": "D"}
    ours = {name: tensor for name, tensor in theirs.items() if "_b." not in name and name not in names}
    if backwards:
        for name, tensor in theirs.items():
            if name in names or "_b." in name:
                ours[names.get(name, name.replace("_b.", "."))] = tensor
    options = {"d_state": mixer.d_state, "d_conv": mixer.d_conv, "expand": mixer.d_inner / D, "dt_rank": mixer.dt_rank}
    mamba = create("mamba1", D, conv_bias=mixer.conv1d.bias is not None, **options).double()
    mamba.load_state_dict(ours)
    return mamba


@pytest.mark.parametrize("divide_out", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 13])
def test_v2_is_two_mambas_of_which_one_reads_backwards(length: int, options: dict[str, Any], divide_out: bool) -> None:
    mixer = build(divide_out=divide_out, **options)
    x = sample(2, length, D)
    total = one_way(mixer, False)(x) + one_way(mixer, True)(x.flip(1)).flip(1)
    torch.testing.assert_close(mixer(x), total / 2 if divide_out else total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("divide_out", [True, False])
def test_v1_shares_all_but_the_decay_rates_and_never_divides(divide_out: bool) -> None:
    mixer = build(bimamba_type="v1", divide_out=divide_out)
    assert {name for name, _ in mixer.named_parameters()} - {n for n, _ in create("mamba1", D).named_parameters()} == {
        "A_b_log"
    }
    x = sample(2, 9, D)
    u, z = mixer.in_proj(x).mT.chunk(2, dim=1)
    u = causal_conv1d(u, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, activation="silu")
    dt, B, C = mixer.x_proj(u.mT).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    delta = F.linear(dt, mixer.dt_proj.weight).mT
    y = sum(
        selective_scan(
            u, delta, -A_log.exp(), B.mT, C.mT, mixer.D, z, mixer.dt_proj.bias, delta_softplus=True, reverse=reverse
        )
        for A_log, reverse in ((mixer.A_log, False), (mixer.A_b_log, True))
    )
    torch.testing.assert_close(mixer(x), mixer.out_proj(y.mT), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bimamba_type", ["v2", "v1"])
def test_gradients_are_those_of_plain_pytorch(bimamba_type: str) -> None:
    found = []
    for backend in (None, "reference"):
        mixer = build(bimamba_type=bimamba_type, d_state=4, bias=True, backend=backend)
        x = sample(2, 7, D).requires_grad_()
        mixer(x).square().sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in mixer.parameters())])
    assert all(grad is not None and grad.abs().sum() > 0 for grad in found[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


def test_the_start_is_the_references() -> None:
    torch.manual_seed(0)
    mixer = VimMixer(64)
    rates = torch.arange(1, 17).log().expand(128, 16)
    assert torch.equal(mixer.A_log, rates)
    assert torch.equal(mixer.A_b_log, rates)
    assert torch.equal(mixer.D_b, torch.ones(128))
    forwards = F.softplus(mixer.dt_proj.bias)
    assert forwards.min() >= 1e-3
    assert forwards.max() <= 0.1
    # Backwards the step sizes start at ln 2: the reference's initialisation of the whole model empties that bias.
    assert torch.equal(mixer.dt_proj_b.bias, torch.zeros(128))
    assert mixer.dt_proj_b.weight.abs().max() <= mixer.dt_rank**-0.5
    assert mixer.dt_proj_b.weight.std() > 0.2


def test_everything_is_drawn_anew() -> None:
    mixer = VimMixer(D, bias=True)
    fixed = {"A_log", "A_b_log", "D", "D_b", "dt_proj_b.bias"}
    before = copy.deepcopy(mixer.state_dict())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.fill_(7.0)
    mixer.reset_parameters()
    for name, tensor in mixer.state_dict().items():
        assert (tensor != 7.0).all(), name
        assert torch.equal(tensor, before[name]) == (name in fixed), name


def test_what_takes_no_weight_decay_is_named_and_flagged() -> None:
    mixer = copy.deepcopy(VimMixer(D))
    assert no_weight_decay(mixer) == {"A_log", "D", "A_b_log", "D_b"}
    assert mixer.D_b._no_weight_decay
    assert mixer.A_b_log._no_weight_decay
    assert no_weight_decay(VimMixer(D, bimamba_type="v1")) <= {name for name, _ in VimMixer(D).named_parameters()}


def test_what_it_cannot_do_is_refused() -> None:
    mixer = VimMixer(D)
    with pytest.raises(UserError, match="bimamba_type is 'v3'"):
        VimMixer(D, bimamba_type="v3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="d_state is 0"):
        VimMixer(D, d_state=0)
    with pytest.raises(UserError, match="no option 'd_stat'; did you mean 'd_state'"):
        VimMixer(D, d_stat=4)
    with pytest.raises(UserError, match="packed sequences"):
        mixer(torch.randn(1, 3, D), seq_idx_BL=torch.zeros(1, 3, dtype=torch.int32))
    with pytest.raises(UserError, match=r"VimMixer got an input of shape \(1, 3, 5\)"):
        mixer(torch.randn(1, 3, 5))
    for refused in (lambda: mixer.init_state(1), lambda: mixer.prefill(None, ()), lambda: mixer.step(None, ())):
        with pytest.raises(UserError, match="needs a causal mixer"):
            refused()
