"""The selective scan along a route on a GPU: all readings in one launch, read from the grid and written back in place.

The kernels look up where each position of a reading lies, so nothing is gathered. Readings that merge by a sum or a
mean leave one result each, which are then added up.

Dimensions: B batch, K readings, L cells of the grid, D channels, N state, R rank of a low-rank delta.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mamba_kernels.gpu import refuse_float64
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.routes.cpu import checkpoint_shape
from mamba_kernels.routes.readings import Readings
from mamba_kernels.segments import segment_marks
from mamba_kernels.selective_scan.triton_launch import (
    Pass,
    Scan,
    Strides,
    plan_backward,
    plan_blocks,
    plan_forward,
    plan_parts,
)


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
def _plan_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    has_D: bool,
    has_bias: bool,
    softplus: bool,
    marked: bool,
    save: bool,
    y: Tensor,
) -> Pass:
    scan = _scan(x, delta, A, B, C, has_D, has_bias, softplus, marked)
    return plan_forward(scan, x.device, False, save, _strides(y))


class _Backward(NamedTuple):
    scan: Pass
    parts: Launch
    matrices: Launch


@per_layout
def _plan_backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    has_D: bool,
    has_bias: bool,
    softplus: bool,
    marked: bool,
    dy: Tensor,
    dx: Tensor,
    ddelta: Tensor,
    dA: Tensor,
    dB: Tensor,
) -> _Backward:
    scan = _scan(x, delta, A, B, C, has_D, has_bias, softplus, marked)
    planned = plan_backward(scan, x.device, False, _strides(dy), _strides(dx), _strides(ddelta), _strides(dx))
    batch, reading, length, state = dB.stride()
    return _Backward(
        planned,
        plan_parts(scan, planned.parts, dA.stride()),
        plan_blocks(scan, planned.blocks, scan.readings, (batch, reading, state, length)),
    )


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
        self._low_BKLR = self._on_cells(delta)
        steps = self._low_BKLR if delta_weight is None else self._low_BKLR @ delta_weight.to(delta.dtype).mT
        marks = None
        if readings.segment is not None:
            reset, padding = segment_marks(readings.segment)
            marks = (~padding).to(torch.int8) + 2 * reset.to(torch.int8)
        self._layout = (x_BKLD, steps, A.float().contiguous(), self._on_cells(B), self._on_cells(C))
        self._options = (D is not None, delta_bias is not None, delta_softplus, marks is not None)
        optional = (
            None if D is None else D.contiguous(),
            None,
            None if delta_bias is None else delta_bias.contiguous(),
        )
        self._inputs = (*self._layout, *(x if part is None else part for part in (*optional, marks)), readings.order)

    def forward(self, save: bool) -> tuple[Tensor, Tensor]:
        """Return the merged result (B, *grid, D or K*D) in float32, and what `backward` starts from if ``save``."""
        batch, K, cells, channels = self._layout[1].shape
        merged = self._new(batch, cells, K, channels) if self._concatenates else self._new(batch, K, cells, channels)
        y_BKLD = merged.transpose(1, 2) if self._concatenates else merged
        checkpoints = self._new(*(self._checkpoints if save else (0,)))
        plan = _plan_forward(*self._layout, *self._options, save, y_BKLD)
        plan.run((*self._inputs, checkpoints, y_BKLD), self._new(batch, K, *self._state_shape), None)
        if self._concatenates:
            merged = merged.flatten(2)
        elif K == 1:
            merged = merged[:, 0]
        else:
            merged = merged.mean(1) if self._readings.merge == "mean" else merged.sum(1)
        return merged.unflatten(1, self._readings.shape), checkpoints

    def backward(self, grad_merged: Tensor, checkpoints: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, delta, A, B, C, D, delta_bias and delta_weight, empty where the input is None."""
        batch, K, cells, channels = self._layout[1].shape
        if self._readings.merge == "mean":
            grad_merged = grad_merged / K
        dy_BLD = grad_merged.flatten(1, -2)
        if self._concatenates:
            dy_BKLD = dy_BLD.unflatten(2, (K, channels)).transpose(1, 2)
        else:
            dy_BKLD = dy_BLD[:, None].expand(-1, K, -1, -1)
        x, device = self._x, self._x.device
        dx_BKLD = torch.empty((batch, K, cells, channels), dtype=x.dtype, device=device)
        dsteps = torch.empty((batch, K, cells, channels), dtype=self._layout[1].dtype, device=device)
        dA = empty_in_order(self._A)
        dB, dC = (torch.empty(M.shape, dtype=M.dtype, device=device) for M in self._layout[3:])
        dD, dbias = (x.new_empty(0) if part is None else torch.empty_like(part) for part in (self._D, self._bias))
        plan = _plan_backward(*self._layout, *self._options, dy_BKLD, dx_BKLD, dsteps, dA, dB)
        parts, blocks = plan.scan.parts, plan.scan.blocks
        dA_parts, dD_parts = self._new(batch, parts, K, *self._state_shape), self._new(batch, parts, K, channels)
        dbias_parts = torch.empty_like(dD_parts)
        dB_parts, dC_parts = (self._new(batch, K * blocks, cells, self._state_shape[1]) for _ in range(2))
        into = (dx_BKLD, dsteps, dA_parts, dB_parts, dC_parts, dD_parts, dx_BKLD, dbias_parts)
        leaving = self._new(batch, K, *self._state_shape)
        plan.scan.run((*self._inputs, checkpoints, self._new(*plan.scan.scratch), dy_BKLD, *into), leaving, None)
        plan.parts(dA_parts, dD_parts, dbias_parts, dA, dD, dbias)
        plan.matrices(dB_parts, dB)
        plan.matrices(dC_parts, dC)
        dx = empty_in_order(x).copy_((dx_BKLD.sum(1) if self._shared else dx_BKLD).view(x.shape))
        dweight, dlow = x.new_empty(0), dsteps
        if self._weight is not None:
            dweight = empty_in_order(self._weight).copy_((dsteps.mT @ self._low_BKLR).sum(0))
            dlow = dsteps @ self._weight.to(dsteps.dtype)
        ddelta, dB, dC = (
            empty_in_order(part).copy_(gradient.view(part.shape))
            for part, gradient in ((self._delta, dlow), (self._B, dB), (self._C, dC))
        )
        return dx, ddelta, dA, dB, dC, dD, dbias, dweight

    @property
    def _concatenates(self) -> bool:
        return self._readings.merge == "concat"

    @property
    def _state_shape(self) -> tuple[int, int]:
        return self._layout[1].shape[3], self._A.shape[1]

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._x.device)

    @staticmethod
    def _on_cells(x: Tensor) -> Tensor:
        """Return (B, K, *grid, X) as (B, K, L, X)."""
        return x.flatten(2, -2)
