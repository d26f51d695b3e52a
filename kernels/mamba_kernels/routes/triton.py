"""The selective scan along a route on a GPU: all readings in one launch, read from the grid and written back in place.

The kernels look up where each position of a reading lies, so nothing is gathered. Readings that merge by a sum or a
mean leave one result each, which a second kernel adds up and gates.

Dimensions: B batch, K readings, L cells of the grid, D channels, N state, R rank of a low-rank delta.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid, next_power_of_2, refuse_float64
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order, in_order_of
from mamba_kernels.memo import per_layout
from mamba_kernels.routes.cpu import checkpoint_shape
from mamba_kernels.routes.readings import Readings
from mamba_kernels.routes.triton_merge import merge, unmerge
from mamba_kernels.selective_scan.triton_launch import (
    Pass,
    Scan,
    Strides,
    plan_backward,
    plan_blocks,
    plan_forward,
    plan_parts,
)
from mamba_kernels.selective_scan.triton_plan import checkpoint_distance, state_slices


def _strides(x_BKLD: Tensor) -> Strides:
    batch, reading, length, channels = x_BKLD.stride()
    return batch, reading, channels, length


def _scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, has_D: bool, has_bias: bool, softplus: bool, marked: bool
) -> Scan:
    (batch, K, length, channels), states = delta.shape, A.shape[1]
    B_strides, C_strides = ((b, k, 0, n, cell) for b, k, cell, n in (M.stride() for M in (B, C)))
    return Scan(
        batch, K, channels, length, states, 1, 1, softplus, has_D, has_bias, (0, length) if marked else None, "order",
        _strides(x), _strides(delta), B_strides, C_strides, None,
    )  # fmt: skip


@per_layout
def _plan_forward(y: Tensor, save: bool, add: bool, *scanned: Any) -> Pass:
    """Plan the forward pass into ``y`` of what `_scan` takes."""
    return plan_forward(_scan(*scanned), y.device, False, save, _strides(y), add)


class _Backward(NamedTuple):
    scan: Pass
    parts: Launch
    dB: Launch
    dC: Launch


@per_layout
def _plan_backward(
    dy: Tensor, add: bool, dx: Tensor, ddelta: Tensor, dA: Tensor, dB: Tensor, dC: Tensor, *scanned: Any
) -> _Backward:
    """Plan the backward pass from ``dy`` into the gradients of what `_scan` takes."""
    scan = _scan(*scanned)
    planned = plan_backward(scan, dy.device, False, _strides(dy), _strides(dx), _strides(ddelta), _strides(dx), add=add)
    strides = [(batch, reading, state, length) for batch, reading, length, state in (dB.stride(), dC.stride())]
    blocks = [plan_blocks(scan, planned.blocks, scan.readings, each) for each in strides]
    return _Backward(planned, plan_parts(scan, planned.parts, dA.stride()), *blocks)


TILE = 2048


def _tiles(cells: int, channels: int) -> tuple[int, int, int]:
    """Return a tile's rows and columns, and the tiles of a grid."""
    columns = min(TILE, next_power_of_2(channels))
    rows = TILE // columns
    return rows, columns, ceil_divide(cells, rows) * ceil_divide(channels, columns)


