"""Mixers laid on routes, against the readings done one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import AttentionMixer, Mamba1Mixer, Mamba2Mixer, RoutedMixer, causal_conv1d_route
from mamba_kernels import Route

D = 6
ROUTES = [
    Route("forward"),
    Route("bidirectional"),
    Route("bidirectional", merge="mean"),
    Route("axes"),
    Route("cross"),
    Route("cross", merge="mean"),
    Route("snake"),
    Route("windowed", window=2),
]
GRIDS = [(7,), (3, 5), (2, 3, 2)]
every_route = pytest.mark.parametrize("route", ROUTES, ids=str)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def pieces(route: Route, grid: tuple[int, ...]) -> list[list[Tensor]]:
    """For each reading, the runs of cells it reads without a reset."""
    readings = route.readings(grid)
    found = []
    for k in range(readings.K):
        order = readings.order[k].long()
        if readings.segment is None:
            found.append([order])
        else:
            starts = (readings.segment[k].diff() != 0).nonzero()[:, 0] + 1
            found.append(list(torch.tensor_split(order, starts)))
    return found


def one_by_one(routed: RoutedMixer, x: Tensor) -> Tensor:
    """Read the grid with plain indexing, each run by itself, then merge."""
    grid = tuple(x.shape[1:-1])
    flat = x.flatten(1, -2)
    results = []
    for k, runs in enumerate(pieces(routed.route, grid)):
        mixer = routed.sets[k if len(routed.sets) > 1 else 0]
        y = torch.zeros_like(flat)
        for run in runs:
            y[:, run] = mixer(flat[:, run])
        results.append(y)
    if routed.route.merge == "concat":
        y = F.linear(torch.cat(results, -1), routed.merge_proj.weight) if routed.merge_proj else results[0]
    else:
        y = torch.stack(results).sum(0) / (len(results) if routed.route.merge == "mean" else 1)
    return y.unflatten(1, grid)


def inner_one_by_one(routed: RoutedMixer, x: Tensor) -> Tensor:
    """``share="projections"`` written out: the readings' convolution and scan, merged, then one gate and projection."""
    first = routed.sets[0]
    assert isinstance(first, Mamba1Mixer)
    grid = tuple(x.shape[1:-1])
    u, z = first.in_proj(x.flatten(1, -2)).chunk(2, -1)
    results = []
    for k, runs in enumerate(pieces(routed.route, grid)):
        mixer = routed.sets[k]
        assert isinstance(mixer, Mamba1Mixer)
        y = torch.zeros_like(u)
        for run in runs:
            v = F.pad(u[:, run].mT, (mixer.d_conv - 1, 0))
            v = F.silu(F.conv1d(v, mixer.conv1d.weight, mixer.conv1d.bias, groups=mixer.d_inner)).mT
            low, B, C = mixer.x_proj(v).split([mixer.dt_rank, mixer.d_state, mixer.d_state], -1)
            dt = F.softplus(mixer.dt_proj(low))
            state = torch.zeros(x.shape[0], mixer.d_inner, mixer.d_state, dtype=x.dtype)
            for t in range(len(run)):
                state = torch.exp(-dt[:, t, :, None] * mixer.A_log.exp()) * state
                state = state + (dt[:, t] * v[:, t])[..., None] * B[:, t, None]
                y[:, run[t]] = (state * C[:, t, None]).sum(-1) + mixer.D * v[:, t]
        results.append(y)
    y = torch.stack(results).sum(0) / (len(results) if routed.route.merge == "mean" else 1)
    return first.out_proj(y * F.silu(z)).unflatten(1, grid)


def mamba() -> Mamba1Mixer:
    return Mamba1Mixer(D, d_state=3, d_conv=3, dt_rank=2, bias=True).double()


