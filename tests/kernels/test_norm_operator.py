"""The norms as PyTorch sees them: layouts, compilation, export, second derivatives, refused input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_outcomes import LAYOUTS, Inputs, assert_agree, dense_stride, draw, outcome
from torch import Tensor

from mamba_kernels import decompositions, gated_rms_norm, layer_norm, rms_norm
from mamba_kernels.errors import BackendError, KernelInputError

pytestmark = [
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

BACKENDS = ["reference", "cpu"]


def add_norm(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return layer_norm(x, weight, bias, other, prenorm=True, **options)


def gated(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor, **options: Any) -> Tensor:
    return gated_rms_norm(x, weight, bias, other, group_size=3, **options)


def plain(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor, **options: Any) -> Tensor:
    return rms_norm(x, weight, bias, **options)


OPERATORS = [add_norm, gated, plain]
Operator = Callable[..., Any]


def make_inputs(layout: str = "contiguous", other: str | None = None) -> Inputs:
    """Return inputs in a layout, the second one of x's shape in another."""
    place, other_place = LAYOUTS[layout], LAYOUTS[other or layout]
    return {
        "x": place(draw(3, 4, 6)),
        "weight": draw(12)[::2],
        "bias": draw(6),
        "other": other_place(draw(3, 4, 6, seed=1)),
    }


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_results_are_dense_in_the_dimension_order_of_their_input(layout: str, backend: str, operator: Operator) -> None:
    for other in (layout, "permuted"):
        inputs = make_inputs(layout, other)
        found = outcome(operator, inputs, backend=backend)
        assert found["output 0"].stride() == dense_stride(inputs["x"])
        if "output 1" in found:
            assert found["output 1"].stride() == dense_stride(inputs["other"])
        if backend == "cpu" and operator is not plain:  # the reference's gradients are laid out by autograd
            assert all(found[name].stride() == dense_stride(x) for name, x in inputs.items())


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles_into_one_graph_in_any_layout(operator: Operator) -> None:
    for layout in ("contiguous", "permuted", "sliced", "expanded_batch"):
        torch.compiler.reset()
        inputs = make_inputs(layout)
        compiled = outcome(torch.compile(operator, fullgraph=True), inputs)
        eager = outcome(operator, inputs)
        assert_agree(compiled, eager, 1e-6)
        outputs = [name for name in eager if name.startswith("output")]
        assert all(compiled[name].stride() == eager[name].stride() for name in outputs)


@pytest.mark.parametrize("operator", OPERATORS)
def test_exports_with_any_batch_and_length(operator: Operator) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Any:
            return operator(x, weight, bias, other)

    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)
    free = {0: batch, 1: length}
    inputs = make_inputs() | {"weight": draw(6)}
    program = torch.export.export(
        Model(), tuple(inputs.values()), dynamic_shapes={"x": free, "weight": None, "bias": None, "other": free}
    )
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("mamba_kernels" in name for name in names) == 1
    longer = (draw(5, 7, 6), inputs["weight"], inputs["bias"], draw(5, 7, 6, seed=1))
    torch.testing.assert_close(program.module()(*longer), operator(*longer))
    decomposed = program.run_decompositions(decompositions())
    names = [str(node.target) for node in decomposed.graph.nodes if node.op == "call_function"]
    assert not any("mamba_kernels" in name for name in names)
    torch.testing.assert_close(decomposed.module()(*longer), operator(*longer))


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_operators_pass_opcheck(layout: str) -> None:
    torch.use_deterministic_algorithms(False)
    x, weight, bias, other = (t.detach().requires_grad_() for t in make_inputs(layout).values())
    ops = torch.ops.mamba_kernels
    torch.library.opcheck(ops.add_norm.default, (x, weight, bias, other, 1e-5, True, torch.float32))
    torch.library.opcheck(ops.add_norm.default, (x, weight, None, None, 1e-5, False, torch.float64))
    torch.library.opcheck(ops.gated_rms_norm.default, (x, weight, bias, other, 1e-5, 3, False))
    torch.library.opcheck(ops.gated_rms_norm.default, (x, weight, None, None, 1e-5, 6, True))
    x, weight, bias, other = (t.detach() for t in (x, weight, bias, other))
    torch.library.opcheck(
        ops.add_norm_backward.default, (other, other, x, weight, bias, 1e-5, True, x.dtype, torch.float64)
    )
    torch.library.opcheck(ops.add_norm_backward.default, (other, None, x, weight, None, 1e-5, False, x.dtype, None))
    torch.library.opcheck(ops.gated_rms_norm_backward.default, (other, x, weight, bias, other, 1e-5, 3, True))
    torch.library.opcheck(ops.gated_rms_norm_backward.default, (other, x, weight, None, None, 1e-5, 3, True))


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_second_derivative_names_the_switch(operator: Operator) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs().items()}

    def first(backend: str | None) -> Tensor:
        y = operator(**inputs, backend=backend)
        y = y if isinstance(y, Tensor) else y[0]
        return torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)[0]

    with pytest.raises(BackendError, match="backend='reference'"):
        first(None).sum().backward()
    first("reference").square().sum().backward()


