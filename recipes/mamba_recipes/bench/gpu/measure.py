"""Times and memory of an operator on a GPU, and whether its results are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_kernels.gpu import uncollected
from mamba_recipes.bench.gpu.problem import Problem, pick

# Largest difference from the float64 reference, relative to the largest number of the tensor; inputs are of 16 bits.
TOLERANCE = 1e-2


def time_eagerly(run: Callable[[], object]) -> float:
    """Return the median milliseconds of a call from Python, with a cold cache."""
    from triton.testing import do_bench

    return do_bench(run, warmup=10, rep=50, return_mode="median")


def time_on_gpu(run: Callable[[], object]) -> float:
    """Return the median milliseconds of a call replayed from a captured graph, with a cold cache."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with uncollected(), torch.cuda.graph(graph):
        run()
    return time_eagerly(graph.replay)


def elapsed_ms(work: Callable[[], object], device: str) -> float:
    """Return the milliseconds of work handed over from Python until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def peak_extra_mib(run: Callable[[], object]) -> float:
    """Return how far memory rises above what is allocated before the call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Return an operator's results as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def measure(problem: Problem, operator: Callable[..., Any]) -> dict[str, float]:
    """Return times of forward and of forward and backward, and the memory they take."""
    leaves = list(problem.inputs.values())
    cotangents = [torch.randn_like(y) for y in as_tuple(operator(**problem.inputs))]

    def forward() -> Any:
        with torch.no_grad():
            return operator(**problem.inputs)

    def both() -> Any:
        return torch.autograd.grad(as_tuple(operator(**problem.inputs)), leaves, cotangents)

    return {
        "forward_ms": time_eagerly(forward),
        "forward_backward_ms": time_eagerly(both),
        "gpu_forward_ms": time_on_gpu(forward),
        "gpu_forward_backward_ms": time_on_gpu(both),
        "peak_extra_mib": peak_extra_mib(both),
    }


def worst_error(problem: Problem, operator: Callable[..., Any]) -> tuple[float, str]:
    """Run an operator into poisoned memory and compare a sample of it with the float64 reference.

    The operator runs whole. The sample takes some batch elements and channels; gradients flow from these alone, so that
    the reference needs no others.

    Returns:
        The largest difference of any result or gradient, relative to that tensor's largest number, and its name.
    """
    device = next(iter(problem.inputs.values())).device
    sample = {letter: torch.tensor(at, device=device) for letter, at in problem.sample.items()}
    exact = {
        name: pick(x.detach(), problem.dims[name], sample).double().requires_grad_()
        for name, x in problem.inputs.items()
    }
    _poison(problem, device)
    got = as_tuple(operator(**problem.inputs))
    wanted = as_tuple(problem.reference(**exact))
    weights = [torch.randn_like(y).to(result.dtype).double() for y, result in zip(wanted, got, strict=True)]
    wanted_gradients = torch.autograd.grad(wanted, list(exact.values()), weights)
    cotangents = [_spread(w, y, dims, sample) for w, y, dims in zip(weights, got, problem.out_dims, strict=True)]
    _poison(problem, device)
    gradients = torch.autograd.grad(got, list(problem.inputs.values()), cotangents)

    errors: list[tuple[float, str]] = []
    for i, (y, exact_y) in enumerate(zip(got, wanted, strict=True)):
        errors.append((_difference(pick(y.detach(), problem.out_dims[i], sample), exact_y.detach()), f"output {i}"))
    for name, gradient, exact_gradient in zip(problem.inputs, gradients, wanted_gradients, strict=True):
        errors.append((_difference(pick(gradient, problem.dims[name], sample), exact_gradient), f"d{name}"))
    return max(errors)


def _difference(got: Tensor, wanted: Tensor) -> float:
    difference = (got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(nan=float("inf")))


def _spread(values: Tensor, like: Tensor, dims: Sequence[str], sample: dict[str, Tensor]) -> Tensor:
    """Return zeros of the shape of ``like`` with ``values`` at the sample's places."""
    places = [
        sample.get(dim, torch.arange(size, device=like.device)) for dim, size in zip(dims, like.shape, strict=True)
    ]
    spread = torch.zeros_like(like)
    return spread.index_put_(tuple(torch.meshgrid(*places, indexing="ij")), values.to(like.dtype))


def _poison(problem: Problem, device: torch.device) -> None:
    """Fill what a GPU's allocator hands out next with NaN, so that what stays unwritten shows."""
    torch.full((problem.bytes_moved,), float("nan"), device=device)  # Four times as much as the results take.
