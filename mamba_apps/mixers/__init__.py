"""Sequence mixers behind one interface: by name, along any route, at once or step by step."""

from __future__ import annotations

from mamba_apps.mixers.attention import AttentionMixer, AttentionState
from mamba_apps.mixers.base import Mixer, State, no_weight_decay
from mamba_apps.mixers.block import MixerBlock
from mamba_apps.mixers.both_ways import BothWaysLayer
from mamba_apps.mixers.mamba1 import Mamba1Mixer, Mamba1State
from mamba_apps.mixers.mamba2 import Mamba2Mixer, Mamba2State
from mamba_apps.mixers.mambavision import MambaVisionMixer
from mamba_apps.mixers.norms import GatedRMSNorm, LayerNorm, RMSNorm, create_norm
from mamba_apps.mixers.registry import MixerSpec, create, names, register, spec
from mamba_apps.mixers.route_conv import causal_conv1d_route
from mamba_apps.mixers.routed import RoutedMixer
from mamba_apps.mixers.ss2d import SS2D
from mamba_apps.mixers.vim import VimMixer

__all__ = [
    "Mixer",
    "State",
    "MixerSpec",
    "create",
    "names",
    "register",
    "spec",
    "no_weight_decay",
    "Mamba1Mixer",
    "Mamba1State",
    "Mamba2Mixer",
    "Mamba2State",
    "MambaVisionMixer",
    "AttentionMixer",
    "AttentionState",
    "RoutedMixer",
    "SS2D",
    "VimMixer",
    "causal_conv1d_route",
    "MixerBlock",
    "BothWaysLayer",
    "RMSNorm",
    "GatedRMSNorm",
    "LayerNorm",
    "create_norm",
]
