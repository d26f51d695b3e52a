"""Norms of the last dimension: of a residual stream, and gated."""

from mamba_kernels.norm.gated import gated_rms_norm
from mamba_kernels.norm.op import layer_norm, rms_norm

__all__ = ["gated_rms_norm", "layer_norm", "rms_norm"]
