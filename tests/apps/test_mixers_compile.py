"""Mixers compile without a graph break."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mamba_apps.mixers import RoutedMixer, create
from mamba_kernels import Route

CASES: list[tuple[str, dict[str, Any]]] = [
    ("mamba1", {}),
    ("mamba2", {"d_state": 4, "ngroups": 2, "headdim": 4, "chunk_size": 4}),
    ("mambavision", {}),
    ("attention", {"heads": 2, "rotary": True}),
    ("attention", {"heads": 2, "causal": False}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_forward_and_backward_compile_whole(name: str, options: dict[str, Any], packed: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    mixer = create(name, 8, **options)
    x = torch.randn(2, 7, 8, requires_grad=True)
    ids = torch.tensor([[0, 0, 0, 1, 1, -1, -1]]).expand(2, -1) if packed else None
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    inputs = [x, *mixer.parameters()]
    expected, y = mixer(x, seq_idx_BL=ids), compiled(x, seq_idx_BL=ids)
    torch.testing.assert_close(y, expected)
    slopes = torch.autograd.grad(expected.square().sum(), inputs)
    for found, wanted in zip(torch.autograd.grad(y.square().sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "share"), [("mamba1", "all"), ("mamba1", "projections"), ("mamba1", "none"), ("mamba2", "all")]
)
@pytest.mark.parametrize("route", [Route("cross"), Route("windowed", window=2)], ids=str)
def test_routes_compile_whole(route: Route, name: str, share: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    routed = RoutedMixer(lambda: create(name, 8), route, share, rank=2)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    inputs = [x, *routed.parameters()]
    expected, y = routed(x), torch.compile(routed, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, expected)
    slopes = torch.autograd.grad(expected.square().sum(), inputs)
    for found, wanted in zip(torch.autograd.grad(y.square().sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_inductor_agrees(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    mixer = create(name, 8, **options)
    x = torch.randn(2, 7, 8)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True)(x), mixer(x), rtol=1e-4, atol=1e-5)
