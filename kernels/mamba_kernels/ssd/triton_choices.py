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
from mamba_kernels.launch import compile_together
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
# Strides that are multiples of it are what Triton compiles another kernel for.
MULTIPLE = 16
GRADIENTS = ("dx", "ddt", "dA", "dB", "dC", "dD", "dz", "dbias", "dinitial")
_log = logging.getLogger(__name__)


class _Class(NamedTuple):
    """What decides the kernels' compile-time constants, as plain numbers and strings; dtypes are None if absent."""

    heads: int
    width: int
    groups: int
    states: int
    readings: int
    in_parts: bool
    even: bool
    wide: bool
    skip_dimensions: int
    softplus: bool
    enters: bool
    denters: bool
    has_marks: bool
    reverse: bool
    layouts: str
    out: str
    x: str
    dt: str
    A: str
    B: str
    C: str
    D: str | None
    z: str | None
    bias: str | None


def _layout(x: Tensor | None) -> str:
    """Return what Triton makes of the strides of x (..., L, H, P), as a letter: "d" for dense rows.

    Where the last dimension lies apart ("a"), or rows start at no multiple of 16 numbers ("o"), loads are others.
    """
    if x is None:
        return "-"
    return "a" if x.stride(-1) != 1 else "d" if x.stride(-3) % MULTIPLE == 0 else "o"


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """Return x (..., L, H, P) in a layout that `_layout` tells apart."""
    if layout == "a":
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    row = x.shape[-2] * x.shape[-1]
    wide = x.new_empty(*x.shape[:-2], row + -row % MULTIPLE + (MULTIPLE // 2 if layout == "o" else 0))
    return wide[..., :row].unflatten(-1, x.shape[-2:]).copy_(x)


@per_layout
def _class(
    dout: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, softplus: bool, enters: bool, denters: bool, has_marks: bool, reverse: bool,
    out_dtype: torch.dtype,
) -> _Class:  # fmt: skip
    """Return the class of a forward pass, or with ``dout`` of a backward pass."""
    length, heads, width = x.shape[-3:]
    groups, states = B.shape[-2:]
    dtypes: Any = [None if t is None else str(t.dtype) for t in (x, dt, A, B, C, D, z, dt_bias)]
    return _Class(
        heads, width, groups, states, x.shape[1] if x.dim() == 5 else 0,
        triton_launch.parts(x, B, C, backward=dout is not None) > 1,
        # What Triton makes of lengths: multiples of 16 have loads of their own.
        length % 16 == 0,
        triton_launch.is_wide(x, B, C, z, dout),
        0 if D is None else D.dim(), softplus, enters, denters, has_marks, reverse,
        "".join(map(_layout, (x, B, C, z, dout))), str(out_dtype), *dtypes,
    )  # fmt: skip


class _Problem(NamedTuple):
    """A small problem of a class of shapes: the arguments of `forward`, and gradients of its results."""

    arguments: list[Any]
    readings: Readings | None
    dout: Tensor
    dfinal: Tensor | None


def _problem(shapes: _Class, device: torch.device) -> _Problem:
    heads, width, groups, states, K = shapes[:5]
    batch, length = 1, (160 if shapes.even else 150)
    if shapes.in_parts:
        length += 2 * triton_plan.SHORTEST_PART
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: str = "torch.float32") -> Tensor:
        return torch.randn(shape, generator=random, device=device).to(DTYPES[dtype])

    ids = torch.arange(length, device=device) // 45
    if not K:  # A route has no padding.
        ids[7:10] = -1
    readings = None
    if K:
        order = torch.stack([torch.randperm(length, generator=random, device=device) for _ in range(K)]).int()
        segment = ids.int().expand(K, -1) if shapes.has_marks else None
        readings = Readings((length,), "sum", order, order.argsort(dim=1).int(), segment)
    each = (batch, K, length) if K else (batch, length)
    all_heads = heads * max(1, K)
    skip = (all_heads, width)[: shapes.skip_dimensions]
    as_x, as_B, as_C, as_z, as_dout = tuple(shapes.layouts)
    dt = draw(*each, heads) * 0.5 - 2
    arguments = [
        _laid_out(draw(*each, heads, width, dtype=shapes.x), as_x),
        (dt if shapes.softplus else dt.exp()).to(DTYPES[shapes.dt]),
        (-draw(all_heads).abs() - 0.1).to(DTYPES[shapes.A]),
        _laid_out(draw(*each, groups, states, dtype=shapes.B), as_B),
        _laid_out(draw(*each, groups, states, dtype=shapes.C), as_C),
        None if shapes.D is None else draw(*skip, dtype=shapes.D),
        None if shapes.z is None else _laid_out(draw(*each, heads, width, dtype=shapes.z), as_z),
        None if shapes.bias is None else (draw(all_heads) * 0.1).to(DTYPES[shapes.bias]),
        shapes.softplus,
        (0.0, math.inf),
        draw(batch, all_heads, width, states) if shapes.enters else None,
        ids.int()[None] if shapes.has_marks and not K else None,
        shapes.reverse,
        DTYPES[shapes.out],
    ]
    dout = _laid_out(draw(*each, heads, width, dtype=shapes.out), as_dout)
    return _Problem(arguments, readings, dout, draw(batch, all_heads, width, states) if shapes.denters else None)


def _exact(arguments: list[Any], readings: Readings | None) -> tuple[list[Any], Tensor, Tensor]:
    """Return the tensors in float64, and the exact results, all on the CPU.

    There gradients are worked out by the thread that asks for them. A GPU's are by one thread of its own, and that one
    waits for the verdict where a backward pass has asked for it.
    """
    exact = [x.cpu() if isinstance(x, Tensor) else x for x in arguments]
    tensors: list[Any] = [
        x.double().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in exact
    ]
    x, dt, A, B, C, D, z, bias, softplus, limit, initial, ids, reverse, _ = tensors
    with torch.enable_grad():
        if readings is None:
            y, final = cpu.ssd(
                x, dt, A, B, C, None, D, z, bias, softplus, limit, initial, ids, reverse, torch.float64
            )  # fmt: skip
            return tensors, y, final
        results = []
        inverse = readings.inverse.cpu()
        for k, order in enumerate(readings.order.cpu()):
            x_k, dt_k, B_k, C_k = (t[:, k].index_select(1, order) for t in (x, dt, B, C))
            A_k = A.chunk(readings.K)[k]
            D_k, bias_k = (None if t is None else t.chunk(readings.K)[k] for t in (D, bias))
            ids = None if readings.segment is None else readings.segment[k : k + 1].cpu()
            y, final = cpu.ssd(
                x_k, dt_k, A_k, B_k, C_k, None, D_k, None, bias_k, softplus, limit, None, ids, False, torch.float64
            )  # fmt: skip
            results.append((y.index_select(1, inverse[k]), final))
        ys, finals = zip(*results, strict=True)
        return tensors, torch.stack(ys, 1), torch.cat(finals, 1)


def _agree(arguments: list[Any], names: Sequence[str], got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Return whether results are as exact as their dtypes and the products allow, and log which are not."""
    tiles = triton_plan.tiles(arguments[0], *arguments[3:5])
    tolerance = TOLERANCE["bf16" if tiles.operand == "bf16" else tiles.precision]
    right = True
    for name, a, b in zip(names, got, wanted, strict=True):
        b = b.detach()
        error = float((a.cpu().double() - b).abs().max() / b.abs().max().clamp_min(1e-6))
        # The gate's gradient is a product with the output before it, which is kept in the output's dtype.
        eps = torch.finfo(arguments[-1] if name == "dz" else a.dtype).eps
        allowed = tolerance + max(eps, torch.finfo(a.dtype).eps)
        if not error <= allowed:
            _log.warning("ssd: %s is off by %.1e of its largest number, %.0e is allowed", name, error, allowed)
            right = False
    return right


def forward_configs(*arguments: Any) -> tuple[Config, Config]:
    """Return the configurations of a forward pass, from what `_class` takes after ``dout``."""
    device = arguments[0].device
    return _forward(_class(None, *arguments), device) if device.type == "cuda" else (INTERPRETED,) * 2


def backward_configs(*arguments: Any) -> tuple[Config, Config, Config]:
    """Return the configurations of a backward pass, from what `_class` takes."""
    device = arguments[0].device
    return _backward(_class(*arguments), device) if device.type == "cuda" else (INTERPRETED,) * 3


def _check_forward(shapes: _Class, configs: tuple[Config, Config], device: torch.device) -> bool:
    arguments, readings, _, _ = _problem(shapes, device)
    given: Any = (*arguments, False, configs, readings, shapes.wide)
    compile_together(lambda: triton_launch.forward(*given))
    y, final, _ = triton_launch.forward(*given)
    _, *exact = _exact(arguments, readings)
    return _agree(arguments, ("y", "final states"), (y, final), exact)


def _check_backward(shapes: _Class, configs: tuple[Config, Config, Config], device: torch.device) -> bool:
    arguments, readings, dout, dfinal = _problem(shapes, device)
    tensors, y, final = _exact(arguments, readings)
    ungated = y.detach().to(dout)
    if arguments[6] is not None:
        _, before_gate, _ = _exact([*arguments[:6], None, *arguments[7:]], readings)
        ungated = before_gate.detach().to(dout)
    given: Any = (dout, dfinal, *arguments[:13], ungated, configs, readings, shapes.wide)
    compile_together(lambda: triton_launch.backward(*given))
    got = triton_launch.backward(*given)
    with torch.enable_grad():  # Whoever chooses does so without.
        total = (y * dout.cpu()).sum() + (0.0 if dfinal is None else (final * dfinal.cpu()).sum())
    present = [
        (name, gradient, x)
        for name, gradient, x in zip(GRADIENTS, got, (*tensors[:8], tensors[10]), strict=True)
        if x is not None
    ]
    names, given_gradients, inputs = zip(*present, strict=True)
    return _agree(arguments, names, given_gradients, torch.autograd.grad(total, inputs))


def _operand(shapes: _Class) -> tuple[str, int]:
    """Return what products are made of, and the padded state, for a class of shapes."""
    x, B, C = (torch.empty((1, 1, 1, n), dtype=DTYPES[name], device="meta") for n, name in
               ((shapes.width, shapes.x), (shapes.states, shapes.B), (shapes.states, shapes.C)))  # fmt: skip
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
