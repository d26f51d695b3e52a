"""SS2D: VMamba's selective scan of an image, read along several routes at once (Liu et al., arXiv 2401.10166).

Parameter names and shapes are those of VMamba's code, which stores the same tensors for channel-first and channel-last
models. Here a grid is always channel-last.

Dimensions in names: B batch, H height, W width, D model channels, E inner channels, K parameter sets, R rank of the
step sizes, N state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import Mixer
from mamba_apps.mixers.norms import LayerNorm
from mamba_apps.mixers.registry import create
from mamba_apps.mixers.routed import RoutedMixer
from mamba_apps.mixers.scan_weights import scan_weights
from mamba_apps.mixers.ssm_parameters import inverse_softplus, start_as_s4d_real, wide
from mamba_kernels import Route, depthwise_conv, selective_scan_route

# What each forward type scans: a route, or "cascade" (rows, then columns of the result). The numbers of v01 to v05 tell
# the reference's backends and precisions apart; here all of them scan in float32 whatever the dtype of the input.
_SCANS = {
    **dict.fromkeys(("v0", "v01", "v02", "v03", "v04", "v05"), "cross"),
    "v051d": "forward",
    "v052d": "bidirectional",
    "v052dc": "cascade",
}
_OUT_NORMS = ("onnone", "oncnorm", "ondwconv3", "onsoftmax", "onsigmoid")
_TAGS = (*_OUT_NORMS, "noz", "nozact", "oact", "no32")
_SETS = 4
_EVERY_SET = slice(0, None, 1)
_LINES = Route("bidirectional", merge="concat")


class ForwardType(NamedTuple):
    """What a forward type of the reference, such as "v05_noz", stands for.

    Args:
        scan: The route, or "cascade".
        gate: What the gate goes through before it multiplies the result; None where there is no gate.
        out_norm: The norm of the merged scan: "layer", or one of the tags that begin with "on".
        out_act: Whether a GELU follows it.
    """

    scan: str
    gate: Literal["silu", "identity"] | None
    out_norm: str
    out_act: bool

    @classmethod
    def parse(cls, text: str) -> ForwardType:
        """Return what ``text`` stands for: a base, and tags joined by underscores, in any order.

        Raises:
            UserError: If the base or a tag is unknown, or tags contradict each other.
        """
        base, *tags = text.split("_")
        norms = [tag for tag in tags if tag in _OUT_NORMS]
        gates = [tag for tag in tags if tag in ("noz", "nozact")]
        if base not in _SCANS or set(tags) - set(_TAGS) or len(norms) > 1 or len(gates) > 1 or (base == "v0" and tags):
            raise UserError(
                f"SS2D has no forward type {text!r}",
                f"choose one of {', '.join(_SCANS)}; all but v0 may be followed by one of _noz and _nozact, "
                f"one of _{', _'.join(_OUT_NORMS)}, _oact and _no32",
            )
        gate: Literal["silu", "identity"] | None = "identity" if "nozact" in tags else "silu"
        return cls(_SCANS[base], None if "noz" in tags else gate, norms[0] if norms else "layer", "oact" in tags)


class SpatialSoftmax(nn.Module):
    """Softmax over the cells of a grid (B, H, W, D), for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights, which sum to one over each channel's cells."""
        return x.flatten(1, -2).softmax(1).view(x.shape)


