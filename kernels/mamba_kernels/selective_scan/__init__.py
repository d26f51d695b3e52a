"""The selective scan of Mamba-1: the recurrence along a sequence, forward and backward."""

from mamba_kernels.selective_scan import decomposition  # noqa: F401  (registers itself)
from mamba_kernels.selective_scan.op import selective_scan

__all__ = ["selective_scan"]
