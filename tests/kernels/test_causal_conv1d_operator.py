"""The causal convolution as PyTorch sees it: layouts, compilation, export, second derivatives, refused input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_outcomes import LAYOUTS, Inputs, assert_agree, dense_stride, draw, outcome
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_kernels import causal_conv1d, decompositions
from mamba_kernels.errors import BackendError, KernelInputError

pytestmark = [
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

BACKENDS = ["reference", "cpu"]


def make_inputs(layout: str = "contiguous", channels: int = 18) -> Inputs:
    place = LAYOUTS[layout]
    return {
        "x": place(draw(3, channels, 11)),
        "weight": place(draw(channels, 4)),
        "bias": draw(channels),
        "initial_states": place(draw(3, channels, 3)),
    }


IDS = torch.tensor([0] * 4 + [1] * 3 + [-1] * 2 + [2] * 2, dtype=torch.int32)
SEGMENTS = torch.stack([IDS, IDS.flip(0), torch.zeros_like(IDS)])


def run(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return causal_conv1d(x, weight, bias, SEGMENTS, initial_states, True, "silu", **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_results_are_dense_in_the_dimension_order_of_their_input(layout: str, backend: str) -> None:
    inputs = make_inputs(layout)
    found = outcome(run, inputs, backend=backend)
    assert found["output 0"].stride() == dense_stride(inputs["x"])
    assert found["output 1"].stride() == dense_stride(inputs["initial_states"])
    if backend == "cpu":  # the reference's gradients are laid out by autograd
        assert all(found[name].stride() == dense_stride(x) for name, x in inputs.items())


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_compiles_into_one_graph_in_any_layout(layout: str) -> None:
    torch.compiler.reset()
    inputs = make_inputs(layout)
    compiled = outcome(torch.compile(run, fullgraph=True), inputs)
    eager = outcome(run, inputs)
    assert_agree(compiled, eager, 1e-6)
    assert all(compiled[name].stride() == eager[name].stride() for name in eager)


def test_exports_with_any_batch_and_length() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return causal_conv1d(x, weight, activation="silu")

    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)
    program = torch.export.export(
        Model(), (draw(3, 5, 9), draw(5, 4)), dynamic_shapes={"x": {0: batch, 2: length}, "weight": None}
    )
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.mamba_kernels.causal_conv1d.default in operators
    x, weight = draw(4, 5, 30), draw(5, 4)
    torch.testing.assert_close(program.module()(x, weight), Model()(x, weight))


@pytest.mark.parametrize("reverse", [False, True])
def test_decomposes_into_plain_operators(reverse: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor) -> tuple[Tensor, Tensor]:
            return run(x, weight, bias, initial_states, reverse=reverse)

    inputs = tuple(make_inputs().values())
    program = torch.export.export(Model(), inputs).run_decompositions(decompositions())
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("mamba_kernels" in name for name in operators)
    for got, wanted in zip(program.module()(*inputs), Model()(*inputs), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize("bare", [False, True])
def test_operators_pass_opcheck(bare: bool, layout: str) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares results of fake tensors too
    inputs = make_inputs(layout, channels=3)
    x, weight, bias, initial = (t.requires_grad_() for t in inputs.values())
    rest = (None, None, None) if bare else (bias, SEGMENTS, initial)
    forward = torch.ops.mamba_kernels.causal_conv1d.default
    torch.library.opcheck(forward, (x, weight, *rest, not bare, not bare, not bare))
    backward = torch.ops.mamba_kernels.causal_conv1d_backward.default
    y, final = forward(x, weight, *rest, False, False, True)
    detached = (t if t is None else t.detach() for t in (y, final, x, weight, *rest))
    torch.library.opcheck(backward, (*detached, not bare, False))


def test_the_second_derivative_names_the_switch() -> None:
    x, weight = draw(2, 3, 8).requires_grad_(), draw(3, 4).requires_grad_()
    (dx,) = torch.autograd.grad(causal_conv1d(x, weight).sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="backend='reference'"):
        dx.sum().backward()
    (dx,) = torch.autograd.grad(causal_conv1d(x, weight, backend="reference").square().sum(), x, create_graph=True)
    dx.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_the_reference_leaves_the_registered_operator_alone() -> None:
    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(operator))
            return operator(*args, **(kwargs or {}))

    names: list[str] = []
    with Called():
        causal_conv1d(draw(2, 3, 8), draw(3, 4), backend="reference")
        assert names
        assert not any("mamba_kernels" in name for name in names)
        causal_conv1d(draw(2, 3, 8), draw(3, 4))
    assert "mamba_kernels.causal_conv1d.default" in names


def valid() -> dict[str, Any]:
    return {"x": torch.zeros(2, 3, 5), "weight": torch.zeros(3, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 0)}, r"length L must be at least 1.*\(2, 3, 0\)"),
        ({"x": torch.zeros(2, 0, 5)}, "there must be a channel"),
        ({"x": torch.zeros(3, 5)}, r"x must have shape \(B, D, L\), got \(3, 5\)"),
        ({"x": torch.zeros(2, 3, 5, dtype=torch.int32)}, "x must be a real floating point tensor, got torch.int32"),
        ({"x": torch.zeros(2, 3, 5, dtype=torch.complex64)}, "x must be a real floating point tensor"),
        ({"weight": torch.zeros(3, 0)}, r"W >= 1, got \(3, 0\)"),
        ({"weight": torch.zeros(4, 3)}, r"D = 3 and W >= 1, got \(4, 3\)"),
        ({"weight": torch.zeros(3, 1, 4)}, r"got \(3, 1, 4\).*squeeze"),
        ({"weight": torch.zeros(3, 4, device="meta")}, "weight must be on cpu"),
        ({"bias": torch.zeros(4)}, r"bias must have shape \(D,\) = \(3,\), got \(4,\)"),
        ({"activation": "gelu"}, "activation must be None, 'silu' or 'swish', got 'gelu'"),
        ({"initial_states": torch.zeros(2, 3, 4)}, r"\(B, D, W - 1\) = \(2, 3, 3\), got \(2, 3, 4\)"),
        ({"initial_states": torch.zeros(2, 3, 3, dtype=torch.int64)}, "initial_states must be a real floating"),
        ({"seq_idx": torch.zeros(2, 4, dtype=torch.int32)}, r"seq_idx must have shape \(B, L\) = \(2, 5\)"),
        ({"seq_idx": torch.zeros(2, 5)}, "seq_idx must be int32, got torch.float32"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    for backend in BACKENDS:
        with pytest.raises(KernelInputError, match=message) as error:
            causal_conv1d(**(valid() | change), backend=backend)
        assert str(error.value).startswith("causal_conv1d: ")
        assert error.value.remedy


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        causal_conv1d(**valid(), backend="cuda")