def test_without_residual_the_input_is_the_residual() -> None:
    x = draw(2, 6)
    for backend in BACKENDS:
        assert rms_norm(x, draw(6), prenorm=True, backend=backend)[1] is x
        kept = rms_norm(x.bfloat16(), draw(6), prenorm=True, residual_in_fp32=True, backend=backend)[1]
        assert kept.dtype == torch.float32


def valid() -> dict[str, Any]:
    return {"x": torch.zeros(2, 6), "weight": torch.ones(6)}


BAD = [
    ({"x": torch.tensor(1.0)}, r"x must have shape \(\.\.\., D\) with D >= 1, got \(\)"),
    ({"x": torch.zeros(2, 0), "weight": torch.zeros(0)}, r"D >= 1, got \(2, 0\)"),
    ({"x": torch.zeros(2, 6, dtype=torch.int32)}, "x must be a real floating point tensor"),
    ({"weight": torch.ones(5)}, r"weight must have shape \(D,\) = \(6,\), got \(5,\)"),
    ({"weight": torch.ones(6, device="meta")}, "weight must be on cpu"),
    ({"bias": torch.ones(1, 6)}, r"bias must have shape \(D,\) = \(6,\), got \(1, 6\)"),
    ({"eps": -1e-5}, "eps must not be negative, got -1e-05"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        *BAD,
        ({"residual": torch.zeros(2, 5)}, r"residual must have shape the shape of x = \(2, 6\), got \(2, 5\)"),
        ({"residual": torch.zeros(2, 6, dtype=torch.bool)}, "residual must be a real floating point tensor"),
        ({"out_dtype": torch.int32}, "out_dtype must be a real floating point dtype, got torch.int32"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str, backend: str) -> None:
    for norm in (rms_norm, layer_norm):
        with pytest.raises(KernelInputError, match=message) as error:
            norm(**(valid() | change), backend=backend)
        assert str(error.value).startswith(f"{norm.__name__}: ")
        assert error.value.remedy


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        *BAD,
        ({"z": torch.zeros(6)}, r"z must have shape the shape of x = \(2, 6\), got \(6,\)"),
        ({"group_size": 4}, "group_size must divide D = 6, got 4"),
        ({"group_size": 0}, "group_size must divide D = 6, got 0"),
    ],
)
def test_bad_gated_input_is_refused(change: dict[str, Any], message: str, backend: str) -> None:
    with pytest.raises(KernelInputError, match=message) as error:
        gated_rms_norm(**(valid() | change), backend=backend)
    assert str(error.value).startswith("gated_rms_norm: ")
    assert error.value.remedy
