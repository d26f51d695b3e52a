"""SSD's kernels where only a GPU shows whether they are right: captured, compiled, long, and past 32 bits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_comparison import DESIGN, GPU, TOLERANCE_OF_FEW, compare

from mamba_kernels import choices, ssd
from mamba_kernels.ssd.cpu import ssd as ssd_by_chunks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a GPU"), pytest.mark.usefixtures("_seed")]


def draw(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return random numbers, drawn where there is room for many."""
    return torch.randn(shape, device="cuda").to(dtype)


def leaves_of(
    dtype: torch.dtype, length: int, *, heads: int = 8, width: int = 64, states: int = 128, batch: int = 2
) -> dict[str, Tensor]:
    tensors = {
        "x": draw(dtype, batch, length, heads, width),
        "dt": draw(dtype, batch, length, heads) * 0.5,
        "A": -draw(torch.float32, heads).abs() - 0.1,
        "B": draw(dtype, batch, length, 1, states),
        "C": draw(dtype, batch, length, 1, states),
        "D": draw(torch.float32, heads),
        "dt_bias": draw(torch.float32, heads) - 3,
    }
    return {name: x.requires_grad_() for name, x in tensors.items()}


@pytest.mark.parametrize("row", range(len(DESIGN)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_options_in_pairs_at_the_sizes_of_models(row: int, dtype: torch.dtype) -> None:
    chosen = DESIGN[row]
    length, heads = 1500 if chosen["in_parts"] else 333, 4
    inputs: dict[str, Any] = leaves_of(dtype, length, heads=heads, states=64)
    if chosen["B_differs"]:
        inputs["B"], inputs["C"] = (draw(dtype, 2, length, 2, 64) for _ in range(2))
    if chosen["C_differs"]:
        inputs["D"] = draw(torch.float32, heads, 64)
    for name, option in {"D": "D", "dt_bias": "bias"}.items():
        inputs[name] = inputs[name] if chosen[option] else None
    inputs["z"] = draw(dtype, 2, length, heads, 64) if chosen["z"] else None
    inputs["initial_states"] = draw(torch.float32, 2, heads, 64, 64) if chosen["state"] else None
    ids = (torch.arange(length, device="cuda") // 150).int().expand(2, -1).clone()
    ids[:, 20:23] = -1
    compare(
        ssd, inputs, dtype, tolerance=TOLERANCE_OF_FEW[dtype], dt_softplus=chosen["softplus"], dt_limit=(0.0, 0.3),
        reverse=chosen["reverse"], seq_idx=ids if chosen["seq_idx"] else None, return_final_states=chosen["last_state"],
    )  # fmt: skip


def test_a_captured_graph_gives_the_same() -> None:
    leaves = leaves_of(torch.bfloat16, 500)

    def run() -> tuple[Tensor, ...]:
        y = ssd(**leaves, dt_softplus=True)
        return y, *torch.autograd.grad(y, [*leaves.values()], torch.ones_like(y))

    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        wanted = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    graph.replay()
    assert all(map(torch.equal, found, wanted))


def test_compiled_by_inductor_it_gives_the_same() -> None:
    leaves = leaves_of(torch.bfloat16, 200)

    def run(**tensors: Tensor) -> Tensor:
        return ssd(**{**tensors, "x": tensors["x"] * 2}, dt_softplus=True).sin()

    compiled = torch.compile(run, fullgraph=True)
    outcomes = [
        (y, *torch.autograd.grad(y.sum(), [*leaves.values()])) for y in (compiled(**leaves), run(**leaves))
    ]  # fmt: skip
    for found, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def test_configurations_are_found_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both passes run in their fastest configuration on this GPU, not in the one that stands behind it."""
    from mamba_kernels.ssd import triton_choices, triton_plan

    monkeypatch.setenv(choices.VARIABLE, str(tmp_path))
    inputs = leaves_of(torch.bfloat16, 200)
    arguments = (*(inputs[n] for n in ("x", "dt", "A", "B", "C", "D")), None, inputs["dt_bias"], True)
    found = triton_choices.forward_configs(*arguments, False, False, False, False, torch.bfloat16)
    assert found == triton_plan.forward_configs("bf16", 128)[0]
    found = triton_choices.backward_configs(inputs["x"], *arguments, False, False, False, False, torch.bfloat16)
    assert found == triton_plan.backward_configs("bf16", 128)[0]


def test_a_million_steps() -> None:
    inputs = leaves_of(torch.float32, 2**20, heads=2, width=16, states=16, batch=1)
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    x, dt, A, B, C, D, bias = exact.values()
    limits = (0.0, math.inf)
    wanted, _ = ssd_by_chunks(x, dt, A, B, C, 2048, D, None, bias, True, limits, None, None, False, torch.float64)
    found = ssd(**inputs, dt_softplus=True)
    weights = torch.randn_like(wanted)
    for ours, theirs in zip(
        (found, *torch.autograd.grad(found, [*inputs.values()], weights.float())),
        (wanted, *torch.autograd.grad(wanted, [*exact.values()], weights)),
        strict=True,
    ):
        error = float((ours.double() - theirs).abs().max() / theirs.abs().max())
        assert error < 1e-4


def test_more_than_two_to_the_31_elements() -> None:
    length, tail, heads = 2**19 + 300, 300, 64
    inputs = leaves_of(torch.bfloat16, length, heads=heads, width=64, states=16, batch=1)
    assert inputs["x"].numel() > 2**31
    # Nothing lasts for as long as the tail.
    inputs["A"] = torch.full((heads,), -8.0, device="cuda", requires_grad=True)
    end = {
        name: x.detach()[:, -2 * tail :].clone().requires_grad_() if x.dim() > 2 else x for name, x in inputs.items()
    }
    whole, part = ssd(**inputs, dt_softplus=True)[:, -tail:], ssd(**end, dt_softplus=True)[:, -tail:]
    torch.testing.assert_close(whole, part, rtol=2e-2, atol=2e-2 * float(part.abs().max()))
    names = ("x", "dt", "B", "C")
    gradients = [
        torch.autograd.grad(y.float().sum(), [given[n] for n in names]) for y, given in ((whole, inputs), (part, end))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        ours, theirs = ours[:, -tail:], theirs[:, -tail:]
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))


def test_the_first_backward_pass_of_an_installation_ends(tmp_path: Path) -> None:
    """Configurations are checked while the GPU's own thread of autograd, which runs the pass, waits for the verdict."""
    script = textwrap.dedent(
        """
        import torch
        from mamba_kernels import ssd
        shapes = (2, 32), (2,), (1, 32)
        x, dt, B = (torch.randn(1, 200, *shape, device="cuda", requires_grad=True) for shape in shapes)
        ssd(x, dt, -torch.ones(2, device="cuda"), B, B, dt_softplus=True).sum().backward()
        assert bool(x.grad.isfinite().all())
        """
    )
    fresh = {choices.VARIABLE: str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **fresh}, check=True, timeout=120)
