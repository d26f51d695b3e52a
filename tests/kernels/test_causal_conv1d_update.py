"""The causal convolution step by step, and the states of packed sequences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from operator_outcomes import LAYOUTS, assert_agree, dense_stride, draw, outcome
from torch import Tensor

from mamba_kernels import causal_conv1d, causal_conv1d_update, causal_conv1d_varlen_states
from mamba_kernels.errors import KernelInputError

pytestmark = [
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

BACKENDS = ["reference", "cpu"]


def steps_of(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Return pieces of x along time; a piece of 1 without its time axis."""
    return [piece.squeeze(2) if piece.shape[2] == 1 else piece for piece in x.split(sizes, dim=2)]


def joined(pieces: list[Tensor]) -> Tensor:
    return torch.cat([piece if piece.dim() == 3 else piece.unsqueeze(2) for piece in pieces], dim=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extra", [0, 1, 4])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_step_by_step_equals_in_parallel(width: int, extra: int, backend: str) -> None:
    x, weight, bias = draw(2, 5, 30), draw(5, width), draw(5)
    before = draw(2, 5, width - 1)
    wanted, final = causal_conv1d(x, weight, bias, None, before, True, "silu")
    state = torch.cat([torch.full((2, 5, extra), 9.0), before], dim=2)
    pieces = []
    for piece in steps_of(x, [1, 1, 1, 3, 1, 20, 2, 1]):
        pieces.append(causal_conv1d_update(piece, state, weight, bias, "silu", backend=backend))
        assert pieces[-1].shape == piece.shape
    torch.testing.assert_close(joined(pieces), wanted)
    torch.testing.assert_close(state[:, :, extra:], final)
    if extra:
        torch.testing.assert_close(state[:, :, 0], x[:, :, 30 - extra - (width - 1)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("columns", [3, 4, 6])
def test_a_ring_buffer_remembers_the_same(columns: int, backend: str) -> None:
    x, weight = draw(2, 5, 29), draw(5, 4)
    wanted = causal_conv1d(x, weight, activation="silu")
    # The sequences of the batch stand at different positions of the ring.
    seen = torch.tensor([columns, 2 * columns + 2], dtype=torch.int32)
    state = torch.zeros(2, 5, columns)
    pieces = []
    for piece in steps_of(x, [1, 2, 1, 10, 1, 1, 13]):
        pieces.append(causal_conv1d_update(piece, state, weight, None, "silu", seen, backend=backend))
        seen = seen + piece[0, 0].numel()
    torch.testing.assert_close(joined(pieces), wanted)
    for row in range(2):
        for back in range(1, columns + 1):
            column = (int(seen[row]) - back) % columns
            torch.testing.assert_close(state[row, :, column], x[row, :, -back])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ring", [False, True])
def test_rows_of_a_pool(ring: bool, backend: str) -> None:
    x, weight, pool = draw(4, 5, 2), draw(5, 3), draw(6, 5, 4)
    rows = torch.tensor([4, -1, 0, 2], dtype=torch.int32)
    seen = torch.tensor([7, 3, 0, 5], dtype=torch.int32) if ring else None
    before = pool.clone()
    y = causal_conv1d_update(x, pool, weight, None, None, seen, rows, backend=backend)
    assert (y[1] == 0).all()
    for row in (1, 3, 5):
        assert torch.equal(pool[row], before[row])
    for index in (0, 2, 3):
        state = before[rows[index]][None].clone()
        alone = causal_conv1d_update(
            x[index][None], state, weight, None, None, None if seen is None else seen[index : index + 1]
        )
        torch.testing.assert_close(y[index][None], alone)
        torch.testing.assert_close(pool[rows[index]][None], state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced", "expanded_batch"])
@pytest.mark.parametrize("steps", [None, 3])
def test_layouts(steps: int | None, layout: str, backend: str) -> None:
    x = LAYOUTS[layout](draw(3, 5) if steps is None else draw(3, 5, steps))
    weight, state = LAYOUTS[layout](draw(5, 4)), draw(3, 5, 4).transpose(1, 2).contiguous().transpose(1, 2)
    same = state.clone()
    y = causal_conv1d_update(x, state, weight, activation="silu", backend=backend)
    assert y.stride() == dense_stride(x)
    torch.testing.assert_close(y, causal_conv1d_update(x.contiguous(), same, weight.contiguous(), activation="silu"))
    assert torch.equal(state, same)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("x", "state", "weight"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_dtypes(x: torch.dtype, state: torch.dtype, weight: torch.dtype, backend: str) -> None:
    inputs = draw(2, 5, 3).to(x), draw(2, 5, 4).to(state), draw(5, 4).to(weight)
    exact = [t.to(torch.float64, copy=True) for t in inputs]
    y = causal_conv1d_update(*inputs, activation="silu", backend=backend)
    wanted = causal_conv1d_update(*exact, activation="silu", backend="reference")
    assert (y.dtype, inputs[1].dtype) == (x, state)
    tolerance = {torch.bfloat16: 1e-2, torch.float64: 1e-12}.get(x, 1e-5)
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inputs[1].double(), exact[1], rtol=1e-2, atol=1e-2)


def test_autocast_casts_the_input_alone() -> None:
    x, state, weight = draw(2, 5), draw(2, 5, 3), draw(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = causal_conv1d_update(x, state, weight)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_gradients_flow_through_steps() -> None:
    inputs = {"x": draw(2, 5, 6), "weight": draw(5, 4), "bias": draw(5), "initial_states": draw(2, 5, 3)}

    def step_by_step(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor) -> tuple[Tensor, Tensor]:
        state = initial_states.clone()
        pieces = [causal_conv1d_update(piece, state, weight, bias, "silu") for piece in steps_of(x, [1, 1, 3, 1])]
        return joined(pieces), state

    wanted = outcome(causal_conv1d, inputs, activation="silu", return_final_states=True)
    assert_agree(outcome(step_by_step, inputs), wanted, 1e-6)


@torch.no_grad()
def test_the_operator_passes_opcheck_and_compiles() -> None:
    x, weight, bias = draw(2, 5, 3), draw(5, 4), draw(5)
    torch.use_deterministic_algorithms(False)
    operator = torch.ops.mamba_kernels.causal_conv1d_update.default
    seen, rows = torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32)
    torch.library.opcheck(operator, (x, draw(2, 5, 4), weight, bias, True, None, None))
    torch.library.opcheck(operator, (x[:, :, 0], draw(3, 5, 4), weight, None, False, seen, rows))
    torch.compiler.reset()
    state, same = draw(2, 5, 4), draw(2, 5, 4)
    compiled = torch.compile(causal_conv1d_update, fullgraph=True)
    torch.testing.assert_close(compiled(x, state, weight, bias), causal_conv1d_update(x, same, weight, bias))
    assert torch.equal(state, same)


def valid() -> dict[str, Any]:
    return {"x": torch.zeros(2, 3), "conv_state": torch.zeros(2, 3, 4), "weight": torch.zeros(3, 4)}


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2)}, r"x must have shape \(B, D\) or \(B, D, T\)"),
        ({"x": torch.zeros(2, 3, 0)}, r"D, T >= 1, got \(2, 3, 0\)"),
        ({"conv_state": torch.zeros(2, 3, 2)}, r"at least W - 1 = 3\).*got \(2, 3, 2\).*torch.zeros\(2, 3, 3\)"),
        ({"conv_state": torch.zeros(1, 3, 4)}, r"got \(1, 3, 4\)"),
        ({"conv_state": torch.zeros(2, 4, 4)}, r"got \(2, 4, 4\)"),
        ({"conv_state": torch.zeros(2, 3, 4, dtype=torch.int32)}, "conv_state must be a real floating point"),
        ({"conv_state": torch.zeros(3, 4).expand(2, 3, 4)}, r"must not be expanded, got strides \(0, 4, 1\)"),
        ({"weight": torch.zeros(3, 0)}, "W >= 1"),
        ({"bias": torch.zeros(2)}, "bias must have shape"),
        ({"activation": "relu"}, "got 'relu'"),
        ({"cache_seqlens": torch.zeros(2)}, "cache_seqlens must be int32"),
        ({"cache_seqlens": integers(1)}, r"of shape \(B,\) = \(2,\)"),
        ({"cache_seqlens": integers(1, -2)}, "must not be negative, got -2"),
        ({"cache_seqlens": integers(1, 1), "conv_state": torch.zeros(2, 3, 0), "weight": torch.zeros(3, 1)}, "ring"),
        ({"conv_state_indices": integers(0, 2)}, "below the 2 rows of conv_state, got 2"),
        ({"conv_state_indices": integers(1, 1)}, r"must not name a row twice, got \[1, 1\]"),
        ({"conv_state_indices": torch.zeros(2)}, "conv_state_indices must be int32"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    for backend in BACKENDS:
        with pytest.raises(KernelInputError, match=message) as error:
            causal_conv1d_update(**(valid() | change), backend=backend)
        assert str(error.value).startswith("causal_conv1d_update: ")
        assert error.value.remedy


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_varlen_states_are_the_last_inputs_of_each_sequence(layout: str) -> None:
    x = LAYOUTS[layout](draw(12, 5))
    bounds = [0, 1, 1, 9, 11]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    states = causal_conv1d_varlen_states(x, cu_seqlens, 4)
    for row, (begin, end) in enumerate(itertools.pairwise(bounds)):
        wanted = torch.zeros(5, 4)
        for column in range(min(4, end - begin)):
            wanted[:, 3 - column] = x[end - 1 - column]
        assert torch.equal(states[row], wanted)
    found = outcome(causal_conv1d_varlen_states, {"x": x}, cu_seqlens=cu_seqlens, state_len=4)
    assert found["x"].stride() == x.stride()
    x64 = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: causal_conv1d_varlen_states(t, cu_seqlens, 4), x64)
    assert torch.autograd.gradgradcheck(lambda t: causal_conv1d_varlen_states(t, cu_seqlens, 4), x64)
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(torch.ops.mamba_kernels.causal_conv1d_varlen_states.default, (x, cu_seqlens, 4))


def test_decoding_goes_on_from_varlen_states() -> None:
    x, weight = draw(9, 5), draw(5, 4)
    states = causal_conv1d_varlen_states(x, integers(0, 2, 9), 3)
    new = draw(2, 5, seed=3)
    y = causal_conv1d_update(new, states, weight)
    for row, (begin, end) in enumerate(((0, 2), (2, 9))):
        whole = torch.cat([x[begin:end], new[row : row + 1]]).T[None]
        torch.testing.assert_close(y[row], causal_conv1d(whole, weight)[0, :, -1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 6, 3)}, r"x must have shape \(T, D\), got \(1, 6, 3\)"),
        ({"x": torch.zeros(6, 3, dtype=torch.int64)}, "x must be a real floating point tensor"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "cu_seqlens must be int32"),
        ({"cu_seqlens": integers(0)}, r"of shape \(B \+ 1,\), got torch.int32 \(1,\)"),
        ({"cu_seqlens": integers(0, 4, 2)}, r"must not decrease.*got \[0, 4, 2\]"),
        ({"cu_seqlens": integers(0, 7)}, r"stay within 0 and T = 6, got \[0, 7\]"),
        ({"cu_seqlens": integers(-1, 5)}, r"got \[-1, 5\]"),
        ({"state_len": 0}, "state_len must be at least 1, got 0"),
    ],
)
def test_bad_packed_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelInputError, match=message) as error:
        causal_conv1d_varlen_states(**({"x": torch.zeros(6, 3), "cu_seqlens": integers(0, 6), "state_len": 3} | change))
    assert error.value.remedy
