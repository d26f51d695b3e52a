"""SSD, the recurrence of Mamba-2: one decay a head and step, so that its work is products of matrices."""

from mamba_kernels.ssd.op import ssd
from mamba_kernels.ssd.route import ssd_route

__all__ = ["ssd", "ssd_route"]
