"""The selective scan on a GPU: hands the inputs to the kernels that `triton_launch` plans.

Large states are scanned a slice at a time, each as a scan of its own: what all slices add to is summed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, on_device_of_inputs, refuse_float64
from mamba_kernels.launch import Launch, compile_together
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.segments import segment_bits
from mamba_kernels.selective_scan.triton_launch import (
    CONSTANT,
    Pass,
    Scan,
    Strides,
    plan_backward,
    plan_blocks,
    plan_forward,
    plan_parts,
)
from mamba_kernels.selective_scan.triton_plan import checkpoint_distance, checkpoint_shape, sharing, state_slices

# Bytes of sums and of states between positions that a backward pass makes at a time, if batches allow it.
WORKSPACE = 2**30
# Kinds of scans in slices of states whose kernels have been compiled.
_compiled: set[tuple[Any, ...]] = set()


def _strides(x: Tensor) -> Strides:
    """Return the strides of (B, D, L) with one reading."""
    batch, channels, length = x.stride()
    return batch, 0, channels, length


def _matrix_strides(M: Tensor) -> Strides:
    """Return the strides of B or C with one reading."""
    if M.dim() == 2:
        return CONSTANT
    batch, *others = (M[:, None] if M.dim() == 3 else M).stride()
    return batch, 0, *others


def _groups(M: Tensor) -> int:
    return 0 if M.dim() == 2 else 1 if M.dim() == 3 else M.shape[1]


class _Backward(NamedTuple):
    scan: Pass
    parts: Launch
    dB: Launch | None
    dC: Launch | None


class _Walk(NamedTuple):
    """How a sequence is read: whether delta goes through softplus, the marks of positions, and from which end."""

    softplus: bool
    marks: Tensor | None
    reverse: bool


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    marks: Tensor | None,
    reverse: bool,
) -> Scan:
    refuse_float64("selective_scan", u, delta, A, B, C, D, z, delta_bias)
    batch, channels, length = u.shape
    return Scan(
        batch, 1, channels, length, A.shape[1], _groups(B), _groups(C), softplus, D is not None,
        delta_bias is not None, None if marks is None else (length, 0), "reverse" if reverse else "forward",
        _strides(u), _strides(delta), _matrix_strides(B), _matrix_strides(C), None if z is None else _strides(z),
    )  # fmt: skip


@per_layout
def _plan_forward(out: Tensor, enters: bool, save: bool, add: bool, *scanned: Any) -> Pass:
    """Plan the forward pass into ``out`` of what `_scan` takes."""
    return plan_forward(_scan(*scanned), out.device, enters, save, _strides(out), add)


@per_layout
def _plan_backward(
    dout: Tensor, enters: bool, add: bool, du: Tensor, ddelta: Tensor, dA: Tensor, dB: Tensor, dC: Tensor, dD: Tensor,
    dz: Tensor, dbias: Tensor, *scanned: Any,
) -> _Backward:  # fmt: skip
    """Plan the backward pass from ``dout``, into the gradients, of what `_scan` takes."""
    scan = _scan(*scanned)
    written = (dout, du, ddelta, du if scan.z is None else dz)
    planned = plan_backward(scan, du.device, enters, *map(_strides, written), add=add)
    adding = []
    for dM, groups in ((dB, scan.B_groups), (dC, scan.C_groups)):
        strides = _matrix_strides(dM)
        adding.append(plan_blocks(scan, planned.blocks, groups, (strides[0], *strides[2:])) if groups else None)
    return _Backward(planned, plan_parts(scan, planned.parts, dA.stride()), *adding)


def _marks(seq_idx: Tensor | None, reverse: bool) -> Tensor | None:
    """Return the bits of each position in reading order, or None where there are no segments."""
    return None if seq_idx is None else segment_bits(seq_idx.flip(1) if reverse else seq_idx)


def _inputs(
    marks: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the inputs as the kernels take them; u stands in for what is missing, a pointer that is never read."""
    B, C = (M.float().contiguous() if M.dim() == 2 else M for M in (B, C))
    optional = (
        None if D is None else D.contiguous(),
        z,
        None if delta_bias is None else delta_bias.contiguous(),
        marks,
    )
    return (u, delta, A.float().contiguous(), B, C, *(u if x is None else x for x in (*optional, None)))


def _new(u: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=u.device)


