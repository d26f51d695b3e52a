"""How fast a model could be: its operators and matrix products alone, layer after layer, forward and backward.

Patch embedding, head, loss, optimiser and what glues a model's modules together are left out, so these figures bound
what the models in this repository reach. Weights of matrix products have 16 bits; those of norms, convolutions and
scans 32.

Dimensions: B batch, K readings, L length, H and W of a grid, D model channels, E inner channels, N state, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_kernels import (
    Route,
    causal_conv1d_bidirectional,
    depthwise_conv,
    layer_norm,
    rms_norm,
    selective_scan_route,
)
from mamba_recipes.bench.gpu.each import chosen, measure_each
from mamba_recipes.bench.gpu.measure import peak_extra_mib, time_eagerly, time_on_gpu

Row = dict[str, Any]


class ScanWeights(nn.Module):
    """The parameters of a scan along a route of K readings, and the products that make its inputs."""

    def __init__(self, route: Route, K: int, channels: int, rank: int, states: int) -> None:
        super().__init__()
        self.route, self.widths = route, (rank, states, states)
        self.x_proj = _matrix(K, rank + 2 * states, channels)
        self.dt = _vector(K, channels, rank)
        self.dt_bias = _vector(K * channels, mean=-4.0)
        self.A_log = _vector(K * channels, states)
        self.D = _vector(K * channels)

    def forward(self, x: Tensor, z: Tensor | None, out_dtype: torch.dtype) -> Tensor:
        """Scan x (B, *grid, E), or (B, K, *grid, E) with one input a reading."""
        if x.dim() == 3 or self.route.name == "cross":
            made = F.linear(x, self.x_proj.flatten(0, 1)).unflatten(-1, self.x_proj.shape[:2]).movedim(-2, 1)
        else:
            made = x @ self.x_proj.mT
        dt, B, C = made.split(self.widths, dim=-1)
        return selective_scan_route(
            x, dt, -self.A_log.exp(), B, C, self.D, z, self.dt_bias, True,
            route=self.route, delta_weight=self.dt, out_dtype=out_dtype,
        )  # fmt: skip


class VimLayer(nn.Module):
    """A layer of Vim: norm with the residual, product, convolutions and scans from both ends, product."""

    def __init__(self, width: int, states: int = 16) -> None:
        super().__init__()
        inner = 2 * width
        self.norm, self.into, self.out = _vector(width, mean=1.0), _matrix(2 * inner, width), _matrix(width, inner)
        self.filters, self.shifts = _vector(2, inner, 4), _vector(2, inner)
        self.scan = ScanWeights(Route("bidirectional", merge="mean"), 2, inner, width // 16, states)

    def forward(self, h: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what is added to the residual next, and the residual (B, L, D) in float32."""
        h, residual = rms_norm(h, self.norm, residual=residual, prenorm=True, residual_in_fp32=True)
        x, z = F.linear(h, self.into).chunk(2, dim=-1)
        both = causal_conv1d_bidirectional(x.mT, self.filters, self.shifts, activation="silu").mT
        return F.linear(self.scan(both, z, x.dtype), self.out), residual


class VMambaLayer(nn.Module):
    """A layer of VMamba: an SS2D branch and an MLP branch, each with its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ParameterList([_vector(width, mean=1.0) for _ in range(3)])
        self.shifts = nn.ParameterList([_vector(width) for _ in range(3)])
        self.into, self.out = _matrix(width, width), _matrix(width, width)
        self.up, self.down = _matrix(4 * width, width), _matrix(width, 4 * width)
        self.filters = _vector(width, 3, 3)
        self.scan = ScanWeights(Route("cross"), 4, width, -(-width // 16), 1)

    def forward(self, h: Tensor) -> Tensor:
        """Return the grid (B, H, W, D) with both branches added."""
        x = F.linear(self._norm(0, h, h.dtype), self.into)
        y = self.scan(depthwise_conv(x, self.filters, activation="silu"), None, torch.float32)
        h = h + F.linear(self._norm(1, y, h.dtype), self.out)
        x = F.gelu(F.linear(self._norm(2, h, h.dtype), self.up))
        return h + F.linear(x, self.down)

    def _norm(self, i: int, x: Tensor, dtype: torch.dtype) -> Tensor:
        return cast(Tensor, layer_norm(x, self.norms[i], self.shifts[i], out_dtype=dtype))


class Vim(nn.Module):
    """The layers of a Vim."""

    def __init__(self, width: int, depth: int = 24) -> None:
        super().__init__()
        self.layers = nn.ModuleList([VimLayer(width) for _ in range(depth)])

    def forward(self, h: Tensor) -> Tensor:
        """Return the last layer's (B, L, D)."""
        residual = None
        for layer in self.layers:
            h, residual = layer(h, residual)
        return h


