"""Image models by timm's names, with random, released or our own saved weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

import mamba_apps.vision  # noqa: F401  (registers the Mamba families with timm)
from mamba_apps.errors import UserError
from mamba_apps.training import load_card, load_weights, saved_folder
from mamba_apps.vision.classification import baselines  # noqa: F401  (registers the small Transformers)
from mamba_kernels.errors import KernelInputError

RELEASED = "released"
_READABLE = "give a .safetensors, or a .pth of nothing but tensors"
_PREFIX = "network."


def create_model(name: str, options: Mapping[str, Any], weights: str | None = None) -> nn.Module:
    """Make a model, or what gives its feature maps where the options say ``features_only``.

    Args:
        name: Its name in timm's registry.
        options: Its arguments.
        weights: None for random ones, "released" for those that were released for this name (timm downloads them), a
            file of such, or the folder of a model that we saved. A classifier of another number of classes is left out
            and position embeddings are resized.

    Raises:
        UserError: If there is no such model, an argument is not its own, or the weights do not fit it.
    """
    check_name(name)
    extra = {} if weights is None else _weights(name, weights)
    try:
        return timm.create_model(name, **options, **extra)
    except (UserError, KernelInputError):
        raise
    except OSError as error:  # before ValueError: the hub's errors are both
        if weights is None:
            raise
        what = f"the weights {weights!r} of {name!r} cannot be had ({_shortened(error)})"
        raise UserError(what, "mend the network, or give a file of them: --model.weights FILE") from error
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"model {name!r}: {_shortened(error)}", "correct model_options") from error
    except (RuntimeError, KeyError) as error:
        if weights is None:
            raise
        what = f"{weights}: the weights do not fit {name!r} ({_shortened(error)})"
        raise UserError(what, "name the model they are of") from error


def _shortened(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def check_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UserError: With the nearest names.
    """
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    remedy = "did you mean " + " or ".join(map(repr, near)) + "?" if near else "see mamba-apps models vision"
    raise UserError(f"there is no image model {name!r}", remedy)


def saved_weights(folder: str | Path) -> dict[str, Tensor]:
    """Return the model's part of what training saved, whole and checked."""
    found = load_weights(folder)
    return {name.removeprefix(_PREFIX): value for name, value in found.items() if name.startswith(_PREFIX)}


def _check_readable(path: Path) -> None:
    """Refuse a file that timm would stumble over; the tensors themselves are left unread."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return
        found = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # a reader fed what it does not know raises anything
        kind = type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({kind})", _READABLE) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__} in place of weights", _READABLE)


def _weights(name: str, weights: str) -> dict[str, Any]:
    """Return timm's arguments for weights of each kind."""
    if weights == RELEASED:
        return {"pretrained": True}
    path = Path(weights)
    if path.is_file():
        _check_readable(path)
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    if not path.is_dir():
        raise UserError(f"weights {weights!r}: there is no such file or folder", f"give one, or {RELEASED!r}")
    folder = saved_folder(path)
    card = load_card(folder)
    if (card.task, card.domain) != ("classification", "image"):
        raise UserError(f"{folder} holds a model for {card.task} of {card.domain}", "give an image classifier's folder")
    if card.model != name:
        raise UserError(f"{folder} holds a {card.model!r}, the model is {name!r}", "name that model, or other weights")
    found = {"state_dict": saved_weights(folder), "num_classes": card.arguments["num_classes"]}
    return {"pretrained": True, "pretrained_cfg_overlay": found}
