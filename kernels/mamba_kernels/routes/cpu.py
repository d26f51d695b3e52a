"""The selective scan along a route: one scan a reading, of inputs that are gathered only where they must be.

Of mirrored readings the second is the first one's path, scanned from its end; row-major paths are read as they lie.
One reading's inputs are laid out at a time. The scans are those of `selective_scan`.

Dimensions: B batch, K readings, L cells of the grid, D channels, N state, R rank of a low-rank delta, X any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.routes.readings import Readings
from mamba_kernels.selective_scan import registered as scans


@per_layout
def checkpoint_shape(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Return the shape of the states that the scans of all readings keep for the backward pass."""
    u_BLD = (x if x.dim() < delta.dim() else x[:, 0]).flatten(1, -2)
    B_BNL, C_BNL = (M[:, 0].flatten(1, -2).mT for M in (B, C))
    return delta.shape[1], *scans.checkpoint_shape(u_BLD.mT, A[: x.shape[-1]], B_BNL, C_BNL)


class _Path:
    """A way through the grid, taken by one reading, or by two of which the second walks it backwards."""

    def __init__(self, readings: Readings, index: int, paths: int) -> None:
        self.taken_by = range(index, readings.K, paths)
        self._grid = readings.shape
        self._plain = readings.row_major and index == 0
        self._order, self._inverse = readings.order[index], readings.inverse[index]
        self._segment = None if readings.segment is None else readings.segment[index]

    def read(self, x: Tensor) -> Tensor:
        """Return (B, L, X) along the path from (B, *grid, X)."""
        x_BLX = x.flatten(1, -2)
        return x_BLX if self._plain else x_BLX.index_select(1, self._order)

    def put_back(self, y_BLX: Tensor) -> Tensor:
        """Return (B, *grid, X) from (B, L, X) along the path."""
        return (y_BLX if self._plain else y_BLX.index_select(1, self._inverse)).unflatten(1, self._grid)

    def seq_idx(self, batch: int) -> Tensor | None:
        """Return the segments along the path."""
        return None if self._segment is None else self._segment.expand(batch, -1)


