"""How the scan's GPU kernels are launched: which kernels, cut how, on what strides.

Three pairs of kernels take the same arguments: plain Triton's for any GPU, and two of Gluon's, laid out by hand for
Hopper, of which one is for a single state. The configuration is a pure function of the shapes and the GPU, and nothing
is added atomically, so that results repeat bit for bit.

A launch scans K readings of each of B sequences, each with parameters of its own; the plain scan is the one with K = 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid, multiprocessors, next_power_of_2
from mamba_kernels.launch import Launch
from mamba_kernels.selective_scan import triton_plan
from mamba_kernels.selective_scan.triton_backward import scan_backward
from mamba_kernels.selective_scan.triton_forward import scan_forward
from mamba_kernels.selective_scan.triton_plan import Shape
from mamba_kernels.selective_scan.triton_steps import carry_states
from mamba_kernels.selective_scan.triton_totals import total_blocks, total_parts

CARRY_BLOCK = 128

# Strides along (B, K, D, L), zero where a tensor has no such dimension; B and C have (B, K, G, N, L).
Strides = tuple[int, ...]
ABSENT: Strides = (0, 0, 0, 0)
CONSTANT: Strides = (0, 0, 0, 0, 0)


class Scan(NamedTuple):
    """What of a scan's inputs decides its launches.

    Args:
        batch: B.
        readings: K.
        channels: D, of one reading.
        length: L.
        states: N.
        B_groups: Groups of channels with a B of their own; 0 where B does not vary over time.
        C_groups: The same for C.
        softplus: Whether delta goes through it.
        has_D: Whether there are skip weights.
        has_bias: Whether delta has a bias.
        marks: Strides (B, K) of the marks of resets and padding, or None.
        walk: "forward", "reverse" or "order": where in memory the positions of a reading are.
        u: Strides of u.
        delta: Strides of delta.
        B: Strides of B.
        C: Strides of C.
        z: Strides of the gate, or None.
    """

    batch: int
    readings: int
    channels: int
    length: int
    states: int
    B_groups: int
    C_groups: int
    softplus: bool
    has_D: bool
    has_bias: bool
    marks: tuple[int, int] | None
    walk: str
    u: Strides
    delta: Strides
    B: Strides
    C: Strides
    z: Strides | None

    @property
    def groups(self) -> int:
        """The groups of channels that share B and C: a group of B may hold several of C, and the other way round."""
        return math.lcm(max(1, self.B_groups), max(1, self.C_groups))


class Pass(NamedTuple):
    """One pass' launches: over parts of time for what leaves them, then the pass itself."""

    ends: Launch | None
    carry: Launch | None
    whole: Launch
    parts: int
    blocks: int
    scratch: tuple[int, ...]

    def run(self, inputs: tuple[Tensor, ...], leaving: Tensor, entering: Tensor | None) -> None:
        """Launch everything.

        Args:
            inputs: The kernel's arguments before the states that enter.
            leaving: For what leaves at the end, (B, K, D, N) or (B, D, N).
            entering: What enters at the start, or None.
        """
        start = leaving if entering is None else entering
        if self.ends is not None and self.carry is not None:
            batch, *sizes = leaving.shape
            ends, decays, carried = (leaving.new_empty((batch, self.parts, *sizes)) for _ in range(3))
            self.ends(*inputs, start, ends, decays)
            self.carry(ends, decays, start, carried)
            start = carried
        self.whole(*inputs, start, leaving, leaving)


def plan_forward(scan: Scan, device: torch.device, enters: bool, save: bool, out: Strides, add: bool = False) -> Pass:
    """Plan the forward pass; its kernels take the ten inputs, checkpoints and out before the states.

    Args:
        scan: What is scanned.
        device: The GPU.
        enters: Whether an initial state enters.
        save: Whether checkpoints are kept.
        out: Strides of the output.
        add: Whether to add to what stands there, in float32.
    """
    return _plan(scan, device, False, enters, (out,), {"SAVE": save}, add)


def plan_backward(scan: Scan, device: torch.device, enters: bool, *gradients: Strides, add: bool = False) -> Pass:
    """Plan the backward pass; its kernels take the ten inputs, checkpoints, scratch, dout and eight gradients.

    Args:
        scan: What is scanned.
        device: The GPU.
        enters: Whether a gradient of the last state enters.
        *gradients: Strides of dout, du, ddelta and dz.
        add: Whether to add to what stands in the last three, in float32.
    """
    return _plan(scan, device, True, enters, gradients, {}, add)


