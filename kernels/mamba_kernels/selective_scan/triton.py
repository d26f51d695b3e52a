"""The selective scan on a GPU: lays the inputs out for the kernels and launches them.

Two pairs of kernels take the same arguments: plain Triton's for any GPU, and Gluon's, laid out by hand for Hopper. The
configuration is a pure function of the shapes and the GPU, and nothing is added atomically, so that results repeat
bit for bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid, multiprocessors, on_device_of_inputs, refuse_float64
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.segments import segment_marks
from mamba_kernels.selective_scan import triton_plan
from mamba_kernels.selective_scan.triton_backward import scan_backward
from mamba_kernels.selective_scan.triton_forward import scan_forward
from mamba_kernels.selective_scan.triton_plan import Shape, checkpoint_shape
from mamba_kernels.selective_scan.triton_steps import carry_states
from mamba_kernels.selective_scan.triton_totals import add_blocks, add_parts

CARRY_BLOCK = 128


def _matrix_strides(M: Tensor) -> tuple[int, ...]:
    """Return the strides of B or C as (B, G, N, L); none where it is constant, (D, N)."""
    if M.dim() == 2:
        return (0, 0, 0, 0)
    return tuple((M[:, None] if M.dim() == 3 else M).stride())


def _groups(M: Tensor) -> int:
    return M.shape[1] if M.dim() == 4 else 1


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if x is None else tuple(x.stride())


def _time_fast(x: Tensor | None) -> bool:
    """Return whether neighbours in time are neighbours in memory, and neighbours in the other dimension are not."""
    return x is not None and x.dim() > 2 and x.stride(-1) == 1 and x.stride(-2) != 1


class _Pass(NamedTuple):
    """One pass' launches: over parts for what leaves them, then the pass itself; and the shape of a part's states."""

    ends: Launch | None
    carry: Launch | None
    whole: Launch
    parts: tuple[int, ...]
    blocks: int


@per_layout
def _plan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    enters: bool,
    marked: bool,
    reverse: bool,
    save: bool,
    out: Tensor | None,
    gradients: tuple[tuple[int, ...], ...] | None,
) -> _Pass:
    """Plan the forward pass into ``out``, or the backward pass with the strides of dout, du, ddelta and dz."""
    refuse_float64("selective_scan", u, delta, A, B, C, D, z, delta_bias)
    (batch, channels, length), states = u.shape, A.shape[1]
    groups = math.lcm(_groups(B), _groups(C))
    shape = Shape(batch, channels, length, states, groups, multiprocessors(u.device))
    backward = gradients is not None
    varies = {"B_VARIES": B.dim() > 2, "C_VARIES": C.dim() > 2}
    plan = None
    if triton_plan.runs_hopper_kernels(u.device) and all(varies.values()):
        plan = triton_plan.hopper_plan(shape, backward)
    if plan is None:
        kernel: Any = scan_backward if backward else scan_forward
        plan = triton_plan.any_gpu_plan(shape, backward)
        constants: dict[str, Any] = {**plan.constants, **varies}
    else:
        # Gluon is imported where it runs: elsewhere it may be missing.
        from mamba_kernels.selective_scan import gluon_backward, gluon_forward

        kernel = gluon_backward.scan_backward if backward else gluon_forward.scan_forward
        constants = {**plan.constants, "TIME_FAST": tuple(map(_time_fast, (u, delta, B, C, z)))}
        if gradients is not None:
            constants["TIME_FAST"] += (gradients[0][2] == 1 != gradients[0][1],)
    blocks, parts = ceil_divide(channels, plan.block), ceil_divide(length, plan.part_length)
    # A group of B may hold several of C and the other way round: the kernels' groups are the smaller ones.
    shares = (groups // _groups(B), groups // _groups(C))
    sizes = (channels, states, length, channels // groups, *shares, plan.part_length, parts)
    strides = (*u.stride(), *delta.stride(), *_matrix_strides(B), *_matrix_strides(C), *_strides(z))
    if gradients is None:
        assert out is not None
        strides += tuple(out.stride())
    else:
        sizes += (blocks,)
        strides += tuple(stride for strides in gradients for stride in strides)
    constants |= {
        "SOFTPLUS": softplus, "REVERSE": reverse, "HAS_D": D is not None, "HAS_Z": z is not None,
        "HAS_BIAS": delta_bias is not None, "HAS_MARKS": marked,
    }  # fmt: skip
    grid = launch_grid("selective_scan", batch * blocks, parts)

    def launch(**options: bool) -> Launch:
        return Launch(kernel, grid, *sizes, *strides, **{**constants, **options})

    ends = carry = None
    if parts > 1:
        last = {} if backward else {"HAS_Z": False, "SAVE": False}
        ends = launch(ENDS=True, HAS_ENTERING=False, **last)
        carry = Launch(
            carry_states, (ceil_divide(states * channels, CARRY_BLOCK), batch), parts, states * channels,
            BACKWARD=backward, HAS_START=enters, BLOCK=CARRY_BLOCK,
        )  # fmt: skip
    last = {} if backward else {"SAVE": save}
    whole = launch(ENDS=False, HAS_ENTERING=enters or parts > 1, **last)
    return _Pass(ends, carry, whole, (batch, parts, channels, states), blocks)


def _marks(seq_idx: Tensor | None, reverse: bool) -> Tensor | None:
    """Return what each position is in reading order: bit 0 for a real token, bit 1 where the state is reset."""
    if seq_idx is None:
        return None
    reset, padding = segment_marks(seq_idx.flip(1) if reverse else seq_idx)
    return ((~padding).to(torch.int8) + 2 * reset.to(torch.int8)).contiguous()


def _inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    marks: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the inputs as the kernels take them; u stands in for what is missing, a pointer that is never read."""
    B, C = (M.float().contiguous() if M.dim() == 2 else M for M in (B, C))
    optional = (None if D is None else D.contiguous(), z, None if delta_bias is None else delta_bias.contiguous(), marks)
    return (u, delta, A.float().contiguous(), B, C, *(u if x is None else x for x in optional))


