"""The causal convolution along a sequence, one filter a channel: in parallel and step by step."""

from mamba_kernels.causal_conv1d.bidirectional import causal_conv1d_bidirectional
from mamba_kernels.causal_conv1d.op import causal_conv1d
from mamba_kernels.causal_conv1d.update import causal_conv1d_update
from mamba_kernels.causal_conv1d.varlen import causal_conv1d_varlen_states

__all__ = ["causal_conv1d", "causal_conv1d_bidirectional", "causal_conv1d_update", "causal_conv1d_varlen_states"]
