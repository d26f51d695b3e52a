"""Operators of selective state space models on tensors, and the routes they read grids along."""

from mamba_kernels.selective_scan import selective_scan

__all__ = ["selective_scan"]
