"""The selective scan on a CPU: lays the inputs out for the compiled kernels and shares the tasks among threads."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import empty_in_order
from mamba_kernels.segments import segment_marks
from mamba_kernels.selective_scan.cpu_backward import Gradients, scan_backward
from mamba_kernels.selective_scan.cpu_forward import scan_forward
from mamba_kernels.selective_scan.cpu_plan import PADDING, RESET, Inputs, Plan, View
from mamba_kernels.simd import LANES
from mamba_kernels.threads import run_workers
from mamba_kernels.tiles import flat

# Tasks a scan is cut into where it can be: enough to keep many threads busy, few enough that the partial sums of dB and
# dC, one for each task of a sequence, stay small.
TASKS = 16


def chunk_steps(state: int) -> int:
    """Return how many steps stay in the cache at once for a state size."""
    return max(8, min(128, 2048 // state))


def checkpoint_steps(state: int) -> int:
    """Return how many steps lie between checkpoints, so that they take at most a quarter of the input's memory."""
    chunk = chunk_steps(state)
    return max(1, 4 * state // chunk) * chunk


def checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Return the shape of the states a forward pass keeps for its backward, (B, S, K, N, 16)."""
    batch, channels, length = u.shape
    state = A.shape[1]
    groups = _groups(B, C)[0]
    blocks = groups * -(-(channels // groups) // LANES)
    return batch, (length - 1) // checkpoint_steps(state), blocks, state, LANES


def _groups(B: Tensor, C: Tensor) -> tuple[int, int, int]:
    """Return the number of groups within which all channels share B and C, that of B and that of C."""
    B_groups, C_groups = (M.shape[1] if M.dim() == 4 else 1 for M in (B, C))
    return math.lcm(B_groups, C_groups), B_groups, C_groups


def make_plan(
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    delta_softplus: bool,
    gated: bool,
    marked: bool,
    reverse: bool,
    save: bool,
) -> Plan:
    """Cut a scan into tasks by its shapes alone, so that the result does not depend on the number of threads."""
    batch, channels, length = u.shape
    groups, B_groups, C_groups = _groups(B, C)
    group_channels = channels // groups
    group_blocks = -(-group_channels // LANES)
    splits = min(group_blocks, max(1, -(-TASKS // max(1, batch * groups))))
    task_blocks = -(-group_blocks // splits)
    splits = -(-group_blocks // task_blocks)
    return Plan(
        tasks=batch * groups * splits,
        length=length,
        state=A.shape[1],
        groups=groups,
        group_channels=group_channels,
        group_blocks=group_blocks,
        task_blocks=task_blocks,
        splits=splits,
        chunk=chunk_steps(A.shape[1]),
        every=checkpoint_steps(A.shape[1]) if save else 0,
        B_share=groups // B_groups,
        C_share=groups // C_groups,
        B_fixed=int(B.dim() == 2),
        C_fixed=int(C.dim() == 2),
        softplus=int(delta_softplus),
        gated=int(gated),
        marked=int(marked),
        reverse=int(reverse),
    )


def _to_blocks(x: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """Lay (..., D, N) out as (..., K, N, 16), contiguous, with zeros in the lanes a group lacks."""
    *leading, _, state = x.shape
    x = x.to(dtype).reshape(*leading, plan.groups, plan.group_channels, state)
    x = F.pad(x, (0, 0, 0, plan.group_blocks * LANES - plan.group_channels))
    x = x.reshape(*leading, plan.groups * plan.group_blocks, LANES, state)
    return x.transpose(-1, -2).contiguous()


def _from_blocks(x: Tensor, plan: Plan) -> Tensor:
    """Undo `_to_blocks`: (..., K, N, 16) to (..., D, N)."""
    *leading, _, state, _ = x.shape
    x = x.transpose(-1, -2).reshape(*leading, plan.groups, plan.group_blocks * LANES, state)
    return x[..., : plan.group_channels, :].reshape(*leading, plan.groups * plan.group_channels, state)


def _view(x: Tensor | None, dtype: torch.dtype) -> View:
    """Return a tensor as the kernels take it; a missing one is never read."""
    if x is None:
        return View(flat(None, dtype), (0, 0, 0))
    return View(flat(x), tuple(x.stride()))


def _matrix_view(M: Tensor, plan: Plan, dtype: torch.dtype) -> View:
    """Return B or C as the kernels take it, constant ones in blocks."""
    if M.dim() == 2:
        return View(_to_blocks(M, plan, dtype).view(-1).numpy(), (0, 0, 0, 0))
    M = M.to(dtype)
    return _view(M if M.dim() == 4 else M[:, None], dtype)


def _marks(seq_idx: Tensor | None, reverse: bool) -> Tensor:
    if seq_idx is None:
        return torch.zeros(1, dtype=torch.uint8)
    reset, padding = segment_marks(seq_idx.flip(1) if reverse else seq_idx)
    return (reset * RESET + padding * PADDING).to(torch.uint8).contiguous()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros from pages the system hands out empty: nothing is written, and no thread of PyTorch's is woken.

    Those spin for milliseconds after an operation, on the cores the kernels are about to use.
    """
    return torch.from_numpy(np.zeros(shape, np.float64 if dtype == torch.float64 else np.float32))


def _counter() -> np.ndarray:
    return np.zeros(1, np.int64)


def _inputs(
    plan: Plan,
    dtype: torch.dtype,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    seq_idx: Tensor | None,
) -> Inputs:
    missing_D = torch.zeros((), dtype=dtype).expand(u.shape[1])
    skip, bias = (_to_blocks((missing_D if x is None else x)[:, None], plan, dtype) for x in (D, delta_bias))
    return Inputs(
        u=_view(u.to(dtype), dtype),
        delta=_view(delta.to(dtype), dtype),
        A=flat(_to_blocks(A.to(dtype) * math.log2(math.e), plan, dtype)),
        B=_matrix_view(B, plan, dtype),
        C=_matrix_view(C, plan, dtype),
        D=flat(skip),
        z=_view(None if z is None else z.to(dtype), dtype),
        bias=flat(bias),
        marks=flat(_marks(seq_idx, bool(plan.reverse))),
    )


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
    dtype = compute_dtype(u, delta, A, B, C)
    plan = make_plan(
        u, A, B, C, delta_softplus=delta_softplus, gated=z is not None, marked=seq_idx is not None, reverse=reverse,
        save=save,
    )  # fmt: skip
    batch = u.shape[0]
    blocks = plan.groups * plan.group_blocks
    if initial_state is None:
        state = _zeros((batch, blocks, plan.state, LANES), dtype)
    else:
        state = _to_blocks(initial_state, plan, dtype)
        state = state.clone() if state.data_ptr() == initial_state.data_ptr() else state
    checkpoints = torch.empty(checkpoint_shape(u, A, B, C) if save else (0,), dtype=dtype)
    y = empty_in_order(u, dtype)
    inputs = _inputs(plan, dtype, u, delta, A, B, C, D, z, delta_bias, seq_idx)
    arguments = (_counter(), plan, inputs, flat(state), flat(checkpoints), _view(y, dtype))
    run_workers(lambda: scan_forward(*arguments), plan.tasks)
    if out_dtype != dtype:
        y = empty_in_order(u, out_dtype).copy_(y)
    return y, _from_blocks(state, plan).contiguous(), checkpoints


def _partial_sums(M: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """Return where the tasks of one sequence write their part of the gradient of B or C, (B, P, N, L)."""
    batch, *_, length = M.shape
    return torch.empty(batch, plan.groups * plan.splits, length, plan.state, dtype=dtype).transpose(2, 3)


def _matrix_gradient(M: Tensor, parts: Tensor, plan: Plan) -> Tensor:
    """Return the gradient of B or C from the parts the tasks wrote, in the dimension order of ``M``."""
    gradient = empty_in_order(M)
    if M.dim() == 2:
        return gradient.copy_(_from_blocks(parts.sum(0), plan))
    batch, tasks, state, length = parts.shape
    groups = M.shape[1] if M.dim() == 4 else 1
    total = parts.reshape(batch, groups, tasks // groups, state, length).sum(2)
    return gradient.copy_(total.view(M.shape))


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state, empty for absent inputs."""
    dtype = compute_dtype(u, delta, A, B, C)
    plan = make_plan(
        u, A, B, C, delta_softplus=delta_softplus, gated=z is not None, marked=seq_idx is not None, reverse=reverse,
        save=checkpoints.numel() > 0,
    )  # fmt: skip
    batch = u.shape[0]
    blocks = plan.groups * plan.group_blocks
    per_state, per_channel = (batch, blocks, plan.state, LANES), (batch, blocks, LANES)
    initial = _zeros(per_state, dtype) if initial_state is None else _to_blocks(initial_state, plan, dtype)
    if grad_last_state is None:
        carry = _zeros(per_state, dtype)
    else:
        carry = _to_blocks(grad_last_state, plan, dtype)
        carry = carry.clone() if carry.data_ptr() == grad_last_state.data_ptr() else carry
    du, ddelta = empty_in_order(u, dtype), empty_in_order(delta, dtype)
    dz = None if z is None else empty_in_order(z, dtype)
    dA, dskip, dbias = (_zeros(shape, dtype) for shape in (per_state, per_channel, per_channel))
    dB, dC = (_zeros(per_state, dtype) if M.dim() == 2 else _partial_sums(M, plan, dtype) for M in (B, C))
    gradients = Gradients(
        u=_view(du, dtype),
        delta=_view(ddelta, dtype),
        A=flat(dA),
        B=View(flat(dB), tuple(dB.stride()[:4])),
        C=View(flat(dC), tuple(dC.stride()[:4])),
        D=flat(dskip),
        z=_view(dz, dtype),
        bias=flat(dbias),
        state=flat(carry),
    )
    inputs = _inputs(plan, dtype, u, delta, A, B, C, D, z, delta_bias, seq_idx)
    arguments = (
        _counter(),
        plan,
        inputs,
        flat(initial),
        flat(checkpoints),
        _view(grad_out.to(dtype), dtype),
        gradients,
    )
    run_workers(lambda: scan_backward(*arguments), plan.tasks)

    def in_order(gradient: Tensor | None, x: Tensor | None) -> Tensor:
        if gradient is None or x is None:
            return u.new_empty(0)
        return gradient if gradient.dtype == x.dtype else empty_in_order(x).copy_(gradient)

    def summed(gradient: Tensor, x: Tensor | None) -> Tensor:
        if x is None:
            return u.new_empty(0)
        return empty_in_order(x).copy_(_from_blocks(gradient.sum(0)[:, None], plan)[:, 0])

    return (
        in_order(du, u),
        in_order(ddelta, delta),
        empty_in_order(A).copy_(_from_blocks(dA.sum(0), plan)),
        _matrix_gradient(B, dB, plan),
        _matrix_gradient(C, dC, plan),
        summed(dskip, D),
        in_order(dz, z),
        summed(dbias, delta_bias),
        u.new_empty(0) if initial_state is None else empty_in_order(initial_state).copy_(_from_blocks(carry, plan)),
    )
