"""Routes along which grids are read, and the selective scan that reads them."""

from __future__ import annotations

from mamba_kernels.routes.readings import Readings
from mamba_kernels.routes.route import Route

__all__ = ["Readings", "Route"]
