"""How the GPU's kernels cut a scan into programs, and what their two passes keep between them.

Nothing here needs Triton or a GPU: tracing asks for shapes on machines that have neither.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, next_power_of_2

# Programs of one warp that a multiprocessor should have before the plain kernels leave time uncut.
WARPS_WANTED = 16
# Warps that issue instructions side by side on a multiprocessor.
SCHEDULERS = 4
# Warps of the Gluon kernels for which a multiprocessor has registers, float32 inputs too, by states rounded up to a
# power of two; those for one state have 4 warps a program.
FORWARD_WARPS = {1: 16, 2: 16, 4: 16, 8: 12, 16: 12, 32: 8}
BACKWARD_WARPS = {1: 8, 2: 8, 4: 12, 8: 12, 16: 8, 32: 8}
# Channels of a program of the kernels for one state.
SINGLE_BLOCK = 32
# Time is cut so that programs fill up to so many rounds of what runs at once.
ROUNDS = 6
# In positions: what a part costs beside its own, and what the two kernels more cost by being launched.
PART_COST = 16
CUT_COST = 30
# More states than a slice has are scanned slice by slice, where enough channels share B and C to fill the lanes.
SLICE = 32
SLICED_CHANNELS = 8


class Shape(NamedTuple):
    """What of a scan decides how it is cut: ``groups`` of channels share B and C, ``processors`` are the GPU's."""

    batch: int
    channels: int
    length: int
    states: int
    groups: int
    processors: int


class Costs(NamedTuple):
    """What a pass' time depends on beside positions, fitted to times of an H200 over numbers of parts.

    Args:
        wait: How long a warp waits for its own results, in the time that one warp's instructions take to be issued.
        tail: How much longer one round of programs takes because not all of them end at once, as a share of it.
        ends: The pass that finds what enters each part, in whole passes.
    """

    wait: float
    tail: float
    ends: float


FORWARD_COSTS = Costs(wait=1.0, tail=0.14, ends=0.7)
SINGLE_FORWARD_COSTS = Costs(wait=1.5, tail=0.14, ends=0.5)
BACKWARD_COSTS = Costs(wait=1.5, tail=0.04, ends=0.3)


class Plan(NamedTuple):
    """How one pass is cut: channels of a program, positions of a part, and the kernel's constants."""

    block: int
    part_length: int
    constants: dict[str, int]


def checkpoint_distance(states: int) -> int:
    """Return the number of positions between two states that a forward pass keeps."""
    return 16 if 1 < states <= 32 else 64


