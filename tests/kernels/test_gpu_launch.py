"""How the GPU kernels are launched, which can be told without a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mamba_kernels.errors import KernelInputError
from mamba_kernels.gpu import launch_grid, on_device_of_inputs
from mamba_kernels.selective_scan.triton_plan import (
    BACKWARD_WARPS,
    FORWARD_WARPS,
    SLICE,
    Shape,
    any_gpu_plan,
    checkpoint_distance,
    checkpoint_shape,
    hopper_plan,
    sharing,
    state_slices,
)


@pytest.mark.parametrize("sizes", [(), (0, 3), (2**31 - 1,), (2**15, 65_535)])
def test_a_grid_that_cuda_launches_is_taken(sizes: tuple[int, ...]) -> None:
    assert launch_grid("op", *sizes) == sizes


@pytest.mark.parametrize("sizes", [(2**31,), (1, 65_536), (2**16, 2**15)])
def test_a_grid_that_cuda_cannot_launch_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(KernelInputError, match=r"op: the inputs need a grid of .* which CUDA cannot launch") as caught:
        launch_grid("op", *sizes)
    assert caught.value.remedy


def test_large_batches_lie_along_the_first_axis_of_the_grid() -> None:
    pytest.importorskip("triton")
    from mamba_kernels.causal_conv1d.tiled import TiledConvolution
    from mamba_kernels.selective_scan.triton_launch import Scan, plan_forward

    x, M = (0, 0, 5, 1), (0, 0, 0, 5, 1)
    scan = Scan(35_000, 2, 40, 5, 2, 1, 1, False, False, False, None, "forward", x, x, M, M, None)
    assert plan_forward(scan, torch.device("cpu"), False, False, x).whole.grid == (140_000, 1)
    x = torch.zeros(1, 40, 5).expand(70_000, -1, -1)
    assert TiledConvolution(x, torch.zeros(40, 4), None, None, None, True, False).grid(5) == (70_000, 2)


@pytest.mark.parametrize("batch", [0, 1, 3, 4000])
@pytest.mark.parametrize("length", [1, 64, 1000])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (40, 1), (48, 6), (15, 5), (96, 3)])
@pytest.mark.parametrize("states", [1, 16])
def test_plans_cut_time_at_checkpoints_and_keep_groups_apart(
    batch: int, length: int, channels: int, groups: int, states: int
) -> None:
    for make in (any_gpu_plan, hopper_plan):
        for backward in (False, True):
            plan = make(Shape(batch, channels, length, states, groups, 132), backward)
            if plan is None:
                assert groups > 1
                continue
            assert plan.part_length > 0
            assert plan.part_length % checkpoint_distance(states) == 0
            assert groups == 1 or channels // groups % plan.block == 0


@pytest.mark.parametrize("states", [1, 2, 4, 16, 32])
@pytest.mark.parametrize(
    ("batch", "channels", "length"), [(4, 768, 6085), (8, 768, 6085), (2, 128, 32768), (1, 64, 10**6)]
)
def test_programs_of_cut_time_fill_a_gpu(batch: int, channels: int, length: int, states: int) -> None:
    for backward, warps in ((False, FORWARD_WARPS[states]), (True, BACKWARD_WARPS[states])):
        plan = hopper_plan(Shape(batch, channels, length, states, 1, 132), backward)
        assert plan is not None
        programs = batch * -(-channels // plan.block) * -(-length // plan.part_length)
        at_once = 132 * warps // plan.constants["num_warps"]
        rounds = -(-programs // at_once)
        assert programs > 0.85 * rounds * at_once


# Counts whose time on an H200 was within 2 % of the fastest one's, forward and backward:
# benchmarks/results/2026-11-23-scan-parts-h200-c84e19a.json.
@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        ((4, 384, 6085, 16), {32, 48}, {11}),
        ((4, 768, 6085, 16), {24}, {11}),
        ((2, 128, 32768, 16), {98, 293}, {64}),
        ((1, 1024, 262144, 16), {148, 222}, {33, 49, 66, 99}),
        ((4, 384, 6085, 32), {11, 22, 32}, {11}),
        ((4, 384, 6085, 4), {32, 43, 64}, {16, 32}),
        ((8, 2048, 2048, 16), {1}, {1}),
    ],
)
def test_time_is_cut_where_that_was_fastest(
    shape: tuple[int, int, int, int], forward: set[int], backward: set[int]
) -> None:
    for fastest, is_backward in ((forward, False), (backward, True)):
        plan = hopper_plan(Shape(*shape, 1, 132), is_backward)
        assert plan is not None
        assert -(-shape[2] // plan.part_length) in fastest


@pytest.mark.parametrize(
    "shape",
    [
        (8, 2048, 2048, 16),  # Programs of all channels fill the GPU.
        (16, 512, 862, 32),  # Half of it: to find the exponentials twice costs more than the wait.
        (8, 1536, 513, 16),
        (2, 40, 128, 16),  # Two launches more take longer than half of the positions.
    ],
)
def test_time_stays_whole_where_cutting_costs_more_than_waiting(shape: tuple[int, int, int, int]) -> None:
    plan = hopper_plan(Shape(*shape, 1, 132), False)
    assert plan is not None
    assert plan.part_length >= shape[2]


@pytest.mark.parametrize("states", [1, 32, 33, 48, 65, 100, 256])
def test_slices_hold_every_state_once(states: int) -> None:
    slices = state_slices(states, 64)
    assert [n for part in slices for n in range(states)[part]] == list(range(states))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) <= SLICE
    assert max(sizes) - min(sizes) <= 1
    assert (len(slices) == 1) == (states <= SLICE)


@pytest.mark.parametrize(
    ("B_shape", "C_shape", "channels"),
    [
        ((2, 40, 9), (2, 40, 9), 96),
        ((2, 2, 40, 9), (2, 3, 40, 9), 16),
        ((96, 40), (2, 40, 9), 0),
        ((96, 40), (96, 40), 0),
    ],
)
def test_states_are_sliced_where_enough_channels_share_b_and_c(
    B_shape: tuple[int, ...], C_shape: tuple[int, ...], channels: int
) -> None:
    A, B, C = torch.empty(96, 40), torch.empty(B_shape), torch.empty(C_shape)
    assert sharing(A, B, C) == channels
    kept = checkpoint_shape(torch.empty(2, 96, 9), A, B, C)
    assert kept == ((0,) if channels else (2, 1, 40, 96))
    assert len(state_slices(40, 7)) == 1


@pytest.mark.parametrize(
    ("channels_apart", "steps_apart", "wide"),
    [(1, 2**21 - 1, False), (1, 2**21, True), (2**26 - 2**6, 1, False), (2**26, 1, True), (0, 1, False)],
)
def test_the_scan_counts_in_64_bits_where_a_sequence_reaches_that_far(
    channels_apart: int, steps_apart: int, wide: bool
) -> None:
    pytest.importorskip("triton")
    from mamba_kernels.selective_scan.triton_launch import Scan, _is_wide

    x, M = (2**40, 2**40, 1, 33), (2**40, 2**40, 2**40, 0, 1)
    scan = Scan(1, 1, 33, 2**10 + 1, 1, 1, 1, False, False, False, None, "forward", x, x, M, M, None)
    assert _is_wide(scan, x, M, (0, 0, channels_apart, steps_apart)) == wide


def test_ssd_counts_in_64_bits_where_its_results_reach_that_far() -> None:
    pytest.importorskip("triton")
    from mamba_kernels.ssd import triton_launch

    def is_wide(length: int) -> bool:
        # Heads and channels before positions, as the gradients, which are contiguous, do not have them.
        x = torch.empty(1, 1, 16, 64, length, dtype=torch.bfloat16, device="meta").permute(0, 1, 4, 2, 3)
        B = torch.empty(1, 1, 1, 16, length, dtype=torch.bfloat16, device="meta").permute(0, 1, 4, 2, 3)
        return triton_launch.is_wide(x, B, B, x)

    assert [is_wide(length) for length in (2**20, 2**21)] == [False, True]


def test_more_step_sizes_than_ssd_counts_are_refused() -> None:
    pytest.importorskip("triton")
    from mamba_kernels.ssd.triton_launch import _sizes

    x, B = (torch.empty(1, 2**25, n, 1, device="meta") for n in (11, 1))
    with pytest.raises(KernelInputError, match="step sizes in 32 bits") as caught:
        _sizes(x, B, B, 64, False, backward=False)
    assert caught.value.remedy
    assert _sizes(x[:, :, :10], B, B, 64, False, backward=False).field == 10 * 2**25


def test_a_launcher_runs_on_its_tensors_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []

    def device(of: torch.device) -> AbstractContextManager[None]:
        chosen.append(of)
        return nullcontext()

    @on_device_of_inputs
    def launch(scale: float, x: Tensor) -> float:
        assert len(chosen) == (x.device.index == 1)
        return scale

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert launch(1.0, torch.zeros(2)) == 1.0
    with FakeTensorMode():
        assert launch(3.0, torch.empty(2, device="cuda:0")) == 3.0
        assert launch(2.0, x=torch.empty(2, device="cuda:1")) == 2.0
    assert chosen == [torch.device("cuda:1")]
