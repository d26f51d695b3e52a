"""Reduce a checkpoint to tensors and plain values, the only things that can be loaded without running code."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mamba_apps.errors import UserError

_LEAVES = (torch.Tensor, torch.dtype, torch.device, str, bytes, bool, int, float, complex, type(None))


def to_plain(value: Any, place: str = "checkpoint") -> Any:
    """Copy the containers of a checkpoint, turning what has a plain equivalent into it.

    Paths become strings, enumerations their values, NumPy numbers Python numbers, dataclasses and mappings dicts,
    named tuples tuples. Tensors are passed on, not copied.

    Args:
        value: A checkpoint or an entry of one.
        place: Where that entry is, for the error.

    Returns:
        The same content, loadable by `torch.load(weights_only=True)` without any class being allowed.

    Raises:
        UserError: An entry is an object of another kind.
    """
    if isinstance(value, enum.Enum):  # before the leaves: some enumerations are strings or integers as well
        return to_plain(value.value, place)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, _LEAVES):
        return _exact(value)
    if isinstance(value, np.generic):
        return to_plain(value.item(), place)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        items = {to_plain(key, f"key of {place}"): to_plain(item, f"{place}[{key!r}]") for key, item in value.items()}
        return OrderedDict(items) if isinstance(value, OrderedDict) else items
    if isinstance(value, list | tuple):
        sequence = [to_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return sequence if isinstance(value, list) else tuple(sequence)
    if isinstance(value, set | frozenset):
        return {to_plain(item, place) for item in value}
    raise UserError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be loaded again safely",
        "store a tensor, a number, a string, a list or a dict instead "
        "(a hyper-parameter: save_hyperparameters(ignore=[...]))",
    )


def _exact(value: Any) -> Any:
    """Strip subclasses of numbers and strings (np.float64 is a float), which would be stored by their class's name."""
    if isinstance(value, torch.Tensor):
        return value.detach() if value.requires_grad else value
    for kind in (int, float, complex, str, bytes):
        # bool is a subclass of int that is plain itself
        if isinstance(value, kind) and type(value) not in (kind, bool):
            return kind(value)  # type: ignore[arg-type]
    return value
