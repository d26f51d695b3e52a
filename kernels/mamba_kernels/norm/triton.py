"""The norms on a GPU: how tensors become rows, and in how many programs the Triton kernels run.

The configuration is a pure function of the shapes and the GPU, and nothing is added atomically, so that results repeat
bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mamba_kernels.gpu import (
    ceil_divide,
    launch_grid,
    multiprocessors,
    next_power_of_2,
    on_device_of_inputs,
    refuse_float64,
)
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.norm.triton_kernels import norm_backward, norm_forward
from mamba_kernels.sums import add_parts

# What a warp loads of a row at once, 16 bytes of float32 a lane, and the longest row that stays within a warp.
WARP_CHUNK, WARP_WIDTH = 128, 512
# Warps of backward programs a multiprocessor; each program leaves a part of dweight.
BACKWARD_WARPS = 16


class _Tile(NamedTuple):
    """What a program holds at once: rows in chunks, each row within a warp unless it is long."""

    rows: int
    chunks: int
    chunk: int
    warps: int

    @property
    def constants(self) -> dict[str, int]:
        """Return the tile as the kernels' constants."""
        return {"ROWS": self.rows, "CHUNKS": self.chunks, "CHUNK": self.chunk, "num_warps": self.warps}


def _tile(width: int) -> _Tile:
    padded = next_power_of_2(width)
    # Three chunks where a fourth would hold no channel.
    three = padded >= 32 and width <= padded * 3 // 4
    if width > WARP_WIDTH:
        chunk = padded // 4 if three else padded // 2
        warps = min(16, max(4, chunk // (2 * WARP_CHUNK)))
        return _Tile(max(1, 4 * WARP_CHUNK // chunk), ceil_divide(width, chunk), chunk, warps)
    chunk = min(padded // 4 if three else padded, WARP_CHUNK)
    return _Tile(4 * WARP_CHUNK // chunk, ceil_divide(width, chunk), chunk, 4)


def _rows(x: Tensor) -> Tensor:
    """Return a tensor whose rows lie side by side at one distance: itself, or copied where they don't."""
    if x.is_contiguous():
        return x
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _stride(rows: Tensor) -> int:
    """Return how far apart the rows lie."""
    return rows.shape[-1] if rows.is_contiguous() else rows.stride(0)


class _Result:
    """A tensor in the dimension order asked for, and the rows the kernels write: its own where that fits."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self.tensor = empty_in_order(like, dtype)
        fits = self.tensor.is_contiguous()
        self.rows = self.tensor if fits else torch.empty(like.shape, dtype=dtype, device=like.device)

    def get(self) -> Tensor:
        return self.tensor if self.tensor is self.rows else self.tensor.copy_(self.rows)


def _gate(z: Tensor | None, norm_before_gate: bool) -> int:
    return 0 if z is None else 2 if norm_before_gate else 1


@per_layout
def _plan_forward(
    x: Tensor,
    residual: Tensor | None,
    z: Tensor | None,
    out: Tensor,
    added: Tensor | None,
    has_bias: bool,
    eps: float,
    group_size: int,
    centred: bool,
    gate: int,
) -> Launch:
    tile, width = _tile(group_size), x.shape[-1]
    rows = x.numel() // width
    strides = (0 if t is None else _stride(t) for t in (x, residual, z, out, added))
    return Launch(
        norm_forward, launch_grid("norm", ceil_divide(rows, tile.rows), width // group_size),
        rows, group_size, eps, *strides, CENTRED=centred, GATE=gate, HAS_RESIDUAL=residual is not None,
        HAS_BIAS=has_bias, **tile.constants,
    )  # fmt: skip


def _forward(
    x: Tensor,
    residual: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    added: Tensor | None,
    eps: float,
    group_size: int,
    centred: bool,
    gate: int,
) -> None:
    if x.numel() == 0:
        return
    x, weight, bias = _rows(x), weight.contiguous(), None if bias is None else bias.contiguous()
    residual, z = (None if t is None else _rows(t) for t in (residual, z))
    launch = _plan_forward(x, residual, z, out, added, bias is not None, eps, group_size, centred, gate)
    # x, weight and out stand for what is never touched.
    given = (x if residual is None else residual, x if z is None else z, weight, weight if bias is None else bias)
    launch(x, *given, out, out if added is None else added)


class _Backward(NamedTuple):
    """The launch of the backward kernel, and how many programs leave parts."""

    launch: Launch
    programs: int


@per_layout
def _plan_backward(
    x: Tensor,
    z: Tensor | None,
    dout: Tensor,
    dadded: Tensor | None,
    dx: Tensor,
    dresidual: Tensor | None,
    dz: Tensor | None,
    has_bias: bool,
    eps: float,
    group_size: int,
    centred: bool,
    gate: int,
) -> _Backward:
    tile, width = _tile(group_size), x.shape[-1]
    rows, groups = x.numel() // width, width // group_size
    tiles = ceil_divide(rows, tile.rows)
    most = max(1, multiprocessors(x.device) * BACKWARD_WARPS // (tile.warps * groups))
    # Each program takes as many tiles as the others but for one.
    programs = ceil_divide(tiles, ceil_divide(tiles, most))
    strides = (0 if t is None else _stride(t) for t in (x, z, dout, dadded, dx, dresidual, dz))
    launch = Launch(
        norm_backward, launch_grid("norm", programs, groups), rows, group_size, eps, *strides,
        CENTRED=centred, GATE=gate, HAS_DADDED=dadded is not None, HAS_DRESIDUAL=dresidual is not None,
        HAS_BIAS=has_bias, **tile.constants,
    )  # fmt: skip
    return _Backward(launch, programs)


def _backward(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    dadded: Tensor | None,
    dx: Tensor,
    dresidual: Tensor | None,
    dz: Tensor | None,
    eps: float,
    group_size: int,
    centred: bool,
    gate: int,
) -> tuple[Tensor, Tensor]:
    """Write dx, dresidual and dz; return the gradients of weight and bias, the latter of size 0 if there is none."""
    dweight, dbias = empty_in_order(weight), None if bias is None else empty_in_order(bias)
    if x.numel() == 0:
        return dweight.zero_(), weight.new_empty(0) if dbias is None else dbias.zero_()
    x, dout, scale, shift = _rows(x), _rows(dout), weight.contiguous(), None if bias is None else bias.contiguous()
    z, dadded = (None if t is None else _rows(t) for t in (z, dadded))
    launch, programs = _plan_backward(
        x, z, dout, dadded, dx, dresidual, dz, bias is not None, eps, group_size, centred, gate
    )  # fmt: skip
    parts = torch.empty(programs, 1, 1 if bias is None else 2, x.shape[-1], dtype=torch.float32, device=x.device)
    launch(
        x, x if z is None else z, scale, scale if shift is None else shift, dout, x if dadded is None else dadded,
        dx, dx if dresidual is None else dresidual, dx if dz is None else dz, parts,
    )  # fmt: skip
    add_parts(parts, dweight[None, :, None], None if dbias is None else dbias[None])
    return dweight, weight.new_empty(0) if dbias is None else dbias


@on_device_of_inputs
def add_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, centred: bool, out: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the norm of ``x + residual`` in dtype ``out``, and the sum; of size 0 without residual."""
    refuse_float64("layer_norm" if centred else "rms_norm", x, weight, bias, residual)
    result = _Result(x, out)
    added = None if residual is None else _Result(residual, residual.dtype)
    stored = None if added is None else added.rows
    _forward(x, residual, None, weight, bias, result.rows, stored, eps, x.shape[-1], centred, 0)
    return result.get(), x.new_empty(0) if added is None else added.get()


@on_device_of_inputs
def add_norm_backward(
    dout: Tensor,
    dadded: Tensor | None,
    added: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the sum in x's dtype and in the residual's, of size 0 where not asked, and the others."""
    dx = _Result(added, x_dtype)
    dresidual = None if residual_dtype is None else _Result(added, residual_dtype)
    dweight, dbias = _backward(
        added, None, weight, bias, dout, dadded, dx.rows, None if dresidual is None else dresidual.rows, None, eps,
        added.shape[-1], centred, 0,
    )  # fmt: skip
    return dx.get(), weight.new_empty(0) if dresidual is None else dresidual.get(), dweight, dbias


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
    _forward(x, None, z, weight, bias, out.rows, None, eps, group_size, False, _gate(z, norm_before_gate))
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
    dweight, dbias = _backward(
        x, z, weight, bias, dout, None, dx.rows, None, None if dz is None else dz.rows, eps, group_size, False,
        _gate(z, norm_before_gate),
    )  # fmt: skip
    return dx.get(), dweight, dbias, x.new_empty(0) if dz is None else dz.get()
