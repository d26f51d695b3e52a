"""U-Mamba's weights from the published code's checkpoints, strictly: every key must find its place.

The published state dicts hold many tensors under several names: the decoder contains the encoder, and a block's
convolution and norm also stand in a list of all its parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.medical.residual_unet import ResidualUNet
from mamba_apps.medical.umamba import UMamba
from mamba_apps.state_dicts import fitted

_CONTAINERS = ("network_weights", "state_dict", "model")
_WRAPPING = re.compile(r"^(module\.|_orig_mod\.|network\.)+")
_ALIASES = ((re.compile(r"^decoder\.encoder\."), "encoder."), (re.compile(r"\.all_modules\.0\."), ".conv."),
            (re.compile(r"\.all_modules\.1\."), ".norm."))  # fmt: skip
_REMEDY = "give the network that these weights belong to: its plan, channels, classes and place of the Mamba layers"


def adapt_umamba(checkpoint: Mapping[str, Any], network: ResidualUNet) -> dict[str, Tensor]:
    """Return a state dict for ``network`` from a checkpoint of the published code, or from one of ours.

    Args:
        checkpoint: What the file held: a state dict, or a dict that holds one under "network_weights" (nnU-Net's
            files), "state_dict" or "model". Half-precision weights get the precision of the network's.
        network: A U-Mamba with the published layers, or its twin.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape, two names of one tensor hold different
            values, or a value is no tensor; the error names it.
    """
    inner = next((checkpoint[name] for name in _CONTAINERS if isinstance(checkpoint.get(name), Mapping)), checkpoint)
    ours = network.state_dict()
    found: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for name, tensor in inner.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"U-Mamba: {name} in the state dict is a {type(tensor).__name__}, no tensor", _REMEDY)
        key = _our_name(name, network)
        if key in found:
            _require_equal(first[key], found[key], name, tensor)
            continue
        first[key] = name
        found[key] = tensor
    whole = fitted("U-Mamba" if isinstance(network, UMamba) else "residual U-Net", found, ours, _REMEDY)
    return {key: tensor.to(ours[key].dtype) for key, tensor in whole.items()}


def load_umamba(path: str | Path, network: ResidualUNet) -> None:
    """Load a checkpoint file of the published code into ``network``, or leave it as it was.

    Args:
        path: A ``.pth`` of nnU-Net's trainer, or another file that ``torch.load`` reads, of tensors and plain values
            alone: nothing else is unpickled.
        network: A U-Mamba with the published layers.

    Raises:
        UserError: If the file cannot be read safely, or as `adapt_umamba`.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path") from error
    try:
        with file, torch.serialization.safe_globals(_numpy_numbers()):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # A reader fed what it does not know raises anything.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: is no checkpoint that can be read safely ({reason[:200]})",
            "give the trainer's checkpoint_final.pth, or save its network_weights alone with torch.save",
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, no state dict", "give a checkpoint's file")
    network.load_state_dict(adapt_umamba(checkpoint, network))


def _our_name(name: str, network: ResidualUNet) -> str:
    name = _WRAPPING.sub("", name)
    for pattern, ours in _ALIASES:
        name = pattern.sub(ours, name)
    # U-Mamba_Bot keeps its only layer beside the encoder.
    if name.startswith("mamba_layer."):
        return f"encoder.mamba_layers.{network.plan.stages - 1}.{name.removeprefix('mamba_layer.')}"
    return name


def _require_equal(name: str, tensor: Tensor, other: str, duplicate: Tensor) -> None:
    same = tensor.is_meta or (
        tensor.shape == duplicate.shape and torch.equal(tensor, duplicate.to(tensor.dtype).to(tensor.device))
    )
    if not same:
        raise UserError(
            f"U-Mamba: {name} and {other} are two names of one tensor, and differ in the state dict",
            "save the network's state dict anew: one of the two is stale",
        )


def _numpy_numbers() -> list[Any]:
    """Return the types of the scores that nnU-Net's trainer logs in its checkpoints: numpy's numbers, nothing else."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [np.dtype, scalar, *(type(np.dtype(kind)) for kind in kinds)]
