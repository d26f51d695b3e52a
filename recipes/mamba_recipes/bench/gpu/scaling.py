"""Time and memory against length: the scan, SSD and causal attention, over as many channels, from 1k to 1M positions.

Times are those of a graph's replay where a call takes less than some milliseconds, and of calls from Python where
launches no longer matter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.errors import KernelInputError
from mamba_recipes.bench.gpu import cases
from mamba_recipes.bench.gpu.each import chosen, measure_each
from mamba_recipes.bench.gpu.figure import finish
from mamba_recipes.bench.gpu.measure import TOLERANCE, as_tuple, elapsed_ms, peak_extra_mib, time_on_gpu, worst_error
from mamba_recipes.bench.gpu.problem import Problem

Row = dict[str, Any]
# From here on a call is timed from Python, in ms, and at most for so long.
_LONG_MS, _BUDGET_MS = 20.0, 2000.0
LENGTHS = tuple(2**i for i in range(10, 21))
_COLOURS = {"scan": "#0b8a6f", "SSD": "#2f6fb5", "attention": "#c2571a"}


class Sizes(NamedTuple):
    """What is measured at which sizes: lengths, channels in heads, and the lengths at which results are checked."""

    lengths: tuple[int, ...] = LENGTHS
    heads: int = 16
    width: int = 64
    checked: tuple[int, ...] = (1024, 4096)


def operators(sizes: Sizes) -> dict[str, Callable[[int], Problem]]:
    """Return what is compared, each a function of the length: one sequence over ``heads`` times ``width`` channels."""
    channels = sizes.heads * sizes.width
    return {
        "scan, 16 states": lambda length: cases._scan("channel last", 1, channels, length, 16),
        "scan, 64 states": lambda length: cases._scan("channel last", 1, channels, length, 64),
        "SSD, 64 states": lambda length: cases._ssd(1, length, sizes.heads, sizes.width, 64),
        "SSD, 128 states": lambda length: cases._ssd(1, length, sizes.heads, sizes.width, 128),
        "attention": lambda length: cases._attention(1, length, sizes.heads, sizes.width),
    }


def run(talk: Callable[[str], None], filters: list[str], sizes: Sizes | None = None, device: str = "cuda") -> list[Row]:
    """Run the operators and lengths that match, telling each before it starts.

    Raises:
        UserError: If nothing matches.
    """
    sizes = sizes or Sizes()
    names = operators(sizes)
    works = {
        f"{name} {length}": partial(_row, name, length, sizes, device) for length in sizes.lengths for name in names
    }
    return measure_each(chosen(works, filters, f"{', '.join(names)}, at each length"), talk)


def _row(name: str, length: int, sizes: Sizes, device: str) -> Row:
    row: Row = {
        "op": "scaling", "case": name, "shape": [1, length, sizes.heads * sizes.width],
        "by": "torch" if name == "attention" else "ours",
    }  # fmt: skip
    try:
        with torch.device(device):
            problem = operators(sizes)[name](length)
        row["inputs_mib"] = problem.in_bytes / 2**20
        if length in sizes.checked:
            row["error"], row["error_in"] = worst_error(problem, problem.operator)
        row |= _measure(problem, device)
    except torch.OutOfMemoryError:
        row["failure"] = "out of memory"
    except KernelInputError as error:  # More than its grid or its indices hold.
        row["failure"] = str(error).splitlines()[0]
    return row


def _measure(problem: Problem, device: str) -> Row:
    leaves = list(problem.inputs.values())
    cotangents: list[Tensor] = []

    def forward() -> Any:
        with torch.no_grad():
            return problem.operator(**problem.inputs)

    def both() -> Any:
        return torch.autograd.grad(as_tuple(problem.operator(**problem.inputs)), leaves, cotangents)

    found: Row = {}
    for part, work in (("forward", forward), ("forward_backward", both)):
        results: list[Tensor] = []
        # The longest calls take many seconds: the one whose memory is measured is checked as well.
        found[f"{part}_extra_mib"] = _extra_mib(partial(_keep, work, results), device)
        if not all(bool(x.isfinite().all()) for x in results):
            return {**found, "failure": f"{part}: results that are not finite"}
        if part == "forward":
            cotangents += [torch.randn_like(y) for y in results]
        results.clear()
        found[f"{part}_ms"] = _milliseconds(work, device)
    return found


def _keep(work: Callable[[], Any], results: list[Tensor]) -> None:
    results += as_tuple(work())


def _extra_mib(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        return peak_extra_mib(work)
    work()
    return 0.0


def _milliseconds(work: Callable[[], object], device: str) -> float:
    once = partial(elapsed_ms, work, device)
    first = once()
    if device == "cuda" and first < _LONG_MS:
        return time_on_gpu(work)
    return median([first, *(once() for _ in range(min(4, int(_BUDGET_MS / first) - 1)))])


def wrong(rows: list[Row]) -> list[str]:
    """Return a line for each result of ours that does not agree with the reference, or is not finite."""
    lines = []
    for row in rows:
        name = f"{row['case']} {row['shape']}"
        if not row.get("error", 0.0) <= TOLERANCE and row["by"] == "ours":
            lines.append(f"{name}: {row['error_in']} is off by {row['error']:.1e}")
        if "not finite" in row.get("failure", ""):
            lines.append(f"{name}: {row['failure']}")
    return lines


def render(rows: list[Row]) -> str:
    """Return the rows as a Markdown table, each time also as a multiple of the first operator's at that length."""
    lines = [
        "| length | operator | fwd ms | × the first | fwd+bwd ms | × the first | inputs MiB | extra fwd "
        "| extra fwd+bwd | error |",
        "|" + "---|" * 10,
    ]
    first: dict[int, Row] = {}
    for row in rows:
        base = first.setdefault(row["shape"][1], row)
        cells = [f"{row['shape'][1]:,}", row["case"]]
        for part in ("forward_ms", "forward_backward_ms"):
            cells.append(f"{row[part]:.3f}" if part in row else row["failure"])
            cells.append(f"{row[part] / base[part]:.2f}" if part in row and part in base else "")
        for part in ("inputs_mib", "forward_extra_mib", "forward_backward_extra_mib"):
            cells.append(f"{row[part]:.0f}" if part in row else "")
        cells.append(f"{row['error']:.0e}" if "error" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw time and memory of forward and backward pass against length, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    measured = [row for row in rows if "forward_backward_ms" in row]
    for name in dict.fromkeys(row["case"] for row in measured):
        mine = [row for row in measured if row["case"] == name]
        lengths = [row["shape"][1] for row in mine]
        colour = _COLOURS[name.split(",")[0]]
        style = "--" if name in ("scan, 64 states", "SSD, 128 states") else "-"
        memory = [(row["inputs_mib"] + row["forward_backward_extra_mib"]) / 1024 for row in mine]
        for axis, values in zip(axes, ([row["forward_backward_ms"] for row in mine], memory), strict=True):
            axis.plot(lengths, values, style, color=colour, marker=".", label=name)
    finish(figure, axes, ("forward + backward, ms", "memory, inputs included, GiB"), "length", path, 130)
