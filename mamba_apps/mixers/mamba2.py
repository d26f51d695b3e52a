"""Mamba-2: a gated shell around a causal convolution and SSD (Dao and Gu, arXiv 2405.21060).

Parameter names and shapes are mamba-ssm's, so that a block's state dict loads as it is.

Dimensions in names: B batch, L length, D model channels, E channels of the convolution, S channels of SSD (H heads of
P), W convolution width, G groups, N state, K readings of a route.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import ROUTE_NAMES, Mixer, State, projects_merged
from mamba_apps.mixers.norms import GatedRMSNorm
from mamba_apps.mixers.registry import register
from mamba_apps.mixers.route_conv import causal_conv1d_route
from mamba_apps.mixers.ssm_parameters import decay_rates, inverse_softplus, wide
from mamba_kernels import Route, causal_conv1d, causal_conv1d_update, selective_state_update, ssd, ssd_route

_NO_LIMIT = (0.0, math.inf)


class Mamba2State(NamedTuple):
    """What a Mamba-2 mixer remembers.

    Args:
        conv_state: (B, E, W) the last W inputs of the convolution, the current token's last.
        ssm_state: (B, H, P, N) SSD's state, float32 (float64 for a float64 model).
    """

    conv_state: Tensor
    ssm_state: Tensor


class _Projected(NamedTuple):
    """What the input projection gives, channels last."""

    unit_gate: Tensor
    unit: Tensor
    z: Tensor
    conv_input: Tensor
    dt: Tensor


@register("mamba2")
class Mamba2Mixer(Mixer):
    """Mamba-2's state space duality, with mamba-ssm's options and initialisation.

    Args:
        d_model: Channels of the input and of the output.
        d_state: States per channel (N).
        d_conv: Width of the causal convolution (W).
        conv_init: Bound of the convolution's uniform start; None for PyTorch's.
        expand: Inner channels per model channel; their product is rounded down.
        headdim: Channels of a head (P), a divisor of ``d_ssm``; "auto" for the largest up to 64.
        d_ssm: Inner channels that SSD reads, the others being a gated linear unit beside it; None for all.
        ngroups: Groups of heads that share B and C (G), a divisor of the number of heads.
        A_init_range: The decay rates start uniformly between these.
        D_has_hdim: Whether the skip weights are one a channel instead of one a head.
        rmsnorm: Whether SSD's output is normalised; otherwise it is gated alone.
        norm_before_gate: Whether the norm comes before the gate.
        norm_eps: The norm's epsilon.
        norm_groups: Groups of channels that are normalised separately; None for ``ngroups``.
        dt_min: Smallest initial step size.
        dt_max: Largest initial step size.
        dt_init_floor: Initial step sizes are at least this.
        dt_limit: The smallest and the largest step size ever taken.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the input and output projections have one.
        chunk_size: Positions that SSD takes at a time, which changes speed alone; None to leave it to the operator.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.
        device: Where the parameters live.
        dtype: Of the parameters; A_log, D and dt_bias are float32 all the same.

    Raises:
        UserError: If an option is out of range.
    """

    causal = True
    routes = ROUTE_NAMES
    shared_projections: ClassVar[tuple[str, ...]] = ("in_proj", "norm", "out_proj")
    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int | Literal["auto"] = "auto",
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        norm_eps: float = 1e-5,
        norm_groups: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = _NO_LIMIT,
        conv_bias: bool = True,
        bias: bool = False,
        chunk_size: int | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, backend)
        d_inner = int(expand * d_model)
        d_ssm = d_inner if d_ssm is None else d_ssm
        sizes = {"d_state": d_state, "d_conv": d_conv, "d_ssm": d_ssm, "ngroups": ngroups}
        for name, size in {**sizes, "chunk_size": 1 if chunk_size is None else chunk_size}.items():
            if not isinstance(size, int) or size < 1:
                raise UserError(f"mamba2: {name} is {size!r}", "give a whole number of at least 1")
        if d_ssm > d_inner:
            raise UserError(f"mamba2: d_ssm is {d_ssm}, more than expand * d_model = {d_inner}", f"at most {d_inner}")
        widest = next(width for width in range(min(64, d_ssm), 0, -1) if d_ssm % width == 0)
        width = widest if headdim == "auto" else headdim
        _require_divisor("headdim", width, d_ssm, "channels")
        nheads = d_ssm // width
        _require_divisor("ngroups", ngroups, nheads, "heads")
        norm_groups = ngroups if norm_groups is None else norm_groups
        _require_divisor("norm_groups", norm_groups, d_ssm, "channels")
        for name, (low, high) in {"A_init_range": A_init_range, "(dt_min, dt_max)": (dt_min, dt_max)}.items():
            if not 0 < low <= high:
                raise UserError(f"mamba2: {name} is ({low}, {high})", "give two positive bounds, the lower one first")
        if conv_init is not None and not conv_init > 0:
            raise UserError(f"mamba2: conv_init is {conv_init}", "give a positive bound, or None")
        if not 0 <= dt_limit[0] <= dt_limit[1]:
            raise UserError(f"mamba2: dt_limit is {tuple(dt_limit)}", "give two bounds from 0 on, the lower one first")
        self.d_state, self.d_conv, self.d_inner, self.d_ssm = d_state, d_conv, d_inner, d_ssm
        self.headdim, self.nheads, self.ngroups, self.chunk_size = width, nheads, ngroups, chunk_size
        self.conv_init, self.A_init_range = conv_init, A_init_range
        self.dt_min, self.dt_max, self.dt_init_floor = dt_min, dt_max, dt_init_floor
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        d_unit, d_conv_input = d_inner - d_ssm, d_ssm + 2 * ngroups * d_state
        self._widths = (d_unit, d_unit, d_ssm, d_conv_input, nheads)

        self.in_proj = nn.Linear(d_model, sum(self._widths), bias=bias, device=device, dtype=dtype)
        # Holds the parameters under their usual names; the operator does the work.
        self.conv1d = nn.Conv1d(
            d_conv_input, d_conv_input, d_conv, groups=d_conv_input, padding=d_conv - 1, bias=conv_bias, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.dt_bias = nn.Parameter(torch.empty(nheads, device=device, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(nheads, device=device, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(d_ssm if D_has_hdim else nheads, device=device, dtype=torch.float32))
        self.norm = (
            GatedRMSNorm(d_ssm, norm_eps, norm_groups, norm_before_gate, backend, device=device, dtype=dtype)
            if rmsnorm
            else None
        )
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias, device=device, dtype=dtype)
        self._reset_inner()
        self.flag_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew: A uniform, step sizes log-uniform in [dt_min, dt_max], PyTorch's for the rest."""
        for layer in (self.in_proj, self.conv1d, self.out_proj):
            if layer is not None:
                layer.reset_parameters()
        if self.norm is not None:
            nn.init.ones_(self.norm.weight)
        self._reset_inner()

    @torch.no_grad()
    def _reset_inner(self) -> None:
        if self.conv_init is not None:
            self.conv1d.weight.uniform_(-self.conv_init, self.conv_init)
        span = math.log(self.dt_max / self.dt_min)
        dt = (torch.rand_like(self.dt_bias) * span + math.log(self.dt_min)).exp().clamp(min=self.dt_init_floor)
        self.dt_bias.copy_(inverse_softplus(dt))
        self.A_log.uniform_(*self.A_init_range).log_()
        self.D.fill_(1.0)

    def forward(self, x_BLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix every position at once; see ``Mixer.forward``."""
        x_BLD = self.checked(x_BLD, seq_idx_BL)
        seq_idx_BL = None if seq_idx_BL is None else seq_idx_BL.int()
        return self._mix(self._project(x_BLD), seq_idx_BL=seq_idx_BL)[0]

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Mamba2State:
        """Return zeros; ``max_length`` does not matter; see ``Mixer.init_state``."""
        weight = self.conv1d.weight
        device = device or weight.device
        conv_state = torch.zeros(batch_size, len(weight), self.d_conv, dtype=dtype or weight.dtype, device=device)
        exact = torch.promote_types(weight.dtype, torch.float32)
        shape = (batch_size, self.nheads, self.headdim, self.d_state)
        return Mamba2State(conv_state, torch.zeros(shape, dtype=exact, device=device))

    def prefill(self, x_BLD: Tensor, state: State) -> tuple[Tensor, Mamba2State]:
        """Read several tokens at once; see ``Mixer.prefill``."""
        conv_state, ssm_state = state
        projected = self._project(self.checked(x_BLD))
        x_BEL = projected.conv_input.mT
        history = conv_state[..., 1:].to(x_BEL.dtype) if self.d_conv > 1 else None
        y_BLD, ssm_state = self._mix(projected, history=history, ssm_state=ssm_state)
        new = min(self.d_conv, x_BEL.shape[-1])
        conv_state = torch.cat([conv_state[..., new:], x_BEL[..., -new:].to(conv_state.dtype)], dim=-1)
        return y_BLD, Mamba2State(conv_state, ssm_state)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, Mamba2State]:
        """Read one token; see ``Mixer.step``."""
        conv_state, ssm_state = state
        projected = self._project(self.checked_token(x_BD, self.in_proj.weight))
        u_BE = causal_conv1d_update(
            projected.conv_input, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, "silu", backend=self.backend
        )
        x_BHP, B_BGN, C_BGN = self._split(u_BE)
        dt_BH, limited = projected.dt, self.dt_limit != _NO_LIMIT
        if limited:
            # The operator knows no limit: it gets the finished step sizes.
            dt_BH = F.softplus(wide(dt_BH) + self.dt_bias).clamp(*self.dt_limit)
        y_BHP = selective_state_update(
            ssm_state,
            x_BHP,
            dt_BH[..., None].expand_as(x_BHP),
            self.A_log[:, None, None].expand(ssm_state.shape[1:]),
            B_BGN,
            C_BGN,
            self.D.unflatten(0, (self.nheads, -1)).expand(-1, self.headdim),
            dt_bias=None if limited else self.dt_bias[:, None].expand(-1, self.headdim),
            dt_softplus=not limited,
            A_is_log=True,
            backend=self.backend,
        )
        return self._merge(projected, y_BHP.flatten(1)), Mamba2State(conv_state, ssm_state)

    def forward_route(self, x: Tensor, route: Route, sets: Sequence[Mixer]) -> Tensor:
        """Project once, convolve and scan along each reading with its own parameters, merge, gate and project once."""
        projected = self._project(x)
        return self._merge(projected, self._scan_route(projected, route, sets).flatten(-2))

    def forward_everywhere(self, x: Tensor, route: Route) -> Tensor | None:
        """Norm and gate each reading by itself, then merge and project once; see ``Mixer.forward_everywhere``."""
        if not projects_merged(route, self.out_proj):
            return None
        readings = route.count(x.dim() - 2)
        projected = self._project(x)
        apart = replace(route, merge="concat")
        y_BxKHP = self._scan_route(projected, apart, [self] * readings).unflatten(-2, (readings, -1))
        y_BxKS = y_BxKHP.flatten(-2)
        z_BxKS = projected.z[..., None, :].expand(y_BxKS.shape)
        inner = self._inner(projected, self._gated(y_BxKS, z_BxKS).mean(-2))
        return self.out_proj(inner if route.merge == "mean" else readings * inner)

    def _scan_route(self, projected: _Projected, route: Route, sets: Sequence[Mixer]) -> Tensor:
        """Return SSD's merged output (B, *spatial, H or K*H, P), each reading with its own parameters."""
        mixers = cast(Sequence[Mamba2Mixer], sets)
        biases = None if self.conv1d.bias is None else torch.stack([cast(Tensor, m.conv1d.bias) for m in mixers])
        u = causal_conv1d_route(
            projected.conv_input,
            torch.stack([m.conv1d.weight[:, 0] for m in mixers]),
            biases,
            route,
            activation="silu",
            backend=self.backend,
        )
        x_heads, B, C = self._split(u)
        return ssd_route(
            x_heads,
            projected.dt,
            torch.cat([decay_rates(m.A_log) for m in mixers]),
            B,
            C,
            torch.cat([m._skips() for m in mixers]),
            torch.cat([m.dt_bias for m in mixers]),
            True,
            self.dt_limit,
            route=route,
            backend=self.backend,
        )

    def _project(self, x: Tensor) -> _Projected:
        return _Projected(*self.in_proj(x).split(self._widths, dim=-1))

    def _mix(
        self,
        projected: _Projected,
        *,
        seq_idx_BL: Tensor | None = None,
        history: Tensor | None = None,
        ssm_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the output (B, L, D) and SSD's final states."""
        u_BEL = cast(
            Tensor,
            causal_conv1d(
                projected.conv_input.mT,
                self.conv1d.weight[:, 0],
                self.conv1d.bias,
                seq_idx_BL,
                initial_states=history,
                activation="silu",
                backend=self.backend,
            ),
        )
        y_BLS, ssm_state = self._scan(u_BEL.mT, projected.dt, seq_idx_BL, ssm_state)
        return self._merge(projected, y_BLS, seq_idx_BL), ssm_state

    def _scan(
        self, u_BLE: Tensor, dt_BLH: Tensor, seq_idx_BL: Tensor | None, ssm_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return SSD's output (B, L, S) and its final states, from the convolution's output and raw step sizes."""
        x_BLHP, B_BLGN, C_BLGN = self._split(u_BLE)
        y_BLHP, ssm_state = ssd(
            x_BLHP,
            dt_BLH,
            decay_rates(self.A_log),
            B_BLGN,
            C_BLGN,
            self.chunk_size,
            self._skips(),
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            initial_states=ssm_state,
            seq_idx=seq_idx_BL,
            return_final_states=True,
            backend=self.backend,
        )
        return y_BLHP.flatten(2), ssm_state

    def _merge(self, projected: _Projected, y: Tensor, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Gate SSD's output (..., S), put the gated linear unit beside it, and project both."""
        return self.out_proj(self._inner(projected, self._gated(y, projected.z), seq_idx_BL))

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        return y * F.silu(z) if self.norm is None else self.norm(y, z)

    def _inner(self, projected: _Projected, y: Tensor, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Return SSD's gated output with the gated linear unit beside it, if there is one."""
        if self.d_ssm == self.d_inner:
            return y
        unit = F.silu(projected.unit_gate) * projected.unit
        if seq_idx_BL is not None:
            # A bias of the projection would reach it.
            unit = unit.masked_fill((seq_idx_BL < 0)[..., None], 0.0)
        return torch.cat([unit, y], dim=-1)

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x in heads, and B and C in groups, from the convolution's output."""
        shared = self.ngroups * self.d_state
        x, B, C = u.split((self.d_ssm, shared, shared), dim=-1)
        return (
            x.unflatten(-1, (self.nheads, -1)),
            B.unflatten(-1, (self.ngroups, -1)),
            C.unflatten(-1, (self.ngroups, -1)),
        )

    def _skips(self) -> Tensor:
        """Return D as (H, P), or as (H,) where a head's channels share it, whose gradient is then one sum a head."""
        return self.D if len(self.D) == self.nheads else self.D.unflatten(0, (self.nheads, -1))


def _require_divisor(name: str, part: int, whole: int, what: str) -> None:
    if part < 1 or whole % part:
        raise UserError(f"mamba2: {name} is {part}, and there are {whole} {what}", f"give a divisor of {whole}")
