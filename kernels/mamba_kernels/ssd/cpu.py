"""SSD on a CPU: chunks of the sequence as products of matrices, with the state carried from one to the next.

With a_t = dt_t A, position i of a chunk receives from position j <= i the part (C_i . B_j) exp(a_{j+1} + ... + a_i)
dt_j x_j, and from the state h that enters the chunk C_i . h exp(a_1 + ... + a_i) ("Transformers are SSMs", section 6).

All of it is PyTorch's own operations, and the matrix products are most of the work: autograd differentiates them any
number of times, and compilers and exporters follow them, one chunk after the other. An operator registered with
``torch.library`` would hide them and save nothing.

Dimensions: B batch, L length, Q positions of a chunk, H heads, P head width, N state,
G groups, R heads of a group.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_kernels.autograd import wants_gradient
from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of
from mamba_kernels.segments import segment_marks
from mamba_kernels.ssd.reference import masked, step_sizes

CHUNK = 64
# A step that multiplies the state by less than exp of this is a reset: sums of logarithms do not reach across it.
RESET = -80.0
# Pairs of positions, over all chunks and heads, from which on a chunk is computed anew for its gradient, not stored.
STORED_PAIRS = 2**24


class Chunk(NamedTuple):
    """What one chunk reads, in reading order."""

    x_BQHP: Tensor
    dt_BQH: Tensor
    B_BQGN: Tensor
    C_BQGN: Tensor
    z_BQHP: Tensor | None
    reset_BQ: Tensor | None
    padding_BQ: Tensor | None


class Parameters(NamedTuple):
    """What all chunks have in common."""

    A_H: Tensor
    D: Tensor | None
    dt_bias_H: Tensor | None
    dt_softplus: bool
    dt_limit: tuple[float, float]
    dtype: torch.dtype
    out_dtype: torch.dtype


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    chunk_size: int | None,
    D: Tensor | None,
    z_BLHP: Tensor | None,
    dt_bias_H: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_states_BHPN: Tensor | None,
    seq_idx_BL: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the output and the final states; the arguments are those of `ssd`, already checked."""
    dtype = compute_dtype(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN)
    batch, length, heads, width = x_BLHP.shape
    size = min(chunk_size or CHUNK, length)
    parameters = Parameters(A_H, D, dt_bias_H, dt_softplus, dt_limit, dtype, out_dtype)

    def reading(x: Tensor | None) -> Tensor | None:
        return x.flip(1) if reverse and x is not None else x

    inputs = [reading(x) for x in (x_BLHP, dt_BLH, B_BLGN, C_BLGN, z_BLHP)]
    ids_BL = reading(seq_idx_BL)
    marks = (None, None) if ids_BL is None else segment_marks(ids_BL)
    count = -(-length // size)
    parts = ([None] * count if x is None else x.split(size, dim=1) for x in (*inputs, *marks))

    if initial_states_BHPN is None:
        state_BHPN = torch.zeros(batch, heads, width, B_BLGN.shape[-1], dtype=dtype, device=x_BLHP.device)
    else:
        state_BHPN = initial_states_BHPN.to(dtype)
    run = _run
    if batch * heads * length * size > STORED_PAIRS and wants_gradient(*inputs, A_H, D, dt_bias_H, initial_states_BHPN):
        run = partial(checkpoint, _run, use_reentrant=False, preserve_rng_state=False)
    ys = []
    for part in zip(*parts, strict=True):
        y_BQHP, state_BHPN = run(Chunk(*part), parameters, state_BHPN)
        ys.append(y_BQHP)
    y_BLHP = torch.cat(ys, dim=1)
    return in_order_of(y_BLHP.flip(1) if reverse else y_BLHP, x_BLHP), state_BHPN.clone()


def _run(chunk: Chunk, parameters: Parameters, state_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    """Return a chunk's output and the state that leaves it."""
    dtype, padding_BQ = parameters.dtype, chunk.padding_BQ
    x_BQHP, dt_BQH, B_BQGN, C_BQGN = (masked(x.to(dtype), padding_BQ) for x in chunk[:4])
    dt_BQH = step_sizes(dt_BQH, parameters.dt_bias_H, parameters.dt_softplus, parameters.dt_limit, dtype)
    # A step of no size leaves the state alone.
    dt_BQH = masked(dt_BQH, padding_BQ)
    within_BHQQ, entering_BHQ = _decays(dt_BQH * parameters.A_H.to(dtype), chunk.reset_BQ)

    groups = B_BQGN.shape[2]
    B_BGQN, C_BGQN = B_BQGN.transpose(1, 2), C_BQGN.transpose(1, 2)
    input_BGRQP = (dt_BQH[..., None] * x_BQHP).transpose(1, 2).unflatten(1, (groups, -1))
    within_BGRQQ, entering_BGRQ = (decay.unflatten(1, (groups, -1)) for decay in (within_BHQQ, entering_BHQ))
    state_BGRPN = state_BHPN.unflatten(1, (groups, -1))
    heads = state_BGRPN.shape[2:4]

    score_BGQQ = C_BGQN @ B_BGQN.mT
    y_BGRQP = (score_BGQQ[:, :, None] * within_BGRQQ) @ input_BGRQP
    carried_BGQRP = (C_BGQN @ state_BGRPN.flatten(2, 3).mT).unflatten(-1, heads)
    y_BGRQP = y_BGRQP + entering_BGRQ[..., None] * carried_BGQRP.transpose(2, 3)
    # The decays of the last row are those up to the chunk's end.
    left_BGRQP = within_BGRQQ[..., -1, :, None] * input_BGRQP
    added_BGRPN = (left_BGRQP.mT.flatten(2, 3) @ B_BGQN).unflatten(2, heads)
    state_BGRPN = entering_BGRQ[..., -1, None, None] * state_BGRPN + added_BGRPN

    y_BQHP = y_BGRQP.flatten(1, 2).transpose(1, 2)
    D = parameters.D
    if D is not None:
        y_BQHP = y_BQHP + (D[:, None] if D.dim() == 1 else D).to(dtype) * x_BQHP
    if chunk.z_BQHP is not None:
        y_BQHP = y_BQHP * F.silu(masked(chunk.z_BQHP.to(dtype), padding_BQ))
    return masked(y_BQHP, padding_BQ).to(parameters.out_dtype), state_BGRPN.flatten(1, 2)


def _decays(log_BQH: Tensor, reset_BQ: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return how much of position j is left at i (B, H, Q, Q), and of the entering state (B, H, Q).

    Sums of logarithms are differences of one running sum. In float64 that costs nothing of float32's precision, nor
    does its gradient's; a reset adds nothing to the sum and instead parts the positions before it from those after.
    """
    reset_BHQ = (log_BQH < RESET).transpose(1, 2)
    if reset_BQ is not None:
        reset_BHQ = reset_BHQ | reset_BQ[:, None]
    part_BHQ = reset_BHQ.cumsum(-1)
    sum_BHQ = log_BQH.transpose(1, 2).masked_fill(reset_BHQ, 0.0).double().cumsum(-1)
    reached_BHQQ = (part_BHQ[..., :, None] == part_BHQ[..., None, :]).tril()
    # Masked before the exponential, which would overflow above the diagonal.
    within_BHQQ = (sum_BHQ[..., :, None] - sum_BHQ[..., None, :]).masked_fill(~reached_BHQQ, float("-inf"))
    entering_BHQ = sum_BHQ.masked_fill(part_BHQ > 0, float("-inf"))
    return within_BHQQ.to(log_BQH.dtype).exp(), entering_BHQ.to(log_BQH.dtype).exp()
