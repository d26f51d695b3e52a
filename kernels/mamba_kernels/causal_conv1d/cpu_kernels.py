"""The causal convolution compiled for the CPU: one item is one sequence for a block of 16 channels.

An item reads its steps chunk by chunk into a tile that begins with the W - 1 inputs before the chunk, so that tap j of
step i is row i + j. What a step is, and which inputs it may see, says the `Reading`.

Dimensions: B batch, D channels, L length, W width. Steps count in reading order without padding, positions in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from mamba_kernels import tiles
from mamba_kernels.simd import LANES, compile_kernel, fma, load, sigmoid, splat, store
from mamba_kernels.tiles import aligned, load_tile, store_tile

CHUNK = 64


class Plan(NamedTuple):
    """The sizes that the kernels need; integers all, so that a kernel is compiled once."""

    channels: int
    blocks: int
    width: int
    silu: int


class Reading(NamedTuple):
    """The steps of each sequence in reading order, without padding."""

    steps: np.ndarray  # (B, L): the position of each step
    reach: np.ndarray  # (B, L): how many steps of history it may read, at most W - 1
    counts: np.ndarray  # (B,): how many steps there are
    shared: int  # whether there is only one row, and it serves all sequences


class View(NamedTuple):
    """A tensor as a flat vector with strides in elements, channel before step; a vector of size 0 if it is missing."""

    data: np.ndarray
    strides: tuple[int, ...]


@numba.njit
def _start(view: View, b: int, channel: int) -> int:
    """Return where a sequence's block of channels begins."""
    return b * view.strides[0] + channel * view.strides[1]


@numba.njit
def _run(steps: np.ndarray, step: int, end: int) -> tuple[int, int]:
    """Return how many steps from ``step`` on, before ``end``, are neighbours in memory, and in which direction."""
    direction, length = 1, 1
    if step + 1 < end:
        direction = steps[step + 1] - steps[step]
        if abs(direction) != 1:
            return 1, 1
        while step + length < end and steps[step + length] == steps[step] + length * direction:
            length += 1
    return length, direction


@numba.njit
def _load_steps(tile: np.ndarray, steps: np.ndarray, step: int, end: int, view: View, start: int, lanes: int) -> None:
    """Fill a tile with the steps from ``step`` to ``end``."""
    at = step
    while at < end:
        length, direction = _run(steps, at, end)
        place = start + steps[at] * view.strides[2]
        rows = tile[(at - step) * LANES :]
        load_tile(rows, length, view.data, place, lanes, view.strides[1], view.strides[2] * direction)
        at += length


@numba.njit
def _store_steps(tile: np.ndarray, steps: np.ndarray, step: int, end: int, view: View, start: int, lanes: int) -> None:
    """Write a tile to the steps from ``step`` to ``end``."""
    at = step
    while at < end:
        length, direction = _run(steps, at, end)
        place = start + steps[at] * view.strides[2]
        rows = tile[(at - step) * LANES :]
        store_tile(rows, length, view.data, place, lanes, view.strides[1], view.strides[2] * direction)
        at += length


@numba.njit
def _load_parameters(
    weight_tile: np.ndarray,
    bias_tile: np.ndarray,
    x_tile: np.ndarray,
    plan: Plan,
    weight: View,
    bias: View,
    initial: View,
    b: int,
    channel: int,
    lanes: int,
) -> None:
    """Fill the tiles of a block's weight, bias and history."""
    place = channel * weight.strides[0]
    load_tile(weight_tile, plan.width, weight.data, place, lanes, weight.strides[0], weight.strides[1])
    if bias.data.size > 0:
        load_tile(bias_tile, 1, bias.data, channel * bias.strides[0], lanes, bias.strides[0], 1)
    else:
        bias_tile[:] = 0
    if initial.data.size > 0:
        place = _start(initial, b, channel)
        load_tile(x_tile, plan.width - 1, initial.data, place, lanes, initial.strides[1], initial.strides[2])
    else:
        x_tile[: (plan.width - 1) * LANES] = 0


@numba.njit
def _preactivation(
    weight_tile: np.ndarray, bias_tile: np.ndarray, x_tile: np.ndarray, row: int, first: int, width: int
) -> Any:
    """Return the bias plus the taps of the step at ``row`` from tap ``first`` on."""
    y = load(bias_tile, 0)
    for tap in range(first, width):
        y = fma(load(weight_tile, tap * LANES), load(x_tile, (row + tap) * LANES), y)
    return y


@numba.njit
def _move_rows(tile: np.ndarray, source: int, count: int) -> None:
    """Move ``count`` rows of a tile from row ``source`` on to its front."""
    for row in range(count):
        store(tile, row * LANES, load(tile, (source + row) * LANES))


@numba.njit
def _lost_columns(reach: np.ndarray, count: int, history: int) -> int:
    """Return how many of the final states' columns lie before the last step's segment."""
    return 0 if count == 0 else max(history - 1 - reach[count - 1], 0)


@numba.njit
def _store_gradient(
    tile: np.ndarray,
    steps: np.ndarray,
    step: int,
    end: int,
    dx: View,
    dinitial: View,
    b: int,
    channel: int,
    lanes: int,
    history: int,
) -> None:
    """Write the gradients of the steps from ``step`` to ``end``; those before step 0 are the initial states'."""
    before = min(max(-step, 0), end - step)
    if before > 0 and dinitial.data.size > 0:
        place = _start(dinitial, b, channel) + (history + step) * dinitial.strides[2]
        store_tile(tile, before, dinitial.data, place, lanes, dinitial.strides[1], dinitial.strides[2])
    _store_steps(tile[before * LANES :], steps, step + before, end, dx, _start(dx, b, channel), lanes)


