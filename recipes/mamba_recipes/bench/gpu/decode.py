"""Decoding: what a step of one block costs, and how many tokens a second a language model writes.

Steps are replayed from captured graphs. Weights have 16 bits, recurrent states 32. Blocks are rotated over so many that
their weights and states exceed the second-level cache.

Dimensions in names: B batch, L length, D channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_apps.mixers import Mixer, create
from mamba_apps.text import MambaLM
from mamba_apps.text.generation import Continuation, Sampler
from mamba_kernels.graph_steps import ReplayedStep
from mamba_recipes.bench.gpu.each import chosen, measure_each
from mamba_recipes.bench.gpu.language import BYTES, halved, language_model
from mamba_recipes.bench.gpu.measure import elapsed_ms

Row = dict[str, Any]
# Largest difference between steps and the whole in 16 bits, relative to the largest number, of a block and of a model.
TOLERANCE = {"decode": 0.03, "generate": 0.1}
_CHECKED_STEPS = 8


class Sizes(NamedTuple):
    """What is measured at which sizes."""

    d_model: int = 768
    n_layer: int = 24
    block_batches: tuple[int, ...] = (1, 64)
    batches: tuple[int, ...] = (1, 128)
    prompt: int = 2048
    new: int = 128
    cache_bytes: int = 4 * 50 * 2**20
    repeats: int = 50


BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba-1 block, 16 states": ("mamba1", {}),
    "Mamba-2 block, 64 states": ("mamba2", {"d_state": 64}),
    "Mamba-2 block, 128 states": ("mamba2", {}),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba-1": ("mamba1", {}),
    "Mamba-2": ("mamba2", {}),
    "Transformer": ("attention", {}),
}


@torch.no_grad()
def run(talk: Callable[[str], None], filters: list[str], sizes: Sizes | None = None, device: str = "cuda") -> list[Row]:
    """Run the cases that match, telling each before it starts.

    Raises:
        UserError: If nothing matches.
    """
    sizes = sizes or Sizes()
    works: dict[str, Callable[[], Row]] = {}
    for name, (mixer, options) in BLOCKS.items():
        for batch in sizes.block_batches:
            works[f"decode {name} {batch}"] = partial(_block_row, name, mixer, options, batch, sizes, device)
    for name, (mixer, options) in MODELS.items():
        for batch in sizes.batches:
            works[f"generate {name} {batch}"] = partial(_model_row, name, mixer, options, batch, sizes, device)
    return measure_each(chosen(works, filters), talk)


def wrong(rows: list[Row]) -> list[str]:
    """Return a line for each case whose steps do not agree with reading everything at once."""
    return [
        f"{row['op']} {row['case']} {row['shape']}: steps are off by {row['error']:.1e}"
        for row in rows
        if not row["error"] <= TOLERANCE[row["op"]]
    ]


def render(rows: list[Row]) -> str:
    """Return the rows as Markdown tables, of blocks and of models."""
    blocks = [row for row in rows if row["op"] == "decode"]
    models = [row for row in rows if row["op"] == "generate"]
    parts = []
    if blocks:
        lines = ["| block | batch | µs a step | kernels | least MB | error |", "|" + "---|" * 6]
        for row in blocks:
            cells = [row["case"], row["shape"][0], f"{1e3 * row['step_ms']:.1f}", row["kernels"]]
            cells += [f"{row['least_mb']:.1f}", f"{row['error']:.0e}"]
            lines.append(_line(cells))
        parts.append("\n".join(lines))
    if models:
        lines = [
            "| model | parameters, M | batch | prompt ms | step ms | step without graph ms | kernels a step "
            "| tokens/s, prompt included | tokens/s after it | peak GiB | error |",
            "|" + "---|" * 11,
        ]
        for row in models:
            cells = [row["case"], f"{row['parameters'] / 1e6:.1f}", row["shape"][0], f"{row['prefill_ms']:.2f}"]
            cells += [f"{row['step_ms']:.3f}", f"{row['plain_step_ms']:.3f}", row["kernels"]]
            cells += [f"{row['tokens_per_second']:,.0f}", f"{row['decoded_per_second']:,.0f}"]
            cells += [f"{row['peak_mib'] / 1024:.1f}", f"{row['error']:.0e}"]
            lines.append(_line(cells))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _block_row(name: str, mixer: str, options: dict[str, Any], batch: int, sizes: Sizes, device: str) -> Row:
    with torch.device(device):
        first: Mixer = halved(create(mixer, sizes.d_model, **options))
        x_BD = torch.randn(batch, sizes.d_model).bfloat16()
        states = first.init_state(batch)
        weights, held = _bytes(first.parameters()), _bytes(states)
        count = max(2, -(-sizes.cache_bytes // (weights + held)))
        blocks = [first, *(halved(create(mixer, sizes.d_model, **options)) for _ in range(count - 1))]
    error = _worst_step(first, batch, device)

    def walk(states: list[Any]) -> tuple[tuple[()], list[Any]]:
        return (), [block.step(x_BD, state)[1] for block, state in zip(blocks, states, strict=True)]

    step = ReplayedStep(walk, (), [block.init_state(batch) for block in blocks])
    return {
        "op": "decode", "case": name, "shape": [batch, sizes.d_model], "by": "ours", "blocks": count,
        "step_ms": _median_ms(step, device, sizes.repeats) / count,
        "kernels": _kernels(step, device) // count,
        # Weights are read, states read and written.
        "least_mb": (weights + 2 * held) / 1e6, "error": error,
    }  # fmt: skip


def _worst_step(mixer: Mixer, batch: int, device: str) -> float:
    """Return how far replayed steps and their last state are from the same mixer's at once."""
    x_BLD = torch.randn(batch, _CHECKED_STEPS, mixer.d_model, device=device).bfloat16()
    step = ReplayedStep(mixer.step, [x_BLD[:, 0].contiguous()], mixer.init_state(batch))
    ys = torch.stack([step(x_BD.contiguous()) for x_BD in x_BLD.unbind(1)], dim=1)
    wanted, after = mixer.prefill(x_BLD, mixer.init_state(batch))
    # The outputs alone would not show: new mixers remember little.
    return max(_difference(*pair) for pair in zip((ys, *step.state), (wanted, *after), strict=True))