class VMamba(nn.Module):
    """The layers of a VMamba; between stages four cells become one of twice the width."""

    def __init__(self, width: int, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.Sequential(*(VMambaLayer(width * 2**i) for _ in range(depth))) for i, depth in enumerate(depths)]
        )
        self.halve = nn.ParameterList([_matrix(width * 2 ** (i + 1), 4 * width * 2**i) for i in range(len(depths) - 1)])

    def forward(self, h: Tensor) -> Tensor:
        """Return the last stage's grid."""
        for i, stage in enumerate(self.stages):
            if i:
                cells = h.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
                h = F.linear(cells, self.halve[i - 1])
            h = stage(h)
        return h


class Stack(NamedTuple):
    """A model's stack, its input, and the images a second that the model is meant to reach."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    inference: float
    training: float


STACKS = {
    "Vim-S, 224 px": Stack(lambda: Vim(384), (128, 197, 384), 9300, 2370),
    "Vim-Ti, 1248 px": Stack(lambda: Vim(192), (8, 6085, 192), 622, 160),
    "VMamba-T s1l8, 224 px": Stack(lambda: VMamba(96, (2, 2, 8, 2)), (128, 56, 56, 96), 8000, 2350),
}


def run(talk: Callable[[str], None], filters: list[str]) -> list[Row]:
    """Run the stacks that match on the current GPU, telling each before it starts.

    Raises:
        UserError: If nothing matches.
    """
    works = {name: partial(_row, name, stack) for name, stack in STACKS.items()}
    return measure_each(chosen(works, filters), talk)


def _row(name: str, stack: Stack) -> Row:
    with torch.device("cuda"):
        model = stack.build()
        x = torch.randn(stack.shape).bfloat16()
    weights = list(model.parameters())
    cotangent = torch.randn_like(model(x))

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(x), weights, cotangent)

    if not all(bool(t.isfinite().all()) for t in (forward(), *both())):
        raise FloatingPointError(f"the stack of {name} gives results that are not finite")
    return {
        "op": "stack", "case": name, "shape": list(stack.shape), "by": "ours",
        "forward_ms": time_eagerly(forward), "forward_backward_ms": time_eagerly(both),
        "gpu_forward_ms": time_on_gpu(forward), "gpu_forward_backward_ms": time_on_gpu(both),
        "peak_extra_mib": peak_extra_mib(both),
        "target_inference": stack.inference, "target_training": stack.training,
    }  # fmt: skip


def render(rows: list[Row]) -> str:
    """Return the rows as a Markdown table, in images a second."""
    lines = [
        "| stack | input | inference img/s | in a graph | target | training img/s | in a graph | target | extra MiB |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        batch = row["shape"][0]
        cells = [row["case"], ", ".join(map(str, row["shape"]))]
        for part, target in (("forward", "inference"), ("forward_backward", "training")):
            cells += [f"{1e3 * batch / row[f'{prefix}{part}_ms']:.0f}" for prefix in ("", "gpu_")]
            cells.append(f"{row[f'target_{target}']:.0f}")
        lines.append("| " + " | ".join([*cells, f"{row['peak_extra_mib']:.0f}"]) + " |")
    return "\n".join(lines)


def _matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter((torch.randn(shape) * shape[-1] ** -0.5).bfloat16())


def _vector(*shape: int, mean: float = 0.0) -> nn.Parameter:
    return nn.Parameter(0.1 * torch.randn(shape) + mean)
