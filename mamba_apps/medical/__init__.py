"""Medical images and volumes: U-Mamba, its twin without Mamba, and the networks they are compared with.

Importing this package loads nothing: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.medical.checkpoint import adapt_umamba, load_umamba
    from mamba_apps.medical.mamba_layer import MambaLayer
    from mamba_apps.medical.plain_unet import PlainUNet
    from mamba_apps.medical.residual_unet import ResidualUNet
    from mamba_apps.medical.umamba import UMamba
    from mamba_apps.medical.zoo import build_network, network_names

__all__ = [
    "build_network",
    "network_names",
    "UMamba",
    "MambaLayer",
    "ResidualUNet",
    "PlainUNet",
    "adapt_umamba",
    "load_umamba",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "build_network": "zoo",
        "network_names": "zoo",
        "UMamba": "umamba",
        "MambaLayer": "mamba_layer",
        "ResidualUNet": "residual_unet",
        "PlainUNet": "plain_unet",
        "adapt_umamba": "checkpoint",
        "load_umamba": "checkpoint",
    },
)