def _of_slice(states: slice, tensors: Sequence[Any]) -> list[Any]:
    """Return a slice's part of u, delta, A, B, C, D, z and the bias, or of their gradients; D is the first one's."""
    u, delta, A, B, C, D, z, bias = tensors
    return [u, delta, A[:, states], B[..., states, :], C[..., states, :], None if states.start else D, z, bias]


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
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    walk = _Walk(delta_softplus, _marks(seq_idx, reverse), reverse)
    out = empty_in_order(u, out_dtype)
    last_state = _new(u, u.shape[0], *A.shape)
    checkpoints = _new(u, *(checkpoint_shape(u, A, B, C) if save else (0,)))
    slices = state_slices(A.shape[1], sharing(A, B, C))
    if len(slices) == 1:
        _run_forward(tensors, walk, initial_state, out, last_state, checkpoints)
        return out, last_state, checkpoints
    total = _sum_of(out)

    def run() -> None:
        for states in slices:
            leaving = _new(u, *last_state[..., states].shape)
            entering = None if initial_state is None else initial_state[..., states]
            _run_forward(_of_slice(states, tensors), walk, entering, total, leaving, checkpoints, add=states.start > 0)
            last_state[..., states] = leaving

    _compile_once(run, tensors, walk, initial_state, out)
    run()
    return out if total is out else out.copy_(total), last_state, checkpoints


def _compile_once(run: Callable[[], object], tensors: Sequence[Any], walk: _Walk, *others: Any) -> None:
    """Compile what ``run`` launches the first time that there is a scan of its kind.

    Slices need several variants of the same kernels; one after the other these took longer than a first call may.
    """
    if not tensors[0].is_cuda or torch.cuda.is_current_stream_capturing():
        return
    layouts = [(x.dtype, x.dim(), x.stride(-1) == 1) if isinstance(x, Tensor) else x for x in (*tensors, *others)]
    kind = (tensors[2].shape[1], walk.softplus, walk.marks is None, walk.reverse, *layouts)
    if kind not in _compiled:
        compile_together(run)
        _compiled.add(kind)


def _sum_of(x: Tensor) -> Tensor:
    """Return what slices' parts of ``x`` are added up in: itself, or the same in float32."""
    return x if x.dtype == torch.float32 else empty_in_order(x, torch.float32)


def _run_forward(
    tensors: Sequence[Any],
    walk: _Walk,
    initial_state: Tensor | None,
    out: Tensor,
    last_state: Tensor,
    checkpoints: Tensor,
    add: bool = False,
) -> None:
    """Write the output, or add to it, the last state, and the checkpoints if these have room for any."""
    save = bool(checkpoints.numel())
    plan = _plan_forward(out, initial_state is not None, save, add, *tensors, *walk)
    entering = None if initial_state is None else initial_state.float().contiguous()
    plan.run((*_inputs(walk.marks, *tensors), checkpoints, out), last_state, entering)


def _checkpoints(tensors: Sequence[Any], walk: _Walk, initial_state: Tensor | None) -> Tensor:
    """Scan for the checkpoints alone."""
    u, delta, A, B, C, _, _, bias = tensors
    (batch, channels, length), states = u.shape, A.shape[1]
    checkpoints = _new(u, batch, ceil_divide(length, checkpoint_distance(states)), states, channels)
    only = (u, delta, A, B, C, None, None, bias)
    # In float32, as the forward pass has it: with time in parts the kernel for these is then compiled already.
    out = empty_in_order(u, torch.float32)
    _run_forward(only, walk, initial_state, out, _new(u, batch, channels, states), checkpoints)
    return checkpoints


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
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    walk = _Walk(delta_softplus, _marks(seq_idx, reverse), reverse)
    gradients = [u.new_empty(0) if x is None else empty_in_order(x) for x in tensors]
    dinitial = _new(u, u.shape[0], *A.shape)
    slices = state_slices(A.shape[1], sharing(A, B, C))
    if len(slices) == 1:
        _run_backward(grad_out, grad_last_state, tensors, walk, initial_state, checkpoints, gradients, dinitial)
    else:
        totals = [_sum_of(gradient) if i in (0, 1, 6) else gradient for i, gradient in enumerate(gradients)]

        def run() -> list[Tensor]:
            biases = []
            for states in slices:
                *into, _ = (u.new_empty(0) if x is None else x for x in _of_slice(states, totals))
                into.append(gradients[7] if delta_bias is None else _new(u, *delta_bias.shape))
                starts = _new(u, *dinitial[..., states].shape)
                last, first = (None if x is None else x[..., states] for x in (grad_last_state, initial_state))
                part = _of_slice(states, tensors)
                _run_backward(grad_out, last, part, walk, first, None, into, starts, add=states.start > 0)
                dinitial[..., states] = starts
                biases.append(into[7])
            return biases

        _compile_once(run, tensors, walk, initial_state, grad_last_state, grad_out, "backward")
        biases = run()
        for total, gradient in zip(totals, gradients, strict=True):
            if total is not gradient:
                gradient.copy_(total)
        gradients[7].copy_(torch.stack(biases).sum(0))
    dstart = u.new_empty(0) if initial_state is None else empty_in_order(initial_state).copy_(dinitial)
    return (*gradients, dstart)


