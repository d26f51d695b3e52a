"""Norms compiled for the CPU: one pass over memory, a row of numbers at a time.

A row is cut into groups, each normalised on its own: one group but for the grouped gated norm. A group is copied to a
vector that is padded with zeros to whole lanes, so that all arithmetic is on whole lanes.
"""

from __future__ import annotations

from typing import NamedTuple

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
    eps: float
    centred: int  # whether the mean is taken off, as in layer norm
    gate: int  # NO_GATE, GATE_FIRST (before the norm) or GATE_LAST


class Rows(NamedTuple):
    """Rows of numbers that lie side by side, as a flat vector; one of size 0 if they are missing."""

    data: np.ndarray
    stride: int


@numba.njit
def _lanes(size: int) -> int:
    """Return ``size`` rounded up to whole lanes."""
    return (size + LANES - 1) // LANES * LANES


@numba.njit
def _fetch(vector: np.ndarray, rows: Rows, row: int, group: int, size: int) -> None:
    """Fill a padded vector with a group; with zeros if it is missing."""
    whole = size // LANES * LANES
    if rows.data.size == 0:
        vector[: _lanes(size)] = 0
        return
    place = row * rows.stride + group * size
    for i in range(0, whole, LANES):
        store(vector, i, load(rows.data, place + i))
    for i in range(whole, size):
        vector[i] = rows.data[place + i]
    vector[size : _lanes(size)] = 0


@numba.njit
def _put(vector: np.ndarray, rows: Rows, row: int, group: int, size: int) -> None:
    """Write a group from a padded vector, unless it is not asked for."""
    whole = size // LANES * LANES
    if rows.data.size == 0:
        return
    place = row * rows.stride + group * size
    for i in range(0, whole, LANES):
        store(rows.data, place + i, load(vector, i))
    for i in range(whole, size):
        rows.data[place + i] = vector[i]


@numba.njit
def _gate(vector: np.ndarray, z: np.ndarray, size: int) -> None:
    """Multiply a vector by silu(z)."""
    for i in range(0, size, LANES):
        v = load(z, i)
        store(vector, i, load(vector, i) * v * sigmoid(v))


@numba.njit
def _standardise(vector: np.ndarray, plan: Plan) -> float:
    """Take the mean off where the plan says so, divide by the root mean square, and return its inverse."""
    zero = vector.dtype.type(0)
    padded = _lanes(plan.size)
    if plan.centred:
        added = splat(zero)
        for i in range(0, padded, LANES):
            added = added + load(vector, i)
        mean = splat(vector.dtype.type(total(added) / plan.size))
        for i in range(0, padded, LANES):
            store(vector, i, load(vector, i) - mean)
        vector[plan.size : padded] = 0
    squares = splat(zero)
    for i in range(0, padded, LANES):
        v = load(vector, i)
        squares = fma(v, v, squares)
    inverse = vector.dtype.type(1.0 / np.sqrt(total(squares) / plan.size + plan.eps))
    scale = splat(inverse)
    for i in range(0, padded, LANES):
        store(vector, i, load(vector, i) * scale)
    return inverse


@numba.njit
def _fetch_all(vector: np.ndarray, rows: Rows, plan: Plan) -> None:
    """Fill a vector of padded groups from the single row of a parameter."""
    padded = _lanes(plan.size)
    for group in range(plan.groups):
        _fetch(vector[group * padded :], rows, 0, group, plan.size)


@compile_kernel(tiles.__file__)
def norm_forward(
    task: int, plan: Plan, x: Rows, residual: Rows, z: Rows, weight: Rows, bias: Rows, out: Rows, added: Rows
) -> None:
    """Run one task: write its rows of ``out``, and of ``added``, the sum of x and the residual.

    Args:
        task: Which `Plan.rows_each` rows.
        plan: See `Plan`.
        x: The input.
        residual: What is added to it, or missing.
        z: The gate, or missing.
        weight: The scale, a single row.
        bias: The shift, a single row, or missing.
        out: The output.
        added: The sum, or missing.
    """
    size, padded = plan.size, _lanes(plan.size)
    v, gate = aligned(padded, x.data), aligned(padded, x.data)
    w, b = aligned(plan.groups * padded, x.data), aligned(plan.groups * padded, x.data)
    _fetch_all(w, weight, plan)
    _fetch_all(b, bias, plan)
    for row in range(task * plan.rows_each, min((task + 1) * plan.rows_each, plan.rows)):
        for group in range(plan.groups):
            _fetch(v, x, row, group, size)
            if residual.data.size > 0:
                _fetch(gate, residual, row, group, size)
                for i in range(0, padded, LANES):
                    store(v, i, load(v, i) + load(gate, i))
                _put(v, added, row, group, size)
            if plan.gate != NO_GATE:
                _fetch(gate, z, row, group, size)
            if plan.gate == GATE_FIRST:
                _gate(v, gate, padded)
            _standardise(v, plan)
            for i in range(0, padded, LANES):
                store(v, i, fma(load(v, i), load(w, group * padded + i), load(b, group * padded + i)))
            if plan.gate == GATE_LAST:
                _gate(v, gate, padded)
            _put(v, out, row, group, size)