def _new(u: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=u.device)


@on_device_of_inputs
def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the last state, and the checkpoints the backward pass starts from (none unless ``save``).

    The arguments are those of `selective_scan`, already checked.
    """
    out = empty_in_order(u, out_dtype)
    plan = _plan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state is not None, seq_idx is not None, reverse,
        save, out, None,
    )  # fmt: skip
    inputs = _inputs(u, delta, A, B, C, D, z, delta_bias, _marks(seq_idx, reverse))
    leaving = _new(u, u.shape[0], *A.shape)
    checkpoints = _new(u, *(checkpoint_shape(u, A, B, C) if save else (0,)))
    entering = leaving if initial_state is None else initial_state.float().contiguous()
    if plan.ends is not None and plan.carry is not None:
        ends, decays, carried = (_new(u, *plan.parts) for _ in range(3))
        plan.ends(*inputs, leaving, out, ends, checkpoints, decays)
        plan.carry(ends, decays, entering, carried)
        entering = carried
    plan.whole(*inputs, entering, out, leaving, checkpoints, leaving)
    return out, leaving, checkpoints


@on_device_of_inputs
def backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    checkpoints: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state, empty for absent inputs."""
    du, ddelta = empty_in_order(u), empty_in_order(delta)
    dz = None if z is None else empty_in_order(z)
    plan = _plan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, grad_last_state is not None, seq_idx is not None, reverse,
        False, None, (grad_out.stride(), du.stride(), ddelta.stride(), _strides(dz)),
    )  # fmt: skip
    inputs = _inputs(u, delta, A, B, C, D, z, delta_bias, _marks(seq_idx, reverse))
    (batch, parts, channels, states), length = plan.parts, u.shape[2]
    dA_parts, leaving = _new(u, *plan.parts), _new(u, batch, channels, states)
    dB_parts, dC_parts = (
        _new(u, *(plan.parts if M.dim() == 2 else (batch, plan.blocks, length, states))) for M in (B, C)
    )
    dD_parts, dbias_parts = _new(u, batch, parts, channels), _new(u, batch, parts, channels)
    scratch = _scratch(u, plan)
    entering = leaving if grad_last_state is None else grad_last_state.float().contiguous()
    into = (du, ddelta, dA_parts, dB_parts, dC_parts, dD_parts, du if dz is None else dz, dbias_parts)
    if plan.ends is not None and plan.carry is not None:
        ends, decays, carried = (_new(u, *plan.parts) for _ in range(3))
        plan.ends(*inputs, checkpoints, scratch, grad_out, leaving, *into, ends, decays)
        plan.carry(ends, decays, entering, carried)
        entering = carried
    plan.whole(*inputs, checkpoints, scratch, grad_out, entering, *into, leaving, leaving)

    def like(x: Tensor | None) -> Tensor:
        return u.new_empty(0) if x is None else empty_in_order(x)

    dA, dD, dbias = empty_in_order(A), like(D), like(delta_bias)
    _parts_plan(A, D, delta_bias, batch * parts)(dA_parts, dD_parts, dbias_parts, dA, dD, dbias)
    return (
        du, ddelta, dA, _matrix_total(dB_parts, B), _matrix_total(dC_parts, C), dD,
        u.new_empty(0) if dz is None else dz, dbias,
        u.new_empty(0) if initial_state is None else empty_in_order(initial_state).copy_(leaving),
    )  # fmt: skip


def _scratch(u: Tensor, plan: _Pass) -> Tensor:
    """Return room for the states within a chunk, for the kernel that keeps them in memory."""
    constants = plan.whole.constants
    if "CHUNK" not in constants:
        return _new(u, 0)
    batch, parts, _, _ = plan.parts
    tile = constants["N_PAD"] * constants["BLOCK"]
    return _new(u, batch * parts * plan.blocks, constants["CHUNK"] // constants["STEPS"], tile)


@per_layout
def _parts_plan(A: Tensor, D: Tensor | None, delta_bias: Tensor | None, count: int) -> Launch:
    (channels, states), columns = A.shape, 64
    programs = ceil_divide(channels * states, columns) + 2 * ceil_divide(channels, columns)
    return Launch(
        add_parts, (programs,), count, channels, states, *empty_in_order(A).stride(),
        HAS_D=D is not None, HAS_BIAS=delta_bias is not None, ROWS=16, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


@per_layout
def _blocks_plan(parts: Tensor, out: Tensor) -> Launch:
    batch, blocks, length, states = parts.shape
    groups, state_pad = _groups(out), triton_plan.next_power_of_2(states)
    rows = max(16, 1024 // state_pad)
    return Launch(
        add_blocks, launch_grid("selective_scan", batch * groups * ceil_divide(length, rows)),
        blocks // groups, groups, length, states, *_matrix_strides(out), N_PAD=state_pad, ROWS=rows, num_warps=4,
    )  # fmt: skip


def _matrix_total(parts: Tensor, M: Tensor) -> Tensor:
    """Return the gradient of B or C in its shape and dimension order."""
    out = empty_in_order(M)
    if M.dim() == 2:
        return out.copy_(parts.sum((0, 1)))
    _blocks_plan(parts, out)(parts, out)
    return out
