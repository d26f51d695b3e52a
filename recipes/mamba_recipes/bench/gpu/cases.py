"""The shapes: of language models, Vision Mamba, VMamba, Audio Mamba, 3-D segmentation and forecasting.

Inputs have 16 bits and parameters 32, as under autocast.

Dimensions: B batch, K readings, L length, H and W of an image, D channels, N state, R rank of a low-rank delta; of SSD
and attention H heads (S where H is an axis of an image), P head width, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels import (
    Route,
    causal_conv1d,
    causal_conv1d_bidirectional,
    depthwise_conv,
    layer_norm,
    rms_norm,
    selective_scan,
    selective_scan_route,
    ssd,
    ssd_route,
)
from mamba_kernels.selective_scan.decomposition import selective_scan_decomposition
from mamba_kernels.ssd.cpu import ssd as ssd_by_chunks
from mamba_recipes.bench.gpu import rivals
from mamba_recipes.bench.gpu.problem import Problem

SCANS = {
    "language model": (8, 2048, 2048, 16),
    "Vim-S, 224 px": (128, 768, 197, 16),
    "Vim-Ti, 1248 px": (4, 384, 6085, 16),
    "Audio Mamba-B, 10 s": (32, 1536, 513, 16),
    "U-Mamba, 3-D": (2, 128, 32768, 16),
    "time series": (32, 1024, 321, 32),
    "TimeMachine, traffic": (16, 512, 862, 256),
    "large state": (8, 1024, 2048, 128),
    "long": (1, 1024, 262144, 16),
}  # B, D, L, N
SSDS = {
    "language model": (8, 2048, 32, 64, 128),
    "image": (64, 784, 12, 64, 64),
    "long": (1, 131072, 24, 64, 128),
    "sound": (32, 513, 24, 64, 64),
}  # B, L, H, P, N; one group
SSD_ROUTES = {
    "image, cross": ("cross", 64, (28, 28), 6, 64, 64),
    "image, both ends": ("bidirectional", 128, (197,), 12, 64, 64),
}  # the route, B, the grid, H, P, N; one group
STAGES = ((64, 56, 96, 6), (64, 28, 192, 12), (64, 14, 384, 24), (64, 7, 768, 48))  # B, side, D, R of VMamba-T
BOTH_ENDS = {"Vim-S, 224 px": (128, 768, 197, 16, 24), "Vim-Ti, 1248 px": (4, 384, 6085, 16, 12)}  # B, D, L, N, R
GRIDS: dict[str, list[tuple[int, ...]]] = {
    "VMamba-T, 3 x 3": [(128, 56, 56, 96), (128, 28, 28, 192), (128, 14, 14, 384), (128, 7, 7, 768)],
    "U-Mamba, 3 x 3 x 3": [(2, 32, 32, 32, 128)],
}  # B, the grid's axes, D
CONVOLUTIONS = ((8, 2048, 2048), (128, 768, 197), (1, 1024, 262144))  # B, D, L; width 4
NORMS = ((25216, 384), (16384, 2048), (401408, 96))
LAYOUTS = ("channel last", "length last")
# Past this length the reference's steps take longer than its associative form in float64.
LONGEST_STEPWISE = 8192


@dataclass(frozen=True)
class Case:
    """An operator at a shape, not yet built; its inputs are made on torch's default device."""

    op: str
    name: str
    shape: tuple[int, ...]
    layout: str
    build: Callable[[], Problem]

    def label(self) -> str:
        """Return what a filter is matched with."""
        return f"{self.op} {self.name} {','.join(map(str, self.shape))} {self.layout}"


def all_cases() -> Iterator[Case]:
    """Yield every case."""
    for layout in LAYOUTS:
        for name, scan in SCANS.items():
            yield Case("selective_scan", name, scan, layout, partial(_scan, layout, *scan))
    for name, sizes in SSDS.items():
        yield Case("ssd", name, sizes, "channel last", partial(_ssd, *sizes))
        if name != "long":
            yield Case("causal attention", name, sizes[:4], "heads", partial(_attention, *sizes[:4]))
    for name, (path, batch, grid, *head) in SSD_ROUTES.items():
        shape = (batch, *grid, *head)
        yield Case("ssd_route", name, shape, "channel last", partial(_ssd_route, path, batch, grid, *head))
    for stage in STAGES:
        yield Case("selective_scan_route", "VMamba-T", stage, "channel last", partial(_cross_scan, *stage))
    for name, pair in BOTH_ENDS.items():
        yield Case("selective_scan_route", name, pair, "channel last", partial(_scan_from_both_ends, *pair))
    for layout in LAYOUTS:
        for conv in CONVOLUTIONS:
            yield Case("causal_conv1d", "width 4", conv, layout, partial(_convolution, layout, *conv))
    both = CONVOLUTIONS[1]
    yield Case("causal_conv1d_bidirectional", "width 4", both, LAYOUTS[0], partial(_both_convolutions, *both))
    for name, grids in GRIDS.items():
        for grid in grids:
            yield Case("depthwise_conv", name, grid, "channel last", partial(_depthwise, *grid))
    for norm in NORMS:
        yield Case("rms_norm", "with residual", norm, "rows", partial(_rms_norm, *norm))
        yield Case("layer_norm", "plain", norm, "rows", partial(_layer_norm, *norm))


