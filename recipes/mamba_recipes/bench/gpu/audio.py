"""Audio Mamba beside AST over clip lengths: clips a second, memory, kernels of a step, and the front end's share.

Batches hold the same total of sound at every length. Training is bfloat16 autocast, binary cross-entropy over 527
classes, backward pass and a fused AdamW step; inference is the same autocast under `torch.inference_mode`. Both have
the front end inside; the sound is random and already on the GPU, and nothing is compiled. Each call ends with a
synchronisation. AST's attention is PyTorch's fused one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.audio import FilterBank, create_model
from mamba_recipes.bench.gpu.each import chosen, measure_each
from mamba_recipes.bench.gpu.figure import finish
from mamba_recipes.bench.gpu.measure import elapsed_ms
from mamba_recipes.bench.gpu.steps import kernel_lines, profile_step

Row = dict[str, Any]
_RATE, _CLASSES = 16000, 527
_COLOURS = {"aum": "#0b8a6f", "ast": "#c2571a"}


class Sizes(NamedTuple):
    """What is measured: models, clip lengths, sound a batch, those lengths whose kernels are told, time a figure."""

    models: tuple[str, ...] = ("aum_base_fobi", "ast_base")
    seconds: tuple[float, ...] = (5, 10, 20, 40, 80, 160)
    batch_seconds: float = 320
    profiled: tuple[float, ...] = (10, 160)
    front_end: tuple[int, float] = (32, 10.24)
    budget_s: float = 1.0


def run(talk: Callable[[str], None], filters: list[str], sizes: Sizes | None = None, device: str = "cuda") -> list[Row]:
    """Time the models and clip lengths that match, telling each before it starts.

    Args:
        talk: Told each case.
        filters: Words that a case must have, one filter or another; empty for all.
        sizes: Other models and lengths than the usual ones.
        device: Where to run.

    Raises:
        UserError: If nothing matches.
        FloatingPointError: If a model's loss or logits are not finite.
    """
    sizes = sizes or Sizes()
    works: dict[str, Callable[[], Row]] = {}
    for model in sizes.models:
        works[f"{model} front end"] = partial(_front_end_row, model, sizes, device)
    for seconds in sizes.seconds:
        for model in sizes.models:
            works[f"{model} {seconds:g} s"] = partial(_row, model, seconds, sizes, device)
    return measure_each(chosen(works, filters), talk)


def _front_end_row(name: str, sizes: Sizes, device: str) -> Row:
    batch, seconds = sizes.front_end
    wave = 0.1 * torch.randn(batch, round(seconds * _RATE))
    bank = FilterBank(frames=round(100 * seconds))
    expected = bank(wave)
    bank, wave = bank.to(device), wave.to(device)
    with torch.no_grad():
        difference = float((bank(wave).cpu() - expected).abs().max())
        forward_ms = _timed(lambda: bank(wave), sizes, device)["ms"]
    train, _ = _steps(name, seconds, wave, device)
    return {
        "op": "front end", "case": name, "shape": [batch, seconds], "by": "ours",
        "forward_ms": forward_ms, "training_ms": _timed(train, sizes, device)["ms"], "max_abs_difference": difference,
    }  # fmt: skip


def _row(name: str, seconds: float, sizes: Sizes, device: str) -> Row:
    batch = max(1, round(sizes.batch_seconds / seconds))
    row: Row = {"op": "audio", "case": name, "shape": [batch, seconds], "by": "ours"}
    try:
        wave = 0.1 * torch.randn(batch, round(seconds * _RATE), device=device)
        train, infer = _steps(name, seconds, wave, device)
        for mode, step in (("training", train), ("inference", infer)):
            row |= {f"{mode}_{key}": value for key, value in _timed(step, sizes, device).items()}
            if mode == "training" and seconds in sizes.profiled and device == "cuda":
                row |= {f"training_{key}": value for key, value in profile_step(step).items()}
    except torch.OutOfMemoryError:
        row["failure"] = "out of memory"
    return row


def _steps(name: str, seconds: float, wave: Tensor, device: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return a step of training and one of inference, the second of which ends the training."""
    model = create_model(name, _CLASSES, seconds=seconds).to(device)
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")]
    target = torch.zeros(len(wave), _CLASSES, device=device)

    def train() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = model(wave)
        loss = F.binary_cross_entropy_with_logits(logits.float(), target)
        loss.backward()
        optimisers[0].step()
        optimisers[0].zero_grad()
        return loss

    def infer() -> Tensor:
        optimisers.clear()  # Its state is not inference's memory.
        model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return model(wave)

    return train, infer


def _timed(step: Callable[[], Tensor], sizes: Sizes, device: str) -> Row:
    """Return the median milliseconds of a call, and the peak of memory."""
    for _ in range(3):
        last = step()
    if not bool(last.isfinite().all()):
        raise FloatingPointError("results that are not finite")
    del last
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    spent: list[float] = []
    begin = time.perf_counter()
    while len(spent) < 5 or (time.perf_counter() - begin < sizes.budget_s and len(spent) < 60):
        spent.append(elapsed_ms(step, device))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
    return {"ms": median(spent), "peak_mib": peak}


def render(rows: list[Row]) -> str:
    """Return the rows as a Markdown table; under it the front end's share, and the kernels of the profiled steps."""
    lines = ["| clip | batch | model | training clips/s | GiB | inference clips/s | GiB |", "|" + "---|" * 7]
    for row in rows:
        if row["op"] != "audio":
            continue
        batch, seconds = row["shape"]
        cells = [f"{seconds:g} s", f"{batch}", row["case"]]
        for mode in ("training", "inference"):
            known = f"{mode}_ms" in row
            cells.append(f"{1e3 * batch / row[f'{mode}_ms']:,.1f}" if known else row["failure"])
            cells.append(f"{row[f'{mode}_peak_mib'] / 1024:.1f}" if known else "")
        lines.append("| " + " | ".join(cells) + " |")
    for row in rows:
        if row["op"] == "front end":
            lines += [
                "",
                f"front end, {row['shape'][0]} clips of {row['shape'][1]:g} s: {row['forward_ms']:.2f} ms, "
                f"{row['forward_ms'] / row['training_ms']:.1%} of a training step of {row['case']}; off the CPU's "
                f"by {row['max_abs_difference']:.1e} at most",
            ]
        elif "training_kernels" in row:
            lines += ["", *kernel_lines(f"{row['case']} at {row['shape'][1]:g} s", row)]
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw clips a second against clip length, training and inference, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    measured = [row for row in rows if row["op"] == "audio" and "inference_ms" in row]
    for name in dict.fromkeys(row["case"] for row in measured):
        mine = [row for row in measured if row["case"] == name]
        lengths = [row["shape"][1] for row in mine]
        for axis, mode in zip(axes, ("training", "inference"), strict=True):
            rates = [1e3 * row["shape"][0] / row[f"{mode}_ms"] for row in mine]
            axis.plot(lengths, rates, color=_COLOURS[name.split("_")[0]], marker=".", label=name)
    ticks = sorted({row["shape"][1] for row in measured})
    finish(figure, axes, ("training, clips a second", "inference, clips a second"), "clip, s", path, 110, ticks)
