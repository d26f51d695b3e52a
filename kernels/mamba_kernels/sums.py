"""The sums of parameters' gradients that the programs of a backward kernel leave, added up in a fixed order."""

from __future__ import annotations

from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid
from mamba_kernels.launch import Launch
from mamba_kernels.memo import per_layout
from mamba_kernels.triton_sums import sum_parts


@per_layout
def _plan(parts: Tensor, dweight: Tensor, dbias: Tensor | None) -> Launch:
    programs, sets, terms, channels = parts.shape
    # A part is one number a channel: few channels a program, so that many programs read at once.
    columns, rows = 16, min(256, max(16, 1 << (programs - 1).bit_length()))
    return Launch(
        sum_parts, launch_grid("sum_parts", ceil_divide(channels, columns), sets * terms),
        programs, channels, *dweight.stride(), *((0, 0) if dbias is None else dbias.stride()),
        TAPS=dweight.shape[2], TERMS=terms, ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


def add_parts(parts: Tensor, dweight: Tensor, dbias: Tensor | None) -> None:
    """Write the gradients of K sets of weights and biases from the parts that P programs leave.

    Args:
        parts: (P, K, W + 1, D) float32, the last of the W + 1 being the bias'; (P, K, W, D) where there is none.
        dweight: (K, D, W), any strides.
        dbias: (K, D), any strides, or None.
    """
    _plan(parts, dweight, dbias)(parts, dweight, dweight if dbias is None else dbias)