def _draw(*shape: int, last: bool = False, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a leaf of random numbers, with the last two dimensions exchanged in memory where ``last``."""
    if last:
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).mT.requires_grad_()
    return torch.randn(shape).to(dtype).requires_grad_()


def _parameter(*shape: int, mean: float = 0.0) -> Tensor:
    return (torch.randn(shape) + mean).requires_grad_()


def _decays(*shape: int) -> Tensor:
    return (-torch.rand(shape) - 0.1).requires_grad_()


def _some(size: int, count: int) -> list[int]:
    """Return about ``count`` of ``size`` places, the first and the last among them."""
    return sorted({round(i * (size - 1) / max(1, count - 1)) for i in range(min(count, size))})


def _scan(layout: str, batch: int, channels: int, length: int, states: int) -> Problem:
    last = layout == "channel last"
    inputs = {name: _draw(batch, channels, length, last=last) for name in ("u", "delta")}
    inputs["A"] = _decays(channels, states)
    inputs |= {name: _draw(batch, states, length, last=last) for name in ("B", "C")}
    inputs |= {"D": _parameter(channels), "z": _draw(batch, channels, length, last=last)}
    inputs["delta_bias"] = _parameter(channels, mean=-3.0)
    stepwise = length <= LONGEST_STEPWISE
    return Problem(
        operator=partial(selective_scan, delta_softplus=True),
        inputs=inputs,
        dims={
            **dict.fromkeys(("u", "delta", "z"), "BDL"), **dict.fromkeys(("B", "C"), "BNL"), "A": "DN", "D": "D",
            "delta_bias": "D",
        },
        out_dims=["BDL"],
        reference=partial(selective_scan, delta_softplus=True, backend="reference") if stepwise else _scan_at_once,
        sample={"B": _some(batch, 2), "D": _some(channels, 32 if stepwise else 3)},
        out_bytes=inputs["u"].nbytes,
        exponentials=batch * channels * length * states,
        # The CUDA original takes time contiguous, and copies anything else.
        rivals={} if last else rivals.scans(),
    )  # fmt: skip


def _scan_at_once(*, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **rest: Tensor) -> Tensor:
    D, z, bias = rest["D"], rest["z"], rest["delta_bias"]
    return selective_scan_decomposition(u, delta, A, B, C, D, z, bias, True, None, None, False, u.dtype, False)[0]


def _ssd(batch: int, length: int, heads: int, width: int, states: int) -> Problem:
    inputs = {
        "x": _draw(batch, length, heads, width),
        "dt": _draw(batch, length, heads),
        "A": (-1 - 15 * torch.rand(heads)).requires_grad_(),
        "B": _draw(batch, length, 1, states),
        "C": _draw(batch, length, 1, states),
        "D": _parameter(heads),
        "dt_bias": _parameter(heads, mean=-4.0),
    }

    def by_chunks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
        limit = (0.0, float("inf"))
        return ssd_by_chunks(x, dt, A, B, C, 256, D, None, dt_bias, True, limit, None, None, False, x.dtype)[0]

    return Problem(
        operator=partial(ssd, dt_softplus=True),
        inputs=inputs,
        dims={"x": "BLHP", "dt": "BLH", "A": "H", "B": "BLGN", "C": "BLGN", "D": "H", "dt_bias": "H"},
        out_dims=["BLHP"],
        reference=by_chunks,
        sample={"B": _some(batch, 2), "H": _some(heads, 4)},
        out_bytes=inputs["x"].nbytes,
        rivals=rivals.ssds(),
    )


def _ssd_route(path: str, batch: int, grid: tuple[int, ...], heads: int, width: int, states: int) -> Problem:
    """Readings of an input that each has of its own, as after convolutions, up to the merged result."""
    route, axes = Route(path), "HW" if len(grid) > 1 else "L"
    K = route.count(len(grid))
    inputs = {
        "x": _draw(batch, K, *grid, heads, width),
        "dt": _draw(batch, *grid, heads),
        "A": (-1 - 15 * torch.rand(K, heads)).requires_grad_(),
        **{name: _draw(batch, K, *grid, 1, states) for name in ("B", "C")},
        "D": _parameter(K, heads),
        "dt_bias": _parameter(K, heads, mean=-4.0),
    }

    def operator(*, A: Tensor, D: Tensor, dt_bias: Tensor, backend: str | None = None, **rest: Any) -> Tensor:
        return ssd_route(
            **rest, A=A.flatten(), D=D.flatten(), dt_bias=dt_bias.flatten(), dt_softplus=True, route=route,
            backend=backend,
        )  # fmt: skip

    return Problem(
        operator=operator,
        inputs=inputs,
        dims={
            "x": f"BK{axes}SP", "dt": f"B{axes}S", "A": "KS", "B": f"BK{axes}GN", "C": f"BK{axes}GN", "D": "KS",
            "dt_bias": "KS",
        },
        out_dims=[f"B{axes}SP"],
        reference=partial(operator, backend="reference"),
        sample={"B": _some(batch, 2), "S": _some(heads, 4)},
        out_bytes=inputs["x"].nbytes // K,
    )  # fmt: skip


def _attention(batch: int, length: int, heads: int, width: int) -> Problem:
    """PyTorch's attention over as many heads, to see SSD beside it; the floor counts its bytes alone."""
    inputs = {name: _draw(batch, heads, length, width) for name in ("query", "key", "value")}
    operator = partial(F.scaled_dot_product_attention, is_causal=True)
    return Problem(
        operator=operator,
        inputs=inputs,
        dims=dict.fromkeys(inputs, "BHLP"),
        out_dims=["BHLP"],
        reference=operator,
        sample={"B": _some(batch, 2), "H": _some(heads, 4)},
        out_bytes=inputs["value"].nbytes,
    )


def _cross_scan(batch: int, side: int, channels: int, rank: int) -> Problem:
    """Four readings of an image with one state, from x and the low-rank delta to the merged result in float32."""
    half, route = torch.float16, Route("cross")
    inputs = {
        "x": _draw(batch, side, side, channels, dtype=half),
        "delta": _draw(batch, 4, side, side, rank, dtype=half),
        "A": _decays(4, channels, 1),
        **{name: _draw(batch, 4, side, side, 1, dtype=half) for name in ("B", "C")},
        "D": _parameter(4, channels),
        "delta_bias": _parameter(4, channels, mean=-3.0),
        "delta_weight": (torch.randn(4, channels, rank) * rank**-0.5).requires_grad_(),
    }

    def operator(*, A: Tensor, D: Tensor, delta_bias: Tensor, backend: str | None = None, **rest: Any) -> Tensor:
        return selective_scan_route(
            **rest, A=A.flatten(0, 1), D=D.flatten(), delta_bias=delta_bias.flatten(), delta_softplus=True,
            route=route, out_dtype=torch.float64 if backend else torch.float32, backend=backend,
        )  # fmt: skip

    cells = batch * side * side
    return Problem(
        operator=operator,
        inputs=inputs,
        dims={
            "x": "BHWD", "delta": "BKHWR", "A": "KDN", "B": "BKHWN", "C": "BKHWN", "D": "KD", "delta_bias": "KD",
            "delta_weight": "KDR",
        },
        out_dims=["BHWD"],
        reference=partial(operator, backend="reference"),
        sample={"B": _some(batch, 2), "D": _some(channels, 32)},
        out_bytes=4 * cells * channels,
        exponentials=4 * cells * channels,
    )  # fmt: skip


def _scan_from_both_ends(batch: int, channels: int, length: int, states: int, rank: int) -> Problem:
    """Two readings, each of an input of its own as after two convolutions, from the low-rank delta to the gate."""
    route = Route("bidirectional", merge="mean")
    inputs = {
        "x": _draw(batch, 2, length, channels),
        "delta": _draw(batch, 2, length, rank),
        "A": _decays(2, channels, states),
        **{name: _draw(batch, 2, length, states) for name in ("B", "C")},
        "D": _parameter(2, channels),
        "z": _draw(batch, length, channels),
        "delta_bias": _parameter(2, channels, mean=-3.0),
        "delta_weight": (torch.randn(2, channels, rank) * rank**-0.5).requires_grad_(),
    }

    def operator(*, A: Tensor, D: Tensor, delta_bias: Tensor, backend: str | None = None, **rest: Any) -> Tensor:
        return selective_scan_route(
            **rest, A=A.flatten(0, 1), D=D.flatten(), delta_bias=delta_bias.flatten(), delta_softplus=True,
            route=route, backend=backend,
        )  # fmt: skip

    return Problem(
        operator=operator,
        inputs=inputs,
        dims={
            "x": "BKLD", "delta": "BKLR", "A": "KDN", "B": "BKLN", "C": "BKLN", "D": "KD", "z": "BLD",
            "delta_bias": "KD", "delta_weight": "KDR",
        },
        out_dims=["BLD"],
        reference=partial(operator, backend="reference"),
        sample={"B": _some(batch, 2), "D": _some(channels, 32)},
        out_bytes=inputs["z"].nbytes,
        exponentials=2 * batch * channels * length * states,
    )  # fmt: skip


def _convolution(layout: str, batch: int, channels: int, length: int) -> Problem:
    last = layout == "channel last"
    inputs = {
        "x": _draw(batch, channels, length, last=last),
        "weight": _parameter(channels, 4),
        "bias": _parameter(channels),
    }
    return Problem(
        operator=partial(causal_conv1d, activation="silu"),
        inputs=inputs,
        dims={"x": "BDL", "weight": "DW", "bias": "D"},
        out_dims=["BDL"],
        reference=partial(causal_conv1d, activation="silu", backend="reference"),
        sample={"B": _some(batch, 2), "D": _some(channels, 32)},
        out_bytes=inputs["x"].nbytes,
        rivals=rivals.convolutions(),
    )


def _both_convolutions(batch: int, channels: int, length: int) -> Problem:
    inputs = {
        "x": _draw(batch, channels, length, last=True),
        "weight": _parameter(2, channels, 4),
        "bias": _parameter(2, channels),
    }
    return Problem(
        operator=partial(causal_conv1d_bidirectional, activation="silu"),
        inputs=inputs,
        dims={"x": "BDL", "weight": "KDW", "bias": "KD"},
        out_dims=["BKDL"],
        reference=partial(causal_conv1d_bidirectional, activation="silu", backend="reference"),
        sample={"B": _some(batch, 2), "D": _some(channels, 32)},
        out_bytes=2 * inputs["x"].nbytes,
    )


def _depthwise(batch: int, *grid_and_channels: int) -> Problem:
    *grid, channels = grid_and_channels
    inputs = {
        "x": _draw(batch, *grid, channels),
        "weight": _parameter(channels, *[3] * len(grid)),
        "bias": _parameter(channels),
    }
    axes = "PHW"[-len(grid) :]
    return Problem(
        operator=partial(depthwise_conv, activation="silu"),
        inputs=inputs,
        dims={"x": f"B{axes}D", "weight": "D" + "ZYX"[-len(grid) :], "bias": "D"},
        out_dims=[f"B{axes}D"],
        reference=partial(depthwise_conv, activation="silu", backend="reference"),
        sample={"B": _some(batch, 2), "D": _some(channels, 32)},
        out_bytes=inputs["x"].nbytes,
        rivals=rivals.grid_convolutions(len(grid)),
    )


def _rms_norm(rows: int, width: int) -> Problem:
    inputs = {
        "x": _draw(rows, width),
        "residual": _draw(rows, width, dtype=torch.float32),
        "weight": _parameter(width, mean=1.0),
    }
    return Problem(
        operator=partial(rms_norm, prenorm=True),
        inputs=inputs,
        dims={"x": "MD", "residual": "MD", "weight": "D"},
        out_dims=["MD", "MD"],
        reference=partial(rms_norm, prenorm=True, backend="reference"),
        sample={"M": _some(rows, 1024)},
        out_bytes=inputs["x"].nbytes + inputs["residual"].nbytes,
        backward_reads=inputs["residual"].nbytes + inputs["weight"].nbytes,  # The sum alone.
        rivals=rivals.residual_norms(),
    )


def _layer_norm(rows: int, width: int) -> Problem:
    inputs = {"x": _draw(rows, width), "weight": _parameter(width, mean=1.0), "bias": _parameter(width)}

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), 1e-5)

    return Problem(
        operator=layer_norm,
        inputs=inputs,
        dims={"x": "MD", "weight": "D", "bias": "D"},
        out_dims=["MD"],
        reference=partial(layer_norm, backend="reference"),
        sample={"M": _some(rows, 1024)},
        out_bytes=inputs["x"].nbytes,
        rivals={"torch": torchs},
    )
