"""The convolution from both ends: against two convolutions, and as PyTorch sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_outcomes import LAYOUTS, Inputs, assert_agree, dense_stride, draw, outcome

from mamba_kernels import causal_conv1d, causal_conv1d_bidirectional, decompositions
from mamba_kernels.errors import BackendError, KernelInputError

pytestmark = [
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

BACKENDS = ["reference", "cpu"]


def make_inputs(layout: str = "contiguous", dtype: torch.dtype = torch.float32, length: int = 11) -> Inputs:
    place = LAYOUTS[layout]
    return {
        "x": place(draw(3, 18, length, dtype=dtype)),
        "weight": place(draw(2, 18, 4)),
        "bias": draw(2, 18),
    }


def two_convolutions(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str) -> torch.Tensor:
    readings = [
        causal_conv1d(x.double(), weight[k], bias[k], activation=activation, reverse=k == 1, backend="reference")
        for k in range(2)
    ]
    return torch.stack(readings, 1).to(x.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 63, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_two_convolutions(dtype: torch.dtype, length: int, backend: str) -> None:
    inputs = make_inputs(dtype=dtype, length=length)
    got = outcome(causal_conv1d_bidirectional, inputs, activation="silu", backend=backend)
    assert_agree(got, outcome(two_convolutions, inputs, activation="silu"), 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced", "every_second"])
def test_results_lie_like_the_input(layout: str, backend: str) -> None:
    inputs = make_inputs(layout)
    found = outcome(causal_conv1d_bidirectional, inputs, activation="silu", backend=backend)
    assert found["output 0"][:, 1].stride() == dense_stride(inputs["x"])
    assert found["output 0"].stride(1) == inputs["x"].numel()
    if backend == "cpu":  # the reference's gradients are laid out by autograd
        assert all(found[name].stride() == dense_stride(x) for name, x in inputs.items())


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_compiles_into_one_graph_in_any_layout(layout: str) -> None:
    torch.compiler.reset()
    inputs = make_inputs(layout)
    compiled = outcome(torch.compile(causal_conv1d_bidirectional, fullgraph=True), inputs)
    eager = outcome(causal_conv1d_bidirectional, inputs)
    assert_agree(compiled, eager, 1e-6)
    assert all(compiled[name].stride() == eager[name].stride() for name in eager)


def test_decomposes_into_plain_operators() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return causal_conv1d_bidirectional(x, weight, bias, "silu")

    inputs = tuple(make_inputs().values())
    program = torch.export.export(Model(), inputs).run_decompositions(decompositions())
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("mamba_kernels" in name for name in operators)
    torch.testing.assert_close(program.module()(*inputs), Model()(*inputs))


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_operators_pass_opcheck(layout: str) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares results of fake tensors too
    x, weight, bias = (t.requires_grad_() for t in make_inputs(layout).values())
    forward = torch.ops.mamba_kernels.causal_conv1d_bidirectional.default
    torch.library.opcheck(forward, (x, weight, bias, True))
    torch.library.opcheck(forward, (x, weight, None, False))
    backward = torch.ops.mamba_kernels.causal_conv1d_bidirectional_backward.default
    x, weight, bias = (t.detach() for t in (x, weight, bias))
    torch.library.opcheck(backward, (forward(x, weight, bias, True), x, weight, bias, True))


def test_the_second_derivative_names_the_switch() -> None:
    x, weight = draw(2, 3, 8).requires_grad_(), draw(2, 3, 4).requires_grad_()
    (dx,) = torch.autograd.grad(causal_conv1d_bidirectional(x, weight).sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="backend='reference'"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5)}, r"x must have shape \(B, D, L\) with D, L >= 1, got \(3, 5\)"),
        ({"x": torch.zeros(2, 3, 0)}, "x must have shape"),
        ({"weight": torch.zeros(3, 4)}, r"weight must have shape \(2, D, W\) with D = 3"),
        ({"weight": torch.zeros(2, 4, 4)}, r"weight must have shape \(2, D, W\) with D = 3"),
        ({"bias": torch.zeros(3)}, r"bias must have shape \(2, D\) = \(2, 3\)"),
        ({"activation": "gelu"}, "activation must be None, 'silu' or 'swish', got 'gelu'"),
        ({"x": torch.zeros(2, 3, 5, dtype=torch.int32)}, "x must be a real floating point tensor"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    valid = {"x": torch.zeros(2, 3, 5), "weight": torch.zeros(2, 3, 4)}
    with pytest.raises(KernelInputError, match=message) as error:
        causal_conv1d_bidirectional(**(valid | change))
    assert error.value.remedy
