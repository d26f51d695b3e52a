"""MambaVision's mixer: a selective scan beside a convolution, concatenated (Hatamizadeh and Kautz, arXiv 2407.08083).

Written from the paper and from published facts about the model. Parameter names and shapes are the published ones.

Dimensions in names: B batch, L length, D model channels, E channels of each half, W convolution width, R rank of the
step sizes, N state.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import ROUTE_NAMES, Mixer
from mamba_apps.mixers.registry import register
from mamba_apps.mixers.ssm_parameters import decay_rates, start_as_s4d_real
from mamba_kernels import causal_conv1d, selective_scan


@register("mambavision")
class MambaVisionMixer(Mixer):
    """MambaVision's mixer: half of the channels are scanned, the other half stands beside them instead of gating them.

    Both halves first pass a convolution that looks both ways. The published code adds the step sizes' bias twice, once
    in the projection and once in the scan, and its weights need that; it also starts that projection like any other,
    so that step sizes begin near 0.69.

    Args:
        d_model: Channels of the input and of the output.
        d_state: States per scanned channel (N).
        d_conv: Width of the convolution (W), at least 2; where it is even, the extra tap looks ahead.
        expand: Channels of both halves together per model channel; their product is rounded down.
        dt_rank: Rank of the step sizes (R), or "auto" for a sixteenth of ``d_model``, rounded up.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.
        device: Where the parameters live.
        dtype: Of the parameters; A_log and D are float32 all the same.

    Raises:
        UserError: If an option is out of range.
    """

    causal = False
    routes = ROUTE_NAMES
    undecayed = ("A_log", "D")

    def __init__(
        self,
        d_model: int,
        d_state: int = 8,
        d_conv: int = 3,
        expand: float = 1,
        dt_rank: int | Literal["auto"] = "auto",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, backend)
        d_inner = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        for name, size, least in (("d_state", d_state, 1), ("d_conv", d_conv, 2), ("dt_rank", rank, 1)):
            if not isinstance(size, int) or size < least:
                raise UserError(f"mambavision: {name} is {size!r}", f"give a whole number of at least {least}")
        if d_inner < 2 or d_inner % 2:
            raise UserError(
                f"mambavision: expand * d_model is {d_inner}",
                "give an even number of channels, of which half are scanned",
            )
        half = d_inner // 2
        self._widths = (rank, d_state, d_state)
        self.in_proj = nn.Linear(d_model, d_inner, bias=False, device=device, dtype=dtype)
        # Hold the parameters under their usual names; the operator does the work.
        self.conv1d_x, self.conv1d_z = (
            nn.Conv1d(half, half, d_conv, groups=half, bias=False, device=device, dtype=dtype) for _ in range(2)
        )
        self.x_proj = nn.Linear(half, rank + 2 * d_state, bias=False, device=device, dtype=dtype)
        self.dt_proj = nn.Linear(rank, half, device=device, dtype=dtype)
        self.A_log = nn.Parameter(torch.empty(half, d_state, device=device, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(half, device=device, dtype=torch.float32))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False, device=device, dtype=dtype)
        self.reset_parameters()
        self.flag_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew: S4D-real A, narrow normal projections, PyTorch's start for the convolutions."""
        for conv in (self.conv1d_x, self.conv1d_z):
            conv.reset_parameters()
        for projection in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj):
            nn.init.trunc_normal_(projection.weight, std=0.02)
        nn.init.zeros_(self.dt_proj.bias)
        start_as_s4d_real(self.A_log)
        self.D.fill_(1.0)

    def forward(self, x_BLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix every position at once; see ``Mixer.forward``."""
        x_BLD = self.checked(x_BLD, seq_idx_BL)
        seq_idx_BL = None if seq_idx_BL is None else seq_idx_BL.int()
        u_BLE, z_BLE = self._convolve(self.in_proj(x_BLD), seq_idx_BL).chunk(2, dim=-1)
        dt_BLR, B_BLN, C_BLN = self.x_proj(u_BLE).split(self._widths, dim=-1)
        y_BEL = selective_scan(
            u_BLE.mT,
            F.linear(dt_BLR, self.dt_proj.weight).mT,
            decay_rates(self.A_log),
            B_BLN.mT,
            C_BLN.mT,
            self.D,
            delta_bias=2 * self.dt_proj.bias,  # added twice, as published
            delta_softplus=True,
            seq_idx=seq_idx_BL,
            backend=self.backend,
        )
        return self.out_proj(torch.cat([cast(Tensor, y_BEL).mT, z_BLE], dim=-1))

    def _convolve(self, x_BLD: Tensor, seq_idx_BL: Tensor | None) -> Tensor:
        """Return SiLU of both halves convolved with their own filters, by the operator of causal convolutions."""
        weight_DW = torch.cat([self.conv1d_x.weight, self.conv1d_z.weight])[:, 0]
        ahead = weight_DW.shape[1] // 2
        if seq_idx_BL is None:
            # Read late by as many steps as it looks ahead, the convolution is causal.
            late_BDL = F.pad(x_BLD, (0, 0, 0, ahead)).mT
            y_BDL = causal_conv1d(late_BDL, weight_DW, activation="silu", backend=self.backend)
            return cast(Tensor, y_BDL)[..., ahead:].mT
        # Packed sequences would run into their neighbours so: the taps ahead are a causal convolution from the end.
        behind_DW, ahead_DW = weight_DW[:, :-ahead], F.pad(weight_DW[:, -ahead:].flip(1), (0, 1))
        behind_BDL = causal_conv1d(x_BLD.mT, behind_DW, seq_idx=seq_idx_BL, backend=self.backend)
        ahead_BDL = causal_conv1d(x_BLD.mT, ahead_DW, seq_idx=seq_idx_BL, reverse=True, backend=self.backend)
        return F.silu(cast(Tensor, behind_BDL) + cast(Tensor, ahead_BDL)).mT
