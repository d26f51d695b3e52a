"""The norms on a GPU: how tensors become rows, and in how many programs the Triton kernels run.

The configuration is a pure function of the shapes and the GPU, and nothing is added atomically, so that results repeat
bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.gpu import (
    ceil_divide,
    launch_grid,
    multiprocessors,
    next_power_of_2,
    on_device_of_inputs,
    refuse_float64,
)
from mamba_kernels.layout import empty_in_order
from mamba_kernels.norm.triton_kernels import norm_backward, norm_forward

# Numbers a program holds at once, and programs of the backward a multiprocessor: each leaves a part of dweight.
TILE = 2048
PROGRAMS_EACH = 8


def _rows(x: Tensor) -> Tensor:
    """Return a tensor as rows that lie side by side, copied where they don't."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


class _Result:
    """A tensor in the dimension order asked for, and the rows the kernels write: its own where that fits."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self.tensor = empty_in_order(like, dtype)
        fits = self.tensor.is_contiguous()
        self.written = self.tensor if fits else torch.empty(like.shape, dtype=dtype, device=like.device)
        self.rows = self.written.view(-1, like.shape[-1])

    def get(self) -> Tensor:
        return self.tensor if self.tensor is self.written else self.tensor.copy_(self.written)


def _tile(width: int) -> dict[str, int]:
    width_pad = next_power_of_2(width)
    return {
        "ROWS": max(1, min(16, TILE // width_pad)),
        "WIDTH_PAD": width_pad,
        "num_warps": min(16, max(4, width_pad // 512)),
    }


def _grid(programs: int, groups: int) -> tuple[int, ...]:
    return launch_grid("norm", programs, groups)


def _gate(z: Tensor | None, norm_before_gate: bool) -> int:
    return 0 if z is None else 2 if norm_before_gate else 1


def _forward(
    x: Tensor,
    residual: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    out: _Result,
    added: _Result | None,
    eps: float,
    group_size: int,
    centred: bool,
    gate: int,
) -> None:
    x, weight, bias = _rows(x), weight.contiguous(), None if bias is None else bias.contiguous()
    if x.shape[0] == 0:
        return
    residual, z = (x if t is None else _rows(t) for t in (residual, z))
    tile = _tile(group_size)
    stored = out.rows if added is None else added.rows
    norm_forward[_grid(ceil_divide(x.shape[0], tile["ROWS"]), x.shape[1] // group_size)](
        x, residual, z, weight, weight if bias is None else bias, out.rows, stored, x.shape[0], group_size, eps,
        *(t.stride(0) for t in (x, residual, z, out.rows, stored)),
        CENTRED=centred, GATE=gate, HAS_RESIDUAL=added is not None, HAS_BIAS=bias is not None, **tile,
    )  # fmt: skip


def _backward(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    dadded: Tensor | None,
    dx: _Result,
    dz: _Result | None,
    eps: float,
    group_size: int,
    centred: bool,
    gate: int,
) -> tuple[Tensor, Tensor]:
    """Write dx and dz, and return the gradients of weight and bias, the latter of size 0 if there is none."""
    x, dout, scale, shift = _rows(x), _rows(dout), weight.contiguous(), None if bias is None else bias.contiguous()
    z, dadded_rows = (x if t is None else _rows(t) for t in (z, dadded))
    tile, groups = _tile(group_size), x.shape[1] // group_size
    programs = min(
        ceil_divide(x.shape[0], tile["ROWS"]), ceil_divide(multiprocessors(x.device) * PROGRAMS_EACH, groups)
    )
    parts = [torch.empty(programs, x.shape[1], dtype=torch.float32, device=x.device) for _ in range(2)]
    dz_rows = dx.rows if dz is None else dz.rows
    if programs:
        norm_backward[_grid(programs, groups)](
            x, z, scale, scale if shift is None else shift, dout, dadded_rows, dx.rows, dz_rows, *parts,
            x.shape[0], group_size, eps, *(t.stride(0) for t in (x, z, dout, dadded_rows, dx.rows, dz_rows)),
            CENTRED=centred, GATE=gate, HAS_DADDED=dadded is not None, HAS_BIAS=bias is not None, **tile,
        )  # fmt: skip
    dweight = empty_in_order(weight).copy_(parts[0].sum(0))
    return dweight, weight.new_empty(0) if bias is None else empty_in_order(bias).copy_(parts[1].sum(0))


@on_device_of_inputs
def add_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, centred: bool, out: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the norm of ``x + residual`` in dtype ``out``, and the sum; of size 0 without residual."""
    refuse_float64("layer_norm" if centred else "rms_norm", x, weight, bias, residual)
    result = _Result(x, out)
    added = None if residual is None else _Result(residual, residual.dtype)
    _forward(x, residual, None, weight, bias, result, added, eps, x.shape[-1], centred, 0)
    return result.get(), x.new_empty(0) if added is None else added.get()


@on_device_of_inputs
def add_norm_backward(
    dout: Tensor, dadded: Tensor | None, added: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the sum (in the widest dtype of them), the weight and the bias."""
    dx = _Result(added, compute_dtype(added, weight, bias, dout))
    dweight, dbias = _backward(added, None, weight, bias, dout, dadded, dx, None, eps, added.shape[-1], centred, 0)
    return dx.get(), dweight, dbias


@on_device_of_inputs
def gated_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    """Return the gated norm of ``x`` in its dtype."""
    refuse_float64("gated_rms_norm", x, weight, bias, z)
    out = _Result(x, x.dtype)
    _forward(x, None, z, weight, bias, out, None, eps, group_size, False, _gate(z, norm_before_gate))
    return out.get()


@on_device_of_inputs
def gated_norm_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias and z, those of missing ones of size 0."""
    dx = _Result(x, x.dtype)
    dz = None if z is None else _Result(z, z.dtype)
    gate = _gate(z, norm_before_gate)
    dweight, dbias = _backward(x, z, weight, bias, dout, None, dx, dz, eps, group_size, False, gate)
    return dx.get(), dweight, dbias, x.new_empty(0) if dz is None else dz.get()
