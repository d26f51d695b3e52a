"""The depthwise convolution: against PyTorch's layers, and as PyTorch sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_outcomes import LAYOUTS, Inputs, assert_agree, dense_stride, draw, outcome

from mamba_kernels import decompositions, depthwise_conv
from mamba_kernels.errors import BackendError, KernelInputError

pytestmark = [
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

BACKENDS = ["reference", "cpu"]
SHAPES = [(2, 5, 7, 6), (1, 1, 1, 3), (3, 4, 1, 5), (2, 3, 4, 5, 6)]


def make_inputs(shape: tuple[int, ...] = SHAPES[0], layout: str = "contiguous") -> Inputs:
    place = LAYOUTS[layout]
    channels, rank = shape[-1], len(shape) - 2
    return {"x": place(draw(*shape)), "weight": place(draw(channels, *[3] * rank)), "bias": draw(channels)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_layer_of_pytorch(shape: tuple[int, ...], backend: str) -> None:
    channels, rank = shape[-1], len(shape) - 2
    layer = (torch.nn.Conv2d if rank == 2 else torch.nn.Conv3d)(channels, channels, 3, padding=1, groups=channels)
    layer = layer.double()
    x = draw(*shape, dtype=torch.float64)
    y = depthwise_conv(x, layer.weight.squeeze(1), layer.bias, "silu", backend=backend)
    wanted = torch.nn.functional.silu(layer(x.movedim(-1, 1)).movedim(1, -1))
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_every_gradient(dtype: torch.dtype, shape: tuple[int, ...], activation: str | None) -> None:
    inputs = make_inputs(shape)
    inputs["x"] = inputs["x"].to(dtype)
    exact = {name: x.double() for name, x in inputs.items()}
    wanted = outcome(depthwise_conv, exact, activation=activation, backend="reference")
    got = outcome(depthwise_conv, inputs, activation=activation)
    assert all(got[name].dtype == x.dtype for name, x in inputs.items())
    assert_agree(got, wanted, 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_results_are_dense_in_the_dimension_order_of_their_input(layout: str, backend: str) -> None:
    inputs = make_inputs(layout=layout)
    found = outcome(depthwise_conv, inputs, activation="silu", backend=backend)
    assert found["output 0"].stride() == dense_stride(inputs["x"])
    if backend == "cpu":  # the reference's gradients are laid out by autograd
        assert all(found[name].stride() == dense_stride(x) for name, x in inputs.items())


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "expanded_batch", "sliced"])
def test_compiles_into_one_graph_in_any_layout(layout: str) -> None:
    torch.compiler.reset()
    inputs = make_inputs(layout=layout)
    compiled = outcome(torch.compile(depthwise_conv, fullgraph=True), inputs, activation="silu")
    eager = outcome(depthwise_conv, inputs, activation="silu")
    assert_agree(compiled, eager, 1e-6)
    assert all(compiled[name].stride() == eager[name].stride() for name in eager)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_decomposes_into_plain_operators(shape: tuple[int, ...]) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return depthwise_conv(x, weight, bias, "silu")

    inputs = tuple(make_inputs(shape).values())
    program = torch.export.export(Model(), inputs).run_decompositions(decompositions())
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("mamba_kernels" in name for name in operators)
    torch.testing.assert_close(program.module()(*inputs), Model()(*inputs))


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_operators_pass_opcheck(layout: str) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares results of fake tensors too
    x, weight, bias = (t.requires_grad_() for t in make_inputs(layout=layout).values())
    forward = torch.ops.mamba_kernels.depthwise_conv.default
    torch.library.opcheck(forward, (x, weight, bias, True))
    torch.library.opcheck(forward, (x, weight, None, False))
    x, weight, bias = (t.detach() for t in (x, weight, bias))
    backward = torch.ops.mamba_kernels.depthwise_conv_backward.default
    torch.library.opcheck(backward, (forward(x, weight, bias, True), x, weight, bias, True))


def test_derivatives() -> None:
    x, weight, bias = (t.double().requires_grad_() for t in make_inputs((1, 3, 2, 2)).values())
    assert torch.autograd.gradcheck(lambda *t: depthwise_conv(*t, "silu"), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *t: depthwise_conv(*t, "silu", backend="reference"), (x, weight, bias))
    (dx,) = torch.autograd.grad(depthwise_conv(x, weight, bias).sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="backend='reference'"):
        dx.sum().backward()


def test_autocast_decides_the_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv(**make_inputs()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 5)}, r"x must have shape \(B, H, W, C\) or \(B, D, H, W, C\)"),
        ({"x": torch.zeros(2, 0, 4, 5)}, "no size of the grid 0"),
        ({"weight": torch.zeros(5, 1, 3, 3)}, r"weight must have shape \(C, 3, 3\) with C = 5.*squeeze"),
        ({"weight": torch.zeros(5, 5, 5)}, r"weight must have shape \(C, 3, 3\)"),
        ({"bias": torch.zeros(4)}, r"bias must have shape \(C,\) = \(5,\)"),
        ({"activation": "gelu"}, "activation must be None, 'silu' or 'swish', got 'gelu'"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    valid = {"x": torch.zeros(2, 3, 4, 5), "weight": torch.zeros(5, 3, 3)}
    with pytest.raises(KernelInputError, match=message) as error:
        depthwise_conv(**(valid | change))
    assert str(error.value).startswith("depthwise_conv: ")
    assert error.value.remedy
