"""What is measured: an operator at a shape, what it computes, and the least work that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Problem:
    """An operator's inputs at a shape, with what is needed to judge results and times.

    Args:
        operator: The operator; takes the inputs by name.
        inputs: Leaves that ask for a gradient.
        dims: The letters of each input's dimensions, such as ``("B", "D", "L")``.
        out_dims: The same of each result.
        reference: The operator in plain PyTorch, for a sample of the inputs in float64.
        sample: Indices along some of the letters, such as batch and channels, which must be independent of each other.
        out_bytes: The results' size in memory.
        exponentials: How many of them the forward pass needs; the backward pass needs as many again.
        backward_reads: Bytes the backward pass reads besides the results' gradients; those of the inputs if None.
        rivals: Other implementations by name, with the arguments of ``operator``.
    """

    operator: Callable[..., Any]
    inputs: dict[str, Tensor]
    dims: dict[str, Sequence[str]]
    out_dims: Sequence[Sequence[str]]
    reference: Callable[..., Any]
    sample: dict[str, list[int]]
    out_bytes: int
    exponentials: int = 0
    backward_reads: int | None = None
    rivals: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def in_bytes(self) -> int:
        """The inputs' size in memory."""
        return sum(x.nbytes for x in self.inputs.values())

    @property
    def bytes_moved(self) -> int:
        """The least bytes of a forward pass: every input read and every result written once."""
        return self.in_bytes + self.out_bytes

    @property
    def backward_bytes(self) -> int:
        """The least bytes of a backward pass: what it reads, the results' gradients, and a gradient of each input."""
        reads = self.in_bytes if self.backward_reads is None else self.backward_reads
        return reads + self.out_bytes + self.in_bytes


def pick(x: Tensor, dims: Sequence[str], sample: dict[str, Tensor]) -> Tensor:
    """Return a tensor at the sample's places along those of its dimensions that the sample names."""
    for axis, dim in enumerate(dims):
        if dim in sample:
            x = x.index_select(axis, sample[dim])
    return x
