"""The GPU kernels' problems, and their comparison with the float64 reference: on a GPU or interpreted.

Numbers are drawn on the CPU, so that they are the same wherever the kernels run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_outcomes import dense_stride
from torch import Tensor

from mamba_kernels import Route

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (INTERPRETED or GPU), reason="no GPU, and TRITON_INTERPRET is not set")
MARKS = [here, pytest.mark.gpu] if GPU else [here]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
# Of SSD with few heads or steps: states are kept in bfloat16, and the gradient of A is a sum of few numbers made of
# them, which partly cancel (on an H200 1.1e-2 was seen in row 11 of the design below, at the sizes of models, and
# 1.6e-2 with two heads whose gradients are a tenth of what other seeds give).
TOLERANCE_OF_FEW = {**TOLERANCE, torch.bfloat16: 2e-2}

Inputs = dict[str, Tensor | None]

# Plackett and Burman's design of 12 runs: every two options meet in all four ways.
OPTIONS = (
    "softplus", "D", "z", "bias", "state", "seq_idx", "reverse", "last_state", "B_differs", "C_differs", "in_parts",
)  # fmt: skip
_FIRST = "11011100010"
DESIGN = [{name: _FIRST[(i + k) % 11] == "1" for k, name in enumerate(OPTIONS)} for i in range(11)]
DESIGN.append(dict.fromkeys(OPTIONS, False))


def compare(
    run: Callable[..., Tensor | tuple],
    inputs: Inputs,
    dtype: torch.dtype,
    *,
    tolerance: float | None = None,
    **options: Any,
) -> None:
    """Compare outputs and the gradients of all inputs with the float64 reference on the same (rounded) numbers."""
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    leaves = {k: v if v is None else v.detach().requires_grad_() for k, v in inputs.items()}
    exact = {k: v if v is None else v.detach().double().requires_grad_() for k, v in inputs.items()}
    given = {k: v for k, v in leaves.items() if v is not None and v.numel()}
    fast, true = run(**leaves, **options, backend="triton"), run(**exact, **options, backend="reference")
    fast, true = ((x,) if isinstance(x, Tensor) else x for x in (fast, true))
    # Numbers that the fast path's type holds: autograd casts what flows into its outputs.
    cotangents = [torch.randn(y.shape).to(y.dtype).to(x) for x, y in zip(true, fast, strict=True)]
    wanted = torch.autograd.grad(
        sum((y * c).sum() for y, c in zip(true, cotangents, strict=True)), [exact[k] for k in given], allow_unused=True
    )
    got = torch.autograd.grad(
        sum((y.double() * c).sum() for y, c in zip(fast, cotangents, strict=True)), list(given.values())
    )
    pairs = [*zip(fast, true, strict=True), *zip(got, wanted, strict=True)]
    for name, (a, b) in zip([f"output {i}" for i in range(len(fast))] + list(given), pairs, strict=True):
        b = torch.zeros_like(a, dtype=torch.float64) if b is None else b
        if not b.numel():
            continue
        error = float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max().clamp_min(1e-6))
        assert error < tolerance, f"{name} is off by {error:.1e}"
    for gradient, x in zip(got, given.values(), strict=True):
        assert (gradient.dtype, gradient.stride()) == (x.dtype, dense_stride(x))


def draw(dtype: torch.dtype, *shape: int, last: bool = False) -> Tensor:
    """Return random numbers, with the last two dimensions exchanged in memory where ``last``."""
    x = torch.randn(shape).to(DEVICE, dtype)
    return x.mT.contiguous().mT if last else x


def segments(batch: int, length: int, reverse: bool) -> Tensor:
    """Return ids with changes, padding in front, amid and behind, and one sequence of padding alone."""
    ids = (torch.randint(0, 12, (batch, length)).sort(-1).values // 3).int()
    ids[:, length // 2 : length // 2 + 2] = -1
    ids[0, :3] = -1
    ids[-1] = -1
    return (ids.flip(-1) if reverse else ids).to(DEVICE)


def scan_case(
    dtype: torch.dtype,
    *,
    batch: int = 2,
    channels: int = 5,
    length: int = 37,
    states: int = 4,
    last: bool = False,
    mixed: bool = False,
    reverse: bool = False,
    seq_idx: bool = False,
    softplus: bool = True,
    D: bool = True,
    z: bool = True,
    bias: bool = True,
    state: bool = True,
    last_state: bool = True,
    B_groups: int | None = None,
    C_groups: int | None = None,
) -> tuple[Inputs, dict[str, Any]]:
    """Return a scan's tensors, and its other arguments.

    Args:
        dtype: Of what varies over time; parameters and states are float32.
        batch: B.
        channels: D.
        length: L.
        states: N.
        last: Whether channels, not time, lie side by side.
        mixed: Whether delta, C and z lie the other way.
        reverse: Whether to read from the end.
        seq_idx: Whether there are segments.
        softplus: Whether delta goes through it.
        D: Whether there are skip weights.
        z: Whether there is a gate.
        bias: Whether delta has a bias.
        state: Whether an initial state enters.
        last_state: Whether the last state is asked for.
        B_groups: Groups of B, None for one without a dimension, 0 for a constant.
        C_groups: The same of C.
    """

    def matrix(groups: int | None, last: bool) -> Tensor:
        if groups == 0:
            return draw(dtype, channels, states)
        shape = (batch, states, length) if groups is None else (batch, groups, states, length)
        return draw(dtype, *shape, last=last)

    other = last != mixed
    delta = draw(dtype, batch, channels, length, last=other) * 0.5
    inputs = {
        "u": draw(dtype, batch, channels, length, last=last),
        "delta": delta - 1 if softplus else delta.abs(),
        "A": -draw(torch.float32, channels, states).abs() - 0.1,
        "B": matrix(B_groups, last),
        "C": matrix(C_groups, other),
        "D": draw(torch.float32, channels) if D else None,
        "z": draw(dtype, batch, channels, length, last=other) if z else None,
        "delta_bias": draw(torch.float32, channels) * 0.1 if bias else None,
        "initial_state": draw(torch.float32, batch, channels, states) if state else None,
    }
    ids = segments(batch, length, reverse) if seq_idx else None
    return inputs, {"delta_softplus": softplus, "return_last_state": last_state, "reverse": reverse, "seq_idx": ids}


def route_case(
    dtype: torch.dtype,
    route: Route,
    *,
    grid: tuple[int, ...] = (3, 7),
    channels: int = 5,
    states: int = 4,
    rank: int | None = None,
    own: bool = False,
    z: bool = True,
) -> tuple[Inputs, dict[str, Any]]:
    """Return the tensors of a scan along a route, and its other arguments.

    Args:
        dtype: Of what varies over the grid; parameters are float32.
        route: The route.
        grid: The grid.
        channels: D.
        states: N.
        rank: R of a low-rank delta, or None.
        own: Whether each reading has an x of its own.
        z: Whether there is a gate.
    """
    readings = route.count(len(grid))
    each = (2, readings, *grid)
    inputs = {
        "x": draw(dtype, *(each if own else (2, *grid)), channels),
        "delta": draw(dtype, *each, rank or channels) * 0.5,
        "A": -draw(torch.float32, readings * channels, states).abs() - 0.1,
        "B": draw(dtype, *each, states),
        "C": draw(dtype, *each, states),
        "D": draw(torch.float32, readings * channels),
        "z": draw(dtype, 2, *grid, channels * (readings if route.merge == "concat" else 1)) if z else None,
        "delta_bias": draw(torch.float32, readings * channels) * 0.1,
        "delta_weight": draw(dtype, readings, channels, rank) if rank else None,
    }
    return inputs, {"delta_softplus": True, "route": route}
