"""The scan's GPU kernels, alone and along routes, where something is special: on a GPU, or interpreted.

Without a GPU `test_triton.py` runs this file in the process in which it interprets its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_comparison import DESIGN, DEVICE, MARKS, compare, draw, route_case, scan_case

from mamba_kernels import Route, selective_scan, selective_scan_route

pytestmark = [*MARKS, pytest.mark.usefixtures("_seed")]
# Long enough for time to be cut into parts, wherever this runs.
IN_PARTS = 67


@pytest.mark.parametrize("row", range(len(DESIGN)))
def test_options_in_pairs(row: int) -> None:
    chosen = dict(DESIGN[row])
    length = IN_PARTS if chosen.pop("in_parts") else 11
    B_groups, C_groups = 0 if chosen.pop("B_differs") else None, 2 if chosen.pop("C_differs") else None
    inputs, options = scan_case(
        torch.float32, channels=4, states=3, length=length, B_groups=B_groups, C_groups=C_groups, **chosen
    )
    compare(selective_scan, inputs, torch.float32, **options)


def test_gradients_of_the_last_state_alone() -> None:
    inputs, arguments = scan_case(
        torch.float32, channels=3, states=2, length=IN_PARTS, z=False, D=False, seq_idx=True, reverse=True
    )

    def last_state(**tensors: Any) -> Tensor:
        # The state does not depend on C, whose gradient this keeps in the graph.
        return selective_scan(**tensors, **arguments)[1] + 0 * tensors["C"].sum()

    compare(last_state, inputs, torch.float32)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("parts", [2, 16, 37])
def test_states_are_carried_over_parts(parts: int, starts: bool, backward: bool) -> None:
    from mamba_kernels.selective_scan.triton_steps import carry_states

    batch, size = 2, 70
    decays, ends = torch.rand(batch, parts, size, device=DEVICE), torch.randn(batch, parts, size, device=DEVICE)
    state = torch.randn(batch, size, device=DEVICE) if starts else torch.zeros(batch, size, device=DEVICE)
    carried, true = torch.full_like(ends, torch.nan), torch.empty_like(ends, dtype=torch.float64)
    carry_states[(3, batch)](
        ends, decays, state, carried, parts, size, BACKWARD=backward, HAS_START=starts, BLOCK=32, num_warps=1
    )
    running = state.double()
    for part in range(parts)[:: -1 if backward else 1]:
        true[:, part] = running
        running = decays[:, part] * running + ends[:, part]
    torch.testing.assert_close(carried.double(), true, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    "case", [{"length": 5, "seq_idx": True}, {"length": 40, "B_groups": 0, "z": False, "last": True}]
)
def test_sequences_in_slices(case: dict[str, Any], inner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_kernels.selective_scan import triton

    taken = []
    differentiate = triton._differentiate
    monkeypatch.setattr(triton, "_differentiate", lambda *given: (taken.append(len(given[1])), differentiate(*given)))
    monkeypatch.setattr(triton, "WORKSPACE", 1)
    inputs, options = scan_case(torch.float32, batch=3, states=3, **case)
    if inner:  # A slice of a gradient then lies otherwise than the gradient of a slice.
        for name in ("u", "delta", "B", "C", "z"):
            if inputs[name] is not None and inputs[name].dim() > 2:
                inputs[name] = inputs[name].transpose(0, 1).contiguous().transpose(0, 1)
    compare(selective_scan, inputs, torch.float32, **options)
    assert taken == [1, 1, 1]


def test_slices_need_not_be_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_kernels.selective_scan import triton

    monkeypatch.setattr(triton, "_pieces", lambda *_: [slice(0, 2), slice(2, 4)])
    inputs, options = scan_case(torch.float32, batch=3, states=3, length=9)
    compare(selective_scan, inputs, torch.float32, **options)


def test_one_extreme_step_amid_ordinary_ones() -> None:
    inputs, options = scan_case(torch.float32, channels=4, states=3, length=24, softplus=False, bias=False)
    inputs["delta"] *= 0.2
    inputs["delta"][:, 1:3, 20] = 50.0
    inputs["A"][0] = -1e4
    inputs["A"][1, 0] = -1e4
    inputs["A"][2, 1] = -1e-4
    compare(selective_scan, inputs, torch.float32, **options)


def test_steps_near_0() -> None:
    inputs, options = scan_case(torch.float32, states=3, length=20, D=False, state=False)
    inputs["delta"] -= 11
    compare(selective_scan, inputs, torch.float32, **options)
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    compare(selective_scan, inputs, torch.float32, **{**options, "delta_softplus": False})


def test_what_stands_in_padding_reaches_nothing() -> None:
    inputs, options = scan_case(torch.float32, channels=3, states=2, length=IN_PARTS, reverse=True, seq_idx=True)
    padding = (options["seq_idx"] < 0)[:, None]
    wanted = selective_scan(**inputs, **options, backend="triton")
    for name in ("u", "delta", "z", "B", "C"):
        inputs[name] = inputs[name].masked_fill(padding, float("nan"))
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y, state = selective_scan(**leaves, **options, backend="triton")
    assert torch.equal(y, wanted[0])
    assert torch.equal(state, wanted[1])
    dy = torch.ones_like(y).masked_fill(padding, float("nan"))
    gradients = dict(zip(leaves, torch.autograd.grad([y, state], [*leaves.values()], [dy, state]), strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not any(gradients[name].masked_select(padding).any() for name in ("u", "delta", "z", "B", "C"))


def test_gradients_of_any_layout_come_in() -> None:
    inputs, options = scan_case(torch.float32, length=9, last_state=False)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y = selective_scan(**leaves, **options, backend="triton")

    def gradients(dy: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, [*leaves.values()], dy, retain_graph=True)

    for dy in (torch.ones((), device=DEVICE).expand(y.shape), draw(torch.float32, *y.shape[1:]).expand(y.shape)):
        assert all(map(torch.equal, gradients(dy), gradients(dy.contiguous())))
        turned = dy.mT.contiguous().mT
        assert all(map(torch.equal, gradients(turned), gradients(dy.contiguous())))


def test_a_broadcast_dimension_between_others() -> None:
    """PyTorch would order the dimensions of a dense copy in another way than the operators do."""
    inputs, options = scan_case(torch.float32, channels=3, states=4, length=6, C_groups=3)

    def broadcast(x: Tensor) -> Tensor:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
        return x[:, :1].expand(x.shape)

    for name in ("u", "delta", "z", "B", "C"):
        inputs[name] = broadcast(inputs[name])
    compare(selective_scan, inputs, torch.float32, **options)


def test_parameters_of_other_dtypes() -> None:
    inputs, options = scan_case(torch.bfloat16, length=9)
    for name, dtype in {"A": torch.bfloat16, "D": torch.float16, "delta_bias": torch.bfloat16}.items():
        inputs[name] = inputs[name].to(dtype)
    inputs["A"] = inputs["A"].t().contiguous().t()
    inputs["z"], inputs["initial_state"] = inputs["z"].float(), inputs["initial_state"].bfloat16()
    compare(selective_scan, inputs, torch.bfloat16, **options)


@pytest.mark.parametrize("out_dtype", [torch.float16, torch.float32, torch.float64])
def test_outputs_of_other_dtypes(out_dtype: torch.dtype) -> None:
    inputs, options = scan_case(torch.bfloat16, length=9, last_state=False)
    y = selective_scan(**inputs, **options, out_dtype=out_dtype, backend="triton")
    exact = {name: x.double() for name, x in inputs.items()}
    wanted = selective_scan(**exact, **options, backend="reference")
    assert y.dtype == out_dtype
    precision = 1e-3 if out_dtype == torch.float16 else 1e-5
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=precision * float(wanted.abs().max()))


ROUTES: dict[str, dict[str, Any]] = {
    "windows_in_parts": {"route": Route("windowed", window=4), "grid": (9, 8), "channels": 3, "states": 2, "z": False},
    "both_ends_in_parts": {
        "route": Route("bidirectional", merge="mean"),
        "grid": (5, 13),
        "channels": 2,
        "states": 1,
        "rank": 1,
    },
    "one_axis": {"route": Route("bidirectional", merge="concat"), "grid": (9,), "rank": 8},
    "three_axes": {"route": Route("snake"), "grid": (2, 2, 3), "own": True},
}


@pytest.mark.parametrize("case", ROUTES)
def test_routes(case: str) -> None:
    inputs, options = route_case(torch.float32, **ROUTES[case])
    compare(selective_scan_route, inputs, torch.float32, **options)


# Grids of a size that no other test has: checkpoints of a layout are counted once.
SLICED_ROUTES: dict[str, dict[str, Any]] = {
    "summed": {"route": Route("bidirectional", merge="mean"), "grid": (11,), "rank": 2},
    "concatenated": {"route": Route("bidirectional", merge="concat"), "grid": (2, 7), "z": False, "own": True},
    "alone": {"route": Route("forward"), "grid": (13,), "z": False},
}


@pytest.mark.parametrize(
    ("case", "dtype"), [("summed", torch.float32), ("concatenated", torch.bfloat16), ("alone", torch.bfloat16)]
)
def test_routes_over_slices_of_states(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_kernels.selective_scan import triton_plan

    monkeypatch.setattr(triton_plan, "SLICE", 3)
    monkeypatch.setattr(triton_plan, "SLICED_CHANNELS", 2)
    inputs, options = route_case(dtype, states=5, channels=3, **SLICED_ROUTES[case])
    compare(selective_scan_route, inputs, dtype, **options)


def test_a_route_over_channels_first() -> None:
    inputs, options = route_case(torch.float32, Route("bidirectional"))
    for name, x in inputs.items():
        if x is not None and x.dim() > 3:
            inputs[name] = x.movedim(-1, 1).contiguous().movedim(1, -1)
    compare(selective_scan_route, inputs, torch.float32, **options)


OPERATORS: dict[str, dict[str, Any]] = {
    "gate": {"route": Route("bidirectional"), "rank": 2},
    "concat": {"route": Route("bidirectional", merge="concat"), "own": True},
    "bare": {"route": Route("windowed", merge="mean", window=2), "z": False},
}


@pytest.mark.parametrize(
    ("case", "out_dtype"), [("gate", torch.bfloat16), ("concat", torch.float32), ("bare", torch.bfloat16)]
)
def test_the_fake_kernels_of_a_route_promise_what_the_kernels_return(case: str, out_dtype: torch.dtype) -> None:
    inputs, options = route_case(torch.bfloat16, states=2, channels=3, grid=(2, 3), **OPERATORS[case])
    route, z = options["route"], inputs["z"]
    if z is not None:
        inputs["z"] = z.movedim(-1, 1).contiguous().movedim(1, -1)
    tail = (True, route.name, route.merge, route.widths(2))
    forward = torch.ops.mamba_kernels.selective_scan_route.default
    backward = torch.ops.mamba_kernels.selective_scan_route_backward.default
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, (*inputs.values(), *tail, out_dtype, True), test_utils=checks)
    out, merged, checkpoints = forward(*inputs.values(), *tail, out_dtype, True)
    given = (out.mT.contiguous().mT, *inputs.values(), merged, checkpoints, *tail, True)
    torch.library.opcheck(backward, given, test_utils=checks)


@pytest.mark.parametrize(("row", "rows_at_a_time"), [*((row, False) for row in range(len(DESIGN))), (5, True)])
def test_options_in_pairs_over_slices_of_states(
    row: int, rows_at_a_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mamba_kernels.selective_scan import triton, triton_plan

    # Slices, tiles and parts of time as small as they get: the interpreter is slow.
    monkeypatch.setattr(triton_plan, "SLICE", 3)
    monkeypatch.setattr(triton_plan, "SLICED_CHANNELS", 2)
    for module in (triton, triton_plan):
        monkeypatch.setattr(module, "checkpoint_distance", lambda _: 4)
    if rows_at_a_time:
        monkeypatch.setattr(triton, "WORKSPACE", 1)
    taken = []
    differentiate = triton._differentiate
    monkeypatch.setattr(triton, "_differentiate", lambda *given: (taken.append(len(given[1])), differentiate(*given)))
    # It goes through the launches twice.
    monkeypatch.setattr(triton, "_compile_once", lambda *_: None)
    chosen = dict(DESIGN[row])
    length = 18 if chosen.pop("in_parts") else 7
    B_groups, C_groups = 2 if chosen.pop("B_differs") else None, 1 if chosen.pop("C_differs") else None
    inputs, options = scan_case(
        torch.float32, channels=4, states=5, length=length, B_groups=B_groups, C_groups=C_groups,
        last=row % 2 == 0, mixed=row % 3 == 0, **chosen,
    )  # fmt: skip
    compare(selective_scan, inputs, torch.float32, **options)
    assert taken == ([1] * 4 if rows_at_a_time else [2] * 2)


def test_slices_of_states_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_kernels.selective_scan import triton_plan

    monkeypatch.setattr(triton_plan, "SLICE", 2)
    monkeypatch.setattr(triton_plan, "SLICED_CHANNELS", 1)
    inputs, options = scan_case(torch.bfloat16, channels=3, states=4, length=9, last=True)
    inputs["z"], inputs["initial_state"] = inputs["z"].float(), inputs["initial_state"].bfloat16()
    compare(selective_scan, inputs, torch.bfloat16, **options)


@pytest.mark.parametrize("along_a_route", [False, True])
def test_the_fake_kernels_promise_what_slices_of_states_leave(along_a_route: bool) -> None:
    checks = ("test_schema", "test_faketensor")
    if along_a_route:
        inputs, options = route_case(torch.bfloat16, Route("bidirectional"), states=33, channels=8, grid=(3,), rank=2)
        given = (*inputs.values(), True, options["route"].name, options["route"].merge, options["route"].widths(1))
        operator = torch.ops.mamba_kernels.selective_scan_route.default
    else:
        inputs, options = scan_case(torch.bfloat16, states=33, channels=8, length=3, last=True)
        *tensors, start = inputs.values()
        given = (*tensors, True, start, None, False)
        operator = torch.ops.mamba_kernels.selective_scan.default
    torch.library.opcheck(operator, (*given, torch.bfloat16, True), test_utils=checks)
    kept = operator(*given, torch.bfloat16, True)[-1]
    assert kept.numel() == 0