@compile_kernel(tiles.__file__)
def conv_forward(
    begin: int,
    stop: int,
    plan: Plan,
    reading: Reading,
    x: View,
    weight: View,
    bias: View,
    initial: View,
    y: View,
    final: View,
) -> None:
    """Run the items from ``begin`` to ``stop``: write their part of y and of the final states.

    Args:
        begin: The first item; item b * blocks + k is sequence b, channels 16 k to 16 k + 15.
        stop: The item after the last.
        plan: See `Plan`.
        reading: See `Reading`.
        x: Input (B, D, L).
        weight: Filters (D, W).
        bias: Bias (D, 1), or missing.
        initial: Initial states (B, D, W - 1), or missing.
        y: Output (B, D, L).
        final: Final states (B, D, W - 1).
    """
    width, history = plan.width, plan.width - 1
    x_tile, y_tile = aligned((history + CHUNK) * LANES, x.data), aligned(CHUNK * LANES, x.data)
    weight_tile, bias_tile = aligned(width * LANES, x.data), aligned(LANES, x.data)
    for item in range(begin, stop):
        b, channel = item // plan.blocks, item % plan.blocks * LANES
        lanes, row = min(LANES, plan.channels - channel), 0 if reading.shared else b
        steps, reach, count = reading.steps[row], reading.reach[row], reading.counts[row]
        _load_parameters(weight_tile, bias_tile, x_tile, plan, weight, bias, initial, b, channel, lanes)
        for step in range(0, count, CHUNK):
            end = min(step + CHUNK, count)
            _load_steps(x_tile[history * LANES :], steps, step, end, x, _start(x, b, channel), lanes)
            for i in range(end - step):
                v = _preactivation(weight_tile, bias_tile, x_tile, i, history - reach[step + i], width)
                if plan.silu:
                    v = v * sigmoid(v)
                store(y_tile, i * LANES, v)
            _store_steps(y_tile, steps, step, end, y, _start(y, b, channel), lanes)
            _move_rows(x_tile, end - step, history)
        x_tile[: _lost_columns(reach, count, history) * LANES] = 0
        store_tile(x_tile, history, final.data, _start(final, b, channel), lanes, final.strides[1], final.strides[2])


@compile_kernel(tiles.__file__)
def conv_backward(
    begin: int,
    stop: int,
    plan: Plan,
    reading: Reading,
    x: View,
    weight: View,
    bias: View,
    initial: View,
    dy: View,
    dfinal: View,
    dx: View,
    dinitial: View,
    dweight: View,
    dbias: View,
) -> None:
    """Run the items from ``begin`` to ``stop``: write their part of each gradient.

    Args are those of `conv_forward`, the views of the gradients of y and of the final states, and the views to write:
    dx and dinitial in the layouts of x and initial, and the parts of each sequence dweight (B, D, W) and dbias
    (B, D, 1), to be added up by the caller.
    """
    width, history = plan.width, plan.width - 1
    rows = (history + CHUNK) * LANES
    x_tile, dx_tile, dy_tile = aligned(rows, x.data), aligned(rows, x.data), aligned(CHUNK * LANES, x.data)
    weight_tile, bias_tile = aligned(width * LANES, x.data), aligned(LANES, x.data)
    dweight_tile, dbias_tile = aligned(width * LANES, x.data), aligned(LANES, x.data)
    one = splat(x.data.dtype.type(1))
    for item in range(begin, stop):
        b, channel = item // plan.blocks, item % plan.blocks * LANES
        lanes, row = min(LANES, plan.channels - channel), 0 if reading.shared else b
        steps, reach, count = reading.steps[row], reading.reach[row], reading.counts[row]
        _load_parameters(weight_tile, bias_tile, x_tile, plan, weight, bias, initial, b, channel, lanes)
        dx_tile[:] = 0
        dweight_tile[:] = 0
        dbias_tile[:] = 0
        for step in range(0, count, CHUNK):
            end = min(step + CHUNK, count)
            _load_steps(x_tile[history * LANES :], steps, step, end, x, _start(x, b, channel), lanes)
            _load_steps(dy_tile, steps, step, end, dy, _start(dy, b, channel), lanes)
            for i in range(end - step):
                first = history - reach[step + i]
                g = load(dy_tile, i * LANES)
                if plan.silu:
                    v = _preactivation(weight_tile, bias_tile, x_tile, i, first, width)
                    s = sigmoid(v)
                    g = g * s * fma(v, one - s, one)
                store(dbias_tile, 0, load(dbias_tile, 0) + g)
                for tap in range(first, width):
                    at, there = tap * LANES, (i + tap) * LANES
                    store(dweight_tile, at, fma(g, load(x_tile, there), load(dweight_tile, at)))
                    store(dx_tile, there, fma(g, load(weight_tile, at), load(dx_tile, there)))
            # No later step reads the tile's first rows: they are done.
            _store_gradient(dx_tile, steps, step - history, end - history, dx, dinitial, b, channel, lanes, history)
            _move_rows(x_tile, end - step, history)
            _move_rows(dx_tile, end - step, history)
            dx_tile[history * LANES :] = 0
        place = _start(dfinal, b, channel)
        for column in range(_lost_columns(reach, count, history), history):
            for lane in range(lanes):
                at = place + lane * dfinal.strides[1] + column * dfinal.strides[2]
                dx_tile[column * LANES + lane] += dfinal.data[at]
        _store_gradient(dx_tile, steps, count - history, count, dx, dinitial, b, channel, lanes, history)
        place = _start(dweight, b, channel)
        store_tile(dweight_tile, width, dweight.data, place, lanes, dweight.strides[1], dweight.strides[2])
        store_tile(dbias_tile, 1, dbias.data, _start(dbias, b, channel), lanes, dbias.strides[1], 1)