@per_layout
def _plan_merge(parts_BKLX: Tensor, z_BLX: Tensor, has_z: bool, keep: bool, scale: float) -> Launch:
    batch, readings, cells, channels = parts_BKLX.shape
    rows, columns, tiles = _tiles(cells, channels)
    return Launch(
        merge, launch_grid("selective_scan_route", batch * tiles), readings, cells, channels, scale, *z_BLX.stride(),
        HAS_Z=has_z, KEEP=keep, ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


def merge_readings(parts_BKLX: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return the scaled sum (B, L, X) of what lies contiguous for each reading."""
    out_BLX = torch.empty_like(parts_BKLX[:, 0], dtype=dtype)
    _plan_merge(parts_BKLX, out_BLX, False, False, scale)(parts_BKLX, out_BLX, out_BLX, out_BLX)
    return out_BLX


@per_layout
def _plan_unmerge(dout_BLX: Tensor, z_BLX: Tensor, dz_BLX: Tensor, scale: float) -> Launch:
    batch, cells, channels = dout_BLX.shape
    rows, columns, tiles = _tiles(cells, channels)
    return Launch(
        unmerge, launch_grid("selective_scan_route", batch * tiles), cells, channels, scale, *dout_BLX.stride(),
        *z_BLX.stride(), *dz_BLX.stride(), ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


@lru_cache
def _pieces(batch: int, cells: int) -> int:
    """Return in how many pieces of whole sequences a sum over all positions is taken, each a few thousand long."""
    return next(n for n in range(batch, 0, -1) if batch % n == 0 and batch // n * cells >= min(2048, batch * cells))


class _Slice(NamedTuple):
    """A slice of the states: which they are, and what the plans and the kernels of its scan take."""

    states: slice
    layout: tuple[Tensor, ...]
    options: tuple[bool, ...]
    inputs: tuple[Tensor, ...]

    @property
    def adds(self) -> bool:
        """Whether its results are added to those of slices before it."""
        return self.states.start > 0


class RouteScan:
    """A scan along a route on a GPU, with the arguments and passes of `cpu.RouteScan`.

    A low-rank delta becomes step sizes in its own dtype, by one matrix product with float32 sums.
    """

    def __init__(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_weight: Tensor | None,
        delta_softplus: bool,
        readings: Readings,
    ) -> None:
        refuse_float64("selective_scan_route", x, delta, A, B, C, D, delta_bias, delta_weight)
        self._x, self._delta, self._B, self._C, self._readings = x, delta, B, C, readings
        self._D, self._bias, self._weight, self._A = D, delta_bias, delta_weight, A
        self._shared = x.dim() < delta.dim()
        self._checkpoints = checkpoint_shape(x, delta, A, B, C)
        x_BKLD = self._on_cells(x[:, None] if self._shared else x).expand(-1, readings.K, -1, -1)
        steps = self._on_cells(delta)
        if delta_weight is not None:
            # Matrix products are several times faster where rows start at multiples of 16 bytes.
            rank = delta.shape[-1]
            low_KBLR = steps.new_zeros(readings.K, steps.shape[0], steps.shape[2], rank + -rank % 8)
            low_KBLR[..., :rank] = steps.transpose(0, 1)
            # One product a reading, over all sequences: each has weights of its own.
            self._low_KBLR, self._weight_KDR = low_KBLR, F.pad(delta_weight.to(delta.dtype), (0, -rank % 8))
            steps = torch.bmm(low_KBLR.flatten(1, 2), self._weight_KDR.mT).unflatten(1, low_KBLR.shape[1:3])
            steps = steps.transpose(0, 1)
        self._steps, A, B, C = steps, A.float().contiguous(), self._on_cells(B), self._on_cells(C)
        slices = state_slices(A.shape[1], steps.shape[-1])
        self._slices = []
        for states in slices:
            if len(slices) > 1:
                layout = (x_BKLD, steps, A[:, states].contiguous(), B[..., states], C[..., states])
            else:
                layout = (x_BKLD, steps, A, B, C)
            skip = None if states.start else D
            optional = (
                None if skip is None else skip.contiguous(),
                None,
                None if delta_bias is None else delta_bias.contiguous(),
                readings.marks,
            )
            inputs = (*layout, *(x if part is None else part for part in optional), readings.order)
            options = (skip is not None, delta_bias is not None, delta_softplus, readings.marks is not None)
            self._slices.append(_Slice(states, layout, options, inputs))

    def forward(self, z: Tensor | None, out_dtype: torch.dtype, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result (B, *grid, D or K*D), and what `backward` starts from: see `cpu.RouteScan.forward`.

        Readings leave results in the dtype of the merged one, as half of all that a merge moves would else be float32.
        """
        batch, K, cells, channels = self._steps.shape
        sizes = (batch, cells, K, channels) if self._concatenates else (batch, K, cells, channels)
        parts = torch.empty(sizes, dtype=self._dtype_of_sums(out_dtype), device=self._x.device)
        y_BKLD = parts.transpose(1, 2) if self._concatenates else parts
        checkpoints = self._new(*(self._checkpoints if save else (0,)))
        for part in self._slices:
            self._run_forward(part, y_BKLD, checkpoints, part.adds)
        parts_BKLX = parts.view(batch, 1, cells, K * channels) if self._concatenates else parts
        keep = save and z is not None
        merged = torch.empty_like(parts_BKLX[:, 0], dtype=out_dtype) if keep else parts.new_empty(0, dtype=out_dtype)
        if z is None and parts_BKLX.shape[1] == 1:
            out = parts_BKLX[:, 0].to(out_dtype)
        else:
            out = torch.empty_like(parts_BKLX[:, 0], dtype=out_dtype)
            z_BLX = out if z is None else z.flatten(1, -2)
            _plan_merge(parts_BKLX, z_BLX, z is not None, keep, self._scale)(parts_BKLX, z_BLX, out, merged)
        shape = self._readings.shape
        return out.unflatten(1, shape), merged.unflatten(1, shape) if keep else merged, checkpoints

    def _run_forward(self, part: _Slice, y_BKLD: Tensor, checkpoints: Tensor, add: bool) -> None:
        """Write a slice's results, or add them, and its checkpoints if these have room for any."""
        plan = _plan_forward(y_BKLD, bool(checkpoints.numel()), add, *part.layout, *part.options)
        plan.run((*part.inputs, checkpoints, y_BKLD), self._new(*self._state_shape(part)), None)

    def _checkpoints_of(self, part: _Slice) -> Tensor:
        """Scan a slice for the checkpoints alone."""
        batch, K, cells, channels = self._steps.shape
        states = part.layout[2].shape[1]
        checkpoints = self._new(batch, K, ceil_divide(cells, checkpoint_distance(states)), states, channels)
        self._run_forward(part, torch.empty_like(self._steps), checkpoints, False)
        return checkpoints

    def backward(self, dout: Tensor, z: Tensor | None, merged: Tensor, checkpoints: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, delta, A, B, C, D, z, delta_bias and delta_weight, empty for absent inputs."""
        batch, K, cells, channels = self._steps.shape
        x, device = self._x, self._x.device
        dy_BLX, dz = dout.flatten(1, -2), x.new_empty(0)
        if z is not None:
            z_BLX, dz_BLX = z.flatten(1, -2), torch.empty_like(z.flatten(1, -2))
            # Gradients of the scan's parameters are sums over all positions, in which rounding would show.
            dpart = torch.empty(dy_BLX.shape, dtype=torch.float32, device=device)
            _plan_unmerge(dy_BLX, z_BLX, dz_BLX, self._scale)(dy_BLX, z_BLX, merged, dpart, dz_BLX)
            dy_BLX, dz = dpart, in_order_of(dz_BLX.view(z.shape), z)
        elif self._scale != 1:
            dy_BLX = dy_BLX * self._scale
        if self._concatenates:
            dy_BKLD = dy_BLX.unflatten(2, (K, channels)).transpose(1, 2)
        else:
            dy_BKLD = dy_BLX[:, None].expand(-1, K, -1, -1)
        if self._shared:
            dtype = self._dtype_of_sums(x.dtype)
            dx = dx_BKLD = torch.empty((batch, K, cells, channels), dtype=dtype, device=device)
        else:
            dx, dx_BKLD = self._gradient_of(x, self._dtype_of_sums(x.dtype))
        dtype = self._dtype_of_sums(self._delta.dtype)
        if self._weight is None:
            ddelta, dsteps = self._gradient_of(self._delta, dtype)
        else:
            dsteps_KBLD = torch.empty((K, batch, cells, channels), dtype=dtype, device=device)
            dsteps = dsteps_KBLD.transpose(0, 1)
        dA = empty_in_order(self._A)
        (dB, dB_BKLN), (dC, dC_BKLN) = self._gradient_of(self._B), self._gradient_of(self._C)
        dD, dbias = (x.new_empty(0) if part is None else torch.empty_like(part) for part in (self._D, self._bias))
        if len(self._slices) == 1:
            into = (dx_BKLD, dsteps, dA, dB_BKLN, dC_BKLN, dD, dbias)
            self._run_backward(self._slices[0], dy_BKLD, checkpoints, *into)
        else:
            biases = []
            for part in self._slices:
                biases.append(torch.empty_like(dbias, dtype=torch.float32))
                of_slice = (dA[:, part.states], dB_BKLN[..., part.states], dC_BKLN[..., part.states])
                into = (dx_BKLD, dsteps, *of_slice, dD, biases[-1])
                self._run_backward(part, dy_BKLD, self._checkpoints_of(part), *into)
            dbias.copy_(torch.stack(biases).sum(0))
        dweight = x.new_empty(0)
        if self._weight is not None:
            rank = self._weight.shape[-1]
            dsteps_KBLD = dsteps_KBLD.to(self._delta.dtype)
            # Sums over hundreds of thousands of positions are cut in pieces, which fill the GPU.
            pieces = K * _pieces(batch, cells)
            low_PXR = self._low_KBLR.view(pieces, -1, self._low_KBLR.shape[3])
            dweight_PDR = torch.bmm(dsteps_KBLD.view(pieces, -1, channels).mT, low_PXR)[..., :rank]
            dweight_KDR = dweight_PDR.unflatten(0, (K, -1)).sum(1, dtype=torch.float32)
            dweight = in_order_of(dweight_KDR.to(self._weight.dtype), self._weight)
            dlow = torch.bmm(dsteps_KBLD.flatten(1, 2), self._weight_KDR)[..., :rank]
            ddelta = dlow.unflatten(1, (batch, *self._readings.shape)).transpose(0, 1)
        if self._shared:
            dx = merge_readings(dx_BKLD, 1.0, x.dtype).unflatten(1, self._readings.shape)
        dx, ddelta, dB, dC = (
            in_order_of(gradient.to(part.dtype), part)
            for part, gradient in ((x, dx), (self._delta, ddelta), (self._B, dB), (self._C, dC))
        )
        return dx, ddelta, dA, dB, dC, dD, dz, dbias, dweight

    def _run_backward(
        self,
        part: _Slice,
        dy_BKLD: Tensor,
        checkpoints: Tensor,
        dx_BKLD: Tensor,
        dsteps: Tensor,
        dA: Tensor,
        dB_BKLN: Tensor,
        dC_BKLN: Tensor,
        dD: Tensor,
        dbias: Tensor,
    ) -> None:
        """Write a slice's gradients; those of x and of the step sizes are added to those of slices before it."""
        given = (dx_BKLD, dsteps, dA, dB_BKLN, dC_BKLN)
        plan = _plan_backward(dy_BKLD, part.adds, *given, *part.layout, *part.options)
        batch, K, channels, states = self._state_shape(part)
        parts, blocks, cells = plan.scan.parts, plan.scan.blocks, dy_BKLD.shape[2]
        dA_parts, dD_parts = self._new(batch, parts, K, channels, states), self._new(batch, parts, K, channels)
        dbias_parts = torch.empty_like(dD_parts)
        dB_parts, dC_parts = (self._new(batch, K * blocks, cells, states) for _ in range(2))
        into = (dx_BKLD, dsteps, dA_parts, dB_parts, dC_parts, dD_parts, dx_BKLD, dbias_parts)
        leaving = self._new(batch, K, channels, states)
        plan.scan.run((*part.inputs, checkpoints, self._new(*plan.scan.scratch), dy_BKLD, *into), leaving, None)
        plan.parts(dA_parts, dD_parts, dbias_parts, dA, dD, dbias)
        plan.dB(dB_parts, dB_BKLN)
        plan.dC(dC_parts, dC_BKLN)

    def _dtype_of_sums(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of what slices are added up in, ``dtype`` where there is one alone."""
        return dtype if len(self._slices) == 1 else torch.float32

    @property
    def _scale(self) -> float:
        return 1.0 / self._readings.K if self._readings.merge == "mean" else 1.0

    @property
    def _concatenates(self) -> bool:
        return self._readings.merge == "concat"

    def _state_shape(self, part: _Slice) -> tuple[int, int, int, int]:
        """Return the shape (B, K, D, N) of a slice's states."""
        batch, K, _, channels = self._steps.shape
        return batch, K, channels, part.layout[2].shape[1]

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._x.device)

    @staticmethod
    def _on_cells(x: Tensor) -> Tensor:
        """Return (B, K, *grid, X) as (B, K, L, X)."""
        return x.flatten(2, -2)

    @staticmethod
    def _gradient_of(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return what takes the gradient of (B, K, *grid, X), and the same as (B, K, L, X): in its order if it can."""
        gradient = empty_in_order(x, dtype)
        cells = gradient.flatten(2, -2)
        if cells.data_ptr() != gradient.data_ptr():  # Channels lie between the axes of the grid.
            gradient = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
            cells = gradient.flatten(2, -2)
        return gradient, cells
