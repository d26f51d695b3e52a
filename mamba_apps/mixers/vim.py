"""Vision Mamba's mixer: Mamba-1 read from both ends of the sequence (Zhu et al., arXiv 2401.09417).

Dimensions in names: B batch, K readings, L length, D model channels, E inner channels, N state, W convolution width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.mamba1 import Mamba1Mixer
from mamba_apps.mixers.readings import ReadingParameters, scan_readings, stack_parameters
from mamba_apps.mixers.registry import check
from mamba_apps.mixers.route_conv import causal_conv1d_route
from mamba_kernels import Route


class VimMixer(Mamba1Mixer):
    """Mamba-1 along a sequence and back, with one input projection, one gate and one output projection.

    Parameter names and shapes are the reference's: those of Mamba-1 for the reading forwards, the same with ``_b`` for
    the one backwards. Its reading forwards alone is ``Mamba1Mixer``.

    Args:
        d_model: Channels of the input and of the output.
        bimamba_type: "v2", as in the released models, reads backwards with a convolution, step sizes, decay rates and
            skip weights of its own; "v1" with decay rates of its own, and all else of the reading forwards, whose
            convolution's result it takes.
        divide_out: Whether "v2" halves the sum of the two readings; "v1" never does.
        options: Mamba-1's, such as ``d_state``, ``d_conv``, ``expand`` and ``backend``.

    Raises:
        UserError: If an option is unknown or out of range.
    """

    causal = False
    routes = frozenset({"forward"})
    shared_projections: ClassVar[tuple[str, ...]] = ()
    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "D", "A_b_log", "D_b")

    def __init__(
        self, d_model: int, bimamba_type: Literal["v2", "v1"] = "v2", divide_out: bool = True, **options: Any
    ) -> None:
        check("mamba1", options)
        super().__init__(d_model, **options)
        if bimamba_type not in ("v2", "v1"):
            raise UserError(f"vim: bimamba_type is {bimamba_type!r}", 'choose "v2" or "v1", or the mixer mamba1')
        self.bimamba_type = bimamba_type
        self.route = Route("bidirectional", merge="mean" if divide_out and bimamba_type == "v2" else "sum")
        self.A_b_log = nn.Parameter(torch.empty_like(self.A_log))
        if bimamba_type == "v2":
            E, W, like = self.d_inner, self.d_conv, self.conv1d.weight
            bias = self.conv1d.bias is not None
            self.conv1d_b = nn.Conv1d(E, E, W, groups=E, padding=W - 1, bias=bias, device=like.device, dtype=like.dtype)
            self.x_proj_b = nn.Linear(E, self.x_proj.out_features, bias=False, device=like.device, dtype=like.dtype)
            self.dt_proj_b = nn.Linear(self.dt_rank, E, device=like.device, dtype=like.dtype)
            self.D_b = nn.Parameter(torch.empty_like(self.D))
        self._reset_backward()
        self.flag_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew, as the reference does.

        The step sizes of "v2" backwards do not start as those forwards do: they keep PyTorch's weights, and a bias of
        zero, so that they are about 0.69.
        """
        super().reset_parameters()
        if self.bimamba_type == "v2":
            for layer in (self.conv1d_b, self.x_proj_b, self.dt_proj_b):
                layer.reset_parameters()
        self._reset_backward()

    @torch.no_grad()
    def _reset_backward(self) -> None:
        self.A_b_log.copy_(self.A_log)
        if self.bimamba_type == "v2":
            self.dt_proj_b.bias.zero_()
            self.D_b.fill_(1.0)

    def forward(self, x_BLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix every position at once; see ``Mixer.forward``.

        Raises:
            UserError: If a shape does not fit, or ``seq_idx_BL`` is given.
        """
        if seq_idx_BL is not None:
            raise UserError("packed sequences do not go with Vim's mixer", 'use RoutedMixer with share="all" or "none"')
        x_BLE, z_BLE = self.in_proj(self.checked(x_BLD)).chunk(2, dim=-1)
        readings = stack_parameters([self.reading_parameters(), self._backward_parameters()])
        y_BLE = scan_readings(self._convolve(x_BLE, readings), z_BLE, readings, self.route, self.backend)
        return self.out_proj(y_BLE)

    def _convolve(self, x_BLE: Tensor, readings: ReadingParameters) -> Tensor:
        """Return what the two readings scan (B, 2, L, E)."""
        weight_KEW, bias_KE, route = readings.conv_weight.flatten(2), readings.conv_bias, self.route
        if self.bimamba_type == "v1":
            weight_KEW, bias_KE, route = weight_KEW[:1], None if bias_KE is None else bias_KE[:1], Route("forward")
        u_BKLE = causal_conv1d_route(x_BLE, weight_KEW, bias_KE, route, activation="silu", backend=self.backend)
        return u_BKLE.expand(-1, 2, -1, -1)

    def _backward_parameters(self) -> ReadingParameters:
        if self.bimamba_type == "v1":
            return self.reading_parameters()._replace(A_log=self.A_b_log)
        conv, dt_proj = self.conv1d_b, self.dt_proj_b
        return ReadingParameters(
            conv.weight, self.x_proj_b.weight, dt_proj.weight, dt_proj.bias, self.A_b_log, self.D_b, conv.bias
        )

    def init_state(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse, for the mixer looks ahead."""
        raise self._not_causal("init_state")

    def prefill(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse, for the mixer looks ahead."""
        raise self._not_causal("prefill")

    def step(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse, for the mixer looks ahead."""
        raise self._not_causal("step")
