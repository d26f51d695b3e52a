"""The selective scan in the hands of compilers and exporters."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from operator_outcomes import LAYOUTS, assert_agree, draw, outcome
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import mamba_kernels
from mamba_kernels import selective_scan
from mamba_kernels.selective_scan.registered import registered_backward, registered_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
SEGMENTS = torch.tensor([[0, 0, 2, 2, -1, 2, 0], [1, 1, 1, 1, 1, -1, -1]], dtype=torch.int32)

CASES: dict[str, dict[str, Any]] = {
    "everything": {"segments": True},
    "grouped": {"B": (2, 2), "reverse": True},
    "constant": {"B": (), "absent": ("D", "z", "delta_bias", "initial_state")},
    **{layout: {"layout": layout} for layout in LAYOUTS if layout != "contiguous"},
}


def make_arguments(
    *,
    B: tuple[int, ...] = (2,),
    absent: tuple[str, ...] = (),
    layout: str = "contiguous",
    segments: bool = False,
    reverse: bool = False,
) -> tuple[Any, ...]:
    """Return the registered operator's arguments for 6 channels, 7 positions and 3 states."""
    place = LAYOUTS[layout]
    M = (place(draw(*B, 3, 7, seed=i)) if B else draw(6, 3, seed=i) for i in (3, 4))
    tensors = [place(draw(2, 6, 7, seed=1)), place(draw(2, 6, 7, seed=2)), -draw(6, 3).exp(), *M]
    tensors += [draw(6, seed=5), place(draw(2, 6, 7, seed=6)), draw(6, seed=7), draw(2, 6, 3, seed=8)]
    given = [None if n in absent else x.requires_grad_() for n, x in zip(NAMES, tensors, strict=True)]
    return (*given[:8], True, given[8], SEGMENTS if segments else None, reverse, torch.float32, True)


def call(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Call the public function with the registered operator's arguments."""
    *tensors, softplus, initial, segments, reverse, _, _ = arguments
    named = dict(zip(NAMES, [*tensors, initial], strict=True))
    return selective_scan(**named, delta_softplus=softplus, return_last_state=True, seq_idx=segments, reverse=reverse)


@pytest.mark.parametrize("case", CASES)
def test_registered_operators_keep_pytorchs_rules(case: str) -> None:
    arguments = make_arguments(**CASES[case])
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(registered_scan, arguments, test_utils=checks)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    out, last, checkpoints = registered_scan(*detached)
    gradients = (torch.randn_like(out), torch.randn_like(last))
    torch.library.opcheck(registered_backward, (*gradients, *detached[:12], checkpoints))
    torch.library.opcheck(registered_backward, (gradients[0], None, *detached[:12], checkpoints))


def test_checkpoints_are_as_the_fake_kernel_says() -> None:
    for length, state in ((1, 1), (64, 16), (65, 16), (200, 16), (300, 1), (2100, 256)):
        for B in (draw(2, state, length), draw(2, 3, state, length)):
            tensors = (draw(2, 6, length), draw(2, 6, length), draw(6, state), B, B)
            real = registered_scan(*tensors, None, None, None, False, None, None, False, torch.float32, True)
            moved = (x.to("meta") for x in tensors)
            fake = registered_scan(*moved, None, None, None, False, None, None, False, torch.float32, True)
            assert [x.shape for x in real] == [x.shape for x in fake]
            assert real[2].numel() <= 2 * (length // 4 + 1) * 48, "more than a quarter of the blocks of u"


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize(
    "compiler",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs g++")),
    ],
)
def test_compiled_whole_it_gives_the_same(compiler: str) -> None:
    """Every input lies differently, and arithmetic around the operator makes the compiler choose strides of its own."""
    *tensors, softplus, initial, segments, reverse, _, _ = make_arguments(segments=True)
    inputs = dict(zip(NAMES, [*tensors, initial], strict=True))
    layouts = {"u": "permuted", "delta": "sliced", "B": "permuted", "C": "every_second", "z": "expanded_batch"}
    inputs |= {name: LAYOUTS[layout](inputs[name].detach()) for name, layout in layouts.items()}
    options = {"delta_softplus": softplus, "return_last_state": True, "seq_idx": segments, "reverse": reverse}

    def model(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, last = selective_scan(**{**inputs, "u": inputs["u"] * 1.5, "B": inputs["B"].exp()}, **options)
        return y.transpose(1, 2).sin(), last

    got, wanted = outcome(torch.compile(model, fullgraph=True, backend=compiler), inputs), outcome(model, inputs)
    assert_agree(got, wanted, 1e-5)
    assert {k: v.stride() for k, v in got.items()} == {k: v.stride() for k, v in wanted.items()}


def test_compiles_once_for_all_lengths() -> None:
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (5, 6, 90):
        tensors = [draw(2, 6, length), draw(2, 6, length), -draw(6, 3).exp(), draw(2, 3, length), draw(2, 3, length)]
        arguments = (*tensors, None, None, None, True, None, None, False, torch.float32, True)
        with torch.compiler.set_stance("default" if length == 5 else "fail_on_recompile"):
            assert_agree(dict(enumerate(compiled(*arguments))), dict(enumerate(call(*arguments))), 1e-6)


class _Model(nn.Module):
    """A scan whose own tensors are parameters, for export."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.A = nn.Parameter(arguments[2].detach())
        self.rest = arguments

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        return call(u, delta, self.A, B, C, *self.rest[5:])


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize("case", ["everything", "grouped", "constant"])
def test_exports_and_decomposes_into_pytorchs_own_operators(case: str) -> None:
    arguments = tuple(x.detach() if isinstance(x, Tensor) else x for x in make_arguments(**CASES[case]))
    model = _Model(arguments)
    inputs = (arguments[0], arguments[1], arguments[3], arguments[4])
    program = torch.export.export(model, inputs)
    assert "mamba_kernels" in str(program.graph)
    decomposed = program.run_decompositions(mamba_kernels.decompositions())
    targets = {str(node.target) for node in decomposed.graph.nodes if node.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in function")) for target in targets), targets
    with torch.no_grad():
        wanted = dict(enumerate(model(*inputs)))
        assert_agree(dict(enumerate(program.module()(*inputs))), wanted, 1e-6)
        assert_agree(dict(enumerate(decomposed.module()(*inputs))), wanted, 1e-5)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_decomposition_grows_with_the_logarithm_of_the_length() -> None:
    sizes = []
    for length in (16, 256):
        arguments = (draw(1, 2, length), draw(1, 2, length), -draw(2, 3).exp(), draw(1, 3, length), draw(1, 3, length))
        model = _Model((*arguments, None, None, None, True, None, None, False, torch.float32, True))
        with torch.no_grad():
            program = torch.export.export(model, (*arguments[:2], *arguments[3:]))
        sizes.append(len(program.run_decompositions(mamba_kernels.decompositions()).graph.nodes))
    assert sizes[1] < 2 * sizes[0]


def test_the_forced_reference_bypasses_the_registered_operator() -> None:
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in make_arguments()]
    named = dict(zip(NAMES, [*arguments[:8], arguments[9]], strict=True))
    for backend, present in (("reference", False), ("cpu", True)):
        run = partial(selective_scan, **{**named, "u": None}, backend=backend)
        graph = make_fx(lambda u: run(u=u))(named["u"])  # noqa: B023
        assert ("mamba_kernels" in graph.code) == present