def grid_of(grid: tuple[int, ...]) -> Tensor:
    return torch.randn(2, *grid, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@every_route
@every_grid
@pytest.mark.parametrize("share", ["all", "none"])
def test_readings_equal_reading_one_by_one(route: Route, grid: tuple[int, ...], share: str) -> None:
    torch.manual_seed(0)
    routed = RoutedMixer(mamba, route, share, rank=len(grid))  # type: ignore[arg-type]
    assert len(routed.sets) == (1 if share == "all" else route.count(len(grid)))
    x = grid_of(grid)
    if route.name == "windowed":
        window = RoutedMixer(lambda: AttentionMixer(D, 2, causal=False).double(), route, share, rank=len(grid))  # type: ignore[arg-type]
        torch.testing.assert_close(window(x), one_by_one(window, x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(routed(x), one_by_one(routed, x), rtol=1e-10, atol=1e-12)


EVERYWHERE: dict[str, Any] = {
    "mamba1": lambda: Mamba1Mixer(D, d_state=3, d_conv=3, dt_rank=2),
    "mamba2": lambda: Mamba2Mixer(D, d_state=3, headdim=3, ngroups=2, dt_limit=(0.01, 0.5)),
    "mamba2 beside a unit": lambda: Mamba2Mixer(D, d_state=3, headdim=2, d_ssm=4, norm_before_gate=True),
    "mamba2 without a norm": lambda: Mamba2Mixer(D, d_state=3, headdim=4, rmsnorm=False, D_has_hdim=True),
}


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize(
    ("route", "grid"),
    [
        (Route("cross"), (3, 4)),
        (Route("bidirectional", merge="mean"), (5,)),
        (Route("windowed", window=2), (3, 5)),
        (Route("cross", merge="mean"), (2, 3, 2)),
    ],
    ids=str,
)
def test_what_shares_everything_is_read_in_place(
    name: str, route: Route, grid: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    routed = RoutedMixer(EVERYWHERE[name]().double(), route, "all", rank=len(grid))
    x = grid_of(grid).requires_grad_()
    inputs = [x, *routed.parameters()]
    expected = one_by_one(routed, x)
    slopes = torch.autograd.grad(expected.square().sum(), inputs)
    monkeypatch.setattr(type(routed.sets[0]), "forward", None)
    y = routed(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(torch.autograd.grad(y.square().sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_no_grids_are_no_grids(name: str) -> None:
    routed = RoutedMixer(EVERYWHERE[name](), Route("cross"), "all", rank=2)
    x = torch.zeros(0, 3, 4, D, requires_grad=True)
    y = routed(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None


@every_route
@every_grid
def test_shared_projections_equal_the_formulas(route: Route, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    routed = RoutedMixer(mamba, route, "projections", rank=len(grid))
    for other in routed.sets[1:]:
        assert other.in_proj is None
        assert other.out_proj is None
    x = grid_of(grid).requires_grad_()
    inputs = [x, *routed.parameters()]
    expected = inner_one_by_one(routed, x)
    slopes = torch.autograd.grad(expected.square().sum(), inputs)
    y = routed(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(torch.autograd.grad(y.square().sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("share", ["all", "none"])
@every_grid
def test_concat_has_a_projection_of_its_own(grid: tuple[int, ...], share: str) -> None:
    torch.manual_seed(0)
    route = Route("cross", merge="concat")
    routed = RoutedMixer(mamba, route, share, rank=len(grid))  # type: ignore[arg-type]
    assert routed.merge_proj is not None
    assert routed.merge_proj.weight.shape == (D, route.count(len(grid)) * D)
    assert routed.merge_proj.weight.dtype == torch.float64
    x = grid_of(grid)
    torch.testing.assert_close(routed(x), one_by_one(routed, x), rtol=1e-10, atol=1e-12)


def test_concat_of_one_reading_needs_no_projection() -> None:
    assert RoutedMixer(mamba, Route("snake", merge="concat"), "projections", rank=2).merge_proj is None


def test_concat_with_shared_projections_is_refused() -> None:
    with pytest.raises(UserError, match='"concat" does not go with share="projections" of Mamba1Mixer'):
        RoutedMixer(mamba, Route("cross", merge="concat"), "projections", rank=2)


@pytest.mark.parametrize("share", ["all", "projections", "none"])
def test_forward_is_the_mixer_itself_and_steps(share: str) -> None:
    torch.manual_seed(0)
    mixer = mamba()
    routed = RoutedMixer(mixer, "forward", share)  # type: ignore[arg-type]
    x = grid_of((7,))
    assert routed.causal
    assert torch.equal(routed(x), mixer(x))
    with torch.no_grad():
        y, state = routed.prefill(x[:, :6], routed.init_state(2, max_length=7))
        last, _ = routed.step(x[:, 6], state)
    torch.testing.assert_close(torch.cat([y, last[:, None]], 1), mixer(x), rtol=1e-10, atol=1e-12)


def test_other_routes_look_ahead() -> None:
    routed = RoutedMixer(mamba, "bidirectional")
    assert not routed.causal
    for call in (
        lambda: routed.init_state(1),
        lambda: routed.prefill(torch.zeros(1, 2, D), ()),
        lambda: routed.step(torch.zeros(1, D), ()),
    ):
        with pytest.raises(UserError, match="needs a causal mixer"):
            call()


def test_an_instance_starts_every_set_and_a_function_starts_each() -> None:
    copied = RoutedMixer(mamba(), "cross", "none", rank=2)
    assert len(copied.sets) == 4
    first = copied.sets[0].state_dict()
    for other in copied.sets[1:]:
        assert all(torch.equal(value, first[name]) for name, value in other.state_dict().items())
        assert other.A_log is not copied.sets[0].A_log
    drawn = RoutedMixer(mamba, "cross", "none", rank=2)
    assert not torch.equal(drawn.sets[0].in_proj.weight, drawn.sets[1].in_proj.weight)
    before = drawn.sets[1].in_proj.weight.clone()
    drawn.reset_parameters()
    assert not torch.equal(drawn.sets[1].in_proj.weight, before)


def test_only_the_first_set_has_the_shared_projections_in_the_state_dict() -> None:
    keys = set(RoutedMixer(mamba, "bidirectional", "projections").state_dict())
    assert "sets.0.in_proj.weight" in keys
    assert "sets.1.conv1d.weight" in keys
    assert not any(key.startswith(("sets.1.in_proj", "sets.1.out_proj")) for key in keys)


@pytest.mark.parametrize("share", ["all", "none"])
@pytest.mark.parametrize("route", [Route("bidirectional"), Route("windowed", window=3)], ids=str)
def test_packed_sequences_equal_separate_ones(route: Route, share: str) -> None:
    torch.manual_seed(0)
    routed = RoutedMixer(mamba, route, share)  # type: ignore[arg-type]
    x = grid_of((9,))
    # The first sequence ends where a window does, so that the windows of the second fall as they do when it is alone.
    ids = torch.tensor([4] * 3 + [7] * 5 + [-1]).expand(2, -1)
    y = routed(x, seq_idx_BL=ids)
    torch.testing.assert_close(y[:, :3], routed(x[:, :3]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(y[:, 3:8], routed(x[:, 3:8]), rtol=1e-10, atol=1e-12)


def test_a_packed_forward_route_is_the_mixer_s() -> None:
    torch.manual_seed(0)
    routed = RoutedMixer(mamba, "forward", "projections")
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).expand(2, -1)
    x = grid_of((7,))
    assert torch.equal(routed(x, seq_idx_BL=ids), routed.sets[0](x, seq_idx_BL=ids))


def test_packing_with_shared_projections_is_refused() -> None:
    routed = RoutedMixer(mamba, "bidirectional", "projections")
    with pytest.raises(UserError, match='packed sequences do not go with share="projections"'):
        routed(grid_of((7,)), seq_idx_BL=torch.zeros(2, 7, dtype=torch.int32))


@pytest.mark.parametrize("shape", [(2, 5, D), (2, 3, 0, D), (2, 3, 5, D + 1)], ids=str)
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"RoutedMixer got an input of shape"):
        RoutedMixer(mamba, "cross", rank=2)(torch.zeros(shape, dtype=torch.float64))


def test_an_unknown_share_is_refused() -> None:
    with pytest.raises(UserError, match="share is 'some'"):
        RoutedMixer(mamba, "cross", "some", rank=2)  # type: ignore[arg-type]


@every_route
@every_grid
def test_the_convolution_follows_each_reading(route: Route, grid: tuple[int, ...]) -> None:
    readings = route.readings(grid)
    generator = torch.Generator().manual_seed(0)
    x = grid_of(grid)
    weight = torch.randn(readings.K, D, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(readings.K, D, generator=generator, dtype=torch.float64)
    y = causal_conv1d_route(x, weight, bias, route, activation="silu")
    assert y.shape == (2, readings.K, *grid, D)
    flat = x.flatten(1, -2)
    for k, runs in enumerate(pieces(route, grid)):
        for run in runs:
            padded = F.pad(flat[:, run].mT, (3, 0))
            expected = F.silu(F.conv1d(padded, weight[k, :, None], bias[k], groups=D)).mT
            torch.testing.assert_close(y[:, k].flatten(1, -2)[:, run], expected)
