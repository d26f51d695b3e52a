"""Mixers by name, so that a model or a recipe can say which one it wants."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import Mixer

_M = TypeVar("_M", bound=type[Mixer])


@dataclass(frozen=True)
class MixerSpec:
    """What the registry knows of a mixer.

    Args:
        name: The name it is registered under.
        cls: Its class.
        summary: The first line of its documentation.
        options: Its options and their defaults.
    """

    name: str
    cls: type[Mixer]
    summary: str
    options: dict[str, Any]


_specs: dict[str, MixerSpec] = {}


def register(name: str) -> Callable[[_M], _M]:
    """Return a class decorator that registers a mixer; its first argument must be ``d_model``.

    Raises:
        ValueError: If the name is taken.
    """

    def add(cls: _M) -> _M:
        if name in _specs:
            raise ValueError(f"the mixer {name!r} is already registered, by {_specs[name].cls.__qualname__}")
        parameters = list(inspect.signature(cls).parameters.values())
        if not parameters or parameters[0].name != "d_model":
            raise ValueError(f"the first argument of {cls.__qualname__} must be d_model")
        summary = (cls.__doc__ or "").strip().partition("\n")[0]
        _specs[name] = MixerSpec(name, cls, summary, {p.name: p.default for p in parameters[1:]})
        return cls

    return add


def names() -> list[str]:
    """Return the registered names in alphabetical order."""
    return sorted(_specs)


def spec(name: str) -> MixerSpec:
    """Return what is known of a mixer.

    Raises:
        UserError: If no mixer has this name; the error gives the nearest ones.
    """
    if name not in _specs:
        raise UserError(f"unknown mixer {name!r}", _suggest(name, names(), "the mixers"))
    return _specs[name]


def create(name: str, d_model: int, **options: Any) -> Mixer:
    """Build a mixer.

    Args:
        name: A registered name.
        d_model: Channels of its input and output.
        options: Its own options; ``spec(name).options`` lists them.

    Raises:
        UserError: If the name or an option is unknown (with the nearest ones), or the mixer refuses a value.
    """
    known = spec(name)
    for option in options:
        if option not in known.options:
            raise UserError(
                f"mixer {name!r} has no option {option!r}", _suggest(option, list(known.options), "its options")
            )
    return known.cls(d_model, **options)


def _suggest(word: str, known: list[str], what: str) -> str:
    nearest = get_close_matches(word, known, n=3, cutoff=0.5)
    if nearest:
        return f"did you mean {' or '.join(repr(n) for n in nearest)}?"
    return f"{what} are {', '.join(known)}"
