"""The selective scan: its definition, what its options mean, and the CPU path against the definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_outcomes import LAYOUTS, Inputs, assert_agree, dense_stride, draw, outcome
from torch import Tensor

from mamba_kernels import selective_scan
from mamba_kernels.errors import BackendError, KernelInputError

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

BACKENDS = ["reference", "cpu"]


def make_inputs(
    batch: int = 2,
    channels: int = 20,
    length: int = 33,
    state: int = 4,
    *,
    B: str | int = "step",
    C: str | int = "step",
    absent: tuple[str, ...] = (),
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Return inputs by name; B and C are "constant", "step" or a number of groups."""

    def matrix(kind: str | int, seed: int) -> Tensor:
        if kind == "constant":
            return draw(channels, state, seed=seed, dtype=dtype)
        groups = () if kind == "step" else (kind,)
        return place(draw(batch, *groups, state, length, seed=seed, dtype=dtype))

    place: Callable[[Tensor], Tensor] = LAYOUTS[layout]
    inputs: Inputs = {
        "u": place(draw(batch, channels, length, seed=1, dtype=dtype)),
        "delta": place(draw(batch, channels, length, seed=2, dtype=dtype) - 1),
        "A": -draw(channels, state, seed=3, dtype=dtype).exp(),
        "B": matrix(B, 4),
        "C": matrix(C, 5),
        "D": draw(channels, seed=6, dtype=dtype),
        "z": place(draw(batch, channels, length, seed=7, dtype=dtype)),
        "delta_bias": draw(channels, seed=8, dtype=dtype),
        "initial_state": draw(batch, channels, state, seed=9, dtype=dtype),
    }
    return {name: None if name in absent else x for name, x in inputs.items()}


