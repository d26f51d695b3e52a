"""How the GPU's kernels cut a scan into programs, and what their two passes keep between them.

Nothing here needs Triton or a GPU: tracing asks for shapes on machines that have neither.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mamba_kernels.gpu import ceil_divide, next_power_of_2

CHUNK = 64
FORWARD_STEPS = 4
BACKWARD_STEPS = 2
# Programs of one warp that a multiprocessor should have before time is left uncut.
WARPS_WANTED = 16


class Plan(NamedTuple):
    """How a scan is cut into programs."""

    state_pad: int
    block: int
    blocks: int
    group_channels: int
    part_length: int
    parts: int


def make_plan(batch: int, channels: int, length: int, states: int, groups: int, processors: int) -> Plan:
    """Cut a scan by its shapes and the GPU's number of multiprocessors.

    A block of channels never spans two groups of B or C. A lane holds the states of one channel where they fit in its
    registers; larger states take fewer channels a warp.
    """
    state_pad = next_power_of_2(states)
    group_channels = channels // groups
    block = max(1, min(32, 1024 // state_pad, next_power_of_2(channels)))
    while groups > 1 and group_channels % block:
        block //= 2
    blocks = ceil_divide(channels, block)
    chunks = ceil_divide(length, CHUNK)
    parts = max(1, min(ceil_divide(processors * WARPS_WANTED, max(1, batch * blocks)), chunks // 4))
    part_length = ceil_divide(chunks, parts) * CHUNK
    return Plan(state_pad, block, blocks, group_channels, part_length, ceil_divide(length, part_length))


def checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Return the shape of the states a forward pass keeps for its backward: one every ``CHUNK`` positions."""
    batch, channels, length = u.shape
    return batch, -(-length // CHUNK), A.shape[1], channels
