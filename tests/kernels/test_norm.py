"""The norms: their definition, residual and dtype rules, and the CPU path against the definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_outcomes import LAYOUTS, Inputs, assert_agree, draw, outcome
from torch import Tensor

from mamba_kernels import gated_rms_norm, layer_norm, rms_norm

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

BACKENDS = ["reference", "cpu"]
NORMS = [rms_norm, layer_norm]
Norm = Callable[..., Any]


def make_inputs(
    width: int, rows: int = 6, *, bias: bool = True, other: str | None = None, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Return inputs off centre; ``other`` names a second input of the shape of x."""
    inputs = {
        "x": draw(2, rows, width, dtype=dtype) + 1,
        "weight": draw(width, dtype=dtype),
        "bias": draw(width, dtype=dtype, seed=1) if bias else None,
    }
    return inputs if other is None else inputs | {other: draw(2, rows, width, dtype=dtype, seed=2)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_are_torchs(backend: str) -> None:
    x, weight, bias = make_inputs(48, dtype=torch.float64).values()
    shape = (48,)
    torch.testing.assert_close(layer_norm(x, weight, bias, backend=backend), F.layer_norm(x, shape, weight, bias, 1e-5))
    torch.testing.assert_close(
        rms_norm(x, weight, bias, eps=1e-3, backend=backend), F.rms_norm(x, shape, weight, 1e-3) + bias
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [1, 63, 2000])
@pytest.mark.parametrize("width", [7, 16, 33, 100, 256])
def test_cpu_path_agrees_with_the_reference(width: int, rows: int, norm: Norm) -> None:
    flags = (False, True)
    for bias, residual, prenorm in itertools.product(flags, flags, flags):
        inputs = make_inputs(width, rows, bias=bias, other="residual" if residual else None)
        if rows == 2000 and not (bias and residual):
            continue
        found = [outcome(norm, inputs, prenorm=prenorm, backend=backend) for backend in ("cpu", "reference")]
        assert_agree(*found, tolerance=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", [1, 2, 5])
def test_cpu_path_agrees_on_few_numbers(width: int, norm: Norm) -> None:
    # What remains of their gradients is the difference of nearly equal numbers: compared in float64.
    inputs = make_inputs(width, 9, other="residual", dtype=torch.float64)
    found = [outcome(norm, inputs, prenorm=True, backend=backend) for backend in ("cpu", "reference")]
    assert_agree(*found, tolerance=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_residual_is_added_before_and_returned(norm: Norm, backend: str) -> None:
    inputs = make_inputs(20, other="residual")

    def apart(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return norm(total, weight, bias, backend="reference"), total

    assert_agree(outcome(norm, inputs, prenorm=True, backend=backend), outcome(apart, inputs), 1e-5)
    torch.testing.assert_close(norm(**inputs, backend=backend), norm(**inputs, prenorm=True, backend=backend)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("x", "residual", "in_fp32", "kept"),
    [
        (torch.bfloat16, None, False, torch.bfloat16),
        (torch.bfloat16, None, True, torch.float32),
        (torch.bfloat16, torch.float32, True, torch.float32),
        (torch.bfloat16, torch.float32, False, torch.float32),
        (torch.bfloat16, torch.bfloat16, True, torch.bfloat16),
        (torch.float16, torch.float32, False, torch.float32),
        (torch.float32, torch.bfloat16, False, torch.bfloat16),
        (torch.float64, None, True, torch.float64),
    ],
)
def test_dtypes(
    x: torch.dtype, residual: torch.dtype | None, in_fp32: bool, kept: torch.dtype, norm: Norm, backend: str
) -> None:
    inputs = make_inputs(24, other="residual")
    inputs["x"] = inputs["x"].to(x)
    inputs["residual"] = None if residual is None else inputs["residual"].to(residual)
    found = outcome(norm, inputs, prenorm=True, residual_in_fp32=in_fp32, backend=backend)
    assert (found["output 0"].dtype, found["output 1"].dtype) == (x, kept)
    assert all(found[name].dtype == t.dtype for name, t in inputs.items() if t is not None)
    exact = {name: None if t is None else t.double() for name, t in inputs.items()}
    assert_agree(found, outcome(norm, exact, prenorm=True, backend="reference"), 2e-2)
    assert norm(**inputs, out_dtype=torch.float32, backend=backend).dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_statistics_are_those_of_the_unrounded_sum(backend: str) -> None:
    x, residual = torch.full((1, 8), 256.0).bfloat16(), draw(1, 8)
    wanted = layer_norm(x.double() + residual.double(), torch.ones(8), backend="reference")
    found = layer_norm(x, torch.ones(8), None, residual, out_dtype=torch.float32, backend=backend)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_norm_stands_a_mean_far_from_zero(backend: str) -> None:
    x = draw(3, 50) + 1000
    found = layer_norm(x, torch.ones(50), backend=backend)
    wanted = layer_norm(x.double(), torch.ones(50), backend="reference")
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group_size", [None, 12, 6, 1])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gated_norm_is_what_it_says(norm_before_gate: bool, group_size: int | None, backend: str) -> None:
    x, weight, bias, z = make_inputs(24, other="z", dtype=torch.float64).values()
    gated = x if norm_before_gate else x * F.silu(z)
    groups = [F.rms_norm(part, part.shape[-1:], None, 1e-5) for part in gated.split(group_size or 24, dim=-1)]
    wanted = torch.cat(groups, dim=-1) * weight + bias
    found = gated_rms_norm(
        x, weight, bias, z, group_size=group_size, norm_before_gate=norm_before_gate, backend=backend
    )
    torch.testing.assert_close(found, wanted * F.silu(z) if norm_before_gate else wanted)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_gated_cpu_path_agrees_with_the_reference(size: int, groups: int) -> None:
    flags = (False, True)
    for rows, bias, gated, first in itertools.product((1, 100), flags, flags, flags):
        dtype, tolerance = (torch.float64, 1e-9) if size == 1 else (torch.float32, 1e-5)
        inputs = make_inputs(size * groups, rows, bias=bias, other="z" if gated else None, dtype=dtype)
        options = {"group_size": size, "norm_before_gate": first}
        found = [outcome(gated_rms_norm, inputs, **options, backend=backend) for backend in ("cpu", "reference")]
        assert_agree(*found, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gated_dtypes(backend: str) -> None:
    inputs = make_inputs(24, other="z")
    inputs |= {"x": inputs["x"].bfloat16(), "z": inputs["z"].half()}
    found = outcome(gated_rms_norm, inputs, backend=backend)
    assert found["output 0"].dtype == torch.bfloat16
    assert all(found[name].dtype == t.dtype for name, t in inputs.items())
    exact = {name: t.double() for name, t in inputs.items()}
    assert_agree(found, outcome(gated_rms_norm, exact, backend="reference"), 2e-2)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_cpu_path_agrees_in_any_layout(layout: str) -> None:
    for width in (32, 35):
        inputs = make_inputs(width, other="residual", dtype=torch.float64)
        inputs |= {name: LAYOUTS[layout](inputs[name]) for name in ("x", "residual")}
        for norm in NORMS:
            found = [outcome(norm, inputs, prenorm=True, backend=backend) for backend in ("cpu", "reference")]
            assert_agree(*found, tolerance=1e-9)
        inputs["z"] = inputs.pop("residual")
        found = [outcome(gated_rms_norm, inputs, backend=backend) for backend in ("cpu", "reference")]
        assert_agree(*found, tolerance=1e-9)


def test_results_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        one = outcome(layer_norm, make_inputs(60, 1500, other="residual"), prenorm=True, backend="cpu")
        found.append(one | outcome(gated_rms_norm, make_inputs(60, 1500, other="z"), backend="cpu"))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_gradients_are_those_of_finite_differences() -> None:
    def leaves(other: str) -> tuple[Tensor, ...]:
        return tuple(t.requires_grad_() for t in make_inputs(6, 1, other=other, dtype=torch.float64).values())

    def of(norm: Norm, backend: str, **options: Any) -> Any:
        return lambda *tensors: norm(*tensors, **options, backend=backend)

    for norm in NORMS:
        assert torch.autograd.gradcheck(of(norm, "cpu", prenorm=True), leaves("residual"))
        assert torch.autograd.gradcheck(of(norm, "reference", prenorm=True), leaves("residual"))
        assert torch.autograd.gradgradcheck(of(norm, "reference", prenorm=True), leaves("residual"))
    for first in (False, True):
        options = {"group_size": 3, "norm_before_gate": first}
        assert torch.autograd.gradcheck(of(gated_rms_norm, "cpu", **options), leaves("z"))
        assert torch.autograd.gradcheck(of(gated_rms_norm, "reference", **options), leaves("z"))
        assert torch.autograd.gradgradcheck(of(gated_rms_norm, "reference", **options), leaves("z"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_no_rows(backend: str) -> None:
    x, weight = torch.zeros(2, 0, 5, requires_grad=True), torch.ones(5, requires_grad=True)
    for norm in (*NORMS, gated_rms_norm):
        y = norm(x, weight, backend=backend)
        assert y.shape == (2, 0, 5)
        (dweight,) = torch.autograd.grad(y.sum(), weight)
        assert (dweight == 0).all()