@numba.njit
def _accumulate(vector: np.ndarray, at: int, addend: np.ndarray, padded: int) -> None:
    """Add a vector to the one that starts at ``at``."""
    for i in range(0, padded, LANES):
        store(vector, at + i, load(vector, at + i) + load(addend, i))


@numba.njit
def _differentiate_gate(g: np.ndarray, z: np.ndarray, gated: np.ndarray, dz: np.ndarray, padded: int) -> None:
    """Turn ``g``, the gradient of gated * silu(z), into that of ``gated``, and write that of z."""
    one = splat(g.dtype.type(1))
    for i in range(0, padded, LANES):
        v = load(z, i)
        s = sigmoid(v)
        gradient = load(g, i)
        store(dz, i, gradient * load(gated, i) * s * fma(v, one - s, one))
        store(g, i, gradient * v * s)


@numba.njit
def _differentiate_norm(g: np.ndarray, normed: np.ndarray, inverse: float, plan: Plan) -> None:
    """Turn ``g``, the gradient of the standardised vector ``normed``, into that of the vector before."""
    padded = _lanes(plan.size)
    zero = g.dtype.type(0)
    along, ones = splat(zero), splat(zero)
    for i in range(0, padded, LANES):
        gradient = load(g, i)
        along = fma(gradient, load(normed, i), along)
        ones = ones + gradient
    slope = splat(g.dtype.type(total(along) / plan.size))
    mean = splat(g.dtype.type(total(ones) / plan.size if plan.centred else 0.0))
    scale = splat(inverse)
    for i in range(0, padded, LANES):
        store(g, i, (load(g, i) - mean - load(normed, i) * slope) * scale)


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
    size, padded = plan.size, _lanes(plan.size)
    v, g, before = aligned(padded, x.data), aligned(padded, x.data), aligned(padded, x.data)
    gate, dgate = aligned(padded, x.data), aligned(padded, x.data)
    w, b = aligned(plan.groups * padded, x.data), aligned(plan.groups * padded, x.data)
    dw, db = aligned(plan.groups * padded, x.data), aligned(plan.groups * padded, x.data)
    _fetch_all(w, weight, plan)
    _fetch_all(b, bias, plan)
    dw[:] = 0
    db[:] = 0
    for row in range(task * plan.rows_each, min((task + 1) * plan.rows_each, plan.rows)):
        for group in range(plan.groups):
            at = group * padded
            _fetch(v, x, row, group, size)
            _fetch(g, dout, row, group, size)
            if plan.gate != NO_GATE:
                _fetch(gate, z, row, group, size)
            if plan.gate == GATE_FIRST:
                for i in range(0, padded, LANES):
                    store(before, i, load(v, i))
                _gate(v, gate, padded)
            inverse = _standardise(v, plan)
            if plan.gate == GATE_LAST:
                for i in range(0, padded, LANES):
                    store(before, i, fma(load(v, i), load(w, at + i), load(b, at + i)))
                _differentiate_gate(g, gate, before, dgate, padded)
            _accumulate(db, at, g, padded)
            for i in range(0, padded, LANES):
                gradient = load(g, i)
                store(dw, at + i, fma(gradient, load(v, i), load(dw, at + i)))
                store(g, i, gradient * load(w, at + i))
            _differentiate_norm(g, v, inverse, plan)
            if plan.gate == GATE_FIRST:
                _differentiate_gate(g, gate, before, dgate, padded)
            if plan.gate != NO_GATE:
                _put(dgate, dz, row, group, size)
            if dadded.data.size > 0:
                _fetch(before, dadded, row, group, size)
                _accumulate(g, 0, before, padded)
            _put(g, dx, row, group, size)
    for group in range(plan.groups):
        _put(dw[group * padded :], dweight, task, group, size)
        _put(db[group * padded :], dbias, task, group, size)
