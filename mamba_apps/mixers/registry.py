"""Mixers by name, so that a model or a recipe can say which one it wants."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import Mixer
from mamba_apps.registry import Registry, Spec

MixerSpec: TypeAlias = Spec[Mixer]
_mixers: Registry[Mixer] = Registry("mixer", first="d_model")
register, names, spec, check = _mixers.register, _mixers.names, _mixers.spec, _mixers.check


def create(name: str, d_model: int, **options: Any) -> Mixer:
    """Build a mixer.

    Args:
        name: A registered name.
        d_model: Channels of its input and output.
        options: Its own options; ``spec(name).options`` lists them.

    Raises:
        UserError: If the name or an option is unknown (with the nearest ones), a value is of another kind than the
            option, or the mixer refuses it.
    """
    cls = check(name, options).cls
    kinds = get_type_hints(cls.__init__)
    for option, value in options.items():
        if not _fits(value, kinds.get(option, Any)):
            written = inspect.signature(cls).parameters[option].annotation
            raise UserError(f"{name}: {option} is {value!r}", f"give it as {written}")
    return _mixers.build(name, d_model, options)


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of the kind that an annotation says; whole numbers are numbers, lists are tuples.

    Of what other containers hold nothing is said.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        parts = parts[:1] * len(value) if ... in parts else parts
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, NoneType if kind is None else origin or kind)