class SS2D(Mixer):
    """Project, convolve in 2-D, scan along a route with one parameter set a reading, normalise, gate, project.

    The merged scan stays in float32 until its norm: in half precision the sum of four readings overflows (the cause of
    VMamba's early NaNs). Another mixer may take the scan's place; it reads the same route, with one parameter set.

    Args:
        d_model: Channels of the input and of the output.
        d_state: States per inner channel (N).
        expand: Inner channels per model channel, VMamba's ssm_ratio; their product is rounded down.
        dt_rank: Rank of the step sizes (R), or "auto" for a sixteenth of ``d_model``, rounded up.
        d_conv: Width of the depthwise convolution, odd; 1 for none.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the input and output projections have one.
        dropout: Probability of dropping an output in training.
        forward_type: What is scanned, gated and normalised, in VMamba's notation; see ``ForwardType``.
        route: The route in place of the forward type's own, with one parameter set for each of its readings.
        mixer: The inner operator: "mamba1" for the selective scan, or another registered mixer.
        mixer_options: That other mixer's options.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.

    Raises:
        UserError: If an option is out of range, or the combination of mixer and route is refused.
    """

    causal = False
    routes = frozenset()  # it reads its grid itself
    undecayed = ("A_logs", "Ds")

    def __init__(
        self,
        d_model: int,
        d_state: int = 1,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        conv_bias: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        forward_type: str = "v05_noz",
        route: Route | str | None = None,
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(d_model, backend)
        d_inner = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        for name, size in (("d_state", d_state), ("expand * d_model", d_inner), ("dt_rank", rank), ("d_conv", d_conv)):
            if size < 1:
                raise UserError(f"SS2D: {name} is {size}", "give at least 1")
        if d_conv % 2 == 0:
            raise UserError(f"SS2D: d_conv is {d_conv}", "give an odd width, so that the convolution is centred")
        self.forward_type = ForwardType.parse(forward_type)
        self.d_inner, self._widths = d_inner, (rank, d_state, d_state)
        given = Route(route) if isinstance(route, str) else route
        sets = _SETS if given is None else given.count(2)
        # The cascade is no route over the grid: it has none.
        self.route = given or (None if self.forward_type.scan == "cascade" else Route(self.forward_type.scan))

        gated = self.forward_type.gate is not None
        self.in_proj = nn.Linear(d_model, 2 * d_inner if gated else d_inner, bias=bias)
        # Holds the parameters under their usual names; for 3 x 3 cells the operator does the work.
        self.conv2d = (
            nn.Conv2d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv // 2, bias=conv_bias)
            if d_conv > 1
            else None
        )
        self.inner: RoutedMixer | None = None
        if mixer == "mamba1":
            if mixer_options:
                raise UserError("SS2D: mixer_options go with another mixer", "set d_state, expand and dt_rank")
            if self.route is not None and self.route.merge == "concat":
                raise UserError('SS2D adds its readings: merge="concat" has no place in it', 'use merge="sum"')
            self.x_proj_weight = nn.Parameter(torch.empty(sets, rank + 2 * d_state, d_inner))
            self.dt_projs_weight = nn.Parameter(torch.empty(sets, d_inner, rank))
            self.dt_projs_bias = nn.Parameter(torch.empty(sets, d_inner))
            self.A_logs = nn.Parameter(torch.empty(sets * d_inner, d_state))
            self.Ds = nn.Parameter(torch.empty(sets * d_inner))
        elif self.route is None:
            raise UserError(f"SS2D: the cascade is no route for {mixer!r} to read", "name a route, or another type")
        else:
            made = create(mixer, d_inner, **{"backend": backend, **(mixer_options or {})})
            self.inner = RoutedMixer(made, self.route, rank=2)
        self.out_norm = _out_norm(self.forward_type.out_norm, d_inner, backend)
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()
        self.flag_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew: Mamba's for the scan, a narrow normal for projections, PyTorch's elsewhere."""
        for layer in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for module in (*self.out_norm.modules(), self.conv2d):
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        if self.inner is not None:
            self.inner.reset_parameters()
        else:
            self._reset_scan()

    @torch.no_grad()
    def _reset_scan(self, dt_min: float = 0.001, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
        rank = self._widths[0]
        self.x_proj_weight.uniform_(-(self.d_inner**-0.5), self.d_inner**-0.5)
        self.dt_projs_weight.uniform_(-(rank**-0.5), rank**-0.5)
        dt = torch.empty_like(self.dt_projs_bias).uniform_(math.log(dt_min), math.log(dt_max)).exp().clamp(min=dt_floor)
        self.dt_projs_bias.copy_(inverse_softplus(dt))
        start_as_s4d_real(self.A_logs)
        self.Ds.fill_(1.0)

    def forward(self, x_BLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix a batch of images.

        Args:
            x_BLD: The grid (B, H, W, D).
            seq_idx_BL: None: the convolution would mix sequences packed into one grid.

        Returns:
            The output (B, H, W, D).

        Raises:
            UserError: If the shape does not fit, or ``seq_idx_BL`` is given.
        """
        if x_BLD.dim() != 4 or x_BLD.shape[-1] != self.d_model or 0 in x_BLD.shape[1:3]:
            raise UserError(
                f"SS2D got an input of shape {tuple(x_BLD.shape)}", f"give (batch, height, width, {self.d_model})"
            )
        if seq_idx_BL is not None:
            raise UserError("SS2D does not take packed sequences", "give one image a row of the batch")
        u, z = self.in_proj(x_BLD), None
        if self.forward_type.gate is not None:
            u, z = u.chunk(2, dim=-1)
        u = self._convolve(u)
        y = self._normalise(self._read(u), u.dtype)
        if self.forward_type.out_act:
            y = F.gelu(y)
        if z is not None:
            y = y * (F.silu(z) if self.forward_type.gate == "silu" else z)
        return self.dropout(self.out_proj(y))

    def _convolve(self, u: Tensor) -> Tensor:
        """Return SiLU of the convolved grid (B, H, W, E): in one pass for the width that the published models have."""
        if self.conv2d is None:
            return F.silu(u)
        if self.conv2d.kernel_size == (3, 3):
            return depthwise_conv(u, self.conv2d.weight.flatten(0, 1), self.conv2d.bias, "silu", backend=self.backend)
        return F.silu(self.conv2d(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def _normalise(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the normalised scan in ``dtype``: the norm is the last to see float32."""
        return self.out_norm(y, out_dtype=dtype) if isinstance(self.out_norm, LayerNorm) else self.out_norm(y).to(dtype)

    def _read(self, u: Tensor) -> Tensor:
        """Return the merged readings of (B, H, W, E)."""
        if self.inner is not None:
            return self.inner(u)
        if self.route is None:
            return self._cascade(u)
        # Fewer readings than parameter sets: each path is read again, with the next sets.
        repeats = self.x_proj_weight.shape[0] // self.route.count(2)
        y = self._scan(u, self.route, slice(0, None, repeats))
        for first in range(1, repeats):
            y = y + self._scan(u, self.route, slice(first, None, repeats))
        return y

    def _cascade(self, u: Tensor) -> Tensor:
        """Scan each row both ways, then each column of the result, with norms without weights before."""
        rows = self._lines(F.layer_norm(u, u.shape[-1:]), slice(0, 2))
        return self._lines(F.layer_norm(rows, rows.shape[-1:]).transpose(1, 2), slice(2, 4)).transpose(1, 2)

    def _lines(self, u: Tensor, sets: slice) -> Tensor:
        """Scan each row of (B, H, W, E) both ways."""
        ahead, back = self._scan(u.flatten(0, 1), _LINES, sets).unflatten(0, u.shape[:2]).chunk(2, dim=-1)
        # The reference adds the way back in the order of its reading, as its trained weights expect.
        return ahead + back.flip(2)

    def _scan(self, u: Tensor, route: Route, sets: slice) -> Tensor:
        """Scan a grid (B, *spatial, E) along ``route`` with the parameter sets of its readings, in float32 or wider."""
        x_weight, dt_weight, dt_bias, A_log, D = (
            part if sets == _EVERY_SET else part[sets]
            for part in (
                self.x_proj_weight,
                self.dt_projs_weight,
                self.dt_projs_bias,
                self.A_logs.unflatten(0, (-1, self.d_inner)),
                self.Ds.unflatten(0, (-1, self.d_inner)),
            )
        )
        weights = scan_weights(x_weight, dt_weight, A_log, u.dtype, shared=True)
        parts = F.linear(u, weights.project).split(weights.widths, dim=-1)
        dt, B, C = (part.unflatten(-1, (dt_weight.shape[0], -1)).movedim(-2, 1) for part in parts)
        return selective_scan_route(
            u,
            dt,
            weights.A,
            B,
            C,
            wide(D).flatten(),
            None,
            wide(dt_bias).flatten(),
            True,
            route=route,
            delta_weight=weights.delta,
            out_dtype=torch.promote_types(u.dtype, torch.float32),
            backend=self.backend,
        )


def _out_norm(name: str, width: int, backend: str | None) -> nn.Module:
    """Build the norm of a grid (B, H, W, E); a layer's place in a sequence is its name in the reference."""
    if name == "onnone":
        return nn.Identity()
    if name == "onsoftmax":
        return SpatialSoftmax()
    if name == "onsigmoid":
        return nn.Sigmoid()
    norm = LayerNorm(width, backend=backend)
    if name == "layer":
        return norm
    conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    convolve = (Rearrange("b h w c -> b c h w"), conv, Rearrange("b c h w -> b h w c"))
    return nn.Sequential(*convolve) if name == "ondwconv3" else nn.Sequential(norm, *convolve)
