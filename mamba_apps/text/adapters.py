"""Language models from and to the state dicts of mamba-ssm and transformers: every key must find its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.state_dicts import fitted
from mamba_apps.text.config import (
    MambaLMConfig,
    config_from_mamba_ssm,
    config_from_transformers,
    config_to_mamba_ssm,
    config_to_transformers,
)
from mamba_apps.text.model import MambaLM

_EMBEDDING = "backbone.embedding.weight"
_TRANSFORMERS_EMBEDDING = "backbone.embeddings.weight"
_HEAD = "lm_head.weight"


def from_mamba_ssm(
    state_dict: Mapping[str, Tensor], config: MambaLMConfig | Mapping[str, Any], *, backend: str | None = None
) -> MambaLM:
    """Build a model from mamba-ssm's ``MambaLMHeadModel``.

    Args:
        state_dict: Its state dict; the head may be left out where it is tied.
        config: Ours, or the contents of its ``config.json``.
        backend: The operators' implementation to force; None lets each choose.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape, or the configuration is not supported.
    """
    if not isinstance(config, MambaLMConfig):
        config = config_from_mamba_ssm(config)
    return _build(dict(state_dict), config, backend)


def from_transformers(
    state_dict: Mapping[str, Tensor], config: MambaLMConfig | Mapping[str, Any], *, backend: str | None = None
) -> MambaLM:
    """Build a model from transformers' ``MambaForCausalLM`` or ``Mamba2ForCausalLM``; see ``from_mamba_ssm``."""
    if not isinstance(config, MambaLMConfig):
        config = config_from_transformers(config)
    ours = dict(state_dict)
    # Older checkpoints have mamba-ssm's name here, which transformers renames too.
    if _TRANSFORMERS_EMBEDDING in ours and _EMBEDDING not in ours:
        ours[_EMBEDDING] = ours.pop(_TRANSFORMERS_EMBEDDING)
    return _build(ours, config, backend)


def to_mamba_ssm(model: MambaLM) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a state dict and configuration for mamba-ssm, whose strict loader wants a tied head too.

    Raises:
        UserError: If mamba-ssm's format cannot express the model.
    """
    config = config_to_mamba_ssm(model.config)
    state_dict = dict(model.state_dict())
    if model.config.tie_embeddings:
        state_dict[_HEAD] = state_dict[_EMBEDDING].clone()
    return state_dict, config


def to_transformers(model: MambaLM) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a state dict and configuration for transformers, which leaves a tied head out.

    Raises:
        UserError: If transformers' format cannot express the model.
    """
    config = config_to_transformers(model.config)
    state_dict = dict(model.state_dict())
    state_dict[_TRANSFORMERS_EMBEDDING] = state_dict.pop(_EMBEDDING)
    return state_dict, config


def _build(state_dict: dict[str, Tensor], config: MambaLMConfig, backend: str | None) -> MambaLM:
    if config.tie_embeddings and _HEAD in state_dict and _EMBEDDING in state_dict:
        head = state_dict.pop(_HEAD)
        if not torch.equal(head, state_dict[_EMBEDDING]):
            raise UserError(
                f"{_HEAD} differs from the embedding, and the configuration ties them", "set tie_embeddings to false"
            )
    model = MambaLM(config, backend)
    remedy = "give the weights of a Mamba-1 or Mamba-2 language model and the configuration that belongs to them"
    model.load_state_dict(fitted("MambaLM", state_dict, model.state_dict(), remedy))
    return model
