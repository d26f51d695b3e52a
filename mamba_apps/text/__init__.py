"""A small language model over any causal mixer, and its checkpoints."""

from __future__ import annotations

from mamba_apps.text.adapters import from_mamba_ssm, from_transformers, to_mamba_ssm, to_transformers
from mamba_apps.text.config import MambaLMConfig, config_from_mamba_ssm, config_from_transformers
from mamba_apps.text.model import MambaLM

__all__ = [
    "MambaLM",
    "MambaLMConfig",
    "config_from_mamba_ssm",
    "config_from_transformers",
    "from_mamba_ssm",
    "from_transformers",
    "to_mamba_ssm",
    "to_transformers",
]
