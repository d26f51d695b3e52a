"""Forecasters by name, so that a recipe, the command or the API can say which one it wants."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.base import ForecastModel, Sizes

_M = TypeVar("_M", bound=type[ForecastModel])


@dataclass(frozen=True)
class ModelSpec:
    """What the registry knows of a forecaster.

    Args:
        name: The name it is registered under.
        cls: Its class.
        summary: The first line of its documentation.
        options: Its options and their defaults.
    """

    name: str
    cls: type[ForecastModel]
    summary: str
    options: dict[str, Any]


_specs: dict[str, ModelSpec] = {}


def register(name: str) -> Callable[[_M], _M]:
    """Return a class decorator that registers a forecaster; its first argument must be ``sizes``.

    Raises:
        ValueError: If the name is taken.
    """

    def add(cls: _M) -> _M:
        if name in _specs:
            raise ValueError(f"the forecaster {name!r} is already registered, by {_specs[name].cls.__qualname__}")
        parameters = list(inspect.signature(cls).parameters.values())
        if not parameters or parameters[0].name != "sizes":
            raise ValueError(f"the first argument of {cls.__qualname__} must be sizes")
        summary = (cls.__doc__ or "").strip().partition("\n")[0]
        _specs[name] = ModelSpec(name, cls, summary, {p.name: p.default for p in parameters[1:]})
        return cls

    return add


def names() -> list[str]:
    """Return the registered names in alphabetical order."""
    return sorted(_specs)


def spec(name: str) -> ModelSpec:
    """Return what is known of a forecaster.

    Raises:
        UserError: If none has this name; the error gives the nearest ones.
    """
    if name not in _specs:
        raise UserError(f"unknown forecasting model {name!r}", suggest(name, names(), "the models"))
    return _specs[name]


def create(
    name: str,
    lookback: int,
    horizon: int,
    n_past: int = 0,
    n_future: int = 0,
    n_static: int = 0,
    **options: Any,
) -> ForecastModel:
    """Build a forecaster.

    Args:
        name: A registered name.
        lookback: Steps of the past.
        horizon: Steps to forecast.
        n_past: Covariates known up to the present only.
        n_future: Covariates known ahead.
        n_static: Covariates of the whole series.
        options: The model's own; ``spec(name).options`` lists them.

    Raises:
        UserError: If the name or an option is unknown (with the nearest ones), or the model refuses a value.
    """
    known = spec(name)
    for option in options:
        if option not in known.options:
            raise UserError(
                f"the forecasting model {name!r} has no option {option!r}",
                suggest(option, list(known.options), "its options"),
            )
    return known.cls(Sizes(lookback, horizon, n_past, n_future, n_static), **options)


def suggest(word: str, known: list[str], what: str) -> str:
    """Return the remedy for a word that is not known: the nearest ones, or all."""
    nearest = get_close_matches(word, known, n=3, cutoff=0.5)
    if nearest:
        return f"did you mean {' or '.join(repr(n) for n in nearest)}?"
    return f"{what} are {', '.join(known)}"
