"""The selective scan on a GPU: lays the inputs out for the Triton kernels and launches them.

The configuration is a pure function of the shapes and the GPU, and nothing is added atomically, so that results repeat
bit for bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid, multiprocessors, on_device_of_inputs, refuse_float64
from mamba_kernels.layout import empty_in_order
from mamba_kernels.segments import segment_marks
from mamba_kernels.selective_scan.triton_backward import scan_backward
from mamba_kernels.selective_scan.triton_forward import scan_forward
from mamba_kernels.selective_scan.triton_plan import (
    BACKWARD_STEPS,
    CHUNK,
    FORWARD_STEPS,
    checkpoint_shape,
    make_plan,
)
from mamba_kernels.selective_scan.triton_steps import carry_states

CARRY_BLOCK = 128


class _Matrix(NamedTuple):
    """B or C as the kernels take it: (B, G, N, L), or (N, D) where it is constant."""

    values: Tensor
    strides: tuple[int, ...]
    varies: bool
    groups: int


def _matrix(M: Tensor) -> _Matrix:
    if M.dim() == 2:
        return _Matrix(M.mT.float().contiguous(), (0, 0, 0, 0), False, 1)
    M = M[:, None] if M.dim() == 3 else M
    return _Matrix(M, tuple(M.stride()), True, M.shape[1])


def _vector(x: Tensor | None) -> Tensor | None:
    """Return a parameter of the channels without gaps: the kernels know no stride of it."""
    return None if x is None else x.contiguous()


def _marks(seq_idx: Tensor | None, reverse: bool) -> Tensor | None:
    """Return what each position is in reading order: bit 0 for a real token, bit 1 where the state is reset."""
    if seq_idx is None:
        return None
    reset, padding = segment_marks(seq_idx.flip(1) if reverse else seq_idx)
    return ((~padding).to(torch.int8) + 2 * reset.to(torch.int8)).contiguous()


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if x is None else tuple(x.stride())


class _Scan:
    """One scan's inputs as the kernels take them, forward and backward."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        seq_idx: Tensor | None,
        reverse: bool,
    ) -> None:
        refuse_float64("selective_scan", u, delta, A, B, C, D, z, delta_bias)
        batch, channels, length = u.shape
        states = A.shape[1]
        self.B, self.C = _matrix(B), _matrix(C)
        groups = math.lcm(self.B.groups, self.C.groups)
        self.plan = make_plan(batch, channels, length, states, groups, multiprocessors(u.device))
        self.device, self.u = u.device, u
        # A group of B may hold several of C and the other way round: the kernels' groups are the smaller ones.
        shares = (groups // self.B.groups, groups // self.C.groups)
        self.sizes = (
            channels,
            states,
            length,
            self.plan.group_channels,
            *shares,
            self.plan.part_length,
            self.plan.parts,
        )
        self.grid = launch_grid("selective_scan", batch * self.plan.blocks, self.plan.parts)
        self.states_shape = (batch, self.plan.parts, states, channels)
        marks = _marks(seq_idx, reverse)
        missing = u  # A pointer that is never read.
        self.inputs = (
            u, delta, A.mT.float().contiguous(), self.B.values, self.C.values,
            *(missing if x is None else x for x in (_vector(D), z, _vector(delta_bias), marks)),
        )  # fmt: skip
        self.strides = (
            *u.stride(), *delta.stride(), *self.B.strides, *self.C.strides, *_strides(z),
        )  # fmt: skip
        self.options: dict[str, Any] = {
            "N_PAD": self.plan.state_pad,
            "BLOCK": self.plan.block,
            "CHUNK": CHUNK,
            "SOFTPLUS": delta_softplus,
            "REVERSE": reverse,
            "B_VARIES": self.B.varies,
            "C_VARIES": self.C.varies,
            "HAS_D": D is not None,
            "HAS_BIAS": delta_bias is not None,
            "HAS_MARKS": marks is not None,
            "num_warps": 1,
        }

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def carry(self, ends: Tensor, decays: Tensor, start: Tensor | None, backward: bool) -> Tensor:
        """Return the state entering each part."""
        batch, parts, states, channels = self.states_shape
        carried, size = torch.empty_like(ends), states * channels
        carry_states[(ceil_divide(size, CARRY_BLOCK), batch)](
            ends, decays, ends if start is None else start, carried, parts, size,
            BACKWARD=backward, HAS_START=start is not None, BLOCK=CARRY_BLOCK,
        )  # fmt: skip
        return carried

    def total(self, parts: Tensor) -> Tensor:
        """Return sums over time that each part left as (B, parts, N, D), added up, as (D, N)."""
        return parts.sum((0, 1)).mT

    def matrix_total(self, sums: Tensor, M: Tensor, matrix: _Matrix) -> Tensor:
        """Return the gradient of B or C in its shape and dimension order."""
        gradient = empty_in_order(M)
        if not matrix.varies:
            return gradient.copy_(self.total(sums))
        batch, blocks, length, states = sums.shape
        grouped = sums.view(batch, matrix.groups, blocks // matrix.groups, length, states).sum(2).mT
        return gradient.copy_(grouped.view(M.shape))


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
    scan = _Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, reverse)
    batch, parts, states, channels = scan.states_shape
    out = empty_in_order(u, out_dtype)
    leaving = scan.empty(batch, states, channels)
    checkpoints = scan.empty(*(checkpoint_shape(u, A, B, C) if save else (0,)))
    entering = None if initial_state is None else initial_state.mT.float().contiguous()

    def launch(entering: Tensor | None, leaving: Tensor, decays: Tensor | None, **options: bool) -> None:
        scan_forward[scan.grid](
            *scan.inputs, leaving if entering is None else entering, out, leaving, checkpoints,
            leaving if decays is None else decays, *scan.sizes, *scan.strides, *out.stride(),
            **scan.options, STEPS=FORWARD_STEPS, HAS_ENTERING=entering is not None, **options,
        )  # fmt: skip

    if parts > 1:
        ends, decays = scan.empty(*scan.states_shape), scan.empty(*scan.states_shape)
        launch(None, ends, decays, HAS_Z=False, ENDS=True, SAVE=False)
        entering = scan.carry(ends, decays, entering, backward=False)
    launch(entering, leaving, None, HAS_Z=z is not None, ENDS=False, SAVE=save)
    return out, leaving.mT.contiguous(), checkpoints


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
    scan = _Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, reverse)
    batch, parts, states, channels = scan.states_shape
    length, blocks = u.shape[2], scan.plan.blocks
    du, ddelta = empty_in_order(u), empty_in_order(delta)
    dz = None if z is None else empty_in_order(z)
    dA, leaving = scan.empty(*scan.states_shape), scan.empty(batch, states, channels)
    dB, dC = (
        scan.empty(*((batch, blocks, length, states) if matrix.varies else scan.states_shape))
        for matrix in (scan.B, scan.C)
    )
    dD, dbias = scan.empty(batch, parts, channels), scan.empty(batch, parts, channels)
    scratch = scan.empty(batch * parts * blocks, CHUNK // BACKWARD_STEPS, scan.plan.state_pad * scan.plan.block)
    entering = None if grad_last_state is None else grad_last_state.mT.float().contiguous()

    def launch(entering: Tensor | None, leaving: Tensor, decays: Tensor | None, ends: bool) -> None:
        scan_backward[scan.grid](
            *scan.inputs, checkpoints, scratch, grad_out, leaving if entering is None else entering,
            du, ddelta, dA, dB, dC, dD, du if dz is None else dz, dbias, leaving, leaving if decays is None else decays,
            *scan.sizes, blocks, *scan.strides, *grad_out.stride(), *du.stride(), *ddelta.stride(), *_strides(dz),
            **scan.options, STEPS=BACKWARD_STEPS, HAS_Z=z is not None, HAS_ENTERING=entering is not None, ENDS=ends,
        )  # fmt: skip

    if parts > 1:
        ends, decays = scan.empty(*scan.states_shape), scan.empty(*scan.states_shape)
        launch(None, ends, decays, ends=True)
        entering = scan.carry(ends, decays, entering, backward=True)
    launch(entering, leaving, None, ends=False)

    def like(x: Tensor | None, gradient: Tensor) -> Tensor:
        return u.new_empty(0) if x is None else empty_in_order(x).copy_(gradient)

    return (
        du,
        ddelta,
        empty_in_order(A).copy_(scan.total(dA)),
        scan.matrix_total(dB, B, scan.B),
        scan.matrix_total(dC, C, scan.C),
        like(D, dD.sum((0, 1))),
        u.new_empty(0) if dz is None else dz,
        like(delta_bias, dbias.sum((0, 1))),
        like(initial_state, leaving.mT),
    )
