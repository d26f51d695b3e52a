"""Classes by name, with their options: so that a model, a recipe or the command can say which one it wants."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mamba_apps.errors import UserError
from mamba_datasets.report import nearest

T = TypeVar("T")
_C = TypeVar("_C", bound=type)


@dataclass(frozen=True)
class Spec(Generic[T]):
    """What a registry knows of a class.

    Args:
        name: The name it is registered under.
        cls: The class.
        summary: The first line of its documentation.
        options: Its options and their defaults.
    """

    name: str
    cls: type[T]
    summary: str
    options: dict[str, Any]


class Registry(Generic[T]):
    """Classes of one kind, by name.

    Args:
        kind: What they are, for errors: "mixer".
        first: The name of every class's first argument, which the builder gives; the others are its options.
    """

    def __init__(self, kind: str, first: str) -> None:
        self._kind, self._first = kind, first
        self._specs: dict[str, Spec[T]] = {}

    def register(self, name: str) -> Callable[[_C], _C]:
        """Return a class decorator that registers a class under ``name``.

        Raises:
            ValueError: If the name is taken, or the first argument is not the one every class of the kind has.
        """

        def add(cls: _C) -> _C:
            if name in self._specs:
                raise ValueError(
                    f"the {self._kind} {name!r} is already registered, by {self._specs[name].cls.__qualname__}"
                )
            parameters = list(inspect.signature(cls).parameters.values())
            if not parameters or parameters[0].name != self._first:
                raise ValueError(f"the first argument of {cls.__qualname__} must be {self._first}")
            summary = (cls.__doc__ or "").strip().partition("\n")[0]
            self._specs[name] = Spec(name, cls, summary, {p.name: p.default for p in parameters[1:]})
            return cls

        return add

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        return sorted(self._specs)

    def spec(self, name: str) -> Spec[T]:
        """Return what is known of a name.

        Raises:
            UserError: If it is not registered; the error gives the nearest ones.
        """
        if not isinstance(name, str) or name not in self._specs:  # a recipe or the command may say anything
            raise UserError(f"unknown {self._kind} {name!r}", nearest(name, self.names()))
        return self._specs[name]

    def check(self, name: str, options: Iterable[str]) -> Spec[T]:
        """Return what is known of a name, after refusing options that it does not have.

        Raises:
            UserError: If the name or an option is unknown; the error gives the nearest ones.
        """
        known = self.spec(name)
        check_option_names(f"{self._kind} {name!r}", options, known.options)
        return known

    def build(self, name: str, first: Any, options: dict[str, Any]) -> T:
        """Return an instance of the class called ``name``.

        Raises:
            UserError: If the name or an option is unknown (with the nearest ones), or the class refuses a value.
        """
        known = self.check(name, options)
        return known.cls(first, **options)  # type: ignore[call-arg]


def check_option_names(owner: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that something does not have.

    Args:
        owner: What has the options, for the error.
        options: The names that were given.
        known: The names that there are.

    Raises:
        UserError: One is unknown; the error gives the nearest ones.
    """
    names = list(known)
    for option in options:
        if option not in names:
            remedy = nearest(option, names) if names else "it has none"
            raise UserError(f"{owner} has no option {option!r}", remedy)


def check_class_options(owner: str, cls: type, options: Iterable[str], given: Collection[str]) -> None:
    """Refuse options that a class does not have, or that its maker gives it.

    Args:
        owner: What has the options, for the error.
        cls: The class.
        options: The names that were given.
        given: The arguments that are not options.

    Raises:
        UserError: One is unknown; the error gives the nearest ones.
    """
    check_option_names(owner, options, [name for name in inspect.signature(cls).parameters if name not in given])
