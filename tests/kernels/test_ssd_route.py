"""SSD along routes in plain PyTorch: against `ssd` on gathered readings, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_kernels import KernelInputError, Route, ssd, ssd_route
from mamba_kernels.backend import runs_gpu_kernels

pytestmark = pytest.mark.skipif(
    runs_gpu_kernels(torch.device("cpu")), reason="GPU kernels stand in for what is tested here"
)


def case(route: Route, grid: tuple[int, ...], *, own: bool = False, dtype: torch.dtype = torch.float64) -> dict:
    torch.manual_seed(0)
    K, H, P, G, N = route.count(len(grid)), 4, 3, 2, 5

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    own_axis = (K,) if own else ()
    return {
        "x": draw(2, *own_axis, *grid, H, P),
        "dt": draw(2, *own_axis, *grid, H),
        "A": -draw(K * H).abs(),
        "B": draw(2, K, *grid, G, N),
        "C": draw(2, K, *grid, G, N),
        "D": draw(K * H, P),
        "dt_bias": draw(K * H),
        "dt_softplus": True,
        "dt_limit": (0.1, 2.0),
        "route": route,
    }


ROUTES = {
    "forward": (Route("forward"), (7,)),
    "bidirectional": (Route("bidirectional", merge="concat"), (5,)),
    "cross": (Route("cross", merge="mean"), (3, 4)),
    "windowed": (Route("windowed", window=2), (3, 5)),
}


def leaves_of(given: dict[str, Any]) -> list[Tensor]:
    return [x.requires_grad_() for x in given.values() if isinstance(x, Tensor)]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ROUTES)
def test_both_paths_are_ssd_on_every_reading(name: str, own: bool) -> None:
    route, grid = ROUTES[name]
    given = case(route, grid, own=own)
    leaves = leaves_of(given)
    readings = route.readings(grid)
    ys = []
    for k, order in enumerate(readings.order.long()):
        x, dt, B, C = (
            t.unflatten(0, (2, *((readings.K,) if by_reading else ())))
            .select(1, k if by_reading else 0)
            .flatten(1, len(grid))[:, order]
            if by_reading
            else t.flatten(1, len(grid))[:, order]
            for t, by_reading in (
                (given["x"].flatten(0, 1) if own else given["x"], own),
                (given["dt"].flatten(0, 1) if own else given["dt"], own),
                (given["B"].flatten(0, 1), True),
                (given["C"].flatten(0, 1), True),
            )
        )
        A, D, bias = (given[n].chunk(readings.K)[k] for n in ("A", "D", "dt_bias"))
        ids = None if readings.segment is None else readings.segment[k].expand(2, -1)
        y = ssd(x, dt, A, B, C, D=D, dt_bias=bias, dt_softplus=True, dt_limit=(0.1, 2.0), seq_idx=ids)
        ys.append(y.flatten(2))
    expected = readings.scatter_merge(torch.stack(ys, 1)).unflatten(-1, (-1, 3))
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    for backend in ("reference", "cpu"):
        found = ssd_route(**given, backend=backend)
        torch.testing.assert_close(found, expected)
        for a, b in zip(torch.autograd.grad((found * weights).sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_the_reference_is_differentiable_twice() -> None:
    given = case(Route("bidirectional"), (3,))
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
    others = {name: x for name, x in given.items() if name not in tensors}

    def run(*values: Tensor) -> Tensor:
        return ssd_route(**dict(zip(tensors, values, strict=True)), **others, backend="reference")

    leaves = tuple(x[:1] if name in ("x", "dt", "B", "C") else x for name, x in tensors.items())
    leaves = tuple(x.clone().requires_grad_() for x in leaves)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": lambda t: t[:, :1]}, "B must have shape"),
        ({"x": lambda t: t[:, 0]}, "x must be"),
        ({"A": lambda t: t[:4]}, "A must have shape"),
        ({"D": lambda t: t[:, :1]}, "D must have shape"),
        ({"dt": lambda t: t[..., :1]}, "dt must have shape"),
        ({"dt_limit": lambda _: (2.0, 1.0)}, "dt_limit must be"),
        ({"route": lambda _: "cross"}, "route must be a Route"),
        ({"x": lambda t: t[:0]}, "is empty"),
        ({"C": lambda t: t.long()}, "C must be a real floating point tensor"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given = case(Route("cross"), (3, 4))
    for name, edit in change.items():
        given[name] = edit(given[name])
    with pytest.raises(KernelInputError, match=message):
        ssd_route(**given)


@pytest.mark.parametrize("name", ["cross", "windowed"])
def test_compilers_and_exporters_follow_it(name: str) -> None:
    route, grid = ROUTES[name]
    given = case(route, grid, dtype=torch.float32)
    tensors = {n: x for n, x in given.items() if isinstance(x, Tensor)}
    others = {n: x for n, x in given.items() if n not in tensors}

    class Run(torch.nn.Module):
        def forward(self, **tensors: Tensor) -> Tensor:
            return ssd_route(**tensors, **others)

    wanted = ssd_route(**given)
    compiled = torch.compile(Run(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**tensors), wanted)
    exported = torch.export.export(Run(), (), tensors)
    torch.testing.assert_close(exported.module()(**tensors), wanted)
