"""Norms compiled for the CPU: one pass over memory, a row of numbers at a time.

A row is cut into groups, each normalised on its own; there is one group but for the grouped gated norm. Rows come
padded with zeros, so that every group is made of whole lanes. Nothing that takes an array is called for a row: numba
counts references to an array that is passed on, which costs as much as the row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from mamba_kernels import tiles
from mamba_kernels.simd import LANES, compile_kernel, fma, load, sigmoid, splat, store, total
from mamba_kernels.tiles import aligned

NO_GATE, GATE_FIRST, GATE_LAST = 0, 1, 2


class Plan(NamedTuple):
    """The sizes and options that the kernels need."""

    rows: int
    rows_each: int  # rows of a task, the last task perhaps fewer
    groups: int
    size: int  # numbers of a group
    padded: int  # the same in whole lanes
    eps: float
    centred: int  # whether the mean is taken off, as in layer norm
    gate: int  # NO_GATE, GATE_FIRST (before the norm) or GATE_LAST


class Rows(NamedTuple):
    """Rows of padded groups that lie side by side, as a flat vector; one of size 0 if they are missing."""

    data: np.ndarray
    stride: int


@numba.njit
def _silu(z: Any) -> Any:
    return z * sigmoid(z)


@numba.njit
def _silu_slope(z: Any, one: Any) -> Any:
    """Return the derivative of silu."""
    s = sigmoid(z)
    return s * fma(z, one - s, one)


@numba.njit
def _own_lanes(plan: Plan, like: np.ndarray) -> Any:
    """Return lanes that are 1 where the last lanes of a group hold numbers, and 0 where they hold padding."""
    mask = aligned(LANES, like)
    for lane in range(LANES):
        mask[lane] = 1 if plan.padded - LANES + lane < plan.size else 0
    return load(mask, 0)


@compile_kernel(tiles.__file__)
def norm_forward(
    task: int, plan: Plan, x: Rows, residual: Rows, z: Rows, weight: Rows, bias: Rows, out: Rows, added: Rows
) -> None:
    """Run one task: write its rows of ``out``, and of ``added``, the sum of x and the residual.

    Args:
        task: Which `Plan.rows_each` rows.
        plan: The sizes and options.
        x: The input.
        residual: What is added to it, or missing.
        z: The gate, or missing.
        weight: The scale, a single row.
        bias: The shift, a single row.
        out: The output.
        added: The sum, or missing.
    """
    padded, last = plan.padded, plan.padded - LANES
    v = aligned(padded, x.data)
    zero, own = splat(x.data.dtype.type(0)), _own_lanes(plan, x.data)
    for row in range(task * plan.rows_each, min((task + 1) * plan.rows_each, plan.rows)):
        for group in range(plan.groups):
            at = group * padded
            x_at, z_at, out_at = row * x.stride + at, row * z.stride + at, row * out.stride + at
            sums, squares = zero, zero
            for i in range(0, padded, LANES):
                s = load(x.data, x_at + i)
                if residual.data.size > 0:
                    s = s + load(residual.data, row * residual.stride + at + i)
                    store(added.data, row * added.stride + at + i, s)
                if plan.gate == GATE_FIRST:
                    s = s * _silu(load(z.data, z_at + i))
                store(v, i, s)
                sums, squares = sums + s, fma(s, s, squares)
            if plan.centred:
                mean, squares = splat(v.dtype.type(total(sums) / plan.size)), zero
                for i in range(0, padded, LANES):
                    s = load(v, i) - mean
                    if i == last:
                        s = s * own
                    store(v, i, s)
                    squares = fma(s, s, squares)
            scale = splat(v.dtype.type(1.0 / np.sqrt(total(squares) / plan.size + plan.eps)))
            for i in range(0, padded, LANES):
                y = fma(load(v, i) * scale, load(weight.data, at + i), load(bias.data, at + i))
                if plan.gate == GATE_LAST:
                    y = y * _silu(load(z.data, z_at + i))
                store(out.data, out_at + i, y)


@compile_kernel(tiles.__file__)
def norm_backward(
    task: int,
    plan: Plan,
    x: Rows,
    z: Rows,
    weight: Rows,
    bias: Rows,
    dout: Rows,
    dadded: Rows,
    dx: Rows,
    dz: Rows,
    dweight: Rows,
    dbias: Rows,
) -> None:
    """Run one task: write its rows of dx and dz, and its row of dweight and dbias, to be added up by the caller.

    Args are those of `norm_forward`, where x stands for the sum of x and the residual and dx for the gradient of both,
    and dout and dadded, the gradients of its results.
    """
    padded, last = plan.padded, plan.padded - LANES
    v, g = aligned(padded, x.data), aligned(padded, x.data)
    zero, one, own = splat(x.data.dtype.type(0)), splat(x.data.dtype.type(1)), _own_lanes(plan, x.data)
    dw_at, db_at = task * dweight.stride, task * dbias.stride
    for i in range(0, plan.groups * padded, LANES):
        store(dweight.data, dw_at + i, zero)
        store(dbias.data, db_at + i, zero)
    for row in range(task * plan.rows_each, min((task + 1) * plan.rows_each, plan.rows)):
        for group in range(plan.groups):
            at = group * padded
            x_at, z_at, dout_at = row * x.stride + at, row * z.stride + at, row * dout.stride + at
            dx_at, dz_at = row * dx.stride + at, row * dz.stride + at
            sums, squares = zero, zero
            for i in range(0, padded, LANES):
                s = load(x.data, x_at + i)
                if plan.gate == GATE_FIRST:
                    s = s * _silu(load(z.data, z_at + i))
                store(v, i, s)
                sums, squares = sums + s, fma(s, s, squares)
            if plan.centred:
                mean, squares = splat(v.dtype.type(total(sums) / plan.size)), zero
                for i in range(0, padded, LANES):
                    s = load(v, i) - mean
                    if i == last:
                        s = s * own
                    store(v, i, s)
                    squares = fma(s, s, squares)
            scale = splat(v.dtype.type(1.0 / np.sqrt(total(squares) / plan.size + plan.eps)))

            along, sums = zero, zero
            for i in range(0, padded, LANES):
                normed, gradient, w = load(v, i) * scale, load(dout.data, dout_at + i), load(weight.data, at + i)
                if plan.gate == GATE_LAST:
                    gate = load(z.data, z_at + i)
                    y = fma(normed, w, load(bias.data, at + i))
                    store(dz.data, dz_at + i, gradient * y * _silu_slope(gate, one))
                    gradient = gradient * _silu(gate)
                store(dbias.data, db_at + at + i, load(dbias.data, db_at + at + i) + gradient)
                store(dweight.data, dw_at + at + i, fma(gradient, normed, load(dweight.data, dw_at + at + i)))
                gradient = gradient * w
                along, sums = fma(gradient, normed, along), sums + gradient
                store(v, i, normed)
                store(g, i, gradient)
            slope = splat(v.dtype.type(total(along) / plan.size))
            mean = splat(v.dtype.type(total(sums) / plan.size if plan.centred else 0.0))
            for i in range(0, padded, LANES):
                gradient = (load(g, i) - mean - load(v, i) * slope) * scale
                if plan.gate == GATE_FIRST:
                    gate = load(z.data, z_at + i)
                    store(dz.data, dz_at + i, gradient * load(x.data, x_at + i) * _silu_slope(gate, one))
                    gradient = gradient * _silu(gate)
                if dadded.data.size > 0:
                    gradient = gradient + load(dadded.data, row * dadded.stride + at + i)
                store(dx.data, dx_at + i, gradient)