def _model_row(name: str, mixer: str, options: dict[str, Any], batch: int, sizes: Sizes, device: str) -> Row:
    with torch.device(device):
        model = language_model(mixer, sizes.d_model, sizes.n_layer, **options)
        prompt_BL = torch.randint(BYTES, (batch, sizes.prompt))
    error = _worst_logits(model, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    sampler = Sampler(BYTES)
    plain = Continuation(model, prompt_BL, sizes.new, sampler, replay=False)
    plain_ms = _median_ms(plain.next, device, min(8, sizes.new - 1))
    del plain
    started = time.perf_counter()
    texts = Continuation(model, prompt_BL, sizes.new, sampler, replay=True)
    built_s = time.perf_counter() - started
    prefill_ms, step_ms = [], []
    tokens: list[Tensor] = []
    for _ in range(3):
        prefill_ms.append(elapsed_ms(lambda: texts.restart(prompt_BL), device))
        texts.next()  # The prompt has chosen it already.
        step_ms.append(elapsed_ms(lambda: tokens.extend(texts.next() for _ in range(sizes.new - 1)), device))
        if not all(bool(((ids >= 0) & (ids < BYTES)).all()) for ids in tokens):
            raise FloatingPointError(f"{name} writes tokens that are none")
        tokens.clear()
    prefill, steps = median(prefill_ms), median(step_ms)
    texts.restart(prompt_BL)
    texts.next()
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
    return {
        "op": "generate", "case": name, "shape": [batch, sizes.prompt, sizes.new],
        "by": "torch" if mixer == "attention" else "ours",
        "parameters": sum(p.numel() for p in model.parameters()),
        "prefill_ms": prefill, "step_ms": steps / (sizes.new - 1), "plain_step_ms": plain_ms,
        "kernels": _kernels(texts.next, device), "first_prompt_and_capture_s": built_s,
        "tokens_per_second": 1e3 * batch * sizes.new / (prefill + steps),
        "decoded_per_second": 1e3 * batch * (sizes.new - 1) / steps,
        "peak_mib": peak, "error": error,
    }  # fmt: skip


def _worst_logits(model: MambaLM, device: str) -> float:
    """Return how far logits of a prompt and replayed steps are from those of the whole text."""
    ids_BL = torch.randint(BYTES, (2, 40 + _CHECKED_STEPS), device=device)
    _, states = model.prefill(ids_BL[:, :40], model.init_state(2, max_length=ids_BL.shape[1]))
    step = ReplayedStep(model.step, [ids_BL[:, 0].contiguous()], states)
    logits_BLV = torch.stack([step(ids_BL[:, t].contiguous()) for t in range(40, ids_BL.shape[1])], dim=1)
    return _difference(logits_BLV, model(ids_BL)[:, 40:])


def _difference(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest number wanted; infinity where one is not finite."""
    difference = (got.float() - wanted.float()).abs().max() / wanted.float().abs().max()
    return float(difference.nan_to_num(nan=float("inf")))


def _bytes(tensors: Any) -> int:
    return sum(x.nbytes for x in tensors if isinstance(x, Tensor | nn.Parameter))


def _median_ms(work: Callable[[], object], device: str, repeats: int) -> float:
    """Return the median milliseconds of a call; on a GPU between events of its stream."""
    work()
    if device != "cuda":
        return median(elapsed_ms(work, device) for _ in range(max(1, repeats - 1)))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(max(1, repeats - 1))]
    for before, after in marks:
        before.record()
        work()
        after.record()
    torch.cuda.synchronize()
    return median(before.elapsed_time(after) for before, after in marks)


def _kernels(work: Callable[[], object], device: str) -> int:
    """Return how many kernels the GPU runs in a call; 0 without one."""
    if device != "cuda":
        return 0
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if event.device_time_total > 0)
