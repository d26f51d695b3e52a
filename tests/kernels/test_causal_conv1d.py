"""The causal convolution: its definition, what its options mean, and the CPU path against the definition."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_outcomes import LAYOUTS, Inputs, assert_agree, draw, outcome
from torch import Tensor

from mamba_kernels import causal_conv1d

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

BACKENDS = ["reference", "cpu"]


def make_inputs(
    length: int,
    width: int = 4,
    *,
    channels: int = 19,
    bias: bool = True,
    initial: bool = True,
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    return {
        "x": LAYOUTS[layout](draw(2, channels, length, dtype=dtype)),
        "weight": draw(channels, width, dtype=dtype),
        "bias": draw(channels, dtype=dtype) if bias else None,
        "initial_states": draw(2, channels, width - 1, dtype=dtype) if initial else None,
    }


def make_segments(length: int) -> Tensor:
    """Return segments of ids that come back, begin with 0 and 1, and are broken by padding."""
    position = torch.arange(length)
    first = torch.tensor([0, 1, 1, 0, 2, -1, 2, 0])[position // 5 % 8]
    second = torch.tensor([-1, 1, -1, 1, 0])[position // 7 % 5]
    return torch.stack([first, second]).int()


def both(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return outcome(causal_conv1d, inputs, return_final_states=True, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("width", [1, 2, 4, 9])
def test_is_a_depthwise_convolution_behind_the_initial_states(width: int, activation: str | None, backend: str) -> None:
    inputs = make_inputs(20, width, dtype=torch.float64)
    x, weight, bias, initial = inputs.values()
    padded = torch.cat([initial, x], dim=2)
    wanted = F.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])
    y, final = causal_conv1d(**inputs, activation=activation, return_final_states=True, backend=backend)
    torch.testing.assert_close(y, F.silu(wanted) if activation else wanted)
    torch.testing.assert_close(final, padded[:, :, 20:])


@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("length", [1, 2, 63, 100])
def test_cpu_path_agrees_with_the_reference(length: int, width: int) -> None:
    flags = (False, True)
    for silu, bias, initial, reverse, segments in itertools.product(flags, flags, flags, flags, flags):
        inputs = make_inputs(length, width, bias=bias, initial=initial)
        options = {
            "activation": "silu" if silu else None,
            "reverse": reverse,
            "seq_idx": make_segments(length) if segments else None,
        }
        assert_agree(both(inputs, **options, backend="cpu"), both(inputs, **options, backend="reference"), 5e-6)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("reverse", [False, True])
def test_cpu_path_agrees_in_any_layout(layout: str, reverse: bool) -> None:
    # 37 channels and 200 steps: whole blocks of 16 of both, and some over; several chunks of steps.
    inputs = make_inputs(200, channels=37, layout=layout)
    for segments in (None, make_segments(200)):
        options = {"seq_idx": segments, "activation": "silu", "reverse": reverse}
        assert_agree(both(inputs, **options, backend="cpu"), both(inputs, **options, backend="reference"), 5e-6)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_cpu_path_agrees_on_a_long_sequence(layout: str) -> None:
    inputs = make_inputs(2000, channels=33, layout=layout)
    options = {"activation": "silu", "seq_idx": make_segments(2000)}
    assert_agree(both(inputs, **options, backend="cpu"), both(inputs, **options, backend="reference"), 2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_segments_are_convolved_apart(backend: str) -> None:
    inputs = make_inputs(20)
    x, weight, bias, initial = inputs.values()
    seq_idx = torch.tensor([[0] * 6 + [1] * 1 + [3] * 8 + [0] * 5, [2] * 9 + [0] * 2 + [-1] * 9], dtype=torch.int32)
    y, final = causal_conv1d(**inputs, seq_idx=seq_idx, return_final_states=True, backend=backend)

    def alone(row: int, begin: int, end: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        part = x[row : row + 1, :, begin:end]
        return causal_conv1d(part, weight, bias, None, state, True, backend="reference")

    first = [alone(0, 0, 6, initial[:1]), alone(0, 6, 7), alone(0, 7, 15), alone(0, 15, 20)]
    second = [alone(1, 0, 9), alone(1, 9, 11)]
    torch.testing.assert_close(y[:1], torch.cat([part for part, _ in first], dim=2))
    torch.testing.assert_close(y[1:, :, :11], torch.cat([part for part, _ in second], dim=2))
    assert (y[1, :, 11:] == 0).all()
    torch.testing.assert_close(final, torch.cat([first[-1][1], second[-1][1]]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_counts_for_nothing_wherever_it_stands(reverse: bool, backend: str) -> None:
    inputs = make_inputs(12)
    ids = torch.tensor([[0] * 8 + [1] * 4, [0] * 12], dtype=torch.int32)
    if reverse:
        ids = ids.flip(1)
    places = torch.tensor([1, 2, 3, 6, 7, 8, 11, 12, 13, 14, 15, 16])
    bare = both(inputs, seq_idx=ids, reverse=reverse, activation="silu", backend=backend)
    padded_x = torch.full((2, 19, 19), float("nan"))
    padded_x[:, :, places] = inputs["x"]
    padded_ids = torch.full((2, 19), -3, dtype=torch.int32)
    padded_ids[:, places] = ids

    def run(x: Tensor, **rest: Tensor | None) -> tuple[Tensor, Tensor]:
        y, final = causal_conv1d(
            x, seq_idx=padded_ids, reverse=reverse, activation="silu", return_final_states=True, backend=backend, **rest
        )
        seen = torch.ones(19, dtype=torch.bool).index_fill(0, places, False)
        assert (y[:, :, seen] == 0).all()
        return y[:, :, places], final

    padded = outcome(run, {**inputs, "x": padded_x})
    dx = padded["x"]
    assert (dx.sum((0, 1)) != 0).sum() == 12
    padded["x"] = dx[:, :, places]
    assert_agree(padded, bare, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_of_padding_leaves_the_state_alone(backend: str) -> None:
    inputs = make_inputs(5)
    seq_idx = torch.full((2, 5), -1, dtype=torch.int32)
    found = both(inputs, seq_idx=seq_idx, activation="silu", backend=backend)
    assert (found["output 0"] == 0).all()
    assert (found["x"] == 0).all()
    assert (found["weight"] == 0).all()
    torch.testing.assert_close(found["output 1"], inputs["initial_states"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [2, 50])
def test_reverse_is_flip_run_flip(length: int, backend: str) -> None:
    inputs = make_inputs(length)
    segments = make_segments(length)

    def flipped(x: Tensor, **rest: Tensor | None) -> tuple[Tensor, Tensor]:
        y, final = causal_conv1d(
            x.flip(2), seq_idx=segments.flip(1), activation="silu", return_final_states=True, backend=backend, **rest
        )
        return y.flip(2), final

    backwards = both(inputs, seq_idx=segments, reverse=True, activation="silu", backend=backend)
    assert_agree(backwards, outcome(flipped, inputs), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_chained_by_their_states_equal_one_run(reverse: bool, backend: str) -> None:
    inputs = make_inputs(100, 5)

    def pieces(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor) -> tuple[Tensor, Tensor]:
        parts, outputs = list(x.split([1, 2, 60, 37], dim=2)), []
        for part in reversed(parts) if reverse else parts:
            y, initial_states = causal_conv1d(
                part, weight, bias, None, initial_states, True, "silu", reverse=reverse, backend=backend
            )
            outputs.append(y)
        return torch.cat(outputs[::-1] if reverse else outputs, dim=2), initial_states

    assert_agree(outcome(pieces, inputs), both(inputs, activation="silu", reverse=reverse, backend="reference"), 5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("x", "weight", "state", "tolerance"),
    [
        (torch.float64, torch.float64, torch.float64, 1e-12),
        (torch.float64, torch.float32, None, 1e-6),
        (torch.float32, torch.float64, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16, 1e-2),
        (torch.bfloat16, torch.float32, torch.float32, 1e-2),
        (torch.float16, torch.float32, None, 2e-3),
        (torch.float32, torch.bfloat16, torch.bfloat16, 1e-2),
    ],
)
def test_dtypes(x: torch.dtype, weight: torch.dtype, state: torch.dtype | None, tolerance: float, backend: str) -> None:
    inputs = make_inputs(70)
    types = {"x": x, "weight": weight, "bias": weight, "initial_states": state or torch.float32}
    inputs = {name: None if t is None else t.to(types[name]) for name, t in inputs.items()}
    if state is None:
        inputs["initial_states"] = None
    found = both(inputs, activation="silu", backend=backend)
    exact = {name: None if t is None else t.double() for name, t in inputs.items()}
    assert_agree(found, both(exact, activation="silu", backend="reference"), tolerance)
    assert found["output 0"].dtype == x
    assert found["output 1"].dtype == (x if state is None else torch.promote_types(x, state))
    assert all(found[name].dtype == t.dtype for name, t in inputs.items() if t is not None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_the_input_and_keeps_weights_and_states(backend: str) -> None:
    inputs = make_inputs(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = both(inputs, activation="silu", backend=backend)
    assert found["output 0"].dtype == torch.bfloat16
    assert found["output 1"].dtype == torch.float32
    assert all(found[name].dtype == torch.float32 for name in inputs)
    wanted = both({**inputs, "x": inputs["x"].bfloat16()}, activation="silu", backend="reference")
    assert_agree(found, wanted, 1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert causal_conv1d(inputs["x"].double(), inputs["weight"], backend=backend).dtype == torch.float64


@pytest.mark.parametrize("segments", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(segments: bool, threads: None) -> None:
    inputs = make_inputs(1500, channels=130)
    seq_idx = make_segments(1500) if segments else None
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(both(inputs, seq_idx=seq_idx, activation="silu", backend="cpu"))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_finite_differences(reverse: bool) -> None:
    inputs = make_inputs(6, 3, channels=2, dtype=torch.float64)
    tensors = tuple(x.requires_grad_() for x in inputs.values())
    seq_idx = torch.tensor([[0, 0, -1, 0, 1, 1], [1, 1, 1, 1, -1, 1]], dtype=torch.int32)

    def run(backend: str) -> Any:
        return lambda x, w, b, i: causal_conv1d(x, w, b, seq_idx, i, True, "silu", reverse=reverse, backend=backend)

    assert torch.autograd.gradcheck(run("cpu"), tensors)
    assert torch.autograd.gradcheck(run("reference"), tensors)
    assert torch.autograd.gradgradcheck(run("reference"), tensors)


def test_an_empty_batch_gives_empty_results() -> None:
    for backend in BACKENDS:
        x, weight = torch.zeros(0, 3, 5, requires_grad=True), torch.ones(3, 4, requires_grad=True)
        y = causal_conv1d(x, weight, activation="silu", backend=backend)
        y.sum().backward()
        assert y.shape == (0, 3, 5)
        assert (weight.grad == 0).all()
