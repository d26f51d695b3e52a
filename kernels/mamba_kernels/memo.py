"""Remembering what follows from the layouts of tensors: checks that passed, and plans of what to launch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
# Programs that see more combinations than this, such as ones with a new length each step, start over.
LIMIT = 1024


def per_layout(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function run once for each combination of its tensors' layouts and its other arguments.

    The function may read of a tensor only shape, strides, dtype and device, and must not keep it. Its other arguments
    must be hashable. Where shapes are symbols or a compiler looks on, it simply runs. What it raises is not remembered.
    """
    found: dict[Any, R] = {}

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        key = tuple([(x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x for x in args])
        if kwargs:
            key = (key, *kwargs, _key(tuple(kwargs.values())))
        try:
            return found[key]
        except KeyError:
            pass
        except TypeError:  # A symbol among the sizes has no hash.
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if len(found) >= LIMIT:
            found.clear()
        found[key] = result
        return result

    return run


def _key(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([(x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x for x in args])