def make_segments(batch: int, length: int) -> Tensor:
    """Return segments of ids that come back, begin with 0 and 1, and are broken by padding."""
    position = torch.arange(length)
    first = torch.tensor([0, 1, 1, 0, 2, -1, 2, 0])[position // 5 % 8]
    second = torch.tensor([-1, 1, -1, 1, 0])[position // 7 % 5]
    return torch.stack([first, second])[torch.arange(batch) % 2].int()


def scan(**inputs: Any) -> tuple[Tensor, Tensor]:
    return selective_scan(**{"delta_softplus": True, "return_last_state": True, **inputs})


def cut(inputs: Inputs, start: int, stop: int | None) -> Inputs:
    """Return the inputs at some positions."""
    along_length = {name for name, x in inputs.items() if x is not None and name not in ("A", "D", "delta_bias")}
    return {k: v[..., start:stop] if k in along_length - {"initial_state"} else v for k, v in inputs.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_recurrence(backend: str) -> None:
    u, delta, A, B, C = -1.5, 0.3, -0.7, 2.0, 0.5
    values = {"u": [u, 2 * u], "delta": [delta, delta], "B": [B, -B], "C": [C, C]}
    tensors = {name: torch.tensor([[x]], dtype=torch.float64) for name, x in values.items()}
    y, last = selective_scan(
        **tensors, A=torch.tensor([[A]], dtype=torch.float64), return_last_state=True, backend=backend
    )
    h1 = delta * u * B
    h2 = math.exp(delta * A) * h1 - delta * 2 * u * B
    torch.testing.assert_close(y.flatten().tolist(), [C * h1, C * h2])
    torch.testing.assert_close(last.item(), h2)


GRID: list[dict[str, Any]] = [
    {},
    {"absent": ("D", "z", "delta_bias", "initial_state")},
    {"absent": ("z",), "B": "constant", "C": "constant"},
    {"B": "constant", "C": 4},
    {"B": 2, "C": "constant", "absent": ("D",)},
    {"B": 2, "C": 5},
    {"batch": 1, "channels": 1, "length": 1, "state": 1},
    {"batch": 3, "channels": 7, "length": 63, "state": 1},
    {"batch": 5, "channels": 33, "length": 100, "state": 16},
    {"batch": 1, "channels": 48, "length": 150, "state": 17, "B": 3, "C": 3},
    {"batch": 1, "channels": 18, "length": 40, "state": 32},
    {"batch": 2, "channels": 3, "length": 37, "state": 256},
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("case", GRID, ids=str)
def test_cpu_path_agrees_with_the_reference(case: dict[str, Any], segments: bool, reverse: bool) -> None:
    inputs = make_inputs(**case)
    batch, _, length = inputs["u"].shape
    options = {"seq_idx": make_segments(batch, length) if segments else None, "reverse": reverse}
    got = outcome(scan, inputs, backend="cpu", **options)
    assert_agree(got, outcome(scan, inputs, backend="reference", **options), 2e-5)


@pytest.mark.parametrize("state", [1, 16])
def test_cpu_path_agrees_on_long_sequences(state: int) -> None:
    inputs = make_inputs(batch=1, channels=5, length=2000, state=state)
    assert_agree(outcome(scan, inputs, backend="cpu"), outcome(scan, inputs, backend="reference"), 5e-5)


@pytest.mark.parametrize("softplus", [False, True])
def test_cpu_path_computes_float64_inputs_in_float64(softplus: bool) -> None:
    inputs = make_inputs(length=70, state=19, dtype=torch.float64)
    inputs["delta"] = inputs["delta"].abs() * 8  # some beyond 20, where softplus is the identity
    options = {"delta_softplus": softplus, "seq_idx": make_segments(2, 70)}
    got = outcome(scan, inputs, backend="cpu", **options)
    assert {x.dtype for x in got.values()} == {torch.float64}
    assert_agree(got, outcome(scan, inputs, backend="reference", **options), 1e-12)


def test_a_scan_without_a_gradient_gives_the_same_numbers() -> None:
    inputs = make_inputs(length=300)
    with torch.no_grad():
        y, last = scan(**inputs)
    found = outcome(scan, inputs)
    assert torch.equal(y, found["output 0"])
    assert torch.equal(last, found["output 1"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_all_inputs_are_the_outputs_derivatives(backend: str) -> None:
    inputs = make_inputs(batch=1, channels=2, length=4, state=2, B=1, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in inputs.values()]
    segments = torch.tensor([[0, 2, 2, -1]], dtype=torch.int32)
    for options in ({}, {"reverse": True}, {"seq_idx": segments}):

        def run(*values: Tensor, options: dict[str, Any] = options) -> tuple[Tensor, Tensor]:
            return scan(**dict(zip(inputs, values, strict=True)), backend=backend, **options)

        torch.autograd.gradcheck(run, leaves)
        if backend == "reference":
            torch.autograd.gradgradcheck(run, leaves)


def test_second_derivative_of_the_operator_names_the_switch() -> None:
    u = make_inputs()["u"].requires_grad_()
    y, _ = scan(**{**make_inputs(), "u": u})
    (gradient,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_segments_equal_scans_of_their_own(reverse: bool, backend: str) -> None:
    inputs = make_inputs(batch=1, length=12)
    for ids, reached in (([0, 0, 3, 3, 3, 0, 0, 0, 0, 2, 2, 2], True), ([1, 1, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4], False)):
        ids = ids[::-1] if reverse else ids
        y, last = scan(**inputs, seq_idx=torch.tensor([ids], dtype=torch.int32), reverse=reverse, backend=backend)
        edges = [0, *(i for i in range(1, 12) if ids[i] != ids[i - 1]), 12]
        parts = list(itertools.pairwise(edges))
        first, final = (parts[-1], parts[0]) if reverse else (parts[0], parts[-1])
        for start, stop in parts:
            piece = cut(inputs, start, stop)
            if not (reached and (start, stop) == first):
                piece["initial_state"] = None
            y_piece, last_piece = scan(**piece, reverse=reverse, backend=backend)
            torch.testing.assert_close(y[..., start:stop], y_piece)
            if (start, stop) == final:
                torch.testing.assert_close(last, last_piece)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_as_if_it_were_not_there(backend: str) -> None:
    inputs = make_inputs(batch=1, length=9)
    ids = torch.tensor([[-1, -2, 0, -1, 0, 0, 5, -1, -1]], dtype=torch.int32)
    kept = [2, 4, 5, 6]
    without = {k: v[..., kept] if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
    wanted = outcome(scan, without, seq_idx=ids[:, kept], backend=backend)
    for k in ("u", "delta", "B", "C", "z"):
        inputs[k] = torch.full_like(inputs[k], math.nan).index_copy(2, torch.tensor(kept), without[k])
    y, last = scan(**inputs, seq_idx=ids, backend=backend)
    assert (y[..., [0, 1, 3, 7, 8]] == 0).all()
    torch.testing.assert_close(y[..., kept], wanted["output 0"])
    torch.testing.assert_close(last, wanted["output 1"])
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    gradients = torch.autograd.grad(scan(**leaves, seq_idx=ids, backend=backend)[0].sum(), list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        assert torch.isfinite(gradient).all(), name
        if name in ("u", "delta", "B", "C", "z"):
            assert (gradient[..., [0, 1, 3, 7, 8]] == 0).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_padding_keeps_its_state(backend: str) -> None:
    inputs = make_inputs(length=5)
    y, last = scan(**inputs, seq_idx=torch.full((2, 5), -1, dtype=torch.int32), backend=backend)
    assert (y == 0).all()
    assert torch.equal(last, inputs["initial_state"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_equals_flipping(backend: str) -> None:
    inputs, ids = make_inputs(C="constant"), make_segments(2, 33)
    flipped = {k: v.flip(-1) if k in ("u", "delta", "B", "z") else v for k, v in inputs.items()}
    y, last = scan(**inputs, seq_idx=ids, reverse=True, backend=backend)
    y_flipped, last_flipped = scan(**flipped, seq_idx=ids.flip(1), backend=backend)
    torch.testing.assert_close(y, y_flipped.flip(2))
    torch.testing.assert_close(last, last_flipped)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", [1, 17, 64, 99])
def test_a_sequence_in_two_runs_equals_one(split: int, backend: str) -> None:
    inputs = make_inputs(length=100)
    whole = outcome(scan, inputs, backend=backend)

    def in_two(**inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        y_before, state = scan(**cut(inputs, 0, split), backend=backend)
        y_after, last = scan(**{**cut(inputs, split, None), "initial_state": state}, backend=backend)
        return torch.cat([y_before, y_after], dim=2), last

    assert_agree(outcome(in_two, inputs), whole, 1e-5)


def test_softplus_is_the_identity_above_20() -> None:
    inputs = make_inputs(length=8, absent=("delta_bias",), dtype=torch.float64)
    inputs["delta"] = torch.linspace(20.001, 30, 8, dtype=torch.float64).expand(2, 20, 8)
    for backend in BACKENDS:
        soft = outcome(scan, inputs, backend=backend)
        assert_agree(soft, outcome(scan, inputs, delta_softplus=False, backend=backend), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strong_decays_underflow_to_a_reset(backend: str) -> None:
    inputs = make_inputs(length=6)
    inputs["A"] = inputs["A"] * 1e4
    found = outcome(scan, inputs, backend=backend)
    without = outcome(scan, {**inputs, "initial_state": torch.zeros_like(inputs["initial_state"])}, backend=backend)
    torch.testing.assert_close(found["output 0"], without["output 0"])
    assert all(torch.isfinite(x).all() for x in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = make_inputs(length=70, dtype=dtype)
    exact = outcome(scan, {k: v.float() for k, v in inputs.items()}, out_dtype=dtype, backend="reference")
    for backend in BACKENDS:
        found = outcome(scan, inputs, backend=backend)
        assert found["output 0"].dtype == dtype
        assert found["output 1"].dtype == torch.float32
        assert all(found[name].dtype == dtype for name in inputs)
        assert_agree(found, exact, 1e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_keep_each_gradient_in_its_own(backend: str) -> None:
    inputs = make_inputs()
    dtypes = {"u": torch.bfloat16, "delta": torch.float16, "B": torch.bfloat16, "z": torch.float16}
    inputs = {k: v.to(dtypes.get(k, torch.float32)) for k, v in inputs.items()}
    found = outcome(scan, inputs, backend=backend)
    assert found["output 0"].dtype == torch.bfloat16
    assert {k: found[k].dtype for k in inputs} == {k: v.dtype for k, v in inputs.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_dtype_chooses_the_outputs(backend: str) -> None:
    inputs = make_inputs(dtype=torch.bfloat16)
    wide, _ = scan(**inputs, out_dtype=torch.float32, backend=backend)
    narrow, _ = scan(**inputs, backend=backend)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), narrow)
    assert not torch.equal(wide, narrow.float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_what_varies_along_the_sequence(backend: str) -> None:
    inputs = make_inputs(C="constant")
    cast = {k: v.bfloat16() if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(scan, inputs, backend=backend)
    wanted = outcome(scan, cast, backend=backend)
    assert found["output 0"].dtype == torch.bfloat16
    assert torch.equal(found["output 0"], wanted["output 0"])
    assert all(found[name].dtype == torch.float32 for name in inputs)
    assert torch.equal(found["A"], wanted["A"])
    with torch.autocast("cpu", torch.bfloat16):
        assert scan(**make_inputs(dtype=torch.float64), backend=backend)[0].dtype == torch.float64


@pytest.mark.parametrize("kind", ["step", 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_dense_results_in_the_inputs_dimension_order(layout: str, kind: str | int) -> None:
    inputs = make_inputs(layout=layout, B=kind, C=kind)
    found = outcome(scan, inputs, backend="cpu")
    dense = {k: v.contiguous() for k, v in inputs.items()}
    wanted = outcome(scan, dense, backend="cpu")
    assert_agree(found, wanted, 1e-6)
    assert found["output 0"].stride() == dense_stride(inputs["u"])
    assert {k: found[k].stride() for k in inputs} == {k: dense_stride(v) for k, v in inputs.items()}
    y, _ = scan(**inputs, backend="reference")
    assert y.stride() == dense_stride(inputs["u"])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", [{"batch": 1, "channels": 200}, {"batch": 9, "channels": 40, "B": 2, "C": "constant"}])
def test_results_do_not_depend_on_the_number_of_threads(case: dict[str, Any]) -> None:
    inputs = make_inputs(**case, length=150)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(outcome(scan, inputs, backend="cpu"))
    assert all(torch.equal(x, one[name]) for one in found[1:] for name, x in found[0].items())


def test_an_empty_batch_is_empty() -> None:
    inputs = {k: v[:0] if k not in ("A", "D", "delta_bias") else v for k, v in make_inputs().items()}
    for backend in BACKENDS:
        y, last = scan(**inputs, backend=backend)
        assert (y.shape, last.shape) == ((0, 20, 33), (0, 20, 4))


REFUSED: dict[str, tuple[Inputs | dict[str, Any], str]] = {
    "no length": ({k: draw(2, 20, 0) for k in ("u", "delta")}, "length L must be at least 1"),
    "no channels": ({k: draw(2, 0, 33) for k in ("u", "delta")}, "must be a channel"),
    "u of two dimensions": ({"u": draw(20, 33)}, r"u must have shape \(B, D, L\)"),
    "delta of another length": ({"delta": draw(2, 20, 32)}, r"delta must have shape \(B, D, L\)"),
    "A transposed": ({"A": -draw(4, 20).exp()}, r"A must have shape \(D, N\) = \(20, 20\)"),
    "A of one dimension": ({"A": draw(20)}, r"A must have shape \(D, N\)"),
    "complex A": ({"A": torch.zeros(20, 4, dtype=torch.complex64)}, "complex A"),
    "a large state": ({"A": draw(20, 257)}, "1 to 256"),
    "integers": ({"u": torch.ones(2, 20, 33, dtype=torch.int64)}, "u must be a real floating point tensor"),
    "B of one dimension": ({"B": draw(4)}, "B must have 2 to 4 dimensions"),
    "B of another state": ({"B": draw(2, 5, 33)}, r"B must have shape \(B, N, L\) = \(2, 4, 33\)"),
    "groups that do not divide": ({"C": draw(2, 3, 4, 33)}, "must divide the D = 20 channels"),
    "D of another size": ({"D": draw(19)}, r"D must have shape \(D,\)"),
    "z of another shape": ({"z": draw(2, 20, 1)}, r"z must have shape \(B, D, L\)"),
    "a state of another shape": ({"initial_state": draw(2, 4, 20)}, r"initial_state must have shape \(B, D, N\)"),
    "ids in int64": ({"seq_idx": torch.zeros(2, 33, dtype=torch.int64)}, "seq_idx must be int32"),
    "ids of another shape": ({"seq_idx": torch.zeros(33, dtype=torch.int32)}, r"seq_idx must have shape \(B, L\)"),
    "an integer output": ({"out_dtype": torch.int32}, "out_dtype must be a real floating point dtype"),
    "devices": ({"z": torch.empty(2, 20, 33, device="meta")}, "z must be on cpu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    wrong, message = REFUSED[name]
    for backend in BACKENDS:
        with pytest.raises(KernelInputError, match=message) as caught:
            scan(**{**make_inputs(), **wrong, "backend": backend})
        assert caught.value.remedy


def test_growing_states_become_infinite_rather_than_wrong() -> None:
    inputs = make_inputs(batch=1, channels=1, length=3, state=1, absent=("z", "D", "initial_state", "delta_bias"))
    inputs["A"] = torch.full((1, 1), 60.0)
    inputs["delta"] = torch.ones(1, 1, 3)
    for backend in BACKENDS:
        y = selective_scan(**inputs, backend=backend)
        assert torch.isfinite(y[..., :2]).all()
        assert torch.isinf(y[..., 2]).all()


def test_gradient_of_the_last_state_alone() -> None:
    inputs = make_inputs()
    for name in ("u", "initial_state"):
        leaf = inputs[name].clone().requires_grad_()
        wanted, got = (
            torch.autograd.grad(scan(**{**inputs, name: leaf}, backend=backend)[1].square().sum(), leaf)[0]
            for backend in BACKENDS
        )
        torch.testing.assert_close(got, wanted)


def test_matches_a_convolution_where_nothing_varies() -> None:
    inputs = make_inputs(absent=("z", "D", "delta_bias", "initial_state"), B="constant", C="constant")
    inputs["delta"] = torch.full((2, 20, 33), 0.25)
    steps = torch.arange(33)
    kernel_DL = (inputs["B"] * inputs["C"])[..., None] * 0.25 * torch.exp(0.25 * inputs["A"][..., None] * steps)
    wanted = F.conv1d(F.pad(inputs["u"], (32, 0)), kernel_DL.sum(1).flip(1)[:, None], groups=20)
    for backend in BACKENDS:
        torch.testing.assert_close(selective_scan(**inputs, backend=backend), wanted, rtol=1e-4, atol=1e-5)
