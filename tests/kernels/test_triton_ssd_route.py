"""SSD's GPU kernels along routes against the recurrence: on a GPU, or interpreted in the process of test_triton_ssd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_comparison import DEVICE, GPU, INTERPRETED, MARKS, Inputs, compare, draw

from mamba_kernels import Route, ssd_route
from mamba_kernels.errors import BackendError

pytestmark = [*MARKS, pytest.mark.usefixtures("_seed")]


@pytest.fixture(autouse=True)
def _small_problems_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        from mamba_kernels.ssd import triton_plan

        monkeypatch.setattr(triton_plan, "PROGRAMS_WANTED", 8)
        monkeypatch.setattr(triton_plan, "SHORTEST_PART", 48)


def route_case(
    dtype: torch.dtype,
    route: Route,
    grid: tuple[int, ...],
    *,
    batch: int = 2,
    heads: int = 2,
    width: int = 5,
    groups: int = 1,
    states: int = 4,
    own: bool = False,
    own_steps: bool = False,
    D: int = 1,
    bias: bool = True,
) -> tuple[Inputs, dict[str, Any]]:
    """Return the tensors of SSD along a route, and its other arguments; ``own`` is whether each reading has its x."""
    K = route.count(len(grid))
    inputs = {
        "x": draw(dtype, batch, *((K,) if own else ()), *grid, heads, width),
        "dt": draw(dtype, batch, *((K,) if own_steps else ()), *grid, heads) * 0.5 - 1,
        "A": -draw(torch.float32, K * heads).abs() - 0.1,
        "B": draw(dtype, batch, K, *grid, groups, states),
        "C": draw(dtype, batch, K, *grid, groups, states),
        "D": draw(torch.float32, *(K * heads, width)[:D]) if D else None,
        "dt_bias": draw(torch.float32, K * heads) * 0.1 if bias else None,
    }
    return inputs, {"route": route, "dt_softplus": True, "dt_limit": (0.05, 1.5)}


CASES: dict[str, tuple[Route, tuple[int, ...], dict[str, Any]]] = {
    "forward": (Route("forward"), (3, 7), {"own_steps": True}),
    "bidirectional": (Route("bidirectional", merge="mean"), (19,), {"D": 2, "own": True}),
    "bidirectional_concat": (Route("bidirectional", merge="concat"), (17,), {"groups": 2}),
    "cross": (Route("cross"), (3, 7), {"groups": 2, "own": True, "own_steps": True}),
    "cross_mean": (Route("cross", merge="mean"), (5, 4), {"D": 0, "bias": False}),
    "volume": (Route("axes", merge="concat"), (2, 3, 5), {"own": True, "batch": 1}),
    "snake": (Route("snake"), (4, 5), {"width": 17, "D": 2}),
    "windowed": (Route("windowed", window=3), (5, 7), {}),
    "parts": (Route("bidirectional"), (9, 15), {"batch": 1, "heads": 1, "own": True}),
    "windows_in_parts": (Route("windowed", window=(4, 5)), (9, 15), {"batch": 1, "heads": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_output_and_every_gradient(case: str) -> None:
    route, grid, options = CASES[case]
    inputs, arguments = route_case(torch.float32, route, grid, **options)
    compare(ssd_route, inputs, torch.float32, **arguments)


@pytest.mark.parametrize("name", ["bidirectional", "cross"])
def test_half_precision(name: str) -> None:
    inputs, arguments = route_case(torch.bfloat16, Route(name), (3, 5), own=True)
    compare(ssd_route, inputs, torch.bfloat16, **arguments)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["cross", "bidirectional"])
def test_the_sizes_of_models(name: str, dtype: torch.dtype) -> None:
    inputs, arguments = route_case(dtype, Route(name), (15, 14), heads=6, width=64, states=64, own=True)
    compare(ssd_route, inputs, dtype, **arguments)


def test_one_cell() -> None:
    inputs, arguments = route_case(torch.float32, Route("cross"), (1, 1))
    compare(ssd_route, inputs, torch.float32, **arguments)


def test_any_strides() -> None:
    inputs, arguments = route_case(torch.float32, Route("cross"), (3, 5), own_steps=True)
    inputs["x"] = inputs["x"].permute(3, 0, 4, 2, 1).contiguous().permute(1, 4, 3, 0, 2)
    inputs["dt"] = inputs["dt"].movedim(1, -1).contiguous().movedim(-1, 1)
    inputs["B"] = torch.cat([inputs["B"]] * 2, dim=-1)[..., ::2]
    inputs["C"] = inputs["C"][:, :1].expand_as(inputs["C"])
    compare(ssd_route, inputs, torch.float32, **arguments)


def test_autocast_and_dtypes_of_the_output() -> None:
    inputs, arguments = route_case(torch.float32, Route("bidirectional"), (9,))
    wanted = ssd_route(**{n: x.double() for n, x in inputs.items()}, **arguments, backend="reference")
    with torch.autocast(DEVICE, torch.bfloat16):
        y = ssd_route(**inputs, **arguments, backend="triton")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=2e-2 * float(wanted.abs().max()))
    y = ssd_route(**inputs, **arguments, out_dtype=torch.float64, backend="triton")
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_registered_operators_keep_pytorchs_rules() -> None:
    from mamba_kernels.ssd.route_registered import registered_backward, registered_ssd_route

    for merge in ("sum", "concat"):
        inputs, _ = route_case(torch.float32, Route("bidirectional"), (3,), own=True)
        inputs["x"] = inputs["x"].mT.contiguous().mT
        arguments = (*inputs.values(), True, 0.05, 1.5, "bidirectional", merge, [])
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(registered_ssd_route, (*arguments, torch.float32), test_utils=checks)
        y = registered_ssd_route(*arguments, torch.float32)
        torch.library.opcheck(registered_backward, (y.mT.contiguous().mT, *arguments), test_utils=checks)


def test_compiled_whole_it_gives_the_same() -> None:
    inputs, arguments = route_case(torch.float32, Route("cross"), (2, 3))
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}

    def run(**tensors: Tensor) -> Tensor:
        return ssd_route(**{**tensors, "x": tensors["x"] * 2}, **arguments, backend="triton").sin()

    found, wanted = (
        (y, *torch.autograd.grad(y.sum(), [*leaves.values()]))
        for y in (torch.compile(run, fullgraph=True, backend="aot_eager")(**leaves), run(**leaves))
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_configurations_are_checked_and_wrong_results_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_kernels.ssd import triton_choices, triton_launch

    inputs, _ = route_case(torch.float32, Route("bidirectional"), (3,), own=True, own_steps=True)
    x, dt, A, B, C, D, bias = inputs.values()
    shapes = triton_choices._class(
        None, x, dt, A, B, C, D, None, bias, True, False, False, True, False, torch.float32
    )  # fmt: skip
    assert shapes.readings == 2
    device, chosen = torch.device(DEVICE), (triton_choices.INTERPRETED,) * 3
    checks = {
        "forward": lambda: triton_choices._check_forward(shapes, chosen[:2], device),
        "backward": lambda: triton_choices._check_backward(shapes, chosen, device),
    }
    for name, check in checks.items():
        with torch.no_grad():
            assert check()
        right = getattr(triton_launch, name)

        def wrong(*arguments: Any, right: Any = right) -> tuple[Tensor, ...]:
            return tuple(x * 1.001 for x in right(*arguments))

        monkeypatch.setattr(triton_launch, name, wrong)
        assert not check()


def test_the_second_derivative_names_the_switch() -> None:
    inputs, arguments = route_case(torch.float32, Route("forward"), (3,))
    x = inputs["x"].requires_grad_()
    (dx,) = torch.autograd.grad(ssd_route(**inputs, **arguments, backend="triton").sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="backend='reference'"):
        torch.autograd.grad(dx.sum(), x)
