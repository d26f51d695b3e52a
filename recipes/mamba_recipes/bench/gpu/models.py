"""Whole image models, theirs and ours: images a second, memory, and what the GPU spends a step on.

Training is bfloat16 autocast, cross-entropy, backward pass and a fused AdamW step; inference is the same autocast
under `torch.inference_mode`. TF32 is allowed, nothing is compiled, and the images are random and already on the GPU.
Both run twice: eagerly, and with their passes replayed from CUDA graphs, as `trainer.graph=true` trains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mamba_apps.vision  # noqa: F401 - registers the models' names
from mamba_kernels.gpu import uncollected
from mamba_kernels.graphs import ReplayedTraining
from mamba_recipes.bench.gpu.each import chosen, measure_each
from mamba_recipes.bench.gpu.steps import kernel_lines, measure_step, step_times

Row = dict[str, Any]
_CLASSES = 1000


class Setting(NamedTuple):
    """A model by its name in timm's registry, images a batch, and pixels a side."""

    model: str
    batch: int
    px: int
    channels_last: bool = False

    def label(self) -> str:
        """Return what a filter is matched with."""
        return f"{self.model} {self.batch},{self.px}"


SETTINGS = (
    Setting("vim_tiny_patch16_224", 128, 224),
    Setting("vim_small_patch16_224", 128, 224),
    Setting("vmamba_tiny_s1l8", 128, 224),
    Setting("vmamba_small_s1l20", 128, 224),
    Setting("mambavision_tiny", 128, 224),
    Setting("deit_tiny_patch16_224", 128, 224),
    Setting("deit_small_patch16_224", 128, 224),
    Setting("swin_tiny_patch4_window7_224", 128, 224),
    Setting("convnext_tiny", 128, 224, channels_last=True),
    Setting("vim_tiny_patch16_224", 8, 1248),
    Setting("deit_tiny_patch16_224", 8, 1248),
)


def run(talk: Callable[[str], None], filters: list[str], steps: int = 12) -> list[Row]:
    """Time the models that match on the current GPU, telling each before it starts.

    Args:
        talk: Told each model's name.
        filters: Words that a row must have, one filter or another; empty for all.
        steps: Timed steps of training and of inference.

    Raises:
        UserError: If nothing matches.
        FloatingPointError: If a model's loss or logits are not finite.
    """
    works = chosen({setting.label(): partial(_row, setting, steps) for setting in SETTINGS}, filters)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return measure_each(works, talk)


def _row(setting: Setting, steps: int) -> Row:
    model = _model(setting)
    images = torch.randn(setting.batch, 3, setting.px, setting.px, device="cuda")
    labels = torch.randint(_CLASSES, (setting.batch,), device="cuda")
    if setting.channels_last:
        images = images.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    def infer() -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            return model(images)

    row: Row = {"op": "model", "case": setting.model, "shape": [setting.batch, setting.px], "by": "ours"}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    for mode, step in (("training", train), ("inference", infer)):
        model.train(mode == "training")
        row |= {f"{mode}_{name}": value for name, value in measure_step(setting.label(), step, steps).items()}
        replayed = ReplayedTraining(model) if mode == "training" else None
        row[f"{mode}_in_graphs_ms"] = median(step_times(step if replayed else _captured(step), steps))
        if replayed:
            replayed.remove()
    return row


def _captured(infer: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a replay of a step in evaluation, which has run before."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with uncollected(), torch.cuda.graph(graph):
        infer()
    return graph.replay


def _model(setting: Setting) -> nn.Module:
    known = timm.get_pretrained_cfg(setting.model)
    options: dict[str, Any] = {"num_classes": _CLASSES}
    if known is None or known.input_size[1] != setting.px:
        options["img_size"] = setting.px
    model: Any = timm.create_model(setting.model, **options).cuda()
    return model.to(memory_format=torch.channels_last) if setting.channels_last else model


def render(rows: list[Row]) -> str:
    """Return the rows as a Markdown table, and under it the kernels of each model's training step."""
    lines = [
        "| model | batch, px | parameters, M | inference img/s | GPU busy | in graphs "
        "| training img/s | GPU busy | in graphs | peak GiB |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        batch, px = row["shape"]
        cells = [row["case"], f"{batch}, {px}", f"{row['parameters'] / 1e6:.1f}"]
        for mode in ("inference", "training"):
            busy = min(1.0, row[f"{mode}_gpu_ms"] / row[f"{mode}_ms"])
            eager, graphed = (1e3 * batch / row[f"{mode}_{name}"] for name in ("ms", "in_graphs_ms"))
            cells += [f"{eager:,.0f}", f"{busy:.0%}", f"{graphed:,.0f}"]
        lines.append("| " + " | ".join([*cells, f"{row['training_peak_mib'] / 1024:.1f}"]) + " |")
    for row in rows:
        lines += ["", *kernel_lines(f"{row['case']} at {row['shape'][1]} px", row)]
    return "\n".join(lines)
