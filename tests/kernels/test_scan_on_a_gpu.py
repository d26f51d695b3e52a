"""The scan's kernels where only a GPU shows whether they are right: those laid out by hand, and sizes past 32 bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_comparison import DESIGN, DEVICE, GPU, Inputs, compare, draw, route_case, scan_case

from mamba_kernels import Route, selective_scan, selective_scan_route

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a GPU"), pytest.mark.usefixtures("_seed")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Sizes whose counts have no common divisor, so that 36 cases meet them in all combinations.
STATES, CHANNELS = (1, 2, 5, 8, 16, 20, 32), (1, 3, 33, 96, 160)
WHOLE, IN_PARTS = (1, 15, 47, 63), (195, 257, 500, 777)


def hopper_case(case: int, states: int | None = None) -> tuple[Inputs, torch.dtype, dict[str, Any]]:
    """Return one of 36 problems: options in pairs, and their sizes and layouts."""
    chosen, channels = dict(DESIGN[case % 12]), CHANNELS[case % 5]
    lengths = IN_PARTS if chosen.pop("in_parts") else WHOLE
    # Groups that blocks of channels fit into; the backward's blocks are smaller than the forward's.
    B_groups, C_groups = (
        groups if chosen.pop(name) and channels % 32 == 0 else None
        for name, groups in {"B_differs": 2, "C_differs": 4}.items()
    )
    inputs, options = scan_case(
        DTYPES[case // 12], channels=channels, states=states or STATES[case % 7],
        length=lengths[(case // 3 + case // 12) % 4], B_groups=B_groups, C_groups=C_groups,
        last=case % 2 == 0, mixed=case % 3 == 0, **chosen,
    )  # fmt: skip
    return inputs, DTYPES[case // 12], options


@pytest.mark.parametrize("case", range(36))
def test_options_in_pairs_over_sizes(case: int) -> None:
    inputs, dtype, options = hopper_case(case)
    compare(selective_scan, inputs, dtype, **options)


# Half of the cases, in which every row of the design occurs.
@pytest.mark.parametrize("case", [case for case in range(36) if (case + case // 12) % 2 == 0])
def test_options_in_pairs_of_one_state(case: int) -> None:
    inputs, dtype, options = hopper_case(case, states=1)
    compare(selective_scan, inputs, dtype, **options)


# More than the kernels take at once: in slices, of sizes that differ in the first.
MANY_STATES = (33, 48, 64, 128, 256)


# Channels and states in all combinations; one and three channels fill no lanes, and are left to the other kernels.
@pytest.mark.parametrize("case", range(36))
def test_options_in_pairs_over_slices_of_states(case: int) -> None:
    inputs, dtype, options = hopper_case(case, states=MANY_STATES[(case + case // 5) % 5])
    compare(selective_scan, inputs, dtype, **options)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_one_channel_of_many_states(dtype: torch.dtype) -> None:
    """As Mamba-1 scans one channel, whose B and C are constants times it."""
    inputs, options = scan_case(dtype, batch=300, channels=1, states=256, length=130, B_groups=0, C_groups=0, z=False)
    compare(selective_scan, inputs, dtype, **options)


def test_sequences_a_few_at_a_time_over_slices_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_kernels.selective_scan import triton

    monkeypatch.setattr(triton, "WORKSPACE", 1)
    for dtype in DTYPES[:2]:
        inputs, options = scan_case(dtype, batch=3, channels=96, states=64, length=200, last=True, seq_idx=True)
        compare(selective_scan, inputs, dtype, **options)


def many_states() -> list[Tensor]:
    """Return u, delta, A, B and C of 128 states."""
    drawn = [draw(torch.bfloat16, 4, rows, 700, last=True) for rows in (512, 512, 128, 128)]
    drawn.insert(2, -draw(torch.float32, 512, 128).abs() - 0.1)
    return [x.requires_grad_() for x in drawn]


def test_slices_of_states_repeat_compile_whole_and_are_captured() -> None:
    leaves = many_states()

    def run(*given: Tensor) -> Tensor:
        return selective_scan(*given, delta_softplus=True)

    eager = run(*leaves)
    gradients = torch.autograd.grad(eager.float().sum(), leaves)
    for again in (run(*leaves), torch.compile(run, fullgraph=True)(*leaves)):
        assert torch.equal(again, eager)
        assert all(map(torch.equal, torch.autograd.grad(again.float().sum(), leaves), gradients))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = run(*leaves)
    graph.replay()
    assert torch.equal(y, eager)


def test_slices_of_states_need_little_memory() -> None:
    leaves = many_states()
    for _ in range(2):  # The first time compiles.
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = selective_scan(*leaves, delta_softplus=True)
        torch.autograd.grad(y, leaves, torch.ones_like(y))
    every_state = 4 * y.numel() * 128
    assert torch.cuda.max_memory_allocated() - before < every_state / 4


ROUTES: dict[str, dict[str, Any]] = {
    "forward": {"route": Route("forward"), "channels": 96, "states": 16},
    "both_ends": {"route": Route("bidirectional", merge="mean"), "channels": 160, "states": 1, "rank": 6},
    "cross": {"route": Route("cross"), "channels": 33, "states": 5, "rank": 3},
    "cross_of_one_state": {"route": Route("cross"), "channels": 96, "states": 1, "rank": 6, "z": False},
    "snake": {"route": Route("snake", merge="concat"), "channels": 3, "states": 8, "own": True},
    "windows": {"route": Route("windowed", window=5), "channels": 96, "states": 32},
    "slices": {"route": Route("bidirectional"), "channels": 96, "states": 70, "rank": 6},
    "slices_concatenated": {"route": Route("cross", merge="concat"), "channels": 33, "states": 48, "own": True},
    "concatenated": {"route": Route("bidirectional", merge="concat"), "channels": 96, "states": 20, "z": False},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ROUTES)
def test_routes(case: str, dtype: torch.dtype) -> None:
    inputs, options = route_case(dtype, grid=(11, 17), **ROUTES[case])
    compare(selective_scan_route, inputs, dtype, **options)


def test_one_extreme_step_amid_ordinary_ones() -> None:
    inputs, options = scan_case(torch.float32, channels=96, states=16, length=333, softplus=False, bias=False)
    inputs["delta"] *= 0.2
    inputs["delta"][:, 1:3, 20] = 50.0
    inputs["delta"][:, :, 200] = 0.0
    inputs["A"][0] = -1e4
    inputs["A"][1, 0] = -1e4
    inputs["A"][2, 1] = -1e-4
    compare(selective_scan, inputs, torch.float32, **options)


@pytest.mark.parametrize("states", [1, 16])
def test_steps_near_0(states: int) -> None:
    inputs, options = scan_case(torch.float32, channels=33, states=states, length=200, D=False, state=False)
    inputs["delta"] -= 11
    compare(selective_scan, inputs, torch.float32, **options)


@pytest.mark.parametrize("states", [1, 16])
def test_what_stands_in_padding_reaches_nothing(states: int) -> None:
    inputs, options = scan_case(torch.float32, channels=96, states=states, length=300, seq_idx=True, last=True)
    padding = (options["seq_idx"] < 0)[:, None]
    wanted = selective_scan(**inputs, **options)
    for name in ("u", "delta", "z", "B", "C"):
        inputs[name] = inputs[name].masked_fill(padding, float("nan"))
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y, state = selective_scan(**leaves, **options)
    assert torch.equal(y, wanted[0])
    assert torch.equal(state, wanted[1])
    dy = torch.ones_like(y).masked_fill(padding, float("nan"))
    gradients = dict(zip(leaves, torch.autograd.grad([y, state], [*leaves.values()], [dy, state]), strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not any(gradients[name].masked_select(padding).any() for name in ("u", "delta", "z", "B", "C"))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_million_steps(reverse: bool) -> None:
    """Compared with the CPU path in float64, which takes seconds where the reference would take minutes."""
    inputs, options = scan_case(
        torch.float32, batch=1, channels=8, states=16, length=2**20 + 13, bias=False, last=reverse, reverse=reverse
    )
    results = []
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        leaves = {k: x.detach().to(device, dtype).requires_grad_() for k, x in inputs.items() if x is not None}
        y, state = selective_scan(**leaves, **options)
        dy = torch.cos(torch.arange(y.shape[2])).to(y).expand(y.shape)
        results.append([y, state, *torch.autograd.grad([y, state], [*leaves.values()], [dy, torch.ones_like(state)])])
    for name, got, wanted in zip(["y", "state", *leaves], *results, strict=True):
        error = float((got.detach().double().cpu() - wanted.detach()).abs().max() / wanted.detach().abs().max())
        assert error < 1e-4, f"{name} is off by {error:.1e}"


def assert_halves_agree(
    run: Callable[..., Tensor], of_channels: Inputs, of_rows: Inputs, shared: Inputs, channels_at: int
) -> None:
    """Compare a scan of all channels with those of the first and of the second half of them.

    Args:
        run: Takes the inputs by name; float32 sums of the halves may differ in their last bits.
        of_channels: Inputs with channels in dimension ``channels_at``, as the output has.
        of_rows: Inputs with channels in dimension 0.
        shared: Inputs without channels.
        channels_at: The dimension of channels.
    """
    cut, half = {**of_channels, **of_rows}, next(iter(of_rows.values())).shape[0] // 2
    at = {**dict.fromkeys(of_channels, channels_at), **dict.fromkeys(of_rows, 0)}

    def result(first: int, size: int) -> tuple[Tensor, dict[str, Tensor]]:
        leaves = {k: x.narrow(at[k], first, size).detach().requires_grad_() for k, x in cut.items()}
        leaves |= {k: x.detach().requires_grad_() for k, x in shared.items()}
        y = run(**leaves)
        gradients = torch.autograd.grad(y, [*leaves.values()], torch.ones_like(y[:1, :1, :1]).expand(y.shape))
        return y.detach(), dict(zip(leaves, gradients, strict=True))

    y, gradients = result(0, 2 * half)
    rest = {k: gradients[k].float() for k in shared}
    for first in (0, half):
        y_half, of_half = result(first, half)
        for k in shared:
            rest[k] -= of_half[k].float()
        pairs = {"y": (y.narrow(channels_at, first, half), y_half)}
        pairs |= {k: (gradients[k].narrow(at[k], first, half), of_half[k]) for k in cut}
        for name, (whole, part) in pairs.items():
            # Slice by slice: differences of whole tensors would take as much memory again.
            scale, last = float(part.abs().amax()), whole.shape[at.get(name, channels_at)] - 3
            for some in (slice(0, 3), slice(last, None)):
                ours, theirs = (x.movedim(at.get(name, channels_at), 0)[some].float() for x in (whole, part))
                assert float((ours - theirs).abs().amax()) <= 1e-2 * scale, name
    for k in shared:
        assert float(rest[k].abs().amax()) <= 3e-2 * float(gradients[k].abs().amax()), k


CHANNELS_PAST_INT32, STEPS_PAST_INT32 = 2064, 2**20 + 5


def test_more_elements_than_int32_counts() -> None:
    D, L = CHANNELS_PAST_INT32, STEPS_PAST_INT32
    u, delta = (torch.randn(1, D, L, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    B, C = (torch.randn(1, 1, L, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    A = -draw(torch.float32, D, 1).abs() - 0.1
    assert u.numel() > 2**31

    def run(**inputs: Tensor) -> Tensor:
        return selective_scan(**inputs, delta_softplus=True)

    assert_halves_agree(run, {"u": u, "delta": delta}, {"A": A}, {"B": B, "C": C}, 1)


def test_a_grid_of_more_elements_than_int32_counts() -> None:
    D, grid = CHANNELS_PAST_INT32, (1, 2**10, 2**10 + 3)
    x, delta = (torch.randn(*grid, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    z = torch.randn(1, D, *grid[1:], device=DEVICE, dtype=torch.bfloat16).movedim(1, -1)
    B, C = (torch.randn(1, *grid, 1, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    A = -draw(torch.float32, D, 1).abs() - 0.1
    assert x.numel() > 2**31

    def run(x: Tensor, z: Tensor, delta: Tensor, **inputs: Tensor) -> Tensor:
        return selective_scan_route(x, delta[None], z=z, **inputs, delta_softplus=True, route=Route("snake"))

    # Without its first dimension delta has its channels where x and z have theirs.
    assert_halves_agree(run, {"x": x, "z": z, "delta": delta}, {"A": A}, {"B": B, "C": C}, 3)


# 40 states are taken in two slices.
@pytest.mark.parametrize("states", [1, 40])
def test_slices_of_a_grid_further_apart_than_int32_counts(states: int) -> None:
    D, N = 64, states
    wide = torch.randn(1, 1, 2**10, 2**10 + 3, CHANNELS_PAST_INT32, device=DEVICE, dtype=torch.bfloat16)
    A = -draw(torch.float32, D, N).abs() - 0.1
    # Slices from the end, whose last cells are the furthest.
    slices = wide[..., -2 * (D + N) :].split([D, D, N, N], -1)
    results = []
    for x, delta, B, C in (slices, [part.contiguous() for part in slices]):
        leaves = [part.detach().requires_grad_() for part in (x[0], delta, A, B, C)]
        y = selective_scan_route(*leaves, delta_softplus=True, route=Route("snake"))
        results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    # Not bit by bit: what lies elsewhere may be loaded in another layout, and added up in another order.
    for far, near in zip(*results, strict=True):
        assert float((far - near).abs().max() / near.abs().max()) < 1e-2


REPEATED = """
import hashlib, sys
import torch
from mamba_kernels import Route, causal_conv1d, rms_norm, selective_scan, selective_scan_route
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)
def draw(*shape): return torch.randn(shape).to("cuda", torch.bfloat16).requires_grad_()
def ones(*shape): return torch.ones(shape, device="cuda", requires_grad=True)
A, S, R = (-torch.arange(1.0, n + 1, device="cuda").repeat(d, 1) for d, n in ((96, 16), (96, 1), (192, 4)))
calls = {
    lambda u, d, B, C: selective_scan(u, d, A, B, C, delta_softplus=True):
        [draw(2, 96, 700), draw(2, 96, 700), draw(2, 16, 700), draw(2, 16, 700)],
    lambda u, d, B, C: selective_scan(u, d, S, B, C, delta_softplus=True):
        [draw(2, 96, 700), draw(2, 96, 700), draw(2, 1, 700), draw(2, 1, 700)],
    lambda x, d, B, C, z, w: selective_scan_route(
        x, d, R, B, C, z=z, delta_weight=w, delta_softplus=True, route=Route("bidirectional")
    ): [draw(2, 9, 30, 96), draw(2, 2, 9, 30, 6), *(draw(2, 2, 9, 30, 4) for _ in range(2)), draw(2, 9, 30, 96),
        draw(2, 96, 6)],
    lambda x, w: causal_conv1d(x, w, activation="silu"): [draw(2, 700, 96).detach().mT.requires_grad_(), ones(96, 4)],
    lambda x, w: rms_norm(x, w): [draw(2, 700, 96), ones(96)],
}
digest = hashlib.sha256()
for call, inputs in calls.items():
    y = call(*inputs)
    for x in (y, *torch.autograd.grad(y.float().square().sum(), inputs)):
        digest.update(x.detach().float().cpu().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_processes_repeat_bit_for_bit() -> None:
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REPEATED], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (out.strip() for out, _ in outputs)
    assert first == second != ""


