"""Mamba-1: a gated shell around a causal convolution and the selective scan (Gu and Dao, arXiv 2312.00752).

Parameter names and shapes are mamba-ssm's, so that a block's state dict loads as it is.

Dimensions in names: B batch, L length, D model channels, E inner channels, W convolution width, R rank of the step
sizes, N state, K readings of a route.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import ROUTE_NAMES, Mixer, State, projects_merged
from mamba_apps.mixers.readings import ReadingParameters, scan_readings, stack_parameters
from mamba_apps.mixers.registry import register
from mamba_apps.mixers.route_conv import causal_conv1d_route
from mamba_apps.mixers.small_scans import scan_one_channel, scan_one_token
from mamba_apps.mixers.ssm_parameters import decay_rates, inverse_softplus, start_as_s4d_real, wide
from mamba_kernels import Route, causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update


class Mamba1State(NamedTuple):
    """What a Mamba-1 mixer remembers.

    Args:
        conv_state: (B, E, W) the last W inputs of the convolution, the current token's last.
        ssm_state: (B, E, N) the scan's state, float32 (float64 for a float64 model).
    """

    conv_state: Tensor
    ssm_state: Tensor


@register("mamba1")
class Mamba1Mixer(Mixer):
    """Mamba-1's selective state space, with mamba-ssm's options and initialisation.

    Args:
        d_model: Channels of the input and of the output.
        d_state: States per inner channel (N).
        d_conv: Width of the causal convolution (W).
        expand: Inner channels per model channel; their product is rounded down.
        dt_rank: Rank of the step sizes (R), or "auto" for a sixteenth of ``d_model``, rounded up.
        dt_min: Smallest initial step size.
        dt_max: Largest initial step size.
        dt_init: How the step sizes' projection starts: "random" (uniform) or "constant".
        dt_scale: Scale of that start.
        dt_init_floor: Initial step sizes are at least this.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the input and output projections have one.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.
        device: Where the parameters live.
        dtype: Of the parameters; A_log and D are float32 all the same.

    Raises:
        UserError: If an option is out of range.
    """

    causal = True
    routes = ROUTE_NAMES
    shared_projections: ClassVar[tuple[str, ...]] = ("in_proj", "out_proj")
    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "D")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, backend)
        d_inner = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        for name, size in (("d_state", d_state), ("d_conv", d_conv), ("expand * d_model", d_inner), ("dt_rank", rank)):
            if not isinstance(size, int) or size < 1:
                raise UserError(f"mamba1: {name} is {size!r}", "give a whole number of at least 1")
        if dt_init not in ("random", "constant"):
            raise UserError(f"mamba1: dt_init is {dt_init!r}", "choose random or constant")
        if not 0 < dt_min <= dt_max:
            raise UserError(f"mamba1: dt_min is {dt_min} and dt_max {dt_max}", "give 0 < dt_min <= dt_max")
        if not dt_scale > 0:
            raise UserError(f"mamba1: dt_scale is {dt_scale}", "give a positive number")
        self.d_state, self.d_conv, self.d_inner, self.dt_rank = d_state, d_conv, d_inner, rank
        self.dt_min, self.dt_max, self.dt_init = dt_min, dt_max, dt_init
        self.dt_scale, self.dt_init_floor = dt_scale, dt_init_floor
        self._widths = (rank, d_state, d_state)

        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias, device=device, dtype=dtype)
        # Holds the parameters under their usual names; the operator does the work.
        self.conv1d = nn.Conv1d(
            d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1, bias=conv_bias, device=device, dtype=dtype
        )
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False, device=device, dtype=dtype)
        self.dt_proj = nn.Linear(rank, d_inner, bias=True, device=device, dtype=dtype)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state, device=device, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(d_inner, device=device, dtype=torch.float32))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias, device=device, dtype=dtype)
        self._reset_inner()
        self.flag_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew: S4D-real A, step sizes log-uniform in [dt_min, dt_max], PyTorch's for the rest."""
        for layer in (self.in_proj, self.conv1d, self.x_proj, self.dt_proj, self.out_proj):
            if layer is not None:
                layer.reset_parameters()
        self._reset_inner()

    @torch.no_grad()
    def _reset_inner(self) -> None:
        std = self.dt_rank**-0.5 * self.dt_scale
        if self.dt_init == "constant":
            self.dt_proj.weight.fill_(std)
        else:
            self.dt_proj.weight.uniform_(-std, std)
        span = math.log(self.dt_max / self.dt_min)
        dt = torch.rand(self.d_inner, device=self.dt_proj.bias.device, dtype=torch.float32)
        dt = (dt * span + math.log(self.dt_min)).exp().clamp(min=self.dt_init_floor)
        self.dt_proj.bias.copy_(inverse_softplus(dt))
        start_as_s4d_real(self.A_log)
        self.D.fill_(1.0)

    def flag_parameters(self) -> None:
        """Mark A_log and D for no weight decay, and the step sizes' bias for no re-initialisation."""
        super().flag_parameters()
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    def forward(self, x_BLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix every position at once; see ``Mixer.forward``."""
        x_BLD = self.checked(x_BLD, seq_idx_BL)
        seq_idx_BL = None if seq_idx_BL is None else seq_idx_BL.int()
        return self._mix(*self._project(x_BLD), seq_idx_BL=seq_idx_BL, keep_state=False)[0]

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Mamba1State:
        """Return zeros; ``max_length`` does not matter; see ``Mixer.init_state``."""
        weight = self.conv1d.weight
        device = device or weight.device
        conv_state = torch.zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype or weight.dtype, device=device)
        exact = torch.promote_types(weight.dtype, torch.float32)
        return Mamba1State(conv_state, torch.zeros(batch_size, self.d_inner, self.d_state, dtype=exact, device=device))

    def prefill(self, x_BLD: Tensor, state: State) -> tuple[Tensor, Mamba1State]:
        """Read several tokens at once; see ``Mixer.prefill``."""
        x_BLD = self.checked(x_BLD)
        conv_state, ssm_state = state
        x_BEL, z_BEL = self._project(x_BLD)
        history = conv_state[..., 1:].to(x_BEL.dtype) if self.d_conv > 1 else None
        y_BLD, last_state = self._mix(x_BEL, z_BEL, history=history, ssm_state=ssm_state)
        new = min(self.d_conv, x_BEL.shape[-1])
        conv_state = torch.cat([conv_state[..., new:], x_BEL[..., -new:].to(conv_state.dtype)], dim=-1)
        return y_BLD, Mamba1State(conv_state, cast(Tensor, last_state))

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, Mamba1State]:
        """Read one token; see ``Mixer.step``."""
        conv_state, ssm_state = state
        u_BE, z_BE = self.in_proj(self.checked_token(x_BD, self.in_proj.weight)).chunk(2, dim=-1)
        u_BE = causal_conv1d_update(
            u_BE, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, "silu", backend=self.backend
        )
        dt_BR, B_BN, C_BN = self.x_proj(u_BE).split(self._widths, dim=-1)
        y_BE = selective_state_update(
            ssm_state,
            u_BE,
            dt_BR,
            self.A_log,
            B_BN,
            C_BN,
            self.D,
            z_BE,
            self.dt_proj.bias,
            True,
            dt_weight=self.dt_proj.weight,
            A_is_log=True,
            backend=self.backend,
        )
        return self.out_proj(y_BE), Mamba1State(conv_state, ssm_state)

    def forward_route(self, x: Tensor, route: Route, sets: Sequence[Mixer]) -> Tensor:
        """Project once, convolve and scan along each reading with its own parameters, merge, gate and project once."""
        mixers = cast(Sequence[Mamba1Mixer], sets)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        stacks = stack_parameters([m.reading_parameters() for m in mixers])
        conv_KEW = stacks.conv_weight.flatten(2)
        u = causal_conv1d_route(u, conv_KEW, stacks.conv_bias, route, activation="silu", backend=self.backend)
        return self.out_proj(scan_readings(u, z, stacks, route, self.backend))

    def forward_everywhere(self, x: Tensor, route: Route) -> Tensor | None:
        """Read all readings as one scan: what comes after it is linear; see ``Mixer.forward_everywhere``."""
        if not projects_merged(route, self.out_proj):
            return None
        return self.forward_route(x, route, [self] * route.count(x.dim() - 2))

    def reading_parameters(self) -> ReadingParameters:
        """Return what this mixer reads with."""
        return ReadingParameters(
            self.conv1d.weight, self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D,
            self.conv1d.bias,
        )  # fmt: skip

    def _project(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        u_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        return u_BLE.transpose(1, 2), z_BLE.transpose(1, 2)

    def _mix(
        self,
        x_BEL: Tensor,
        z_BEL: Tensor,
        *,
        seq_idx_BL: Tensor | None = None,
        history: Tensor | None = None,
        ssm_state: Tensor | None = None,
        keep_state: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output (B, L, D) and the scan's last state, which is None only where it need not be kept."""
        u_BEL = cast(
            Tensor,
            causal_conv1d(
                x_BEL,
                self.conv1d.weight[:, 0],
                self.conv1d.bias,
                seq_idx_BL,
                initial_states=history,
                activation="silu",
                backend=self.backend,
            ),
        )
        rates, skip, bias = decay_rates(self.A_log), wide(self.D), wide(self.dt_proj.bias)
        if self.d_inner == 1 and seq_idx_BL is None:
            weights = self.x_proj.weight.split(self._widths)
            dt_BLR = F.linear(u_BEL.transpose(1, 2), weights[0])
            delta_BEL = F.linear(dt_BLR, self.dt_proj.weight).transpose(1, 2)
            y_BEL, ssm_state = scan_one_channel(
                u_BEL, delta_BEL, rates, weights[1].mT, weights[2].mT, skip, z_BEL, bias, ssm_state, self.backend
            )
            return self.out_proj(y_BEL.transpose(1, 2)), ssm_state
        dt_BLR, B_BLN, C_BLN = self.x_proj(u_BEL.transpose(1, 2)).split(self._widths, dim=-1)
        # Without its bias: the scan adds that in float32.
        delta_BEL = F.linear(dt_BLR, self.dt_proj.weight).transpose(1, 2)
        B_BNL, C_BNL = B_BLN.transpose(1, 2), C_BLN.transpose(1, 2)
        if u_BEL.shape[-1] == 1 and ssm_state is None and seq_idx_BL is None and not keep_state:
            y_BEL = scan_one_token(u_BEL, delta_BEL, rates, B_BNL, C_BNL, skip, z_BEL, bias)
            return self.out_proj(y_BEL.transpose(1, 2)), None
        y_BEL, ssm_state = selective_scan(
            u_BEL,
            delta_BEL,
            rates,
            B_BNL,
            C_BNL,
            skip,
            z_BEL,
            bias,
            delta_softplus=True,
            return_last_state=True,
            initial_state=ssm_state,
            seq_idx=seq_idx_BL,
            backend=self.backend,
        )
        return self.out_proj(y_BEL.transpose(1, 2)), ssm_state
