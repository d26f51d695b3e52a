"""The configurations SSD's kernels run with: each only after it agreed with the CPU path's mathematics on this GPU.

Hopper's matrix kernels are miscompiled by some versions of Triton, for some configurations. So a small problem with the
compile-time constants of a call is run with each configuration, and compared in float64.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.choices import Choice
from mamba_kernels.memo import per_layout
from mamba_kernels.routes.readings import Readings
from mamba_kernels.ssd import cpu, triton_launch, triton_plan
from mamba_kernels.ssd.triton_backward import gradients_of_groups, gradients_of_heads, total_parameters
from mamba_kernels.ssd.triton_forward import ssd_forward
from mamba_kernels.ssd.triton_plan import Config
from mamba_kernels.ssd.triton_states import carry_states, walk_states
from mamba_kernels.ssd.triton_steps import prepare_steps

INTERPRETED = Config(16, 4, 1)
DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
# The largest error that is rounding, as a part of the largest number.
TOLERANCE = {"bf16": 3e-2, "tf32": 1e-2, "tf32x3": 1e-4}
GRADIENTS = ("dx", "ddt", "dA", "dB", "dC", "dD", "dz", "dbias", "dinitial")
_log = logging.getLogger(__name__)


@per_layout
def _class(
    backward: bool, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, softplus: bool, enters: bool, denters: bool, has_marks: bool, reverse: bool,
    out_dtype: torch.dtype,
) -> tuple:  # fmt: skip
    """Return what decides the kernels' compile-time constants, as plain numbers and strings."""
    length, heads, width = x.shape[-3:]
    # Whether there are parts, and what Triton makes of the lengths: multiples of 16 have loads of their own.
    in_parts = triton_launch.parts(x, B, C, backward) > 1
    return (
        heads, width, *B.shape[-2:], in_parts, length % 16 == 0, 0 if D is None else D.dim(),
        z is not None, dt_bias is not None, softplus, enters, denters, has_marks, reverse,
        x.shape[1] if x.dim() == 5 else 0, *(str(t.dtype) for t in (x, dt, B, C)), str(out_dtype),
    )  # fmt: skip


class _Problem(NamedTuple):
    """A small problem of a class of shapes: the arguments of `forward`, and gradients of its results."""

    arguments: list[Any]
    readings: Readings | None
    dout: Tensor
    dfinal: Tensor | None


def _problem(shapes: tuple, device: torch.device) -> _Problem:
    heads, width, groups, states, in_parts, even, D, z, bias, softplus, enters, denters, marks, reverse, K = shapes[:15]
    x_dtype, dt_dtype, B_dtype, C_dtype, out_dtype = (DTYPES[name] for name in shapes[15:])
    batch, length = 1, (160 if even else 150)
    if in_parts:
        length += 2 * triton_plan.SHORTEST_PART
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    ids = torch.arange(length, device=device) // 45
    if not K:  # A route has no padding.
        ids[7:10] = -1
    readings = None
    if K:
        order = torch.stack([torch.randperm(length, generator=random, device=device) for _ in range(K)]).int()
        segment = ids.int().expand(K, -1) if marks else None
        readings = Readings((length,), "sum", order, order.argsort(dim=1).int(), segment)
    each = (batch, K, length) if K else (batch, length)
    all_heads = heads * max(1, K)
    skips = {0: None, 1: (all_heads,), 2: (all_heads, width)}[D]
    dt = draw(*each, heads) * 0.5 - 2
    arguments = [
        draw(*each, heads, width, dtype=x_dtype),
        (dt if softplus else dt.exp()).to(dt_dtype),
        -draw(all_heads).abs() - 0.1,
        draw(*each, groups, states, dtype=B_dtype),
        draw(*each, groups, states, dtype=C_dtype),
        None if skips is None else draw(*skips),
        draw(*each, heads, width, dtype=x_dtype) if z else None,
        draw(all_heads) * 0.1 if bias else None,
        softplus,
        (0.0, math.inf),
        draw(batch, all_heads, width, states) if enters else None,
        ids.int()[None] if marks and not K else None,
        reverse,
        out_dtype,
    ]
    dout = draw(*each, heads, width, dtype=out_dtype)
    return _Problem(arguments, readings, dout, draw(batch, all_heads, width, states) if denters else None)


