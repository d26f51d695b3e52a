"""The network that a task trains: a model of the zoo for the data's classes and clips, and where its weights start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mamba_apps.audio.ast import AST
from mamba_apps.audio.audio_mamba import AudioMamba
from mamba_apps.audio.checkpoint import adapt_audio_mamba, adapt_transformer, adapt_vision_mamba
from mamba_apps.audio.model import AudioModel
from mamba_apps.audio.zoo import create_model, model_names
from mamba_apps.errors import UserError
from mamba_apps.state_dicts import fitted
from mamba_apps.training import load_card, load_weights, saved_folder
from mamba_apps.vision.pretrained import unwrapped
from mamba_datasets.report import nearest

_PREFIX = "network."
_BACKBONE = "backbone."
_KERNEL = "patch_embed.proj.weight"
# Arguments of a model that its data decide on.
_OF_THE_DATA = ("num_classes", "sample_rate", "seconds", "mean", "std")


def check_name(name: str) -> None:
    """Refuse a name that is no audio model's.

    Raises:
        UserError: With the nearest names.
    """
    if name not in model_names():
        raise UserError(f"there is no audio model {name!r}", nearest(name, model_names()))


def make_network(name: str, arguments: Mapping[str, Any], weights: str | None = None) -> AudioModel:
    """Make a model of the zoo.

    Args:
        name: Its name there.
        arguments: Those of `create_model`.
        weights: None for random ones; a file of released Audio Mamba, AST or Vision Mamba weights; the folder of a run,
            of sound or of Vision Mamba on images; or an image model of timm's registry, such as
            "vim_tiny_patch16_224", whose released weights timm downloads. A classifier for other classes begins anew,
            positions of clips of another length are interpolated.

    Raises:
        UserError: If there is no such model or no such weights, or they do not fit together.
    """
    network = create_model(name, **arguments)
    if weights is not None:
        found = unwrapped(_read(weights), "module.")
        try:
            network.backbone.load_state_dict(_adapted(weights, found, network.backbone))
        except UserError as error:
            raise UserError(f"{weights}: {error.message}", _settings_of(weights) or error.remedy) from error
    return network


def saved_weights(folder: str | Path) -> dict[str, Tensor]:
    """Return the model's part of what training saved, whole and checked."""
    found = load_weights(folder)
    return {name.removeprefix(_PREFIX): value for name, value in found.items() if name.startswith(_PREFIX)}


def _read(weights: str) -> Mapping[str, Any]:
    path = Path(weights)
    if path.is_dir():
        return _read_run(saved_folder(path))
    if path.is_file():
        return _read_file(path)
    if timm.is_model(weights):
        from mamba_apps.vision.weights import RELEASED
        from mamba_apps.vision.weights import create_model as create_image_model

        return create_image_model(weights, {}, RELEASED).state_dict()
    raise UserError(
        f"weights {weights!r}: there is no such file or folder", "give one, or a Vision Mamba by timm's name"
    )


def _read_run(folder: Path) -> Mapping[str, Any]:
    card = load_card(folder)
    if card.task != "classification" or card.domain not in ("audio", "image"):
        raise UserError(
            f"{folder} holds a model for {card.task} of {card.domain}", "give one that was trained to classify sounds"
        )
    found = saved_weights(folder)
    return {name.removeprefix(_BACKBONE): value for name, value in found.items()}


def _settings_of(weights: str) -> str | None:
    """Name the settings with which the weights of a run of sound fit; None for weights of another kind."""
    card = load_card(saved_folder(weights)) if Path(weights).is_dir() else None
    if card is None or card.domain != "audio":
        return None
    options = {key: value for key, value in card.arguments.items() if key not in _OF_THE_DATA}
    words = f"train what the run has: --model.model {card.model}"
    return words + (f" --model.model_options '{json.dumps(options)}'" if options else "")


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of no such file lead their readers to
        # torch's own words advise to unpickle what nobody knows
        remedy = "give a .safetensors, or a .pth of nothing but tensors"
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__})", remedy) from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds a {type(found).__name__}, expected a state dict", "give a file of weights")
    return found


def _adapted(weights: str, found: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    own = backbone.state_dict()
    kernel = found.get(_KERNEL)
    if isinstance(backbone, AudioMamba) and kernel is not None and kernel.dim() == 4 and kernel.shape[1] == 3:
        return adapt_vision_mamba(found, backbone)
    # A classifier for other classes begins anew; its norm, where it has one, is not the classes'.
    for key in [name for name in own if name.startswith(("head.", "mlp_head.1."))]:
        if key in found and found[key].shape != own[key].shape:
            found[key] = own[key]
    if isinstance(backbone, AudioMamba):
        return adapt_audio_mamba(found, backbone)
    if isinstance(backbone, AST):
        return adapt_transformer(found, backbone)
    return fitted("wave Mamba", found, own, f"name the model that {weights} was trained as")
