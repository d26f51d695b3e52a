"""Configurations of published figures, by model, benchmark and horizon, at a lookback of 96.

They are those of the papers' own scripts: S-D-Mamba, TimeMachine, iTransformer. Where these have none for a benchmark,
and for the other models, the defaults hold.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

_HORIZONS = (96, 192, 336, 720)


@dataclass(frozen=True)
class Configuration:
    """How a model is trained.

    Args:
        options: The network's options.
        lr: Adam's learning rate in the first epoch.
        decay: What it is multiplied by after each epoch.
        loss: What is minimised, "mse" or "mae".
        mix: Beta's parameter of the weights at which windows are mixed in training; 0 leaves them as they are.
    """

    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-4
    decay: float = 0.5
    loss: str = "mse"
    mix: float = 0.0


# A tuple has a value for each of the four horizons.
_PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "smamba": {
        "ETTh1": {"d_model": 256, "d_state": 2, "lr": (7e-5, 7e-5, 5e-5, 5e-5)},
        "ETTh2": {"d_model": 256, "d_state": 2, "lr": (4e-5, 4e-5, 3e-5, 7e-5)},
        "ETTm1": {"d_model": (256, 128, 128, 128), "d_state": 2, "lr": 5e-5},
        "ETTm2": {"d_model": (256, 128, 128, 128), "d_state": 2, "lr": (5e-5, 5e-5, 3e-5, 5e-5)},
        "exchange_rate": {"d_model": 128, "d_state": 32, "lr": (1e-4, 1e-4, 5e-5, 5e-5)},
        "weather": {"d_model": 512, "layers": 3, "d_state": 2, "lr": 5e-5},
        "electricity": {"d_model": 512, "layers": 3, "d_state": (16, 32, 32, 32), "lr": (1e-3, 5e-4, 5e-4, 5e-4)},
        "traffic": {"d_model": 512, "layers": 4, "d_state": 32, "lr": (1e-3, 1e-3, 2e-3, 8e-4)},
        "solar": {"d_model": 512, "d_state": 32},
    },
    "itransformer": {
        "ETTh1": {"d_model": (256, 256, 512, 512)},
        "ETTh2": {"d_model": 128},
        "ETTm1": {"d_model": 128},
        "ETTm2": {"d_model": 128},
        "exchange_rate": {"d_model": 128},
        "weather": {"d_model": 512, "layers": 3},
        "electricity": {"d_model": 512, "layers": 3, "lr": 5e-4},
        "traffic": {"d_model": 512, "layers": 4, "lr": 1e-3},
        "solar": {"d_model": 512, "lr": 5e-4},
    },
    "timemachine": {
        "ETTh1": {"n1": (512, 512, 512, 128), "n2": (32, 64, 128, 16), "dropout": 0.7},
        "ETTh2": {"n1": (128, 256, 512, 256), "n2": (32, 32, 64, 128), "dropout": 0.7},
        "ETTm1": {"n1": (256, 512, 128, 512), "n2": (64, 32, 16, 128), "dropout": 0.6},
        "ETTm2": {"n1": (256, 128, 256, 256), "n2": (32, 64, 128, 128), "dropout": 0.6},
        "weather": {
            "n1": (128, 512, 128, 512), "n2": (16, 128, 64, 256), "dropout": (0.1, 0.5, 0.0, 0.0), "decay": 1.0,
        },
        "electricity": {
            "n1": 512, "n2": (128, 256, 256, 8), "dropout": (0.0, 0.0, 0.4, 0.0), "independent": False,
        },
        "traffic": {
            "n1": 512, "n2": (16, 256, 256, 128), "dropout": (0.3, 0.1, 0.1, 0.1), "independent": False,
            "affine": False,
        },
    },
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "timemachine": {"lr": 1e-3, "decay": 0.9},
    "dlinear": {"lr": 5e-3},
    "anchor": {"lr": 1e-3, "decay": 0.8, "loss": "mae"},
    "patch": {"lr": 1e-3, "decay": 0.9},
}


def published(model: str, name: str, horizon: int) -> Configuration:
    """Return the configuration of a model on a benchmark.

    Args:
        model: Its name, such as "smamba".
        name: The benchmark's, such as "ETTh1".
        horizon: Steps to forecast; between two of the four published horizons the longer one's configuration holds.
    """
    place = min(bisect_left(_HORIZONS, horizon), len(_HORIZONS) - 1)
    known = _DEFAULTS.get(model, {}) | _PUBLISHED.get(model, {}).get(name, {})
    options = {key: value[place] if isinstance(value, tuple) else value for key, value in known.items()}
    training = {key: options.pop(key) for key in ("lr", "decay", "loss", "mix") if key in options}
    return Configuration(options, **training)
