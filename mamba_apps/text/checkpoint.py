"""Directories of weights and configuration, as mamba-ssm and transformers publish them.

Weights are read from safetensors, or from PyTorch's files without unpickling anything but tensors; they are written as
safetensors.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.text.adapters import from_mamba_ssm, from_transformers, to_mamba_ssm, to_transformers
from mamba_apps.text.model import MambaLM
from mamba_apps.training.files import make_directory, storage_error, temporary_beside, write_tensors, write_text

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# One file, or an index of several, the better format first.
_FILES = (_WEIGHTS, "pytorch_model.bin")
_INDICES = tuple(f"{name}.index.json" for name in _FILES)


def read_checkpoint(directory: str | Path, *, backend: str | None = None) -> MambaLM:
    """Load a checkpoint of either format; a ``config.json`` with ``model_type`` is transformers'.

    Raises:
        UserError: If a file is missing, damaged or holds more than tensors, or the checkpoint is of another model.
    """
    directory = Path(directory)
    config = _read_json(directory / _CONFIG)
    state_dict = _read_weights(directory)
    build = from_transformers if "model_type" in config else from_mamba_ssm
    return build(state_dict, config, backend=backend)


def write_checkpoint(model: MambaLM, directory: str | Path, naming: str) -> None:
    """Write a checkpoint; each file appears whole or not at all.

    Raises:
        UserError: If the format is unknown or cannot express the model, or the folder cannot be written.
    """
    if naming not in ("mamba_ssm", "transformers"):
        raise UserError(f"unknown naming {naming!r}", "choose mamba_ssm or transformers")
    state_dict, config = to_mamba_ssm(model) if naming == "mamba_ssm" else to_transformers(model)
    weights = Path(directory) / _WEIGHTS
    make_directory(weights.parent, "checkpoint folder")
    tensors = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    try:
        with temporary_beside(weights) as temporary:
            write_tensors(temporary, tensors)
            write_text(weights.with_name(_CONFIG), json.dumps(config, indent=2) + "\n")
            os.replace(temporary, weights)
    except OSError as error:
        raise storage_error("save the checkpoint in", weights, error) from error
    except SafetensorError as error:
        raise UserError(
            f"cannot save the checkpoint in {weights}: {error}", "free space or choose another folder"
        ) from error


def _read_weights(directory: Path) -> dict[str, Tensor]:
    for name in _FILES:
        if (directory / name).exists():
            return _read_tensors(directory / name)
    for name in _INDICES:
        if (directory / name).exists():
            return _read_shards(directory / name)
    raise UserError(
        f"{directory} has no {' and no '.join(_FILES)}",
        "give the directory of a checkpoint of mamba-ssm or transformers",
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and f == Path(f).name for f in files.values()):
        raise UserError(f"{index}: weight_map must map each tensor to a file beside it", "fetch the checkpoint again")
    state_dict: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        state_dict.update(_read_tensors(index.with_name(file)))
    return state_dict


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds more than tensors, which is not opened: it could run code",
            f"fetch the checkpoint again, or save its state dict alone as {_WEIGHTS} where you trust it",
        ) from error
    except Exception as error:  # A reader fed what it does not know raises anything.
        raise UserError(f"{path} cannot be read: {error}", "fetch the checkpoint again") from error
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise UserError(f"{path} holds no state dict", "give the directory of a checkpoint")
    return dict(found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "give the directory of a checkpoint") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}", "fetch the checkpoint again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not an object", "fetch the checkpoint again")
    return value
