"""Operators of selective state space models on tensors, and the routes they read grids along."""

from __future__ import annotations

from mamba_kernels.routes import Readings, Route

__all__ = ["Readings", "Route"]
