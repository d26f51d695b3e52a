"""Image backbones with Mamba inside: importing this registers them with timm, whose protocol they speak."""

from __future__ import annotations

from mamba_apps.vision.mambavision import MambaVision
from mamba_apps.vision.vim import Vim
from mamba_apps.vision.vmamba import VMamba

__all__ = ["MambaVision", "Vim", "VMamba"]