def test_threads_on_streams_of_their_own_do_not_disturb_each_other() -> None:
    inputs, options = scan_case(torch.bfloat16, channels=96, states=16, length=500, last=True)
    wanted = selective_scan(**inputs, **options)[0]
    torch.cuda.synchronize()
    found: list[Tensor] = []

    def work() -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            ys = [selective_scan(**inputs, **options)[0] for _ in range(20)]
        stream.synchronize()
        found.extend(ys)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(torch.equal(y, wanted) for y in found)


def test_a_route_compiles_whole_and_trains() -> None:
    inputs, options = route_case(torch.float32, Route("cross"), grid=(6, 9), channels=32, states=2, rank=4)
    leaves = [x.requires_grad_() for x in inputs.values() if x is not None]

    def run(*given: Tensor) -> Tensor:
        return selective_scan_route(**dict(zip(inputs, given, strict=True)), **options).square()

    eager, compiled = run(*leaves), torch.compile(run, fullgraph=True)(*leaves)
    torch.testing.assert_close(compiled, eager)
    pairs = zip(torch.autograd.grad(compiled.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_route_is_captured_in_a_graph() -> None:
    inputs, options = route_case(torch.bfloat16, Route("cross"), grid=(6, 9), channels=32, states=2, rank=4)
    selective_scan_route(**inputs, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = selective_scan_route(**inputs, **options)
    inputs["x"].neg_()
    graph.replay()
    assert torch.equal(y, selective_scan_route(**inputs, **options))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_route_on_another_gpu_than_the_current_one() -> None:
    inputs, options = route_case(torch.float32, Route("cross"), grid=(6, 9), channels=32, states=2, rank=4)
    results = []
    for device in ("cuda:0", "cuda:1"):
        leaves = [x.to(device).requires_grad_() for x in inputs.values() if x is not None]
        y = selective_scan_route(**dict(zip(inputs, leaves, strict=True)), **options)
        assert y.device == torch.device(device)
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(*results, strict=True))
