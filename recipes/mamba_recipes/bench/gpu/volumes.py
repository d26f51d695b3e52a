"""Networks for medical volumes, with Mamba and without: what a training step costs at a CT plan's patch.

The patch, features and strides are those that nnU-Net plans for abdominal CT, as U-Mamba was trained on it (arXiv
2401.04722). Training is bfloat16 autocast, Dice and cross-entropy over the deep supervision's outputs, the backward
pass and a step of stochastic gradient descent with Nesterov's momentum; volumes are random and already on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_apps.medical import build_network
from mamba_apps.medical.segmentation.losses import supervised_loss
from mamba_datasets.volumes import NetworkPlan
from mamba_recipes.bench.gpu.each import chosen, measure_each
from mamba_recipes.bench.gpu.steps import kernel_lines, measure_step

Row = dict[str, Any]
CT = NetworkPlan(
    patch_size=(40, 224, 192),
    features=(32, 64, 128, 256, 320, 320),
    kernel_sizes=((1, 3, 3), *((3, 3, 3),) * 5),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    encoder_blocks=(2,) * 6,
    decoder_blocks=(2,) * 5,
)
_CLASSES = 14


class Setting(NamedTuple):
    """A network by its name, and patches a batch."""

    network: str
    batch: int = 2

    def label(self) -> str:
        """Return what a filter is matched with."""
        return f"{self.network} {self.batch},{','.join(map(str, CT.patch_size))}"


SETTINGS = tuple(Setting(name) for name in ("umamba_enc", "umamba_bot", "residual_unet", "plain_unet"))


def run(talk: Callable[[str], None], filters: list[str], steps: int = 8) -> list[Row]:
    """Time the networks that match on the current GPU, telling each before it starts.

    Args:
        talk: Told each network's name.
        filters: Words that a row must have, one filter or another; empty for all.
        steps: Timed steps.

    Raises:
        UserError: If nothing matches.
        FloatingPointError: If a loss is not finite.
    """
    works = chosen({setting.label(): partial(_row, setting, steps) for setting in SETTINGS}, filters)
    torch.backends.cudnn.benchmark = True
    return measure_each(works, talk)


def _row(setting: Setting, steps: int) -> Row:
    train, parameters = training(setting, CT, torch.device("cuda"))
    row: Row = {"op": "network", "case": setting.network, "shape": [setting.batch, *CT.patch_size], "by": "ours"}
    row["parameters"] = parameters
    return row | {f"training_{name}": value for name, value in measure_step(setting.label(), train, steps).items()}


def training(setting: Setting, plan: NetworkPlan, device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """Return a training step on random volumes, and the number of parameters that it trains."""
    network = build_network(setting.network, plan, 1, _CLASSES, deep_supervision=True).to(device)
    volumes = torch.randn(setting.batch, 1, *plan.patch_size, device=device)
    labels = torch.randint(_CLASSES, (setting.batch, *plan.patch_size), device=device)
    optimiser = torch.optim.SGD(network.parameters(), 0.01, 0.99, nesterov=True, weight_decay=3e-5)

    def train() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = supervised_loss(network(volumes), labels, over_batch=False)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return train, sum(p.numel() for p in network.parameters())


def render(rows: list[Row]) -> str:
    """Return the rows as a Markdown table, and under it the kernels of each network's training step."""
    lines = [
        "| network | batch, patch | parameters, M | a step, ms | GPU busy | scans, ms | peak GiB |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        batch, *patch = row["shape"]
        busy = min(1.0, row["training_gpu_ms"] / row["training_ms"])
        cells = [row["case"], f"{batch}, {' x '.join(map(str, patch))}", f"{row['parameters'] / 1e6:.1f}"]
        cells += [f"{row['training_ms']:.1f}", f"{busy:.0%}", f"{row['training_scans_ms']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['training_peak_mib'] / 1024:.1f}"]) + " |")
    for row in rows:
        lines += ["", *kernel_lines(row["case"], row)]
    return "\n".join(lines)
