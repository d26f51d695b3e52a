"""Mixers by name, so that a model or a recipe can say which one it wants."""

from __future__ import annotations

from typing import Any, TypeAlias

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
        UserError: If the name or an option is unknown (with the nearest ones), or the mixer refuses a value.
    """
    return _mixers.build(name, d_model, options)