def _run_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    tensors: Sequence[Any],
    walk: _Walk,
    initial_state: Tensor | None,
    checkpoints: Tensor | None,
    gradients: Sequence[Tensor],
    dinitial: Tensor,
    add: bool = False,
) -> None:
    """Write the gradients of ``tensors``, or add to those of u, delta and z, and write the initial state's.

    Sequences are taken a few at a time where what they need, beside inputs and results, would pass `WORKSPACE`.
    """
    u, enters = tensors[0], grad_last_state is not None
    plan = _plan_backward(grad_out, enters, add, *gradients, *tensors, *walk)
    pieces = _pieces(plan, tensors, checkpoints is None)
    if len(pieces) == 1:
        kept = _checkpoints(tensors, walk, initial_state) if checkpoints is None else checkpoints
        _differentiate(plan, grad_out, grad_last_state, tensors, walk.marks, kept, gradients, dinitial)
        return
    sums = []
    for rows in pieces:
        of_each = [x if x is None or x.dim() < 3 else x[rows] for x in tensors]
        into = [
            g[rows] if g.dim() > 2 else u.new_empty(0) if x is None else empty_in_order(x, torch.float32)
            for x, g in zip(tensors, gradients, strict=True)
        ]
        dout, start = grad_out[rows], dinitial[rows]
        last, first, marks = (None if x is None else x[rows] for x in (grad_last_state, initial_state, walk.marks))
        here = walk._replace(marks=marks)
        kept = _checkpoints(of_each, here, first) if checkpoints is None else checkpoints[rows]
        plan = _plan_backward(dout, enters, add, *into, *of_each, *here)
        _differentiate(plan, dout, last, of_each, marks, kept, into, start)
        sums.append(into)
    for parts, gradient in zip(zip(*sums, strict=True), gradients, strict=True):
        if gradient.dim() < 3:
            gradient.copy_(torch.stack(parts).sum(0))


def _pieces(plan: _Backward, tensors: Sequence[Any], scans_again: bool) -> list[slice]:
    """Return the sequences that are taken at a time, pieces of the batch."""
    u, _, A, B, C, *_ = tensors
    (batch, channels, length), states = u.shape, A.shape[1]
    numbers = math.prod(plan.scan.scratch) + batch * plan.scan.parts * channels * states
    numbers += batch * plan.scan.blocks * length * states * sum(M.dim() > 2 for M in (B, C))
    if scans_again:
        numbers += batch * ceil_divide(length, checkpoint_distance(states)) * states * channels
    count = max(1, min(batch, ceil_divide(4 * numbers, WORKSPACE)))
    rows = max(1, ceil_divide(batch, count))
    return [slice(start, start + rows) for start in range(0, max(1, batch), rows)]


def _differentiate(
    plan: _Backward,
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    tensors: Sequence[Any],
    marks: Tensor | None,
    checkpoints: Tensor,
    gradients: Sequence[Tensor],
    dinitial: Tensor,
) -> None:
    """Write the gradients of ``tensors``, and of the initial state."""
    u, A = tensors[0], tensors[2]
    (batch, channels, length), states = u.shape, A.shape[1]
    parts, blocks = plan.scan.parts, plan.scan.blocks
    du, ddelta, dA, dB, dC, dD, dz, dbias = gradients
    dA_parts, dD_parts = _new(u, batch, parts, channels, states), _new(u, batch, parts, channels)
    dbias_parts = torch.empty_like(dD_parts)
    dB_parts, dC_parts = (
        torch.empty_like(dA_parts) if add is None else _new(u, batch, blocks, length, states)
        for add in (plan.dB, plan.dC)
    )
    inputs = _inputs(marks, *tensors)
    entering = None if grad_last_state is None else grad_last_state.float().contiguous()
    into = (du, ddelta, dA_parts, dB_parts, dC_parts, dD_parts, dz, dbias_parts)
    plan.scan.run((*inputs, checkpoints, _new(u, *plan.scan.scratch), grad_out, *into), dinitial, entering)
    plan.parts(dA_parts, dD_parts, dbias_parts, dA, dD, dbias)
    for add, sums, gradient in ((plan.dB, dB_parts, dB), (plan.dC, dC_parts, dC)):
        if add is None:
            gradient.copy_(sums.sum((0, 1)))
        else:
            add(sums, gradient)