def _plan(
    scan: Scan,
    device: torch.device,
    backward: bool,
    enters: bool,
    others: tuple[Strides, ...],
    options: dict[str, Any],
    add: bool,
) -> Pass:
    sequences = scan.batch * scan.readings
    shape = Shape(sequences, scan.channels, scan.length, scan.states, scan.groups, multiprocessors(device))
    hopper = triton_plan.runs_hopper_kernels(device) and scan.B_groups > 0 and scan.C_groups > 0
    plan = triton_plan.hopper_plan(shape, backward) if hopper else None
    if plan is None:
        kernel: Any = scan_backward if backward else scan_forward
        plan = triton_plan.any_gpu_plan(shape, backward)
        constants: dict[str, Any] = {**plan.constants, "B_VARIES": scan.B_groups > 0, "C_VARIES": scan.C_groups > 0}
    else:
        kernel = hopper_kernel(scan.states, backward)
        read = (scan.u, scan.delta, scan.B, scan.C, scan.z or ABSENT, *(others[:1] if backward else ()))
        time_fast = tuple(strides[-1] == 1 != strides[-2] for strides in read)
        constants = {**plan.constants, "TIME_FAST": time_fast, "WIDE": _is_wide(scan, *read, *others)}
    blocks, parts = ceil_divide(scan.channels, plan.block), ceil_divide(scan.length, plan.part_length)
    shares = (scan.groups // max(1, scan.B_groups), scan.groups // max(1, scan.C_groups))
    sizes = (
        scan.channels, scan.states, scan.length, scan.channels // scan.groups, *shares, plan.part_length, parts,
        scan.readings, *((blocks,) if backward else ()),
    )  # fmt: skip
    strides = (*(scan.marks or (0, 0)), *scan.u, *scan.delta, *scan.B, *scan.C, *(scan.z or ABSENT))
    strides += tuple(stride for tensor in others for stride in tensor)
    constants |= {
        "SOFTPLUS": scan.softplus, "WALK": scan.walk, "HAS_D": scan.has_D, "HAS_Z": scan.z is not None,
        "HAS_BIAS": scan.has_bias, "HAS_MARKS": scan.marks is not None, **options,
    }  # fmt: skip
    grid = launch_grid("selective_scan", sequences * blocks, parts)
    ends = carry = None
    if parts > 1:
        only = {"HAS_ENTERING": False, "ENDS": True, "HAS_D": False}
        only |= {} if backward else {"HAS_Z": False, "SAVE": False}
        ends = Launch(kernel, grid, *sizes, *strides, **{**constants, **only})
        states = scan.readings * scan.channels * scan.states
        carry = Launch(
            carry_states, (ceil_divide(states, CARRY_BLOCK), scan.batch), parts, states,
            BACKWARD=backward, HAS_START=enters, BLOCK=CARRY_BLOCK, num_warps=1,
        )  # fmt: skip
    # The kernels of one state have no such option.
    adds = {"ADD": True} if add else {}
    whole = Launch(kernel, grid, *sizes, *strides, **constants, **adds, HAS_ENTERING=enters or parts > 1, ENDS=False)
    scratch: tuple[int, ...] = (0,)
    if backward and "CHUNK" in constants:
        tile = constants["N_PAD"] * constants["BLOCK"]
        scratch = (
            sequences * parts * blocks,
            ceil_divide(min(scan.length, constants["CHUNK"]), constants["STEPS"]),
            tile,
        )
    return Pass(ends, carry, whole, parts, blocks, scratch)


def hopper_kernel(states: int, backward: bool) -> Any:
    """Return the Gluon kernel for so many states."""
    # Gluon is imported where it runs: elsewhere it may be missing.
    from mamba_kernels.selective_scan import (
        gluon_backward,
        gluon_forward,
        gluon_single_backward,
        gluon_single_forward,
    )

    if states == 1:
        return gluon_single_backward.scan_backward if backward else gluon_single_forward.scan_forward
    return gluon_backward.scan_backward if backward else gluon_forward.scan_forward


def _is_wide(scan: Scan, *tensors: Strides) -> bool:
    """Return whether one sequence of one of the tensors reaches past what 32 bits count."""
    width = max(scan.channels, scan.states)
    return any((scan.length - 1) * abs(along) + (width - 1) * abs(across) >= 2**31 for *_, across, along in tensors)


def plan_parts(scan: Scan, parts: int, dA: Strides) -> Launch:
    """Plan adding up the gradients of A, with strides (K*D, N), and of D and the bias, over sequences and parts."""
    columns, channels = 64, scan.readings * scan.channels
    programs = ceil_divide(channels * scan.states, columns) + 2 * ceil_divide(channels, columns)
    return Launch(
        total_parts, (programs,), scan.batch * parts, channels, scan.states, *dA,
        HAS_D=scan.has_D, HAS_BIAS=scan.has_bias, ROWS=16, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


def plan_blocks(scan: Scan, blocks: int, groups: int, strides: tuple[int, ...]) -> Launch:
    """Plan adding up the gradient of B or C over blocks of channels.

    Args:
        scan: What is scanned.
        blocks: Blocks of channels of a reading.
        groups: What has a gradient of its own in a sequence: readings, or groups of the one reading's channels.
        strides: Strides (B, groups, N, L) of the gradient.
    """
    state_pad = next_power_of_2(scan.states)
    rows = max(16, 1024 // state_pad)
    return Launch(
        total_blocks, launch_grid("selective_scan", scan.batch * groups * ceil_divide(scan.length, rows)),
        scan.readings * blocks // groups, groups, scan.length, scan.states, *strides,
        N_PAD=state_pad, ROWS=rows, num_warps=4,
    )  # fmt: skip