def _exact(arguments: list[Any], readings: Readings | None) -> tuple[list[Any], Tensor, Tensor]:
    """Return the tensors in float64, and the exact results."""
    exact = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    tensors: list[Any] = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in exact]
    x, dt, A, B, C, D, z, bias, softplus, limit, initial, ids, reverse, _ = tensors
    with torch.enable_grad():
        if readings is None:
            y, final = cpu.ssd(
                x, dt, A, B, C, None, D, z, bias, softplus, limit, initial, ids, reverse, torch.float64
            )  # fmt: skip
            return tensors, y, final
        results = []
        for k, order in enumerate(readings.order):
            x_k, dt_k, B_k, C_k = (t[:, k].index_select(1, order) for t in (x, dt, B, C))
            A_k = A.chunk(readings.K)[k]
            D_k, bias_k = (None if t is None else t.chunk(readings.K)[k] for t in (D, bias))
            ids = None if readings.segment is None else readings.segment[k : k + 1]
            y, final = cpu.ssd(
                x_k, dt_k, A_k, B_k, C_k, None, D_k, None, bias_k, softplus, limit, None, ids, False, torch.float64
            )  # fmt: skip
            results.append((y.index_select(1, readings.inverse[k]), final))
        ys, finals = zip(*results, strict=True)
        return tensors, torch.stack(ys, 1), torch.cat(finals, 1)


def _agree(arguments: list[Any], names: Sequence[str], got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Return whether results are as exact as what they are multiplied in allows, and log which are not."""
    tiles = triton_plan.tiles(arguments[0], *arguments[3:5])
    tolerance = TOLERANCE["bf16" if tiles.operand == "bf16" else tiles.precision]
    right = True
    for name, a, b in zip(names, got, wanted, strict=True):
        b = b.detach()
        error = float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-6))
        if not error <= tolerance:
            _log.warning("ssd: %s is off by %.1e of its largest number, %.0e is allowed", name, error, tolerance)
            right = False
    return right


def forward_configs(*arguments: Any) -> tuple[Config, Config]:
    """Return the configurations of a forward pass, from what `_class` takes."""
    device = arguments[0].device
    return _forward(_class(False, *arguments), device) if device.type == "cuda" else (INTERPRETED,) * 2


def backward_configs(*arguments: Any) -> tuple[Config, Config, Config]:
    """Return the configurations of a backward pass, from what `_class` takes."""
    device = arguments[0].device
    return _backward(_class(True, *arguments), device) if device.type == "cuda" else (INTERPRETED,) * 3


def _check_forward(shapes: tuple, configs: tuple[Config, Config], device: torch.device) -> bool:
    arguments, readings, _, _ = _problem(shapes, device)
    given: Any = (*arguments, False, configs, readings)
    y, final, _ = triton_launch.forward(*given)
    _, *exact = _exact(arguments, readings)
    return _agree(arguments, ("y", "final states"), (y, final), exact)


def _check_backward(shapes: tuple, configs: tuple[Config, Config, Config], device: torch.device) -> bool:
    arguments, readings, dout, dfinal = _problem(shapes, device)
    tensors, y, final = _exact(arguments, readings)
    ungated = y.detach().to(dout.dtype)
    if arguments[6] is not None:
        _, before_gate, _ = _exact([*arguments[:6], None, *arguments[7:]], readings)
        ungated = before_gate.detach().to(dout.dtype)
    given: Any = (dout, dfinal, *arguments[:13], ungated, configs, readings)
    got = triton_launch.backward(*given)
    with torch.enable_grad():  # Whoever chooses does so without.
        total = (y * dout).sum() if dfinal is None else (y * dout).sum() + (final * dfinal).sum()
    present = [
        (name, gradient, x)
        for name, gradient, x in zip(GRADIENTS, got, (*tensors[:8], tensors[10]), strict=True)
        if x is not None
    ]
    names, given_gradients, inputs = zip(*present, strict=True)
    return _agree(arguments, names, given_gradients, torch.autograd.grad(total, inputs))


def _operand(shapes: tuple) -> tuple[str, int]:
    """Return what products are made of, and the padded state, for a class of shapes."""
    width, _, states = shapes[1:4]
    x, B, C = (torch.empty((1, 1, 1, n), dtype=DTYPES[name], device="meta") for n, name in
               ((width, shapes[15]), (states, shapes[17]), (states, shapes[18])))  # fmt: skip
    tiles = triton_plan.tiles(x, B, C)
    return tiles.operand, tiles.state


_PREPARING = [prepare_steps, walk_states, carry_states]
_forward = Choice(
    "ssd-forward", [*_PREPARING, ssd_forward], lambda s: triton_plan.forward_configs(*_operand(s)), _check_forward
)
_backward = Choice(
    "ssd-backward",
    [*_PREPARING, gradients_of_heads, gradients_of_groups, total_parameters],
    lambda s: triton_plan.backward_configs(*_operand(s)),
    _check_backward,
)
