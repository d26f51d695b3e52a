"""Routes along which grids are read, and the selective scan that reads them."""

from __future__ import annotations

from mamba_kernels.routes.op import selective_scan_route
from mamba_kernels.routes.readings import Readings
from mamba_kernels.routes.reference import route_scan
from mamba_kernels.routes.route import Route

__all__ = ["Readings", "Route", "route_scan", "selective_scan_route"]