class RouteScan:
    """A scan along a route: the checked inputs of `selective_scan_route`, and the passes over them.

    Args:
        x: (B, *grid, D) or (B, K, *grid, D).
        delta: (B, K, *grid, D or R).
        A: (K*D, N).
        B: (B, K, *grid, N).
        C: (B, K, *grid, N).
        D: (K*D,) or None.
        delta_bias: (K*D,) or None.
        delta_weight: (K, D, R) or None.
        delta_softplus: Whether delta goes through softplus.
        readings: Those of the route on the grid.
    """

    def __init__(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_weight: Tensor | None,
        delta_softplus: bool,
        readings: Readings,
    ) -> None:
        self._x, self._delta, self._A, self._B, self._C = x, delta, A, B, C
        self._D, self._bias, self._weight = D, delta_bias, delta_weight
        self._softplus, self._readings = delta_softplus, readings
        self._dtype = compute_dtype(x, delta, A, B, C, delta_weight)
        self._shared = x.dim() < delta.dim()
        self._scan = scans.kernels_on(x.device)

    def forward(self, z: Tensor | None, out_dtype: torch.dtype, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result (B, *grid, D or K*D), and what `backward` starts from.

        Args:
            z: The gate, or None.
            out_dtype: The result's dtype.
            save: Whether `backward` will follow: only then are checkpoints and, in the result's dtype, the merged
                result before the gate kept.
        """
        merged, checkpoints = self._merged(save)
        gated = merged if z is None else merged * F.silu(z.to(merged.dtype))
        kept = (merged if save and z is not None else merged.new_empty(0)).to(out_dtype)
        return gated.to(out_dtype), kept, checkpoints

    def _merged(self, save: bool) -> tuple[Tensor, Tensor]:
        concat = self._readings.merge == "concat"
        channels = self._x.shape[-1] * (self._readings.K if concat else 1)
        shape = (self._x.shape[0], *self._readings.shape, channels)
        merged = torch.zeros(shape, dtype=self._dtype, device=self._x.device)
        checkpoints = [merged.new_empty(0)] * self._readings.K
        for path in self._paths():
            total_BLD = None
            for k, u_BLD in self._readings_of(path):
                y_BDL, _, checkpoints[k] = self._scan.forward(
                    **self._arguments(path, k, u_BLD), out_dtype=self._dtype, save=save
                )
                if concat:
                    merged[..., self._rows(k)] = path.put_back(y_BDL.mT)
                else:
                    total_BLD = y_BDL.mT if total_BLD is None else total_BLD.add_(y_BDL.mT)
            if total_BLD is not None:
                merged.add_(path.put_back(total_BLD))
        if self._readings.merge == "mean":
            merged.div_(self._readings.K)
        return merged, torch.stack(checkpoints) if save else merged.new_empty(0)

    def backward(self, dout: Tensor, z: Tensor | None, merged: Tensor, checkpoints: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, delta, A, B, C, D, z, delta_bias and delta_weight, empty for absent inputs."""
        x, dtype = self._x, self._dtype
        grad_merged, dz = dout.to(dtype), x.new_empty(0)
        if z is not None:
            gate = z.to(dtype)
            sigmoid = gate.sigmoid()
            dz = empty_in_order(z).copy_(grad_merged * merged * (sigmoid * (1 + gate * (1 - sigmoid))))
            grad_merged = grad_merged * (gate * sigmoid)
        concat = self._readings.merge == "concat"
        if self._readings.merge == "mean":
            grad_merged = grad_merged / self._readings.K
        dx_shared = torch.zeros_like(grad_merged[..., : x.shape[-1]]) if self._shared else None
        dx, ddelta, dA, dB, dC = (empty_in_order(part) for part in (x, self._delta, self._A, self._B, self._C))
        dD, dbias, dweight = (
            x.new_empty(0) if part is None else empty_in_order(part) for part in (self._D, self._bias, self._weight)
        )
        for path in self._paths():
            dy_BLD = None if concat else path.read(grad_merged)
            total_BLD = None
            for k, u_BLD in self._readings_of(path):
                rows = self._rows(k)
                dy = path.read(grad_merged[..., rows]) if dy_BLD is None else dy_BLD
                du_BDL, ddelta_BDL, dA[rows], dB_BNL, dC_BNL, dD_D, _, dbias_D, _ = self._scan.backward(
                    dy.mT, None, **self._arguments(path, k, u_BLD), checkpoints=checkpoints[k]
                )
                if dx_shared is None:
                    dx[:, k] = path.put_back(du_BDL.mT)
                else:
                    total_BLD = du_BDL.mT if total_BLD is None else total_BLD.add_(du_BDL.mT)
                dstep_BLX = ddelta_BDL.mT
                if self._weight is not None:
                    dweight[k] = (dstep_BLX.mT @ self._step(path, k)).sum(0)
                    dstep_BLX = dstep_BLX @ self._weight[k].to(dtype)
                ddelta[:, k] = path.put_back(dstep_BLX)
                dB[:, k], dC[:, k] = path.put_back(dB_BNL.mT), path.put_back(dC_BNL.mT)
                if self._D is not None:
                    dD[rows] = dD_D
                if self._bias is not None:
                    dbias[rows] = dbias_D
            if dx_shared is not None and total_BLD is not None:
                dx_shared.add_(path.put_back(total_BLD))
        if dx_shared is not None:
            dx.copy_(dx_shared)
        return dx, ddelta, dA, dB, dC, dD, dz, dbias, dweight

    def _paths(self) -> Iterator[_Path]:
        paths = self._readings.K // 2 if self._readings.mirrored else self._readings.K
        for index in range(paths):
            yield _Path(self._readings, index, paths)

    def _readings_of(self, path: _Path) -> Iterator[tuple[int, Tensor]]:
        """Yield each reading of a path and what it reads of x (B, L, D), which is gathered once where it is shared."""
        u_BLD = path.read(self._x).to(self._dtype) if self._shared else None
        for k in path.taken_by:
            yield k, path.read(self._x[:, k]).to(self._dtype) if u_BLD is None else u_BLD

    def _rows(self, k: int) -> slice:
        """Return the channels of reading k among those of all readings."""
        channels = self._x.shape[-1]
        return slice(k * channels, (k + 1) * channels)

    def _step(self, path: _Path, k: int) -> Tensor:
        """Return what delta is given as, along the path: (B, L, D), or (B, L, R) where it is of low rank."""
        return path.read(self._delta[:, k]).to(self._dtype)

    def _arguments(self, path: _Path, k: int, u_BLD: Tensor) -> dict[str, Any]:
        """Return what the scan of reading k takes."""
        delta_BLD = self._step(path, k)
        if self._weight is not None:
            delta_BLD = delta_BLD @ self._weight[k].to(self._dtype).mT
        rows = self._rows(k)
        return {
            "u": u_BLD.mT,
            "delta": delta_BLD.mT,
            "A": self._A[rows].to(self._dtype),
            "B": path.read(self._B[:, k]).mT,
            "C": path.read(self._C[:, k]).mT,
            "D": None if self._D is None else self._D[rows],
            "z": None,
            "delta_bias": None if self._bias is None else self._bias[rows],
            "delta_softplus": self._softplus,
            "initial_state": None,
            "seq_idx": path.seq_idx(u_BLD.shape[0]),
            "reverse": k != path.taken_by[0],
        }
