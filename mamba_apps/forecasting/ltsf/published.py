"""Configurations of published figures, by model, benchmark and horizon, at a lookback of 96.

They are those of the papers' own scripts: S-D-Mamba, TimeMachine, iTransformer. Where a paper has none for a benchmark,
and for the other models, the model's own defaults hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """How a model is trained.

    Args:
        options: The network's options.
        lr: Adam's learning rate in the first epoch.
        decay: What it is multiplied by after each epoch.
    """

    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-4
    decay: float = 0.5


def published(model: str, name: str, horizon: int) -> Configuration:
    """Return the configuration of a model on a benchmark.

    Args:
        model: Its name, such as "smamba".
        name: The benchmark's, such as "ETTh1".
        horizon: Steps to forecast.
    """
    far = horizon > 192
    if model == "smamba":
        return _smamba(name, horizon, far)
    if model == "itransformer":
        width = {"exchange_rate": 128, "ETTh1": 512 if far else 256, "ETTh2": 128, "ETTm1": 128, "ETTm2": 128}
        layers = {"electricity": 3, "weather": 3, "traffic": 4}.get(name, 2)
        lr = {"electricity": 5e-4, "traffic": 1e-3}.get(name, 1e-4)
        return Configuration({"d_model": width.get(name, 512), "layers": layers}, lr)
    if model == "timemachine":
        widths = {96: (512, 32), 192: (512, 64), 336: (512, 128)}.get(horizon, (128, 16))
        mixed = {"independent": False} if name in ("electricity", "traffic") else {}
        return Configuration({"n1": widths[0], "n2": widths[1], **mixed}, 1e-3, 0.9)
    if model == "dlinear":
        return Configuration(lr=5e-3)
    return Configuration(lr=1e-3, decay=0.9) if model == "patch" else Configuration()


def _smamba(name: str, horizon: int, far: bool) -> Configuration:
    width, layers, d_state, lr = 256, 2, 2, 5e-5 if far else 7e-5
    if name in ("ETTm1", "ETTm2"):
        width = 256 if horizon == 96 else 128
    elif name == "exchange_rate":
        width, d_state, lr = 128, 32, 5e-5 if far else 1e-4
    elif name == "weather":
        width, layers, lr = 512, 3, 5e-5
    elif name == "electricity":
        width, layers, d_state, lr = 512, 3, 16, 1e-3 if horizon == 96 else 5e-4
    elif name == "traffic":
        width, layers, d_state, lr = 512, 4, 16, 1e-3
    return Configuration({"d_model": width, "layers": layers, "d_state": d_state}, lr)
