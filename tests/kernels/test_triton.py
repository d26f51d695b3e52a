"""The GPU kernels against the reference: on a GPU, or interpreted on the CPU in a process of its own.

The interpreter is switched on before the import (``TRITON_INTERPRET=1 pytest tests/kernels/test_triton.py``), so in any
other process without a GPU the one test that runs starts such a process, for this file and `test_triton_scan.py`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from operator_outcomes import LAYOUTS
from torch import Tensor
from triton_comparison import DEVICE, GPU, INTERPRETED, MARKS, compare, draw, here, route_case, scan_case, segments

from mamba_kernels import (
    Route,
    causal_conv1d,
    causal_conv1d_bidirectional,
    depthwise_conv,
    gated_rms_norm,
    layer_norm,
    rms_norm,
    selective_scan,
    selective_scan_route,
)
from mamba_kernels.errors import KernelInputError

OPTIONS = Path(__file__).with_name("test_triton_scan.py")


@pytest.mark.skipif(INTERPRETED or GPU, reason="the kernels run in this very process")
def test_the_interpreted_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), str(OPTIONS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


SCANS = {
    "plain": {"D": False, "z": False, "bias": False, "state": False, "softplus": False},
    "everything": {},
    "reverse": {"reverse": True},
    "channel_last": {"last": True},
    "segments": {"seq_idx": True},
    "segments_reverse": {"seq_idx": True, "reverse": True, "last": True},
    "constant_B_C": {"B_groups": 0, "C_groups": 0},
    "constant_B": {"B_groups": 0},
    "grouped": {"B_groups": 2, "C_groups": 4, "channels": 16},
    "one_step": {"length": 1},
    "one_state": {"states": 1},
    "odd_states": {"states": 20, "channels": 40, "length": 9},
    "time_in_parts": {"length": 64 * 2 + 3, "channels": 3, "states": 2, "seq_idx": True, "reverse": True},
}
LARGE_SCANS = {
    "time_in_parts_plain": {"length": 64 * 9 + 3, "channels": 3, "states": 2, "batch": 1},
    "long": {"length": 2001, "channels": 96, "states": 16},
    "wide_state": {"length": 300, "channels": 70, "states": 100, "seq_idx": True},
    "largest_state": {"length": 100, "channels": 8, "states": 256},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
@pytest.mark.parametrize("case", {**SCANS, **(LARGE_SCANS if GPU else {})})
@pytest.mark.usefixtures("_seed")
class TestScan:
    pytestmark = MARKS

    def test_output_states_and_every_gradient(self, case: str, dtype: torch.dtype) -> None:
        inputs, options = scan_case(dtype, **{**SCANS, **LARGE_SCANS}[case])
        compare(selective_scan, inputs, dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"last": True},
        {"last": True, "reverse": True, "states": False, "width": 3},
        {"last": True, "length": 300, "channels": 40, "width": 2, "activation": None, "bias": False},
        {"reverse": True},
        {"seq_idx": True},
        {"seq_idx": True, "reverse": True, "last": True},
        {"width": 1},
        {"width": 9, "length": 5},
        {"width": 2, "activation": None, "bias": False, "states": False},
        {"length": 1},
        {"length": 300, "channels": 70, "last": True, "seq_idx": True},
        {"length": 300, "channels": 40},
    ],
    ids=str,
)
@pytest.mark.usefixtures("_seed")
class TestConvolution:
    pytestmark = MARKS

    def test_output_states_and_every_gradient(self, options: dict, dtype: torch.dtype) -> None:
        channels, length, width = options.get("channels", 5), options.get("length", 37), options.get("width", 4)
        reverse = options.get("reverse", False)
        inputs = {
            "x": draw(dtype, 3, channels, length, last=options.get("last", False)),
            "weight": draw(torch.float32, channels, width),
            "bias": draw(torch.float32, channels) if options.get("bias", True) else None,
            "initial_states": draw(dtype, 3, channels, width - 1) if options.get("states", True) else None,
        }
        compare(
            causal_conv1d, inputs, dtype, return_final_states=True, activation=options.get("activation", "silu"),
            reverse=reverse, seq_idx=segments(3, length, reverse) if options.get("seq_idx") else None,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"last": True},
        {"last": True, "length": 1},
        {"last": True, "length": 150, "channels": 40, "width": 3, "activation": None, "bias": False},
        {"last": True, "width": 6},
    ],
    ids=str,
)
@pytest.mark.usefixtures("_seed")
class TestConvolutionFromBothEnds:
    pytestmark = MARKS

    def test_output_and_every_gradient(self, options: dict, dtype: torch.dtype) -> None:
        channels = options.get("channels", 5)
        inputs = {
            "x": draw(dtype, 3, channels, options.get("length", 37), last=options.get("last", False)),
            "weight": draw(torch.float32, 2, channels, options.get("width", 4)),
            "bias": draw(torch.float32, 2, channels) if options.get("bias", True) else None,
        }
        compare(causal_conv1d_bidirectional, inputs, dtype, activation=options.get("activation", "silu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
@pytest.mark.parametrize("shape", [(2, 17, 3, 5), (3, 1, 1, 3), (1, 4, 9, 40), (2, 9, 3, 4, 6)], ids=str)
@pytest.mark.usefixtures("_seed")
class TestDepthwise:
    pytestmark = MARKS

    @pytest.mark.parametrize("bare", [False, True])
    def test_output_and_every_gradient(self, shape: tuple[int, ...], bare: bool, dtype: torch.dtype) -> None:
        inputs = {
            "x": draw(dtype, *shape),
            "weight": draw(torch.float32, shape[-1], *[3] * (len(shape) - 2)),
            "bias": None if bare else draw(torch.float32, shape[-1]),
        }
        compare(depthwise_conv, inputs, dtype, activation=None if bare else "silu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
@pytest.mark.usefixtures("_seed")
class TestNorms:
    pytestmark = MARKS

    @pytest.mark.parametrize("norm", [rms_norm, layer_norm])
    @pytest.mark.parametrize(
        ("bias", "residual", "shape"),
        list(itertools.product([False, True], [False, True], [(3, 7, 24), (70, 33), (1, 5)])),
    )
    def test_norms(
        self, norm: Callable, bias: bool, residual: bool, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        inputs = {
            "x": draw(dtype, *shape),
            "weight": draw(torch.float32, shape[-1]),
            "bias": draw(torch.float32, shape[-1]) if bias else None,
            "residual": draw(torch.float32, *shape) if residual else None,
        }
        compare(norm, inputs, dtype, prenorm=residual)

    @pytest.mark.parametrize("width", [96, 800, 1100, 1300])
    def test_rows_in_chunks(self, width: int, dtype: torch.dtype) -> None:
        inputs = {"x": draw(dtype, 9, width), "weight": draw(torch.float32, width), "bias": draw(torch.float32, width)}
        compare(layer_norm, inputs, dtype)

    @pytest.mark.parametrize(
        ("group_size", "before", "gate", "bias"),
        list(itertools.product([None, 8], [True, False], [True, False], [True, False])),
    )
    def test_gated_norm(self, group_size: int | None, before: bool, gate: bool, bias: bool, dtype: torch.dtype) -> None:
        inputs = {
            "x": draw(dtype, 5, 9, 24),
            "weight": draw(torch.float32, 24),
            "bias": draw(torch.float32, 24) if bias else None,
            "z": draw(dtype, 5, 9, 24, last=True) if gate else None,
        }
        compare(gated_rms_norm, inputs, dtype, group_size=group_size, norm_before_gate=before)


ROUTES = {
    "forward": {"route": Route("forward")},
    "bidirectional": {"route": Route("bidirectional", merge="mean"), "own": True},
    "cross": {"route": Route("cross"), "rank": 2},
    "snake": {"route": Route("snake", merge="concat")},
    "windowed": {"route": Route("windowed", window=2), "rank": 3, "own": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
@pytest.mark.parametrize("case", ROUTES)
@pytest.mark.usefixtures("_seed")
class TestRoute:
    pytestmark = MARKS

    def test_output_and_every_gradient(self, case: str, dtype: torch.dtype) -> None:
        inputs, options = route_case(dtype, **ROUTES[case])
        compare(selective_scan_route, inputs, dtype, **options)


@pytest.mark.parametrize("layout", ["every_second", "expanded_batch", "expanded_last", "batch_last"])
@pytest.mark.usefixtures("_seed")
class TestLayouts:
    """Every input, parameters of the channels among them, may have any strides."""

    pytestmark = MARKS

    def lay_out(self, layout: str, inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
        return {k: LAYOUTS[layout](v) for k, v in inputs.items()}

    def test_scan(self, layout: str) -> None:
        inputs = {
            **{k: draw(torch.float32, 2, 6, 5) * 0.5 for k in ("u", "delta", "z")},
            "A": -draw(torch.float32, 6, 3).abs() - 0.1,
            "B": draw(torch.float32, 2, 3, 5),
            "C": draw(torch.float32, 2, 2, 3, 5),
            "D": draw(torch.float32, 6),
            "delta_bias": draw(torch.float32, 6),
            "initial_state": draw(torch.float32, 2, 6, 3),
        }
        inputs = self.lay_out(layout, inputs)
        compare(selective_scan, inputs, torch.float32, delta_softplus=True, return_last_state=True)

    def test_convolution(self, layout: str) -> None:
        inputs = {
            "x": draw(torch.float32, 2, 6, 5),
            "weight": draw(torch.float32, 6, 3),
            "bias": draw(torch.float32, 6),
            "initial_states": draw(torch.float32, 2, 6, 2),
        }
        compare(causal_conv1d, self.lay_out(layout, inputs), torch.float32, return_final_states=True, activation="silu")

    def test_convolution_from_both_ends(self, layout: str) -> None:
        inputs = {
            "x": draw(torch.float32, 2, 6, 5),
            "weight": draw(torch.float32, 2, 6, 3),
            "bias": draw(torch.float32, 2, 6),
        }
        compare(causal_conv1d_bidirectional, self.lay_out(layout, inputs), torch.float32, activation="silu")

    def test_depthwise(self, layout: str) -> None:
        inputs = {
            "x": draw(torch.float32, 2, 4, 5, 6),
            "weight": draw(torch.float32, 6, 3, 3),
            "bias": draw(torch.float32, 6),
        }
        compare(depthwise_conv, self.lay_out(layout, inputs), torch.float32, activation="silu")

    def test_norms(self, layout: str) -> None:
        inputs = {
            "x": draw(torch.float32, 3, 4, 12),
            "residual": draw(torch.float32, 3, 4, 12),
            "weight": draw(torch.float32, 12),
            "bias": draw(torch.float32, 12),
        }
        # Of constant rows and channels the layer norm is 0, and its derivative is rounding alone.
        norm = rms_norm if layout == "expanded_last" else layer_norm
        compare(norm, self.lay_out(layout, inputs), torch.float32, prenorm=True)
        inputs["z"] = inputs.pop("residual")
        compare(gated_rms_norm, self.lay_out(layout, inputs), torch.float32, group_size=4)


@here
@pytest.mark.usefixtures("_seed")
def test_rows_past_the_last_add_nothing_where_eps_is_0() -> None:
    inputs = {"x": draw(torch.float32, 5, 20), "weight": draw(torch.float32, 20)}
    compare(rms_norm, inputs, torch.float32, eps=0.0)


@here
def test_an_empty_batch_is_empty() -> None:
    u = torch.zeros(0, 3, 8, device=DEVICE, requires_grad=True)
    for states in (1, 2):
        A, B = -torch.ones(3, states, device=DEVICE), torch.zeros(0, states, 8, device=DEVICE)
        y, state = selective_scan(u, u, A.requires_grad_(), B, B, return_last_state=True, backend="triton")
        assert (y.shape, state.shape) == ((0, 3, 8), (0, 3, states))
        du, dA = torch.autograd.grad(y.sum(), (u, A), allow_unused=True)
        assert (du.shape, dA.abs().sum()) == ((0, 3, 8), 0)
    weight = torch.ones(3, 4, device=DEVICE, requires_grad=True)
    for x in (u, u.mT.contiguous().mT):
        y = causal_conv1d(x, weight, backend="triton")
        assert y.shape == (0, 3, 8)
        assert torch.autograd.grad(y.sum(), weight)[0].abs().sum() == 0
    weight = torch.ones(8, 3, 3, device=DEVICE, requires_grad=True)
    y = depthwise_conv(u.new_zeros(0, 2, 3, 8), weight, backend="triton")
    assert torch.autograd.grad(y.sum(), weight)[0].abs().sum() == 0
    weight = torch.ones(8, device=DEVICE, requires_grad=True)
    assert torch.autograd.grad(rms_norm(u, weight, backend="triton").sum(), weight)[0].abs().sum() == 0


@here
@pytest.mark.usefixtures("_seed")
class TestOperators:
    """What the fake kernels promise of results, the GPU kernels keep."""

    def check(self, name: str, *arguments: object) -> None:
        operator = getattr(torch.ops.mamba_kernels, name).default
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))

    def test_scan(self) -> None:
        u, delta = draw(torch.bfloat16, 2, 6, 5, last=True), draw(torch.bfloat16, 2, 6, 5)
        A, B, C = -draw(torch.float32, 6, 3).abs(), draw(torch.bfloat16, 2, 3, 5), draw(torch.float32, 6, 3)
        state, ids = draw(torch.float32, 2, 6, 3), segments(2, 5, reverse=False)
        inputs = (u, delta, A, B, C, None, delta, A[:, 0], True, state, ids, False)
        self.check("selective_scan", *inputs, torch.float32, True)
        checkpoints = draw(torch.float32, 2, 1, 3, 6)
        self.check("selective_scan_backward", delta.float(), None, *inputs, checkpoints)

    def test_convolution(self) -> None:
        x, weight = draw(torch.bfloat16, 2, 6, 5, last=True), draw(torch.float32, 6, 3, last=True)
        state = draw(torch.float32, 2, 6, 2, last=True)
        inputs = (x, weight, weight[:, 0], segments(2, 5, reverse=True), state, True, True)
        self.check("causal_conv1d", *inputs, True)
        self.check("causal_conv1d_backward", x, state, *inputs)

    def test_convolution_from_both_ends(self) -> None:
        x, weight = draw(torch.bfloat16, 2, 6, 5, last=True), draw(torch.float32, 2, 6, 3)
        self.check("causal_conv1d_bidirectional", x, weight, weight[..., 0], True)
        dy = draw(torch.bfloat16, 2, 2, 6, 5)
        self.check("causal_conv1d_bidirectional_backward", dy, x, weight, weight[..., 0], True)

    def test_depthwise(self) -> None:
        x, weight = draw(torch.bfloat16, 2, 3, 5, 6, last=True), draw(torch.float32, 6, 3, 3, last=True)
        self.check("depthwise_conv", x, weight, weight[:, 0, 0], True)
        self.check("depthwise_conv_backward", x, x, weight, weight[:, 0, 0], True)

    @pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_norm(self, out_dtype: torch.dtype) -> None:
        x, weight = draw(torch.bfloat16, 4, 6, last=True), draw(torch.float32, 6)
        self.check("add_norm", x, weight, None, x.float(), 1e-5, True, out_dtype)
        given = (x.to(out_dtype), None, x.float(), weight, None, 1e-5, True)
        self.check("add_norm_backward", *given, x.dtype, torch.float32)

    def test_gated_norm(self) -> None:
        x, z, weight = draw(torch.bfloat16, 4, 6, last=True), draw(torch.float32, 4, 6), draw(torch.float32, 6)
        self.check("gated_rms_norm", x, weight, weight, z, 1e-5, 3, True)
        self.check("gated_rms_norm_backward", x, x, weight, weight, z, 1e-5, 3, True)


@here
def test_float64_is_refused() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, device=DEVICE)
    with pytest.raises(KernelInputError, match="float64"):
        causal_conv1d(x, x[0, :, :4], backend="triton")


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.gpu
class TestOnTheGpu:
    def scan_inputs(self) -> list[Tensor]:
        u = draw(torch.bfloat16, 4, 96, 700, last=True).requires_grad_()
        delta = draw(torch.bfloat16, 4, 96, 700, last=True).requires_grad_()
        A = (-draw(torch.float32, 96, 16).abs()).requires_grad_()
        return [u, delta, A, *(draw(torch.bfloat16, 4, 16, 700, last=True).requires_grad_() for _ in range(2))]

    def test_repeats_bit_for_bit(self) -> None:
        inputs = self.scan_inputs()
        runs = []
        for _ in range(2):
            y = selective_scan(*inputs, delta_softplus=True)
            runs.append([y, *torch.autograd.grad(y.float().sum(), inputs)])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    def test_compiles_whole(self) -> None:
        inputs = self.scan_inputs()

        def run(u: Tensor, *rest: Tensor) -> Tensor:
            x = causal_conv1d(u, torch.ones(96, 4, device=DEVICE), activation="silu")
            return rms_norm(selective_scan(x, *rest, delta_softplus=True).mT, torch.ones(96, device=DEVICE))

        eager, compiled = run(*inputs), torch.compile(run, fullgraph=True)(*inputs)
        torch.testing.assert_close(compiled, eager)
        for a, b in zip(
            torch.autograd.grad(compiled.float().sum(), inputs),
            torch.autograd.grad(eager.float().sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(a, b)

    def test_a_batch_past_the_later_axes_of_a_grid(self) -> None:
        batch = 70_000
        u = draw(torch.float32, batch, 2, 3)
        A, B = -torch.ones(2, 1, device=DEVICE), draw(torch.float32, batch, 1, 3)
        inputs = {"u": u, "delta": u.abs(), "A": A, "B": B, "C": B}
        compare(selective_scan, inputs, torch.float32)
        weight = draw(torch.float32, 2, 2)
        compare(causal_conv1d, {"x": u, "weight": weight}, torch.float32)

    def test_more_elements_than_int32_counts(self) -> None:
        length = 2**21 + 77
        x = torch.randn(length, 1024, device=DEVICE, dtype=torch.bfloat16)
        weight, bias = draw(torch.float32, 1024, 4), draw(torch.float32, 1024)
        end = slice(length - 40, length)
        y = causal_conv1d(x.mT[None], weight, bias, activation="silu")
        assert torch.equal(y[..., -30:], causal_conv1d(x[end].mT[None], weight, bias, activation="silu")[..., -30:])
        y = causal_conv1d(x.mT[None], weight, bias, activation="silu", reverse=True)
        part = causal_conv1d(x[end].mT[None], weight, bias, activation="silu", reverse=True)
        assert torch.equal(y[..., -30:], part[..., -30:])
        del y
        assert torch.equal(rms_norm(x, bias)[end], rms_norm(x[end], bias))
        image = x[: 2**21].view(2**9, 2**6, 2**6, 1024)
        taps = draw(torch.float32, 1024, 3, 3)
        assert torch.equal(depthwise_conv(image, taps, bias)[-1], depthwise_conv(image[-1:], taps, bias)[0])

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    def test_tensors_on_another_gpu_than_the_current_one(self) -> None:
        inputs = self.scan_inputs()
        wanted = selective_scan(*inputs, delta_softplus=True)
        there = selective_scan(*(x.to("cuda:1") for x in inputs), delta_softplus=True)
        assert there.device == torch.device("cuda:1")
        assert torch.equal(there.to(wanted.device), wanted)

    def test_is_captured_in_a_graph(self) -> None:
        inputs = [x.detach() for x in self.scan_inputs()]
        wanted = selective_scan(*inputs, delta_softplus=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = selective_scan(*inputs, delta_softplus=True)
        graph.replay()
        assert torch.equal(y, wanted)