def state_slices(states: int, channels: int) -> list[slice]:
    """Return the slices of states that are scanned one after the other, of about one size and at most `SLICE`.

    The output and the gradients of u, delta and z are sums over states, so those of slices add up.

    Args:
        states: N.
        channels: How many channels share B and C where both vary over time, else 0.
    """
    count = ceil_divide(states, SLICE) if channels >= SLICED_CHANNELS else 1
    return [slice(i * states // count, (i + 1) * states // count) for i in range(count)]


def sharing(A: Tensor, B: Tensor, C: Tensor) -> int:
    """Return how many channels share B and C, or 0 where one is constant."""
    groups = math.lcm(*(M.shape[1] if M.dim() == 4 else 1 for M in (B, C)))
    return A.shape[0] // groups if B.dim() > 2 and C.dim() > 2 else 0


def checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Return the shape of the states a forward pass keeps for its backward.

    Of states in slices nothing is kept: what one slice needs, the backward pass finds again, and uses up before the
    next slice. All slices' together would be many times the size of the inputs.
    """
    if len(state_slices(A.shape[1], sharing(A, B, C))) > 1:
        return (0,)
    batch, channels, length = u.shape
    return batch, -(-length // checkpoint_distance(A.shape[1])), A.shape[1], channels


def any_gpu_plan(shape: Shape, backward: bool) -> Plan:
    """Plan for the kernels of `triton_forward` and `triton_backward`.

    A block of channels never spans two groups of B or C. A lane holds the states of one channel where they fit in its
    registers; larger states take fewer channels a warp.
    """
    state_pad = next_power_of_2(shape.states)
    block = max(1, min(32, 1024 // state_pad, next_power_of_2(shape.channels)))
    while shape.groups > 1 and shape.channels // shape.groups % block:
        block //= 2
    constants = {
        "N_PAD": state_pad, "BLOCK": block, "CHUNK": checkpoint_distance(shape.states),
        "STEPS": 2 if backward else 4, "num_warps": 1,
    }  # fmt: skip
    programs = shape.batch * ceil_divide(shape.channels, block)
    return Plan(block, _part_length(shape, ceil_divide(shape.processors * WARPS_WANTED, max(1, programs))), constants)


def hopper_plan(shape: Shape, backward: bool) -> Plan | None:
    """Plan for the Gluon kernels (one state has a pair of its own); None where they do not fit the shape."""
    state_pad = next_power_of_2(shape.states)
    if state_pad > 32:
        return None
    group = shape.channels // shape.groups
    if shape.states == 1:
        return _single_plan(shape, backward) if shape.groups == 1 or group % SINGLE_BLOCK == 0 else None
    lanes = min(4 if backward else max(2, state_pad // 16), state_pad)
    # The largest block that leaves few lanes idle; blocks never span two groups of channels.
    deeps = (2, 1) if backward else (1,)
    sizes = [(deep, warps) for deep in deeps for warps in ((4, 2, 1) if backward else (2, 1))]
    blocks = [(32 // lanes * deep * warps, deep, warps) for deep, warps in sizes]
    if shape.groups > 1:
        blocks = [x for x in blocks if group % x[0] == 0]
    if not blocks:
        return None
    least = min(_padded(group, x[0]) for x in blocks)
    block, deep, warps = next(x for x in blocks if _padded(group, x[0]) <= 1.1 * least)
    constants = {"N_PAD": state_pad, "LANES": lanes, "STEPS": checkpoint_distance(shape.states), "num_warps": warps}
    if backward:
        constants["DEEP"] = deep
    return Plan(block, _part_length(shape, _parts(shape, block, warps, backward)), constants)


def _single_plan(shape: Shape, backward: bool) -> Plan:
    """Plan for the kernels of one state, whose programs have as many warps as their tiles have pairs of segments."""
    warps = checkpoint_distance(1) // 16
    constants = {"STEPS": checkpoint_distance(1), "num_warps": warps}
    if not backward:
        # One program more a multiprocessor than the compiler's own choice allows; nothing spills.
        constants["maxnreg"] = 128
    return Plan(SINGLE_BLOCK, _part_length(shape, _parts(shape, SINGLE_BLOCK, warps, backward)), constants)


def _parts(shape: Shape, block: int, warps: int, backward: bool) -> int:
    """Return into how many parts time is cut, for programs of ``block`` channels and ``warps``.

    Uncut there may be too few warps to issue instructions while others wait; cut, the exponentials are found twice.
    """
    programs = max(1, shape.batch * ceil_divide(shape.channels, block))
    resident = (BACKWARD_WARPS if backward else FORWARD_WARPS)[next_power_of_2(shape.states)]
    at_once = shape.processors * resident // warps
    forward_costs = SINGLE_FORWARD_COSTS if shape.states == 1 else FORWARD_COSTS
    costs = BACKWARD_COSTS if backward else forward_costs

    def cost(parts: int) -> float:
        length = _part_length(shape, parts)
        full, rest = divmod(programs * ceil_divide(shape.length, length), at_once)
        busy = ceil_divide(rest * warps, shape.processors * SCHEDULERS)
        rounds = full + (costs.wait + busy) / (costs.wait + resident / SCHEDULERS) * (rest > 0)
        rounds *= 1 + costs.tail / math.ceil(rounds)
        whole = rounds * (length + PART_COST)
        return whole if parts == 1 else whole * (1 + costs.ends) + CUT_COST

    return min((1, *(max(1, rounds * at_once // programs) for rounds in range(1, ROUNDS + 1))), key=cost)


def _padded(channels: int, block: int) -> int:
    """Return the channels that whole blocks would hold."""
    return ceil_divide(channels, block) * block


def _part_length(shape: Shape, parts: int) -> int:
    """Return how many positions a part has, whole checkpoints, so that there are about ``parts`` and none is tiny."""
    distance = checkpoint_distance(shape.states)
    chunks = ceil_divide(shape.length, distance)
    parts = max(1, min(parts, ceil_divide(shape.length, 4 * distance)))
    return ceil_divide(chunks, parts) * distance


def runs_hopper_kernels(device: torch.device) -> bool:
    """Return whether ``device`` is a GPU of the generation that the Gluon kernels were laid out and checked for."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9
