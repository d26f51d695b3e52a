"""What the scans of a route take of their mixers' parameters, made with few launches.

A small model on a GPU waits for the host: every operation on a parameter costs as much there as one on the activations.
So parameters that lie apart are copied together once, and the gradients handed out as parts of one tensor. A compiler
or exporter gets plain operations instead, which it can see through.

Dimensions in names: K readings, E inner channels, R rank of the step sizes, P that rank, padded, N state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.mixers.ssm_parameters import decay_rates
from mamba_kernels.eager import is_eager

# Matrix products are several times faster where rows start at multiples of 16 bytes: eight half-precision numbers.
_RANK_MULTIPLE = 8


class ScanWeights(NamedTuple):
    """What a scan along a route takes of the parameters.

    Args:
        project: (K, P + 2N, E) the projections to low-rank step sizes, B and C of each reading; or where the readings
            share what is projected (K*P + 2*K*N, E), first all step sizes, then all B, then all C.
        delta: (K, E, P) the projections from there to step sizes.
        A: (K*E, N) the decay rates.
        widths: How the columns that ``project`` gives split into low-rank step sizes, B and C.
    """

    project: Tensor
    delta: Tensor
    A: Tensor
    widths: tuple[int, int, int]


def scan_weights(
    project_KOE: Tensor, delta_KER: Tensor, A_log_KEN: Tensor, dtype: torch.dtype, *, shared: bool
) -> ScanWeights:
    """Return what a scan takes, with the rank padded by zeros, which change no number.

    Args:
        project_KOE: (K, R + 2N, E) each reading's projection to low-rank step sizes, B and C.
        delta_KER: The projections from there to step sizes.
        A_log_KEN: Logarithms of the decay rates; the rates have at least float32.
        dtype: That of the weights, which is that of what they multiply.
        shared: Whether all readings project the same tensor.
    """
    readings, _, rank = delta_KER.shape
    padded, state = rank + -rank % _RANK_MULTIPLE, A_log_KEN.shape[-1]
    each = readings if shared else 1
    widths = (each * padded, each * state, each * state)
    made = _in_eager if is_eager(project_KOE, delta_KER, A_log_KEN) else _in_graph
    project, delta_KEP, A = made(project_KOE, delta_KER, A_log_KEN, dtype, shared)
    return ScanWeights(project, delta_KEP, A, widths)


def stack_groups(*groups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Stack several groups of K tensors each by a single copy of all.

    Args:
        groups: Tensors of one shape and dtype a group.

    Returns:
        (K, ...) a group, where copied together in the widest dtype of all.
    """
    parts = [part for group in groups for part in group]
    if not is_eager(*parts):
        return tuple([torch.stack(list(group)) for group in groups])
    return _stack(len(groups[0]), *parts)


class _StackGroups(torch.autograd.Function):
    """Copies everything into one tensor; the gradients are parts of the stacks' gradients, and no copies."""

    @staticmethod
    def forward(ctx: Any, count: int, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [part.dtype for part in parts]
        firsts = parts[::count]
        flat = torch.cat([part.reshape(-1) for part in parts]).split([count * first.numel() for first in firsts])
        return tuple([stack.view(count, *first.shape) for stack, first in zip(flat, firsts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parts = [part for gradient in gradients for part in gradient.unbind()]
        return None, *[part.to(dtype) for part, dtype in zip(parts, ctx.dtypes, strict=True)]


def _in_graph(
    project_KOE: Tensor, delta_KER: Tensor, A_log_KEN: Tensor, dtype: torch.dtype, shared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_ScanWeights` does."""
    rank = delta_KER.shape[-1]
    short = -rank % _RANK_MULTIPLE
    steps = F.pad(project_KOE[:, :rank], (0, 0, 0, short))
    both = project_KOE[:, rank:].unflatten(1, (2, -1))
    if shared:
        project = torch.cat([steps.flatten(0, 1), both.transpose(0, 1).flatten(0, 2)])
    else:
        project = torch.cat([steps, both.flatten(1, 2)], 1)
    return project.to(dtype), F.pad(delta_KER, (0, short)).to(dtype), decay_rates(A_log_KEN).flatten(0, 1)


class _ScanWeights(torch.autograd.Function):
    """Casts, pads and exponentiates; its gradients need no more copies than it makes."""

    @staticmethod
    def forward(
        ctx: Any, project_KOE: Tensor, delta_KER: Tensor, A_log_KEN: Tensor, dtype: torch.dtype, shared: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        A = decay_rates(A_log_KEN).flatten(0, 1)
        ctx.save_for_backward(A)
        ctx.dtypes = (project_KOE.dtype, delta_KER.dtype, A_log_KEN.dtype)
        (readings, outputs, inner), rank = project_KOE.shape, delta_KER.shape[-1]
        short = -rank % _RANK_MULTIPLE
        ctx.rank, ctx.shared = rank, shared
        new = project_KOE.new_zeros if short else project_KOE.new_empty
        sizes = (readings * (outputs + short) * inner, readings * inner * (rank + short))
        project, delta = new(sum(sizes), dtype=dtype).split(sizes)
        project = project.view(-1, inner) if shared else project.view(readings, -1, inner)
        delta_KEP = delta.view(readings, inner, rank + short)
        steps, both = _places(project, readings, rank, short)
        steps.copy_(project_KOE[:, :rank])
        both.copy_(project_KOE[:, rank:].unflatten(1, (2, -1)))
        delta_KEP[..., :rank].copy_(delta_KER)
        return project, delta_KEP, A

    @staticmethod
    def backward(ctx: Any, dproject: Tensor, ddelta_KEP: Tensor, dA: Tensor) -> tuple[Tensor | None, ...]:
        (A,), (readings, _, padded) = ctx.saved_tensors, ddelta_KEP.shape
        steps, both = _places(dproject, readings, ctx.rank, padded - ctx.rank)
        dproject_KOE = torch.cat([steps, *both.unbind(1)], 1)
        gradients = (dproject_KOE, ddelta_KEP[..., : ctx.rank], (dA * A).unflatten(0, (readings, -1)))
        return *[part.to(dtype) for part, dtype in zip(gradients, ctx.dtypes, strict=True)], None, None


def _places(project: Tensor, readings: int, rank: int, short: int) -> tuple[Tensor, Tensor]:
    """Return the rows for step sizes (K, R, E), and those for B and C (K, 2, N, E)."""
    if project.dim() == 3:
        return project[:, :rank], project[:, rank + short :].unflatten(1, (2, -1))
    steps, both = project.tensor_split([readings * (rank + short)])
    return steps.unflatten(0, (readings, -1))[:, :rank], both.unflatten(0, (2, readings, -1)).transpose(0, 1)


# What `Function.apply` does before calling these is looking for function transforms, as `is_eager` has done.
_stack: Any = super(torch.autograd.Function, _StackGroups).apply
_in_eager: Any = super(torch.autograd.Function, _ScanWeights).apply
