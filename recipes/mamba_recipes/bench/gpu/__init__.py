"""The operators on a GPU: time, memory, and how near they come to what the card can do.

Eager times are medians of calls from Python, autograd and launches included; GPU times are those of the same calls
replayed from a captured graph. The floor is what the bytes and exponentials of an operator take at the rates measured
on the same card in the same run. Every result is compared with the float64 reference first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mamba_kernels.ceilings import Ceilings, measure_ceilings
from mamba_recipes.bench.gpu.cases import Case, all_cases
from mamba_recipes.bench.gpu.each import chosen, measure_each
from mamba_recipes.bench.gpu.measure import TOLERANCE, measure, worst_error

Row = dict[str, Any]


def run(talk: Callable[[str], None], filters: list[str]) -> tuple[list[Row], Ceilings]:
    """Run the cases that match, telling each before it starts, and return their rows and the card's rates.

    Raises:
        UserError: If nothing matches.
    """
    known = ", ".join(sorted({case.op for case in all_cases()}))
    cases = chosen({case.label(): case for case in all_cases()}, filters, f"{known}; use words of a case's row")
    device = torch.device("cuda", torch.cuda.current_device())
    ceilings = measure_ceilings(device)
    works = {label: partial(_rows, case, device, ceilings, talk) for label, case in cases.items()}
    return [row for rows in measure_each(works, talk) for row in rows], ceilings


def _rows(case: Case, device: torch.device, ceilings: Ceilings, talk: Callable[[str], None]) -> list[Row]:
    """Return the rows of a case: ours, then its rivals'; an implementation that is wrong has no times."""
    with device:
        problem = case.build()
    about = {"op": case.op, "case": case.name, "shape": list(case.shape), "layout": case.layout}
    forward = ceilings.milliseconds(problem.bytes_moved, problem.exponentials)
    floors = {
        "floor_forward_ms": forward,
        "floor_forward_backward_ms": forward + ceilings.milliseconds(problem.backward_bytes, problem.exponentials),
    }
    rows = []
    for by, operator in {"ours": problem.operator, **problem.rivals}.items():
        row = {**about, "by": by, **floors}
        try:
            error, where = worst_error(problem, operator)
            row |= {"error": error, "error_in": where}
            if error <= TOLERANCE:
                row |= measure(problem, operator)
            else:
                talk(f"  {by} is wrong: {where} is off by {error:.1e}")
        except Exception as failure:
            if by == "ours":
                raise
            row["failure"] = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            talk(f"  {by} fails: {row['failure']}")
        rows.append(row)
    return rows


def wrong(rows: list[Row]) -> list[str]:
    """Return a line for each of our results that does not agree with the reference."""
    return [
        f"{row['op']} {row['case']} {row['shape']} {row['layout']}: {row['error_in']} is off by {row['error']:.1e}"
        for row in rows
        if row["by"] == "ours" and "forward_ms" not in row
    ]


def render(rows: list[Row]) -> str:
    """Return the rows as a Markdown table: eager and GPU milliseconds, GPU time over the floor, memory, error."""
    lines = [
        "| operator | case | shape | layout | by | fwd ms | fwd+bwd ms | GPU fwd | GPU fwd+bwd | × floor fwd "
        "| × floor fwd+bwd | extra MiB | error |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        cells = [row["op"], row["case"], ", ".join(map(str, row["shape"])), row["layout"], row["by"]]
        if "forward_ms" in row:
            names = ("forward_ms", "forward_backward_ms", "gpu_forward_ms", "gpu_forward_backward_ms")
            cells += [f"{row[name]:.3f}" for name in names]
            cells += [
                f"{row[f'gpu_{part}_ms'] / row[f'floor_{part}_ms']:.1f}" for part in ("forward", "forward_backward")
            ]
            cells += [f"{row['peak_extra_mib']:.0f}", f"{row['error']:.0e}"]
        else:
            reason = row.get("failure") or f"wrong: {row['error_in']} off by {row['error']:.0e}"
            cells += [reason, *[""] * 7]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
