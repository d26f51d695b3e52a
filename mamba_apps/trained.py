"""Models that training saved are made by loading them; who calls the class instead is told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mamba_apps.errors import UserError


class Trained(type):
    """The metaclass of a class whose objects `load` makes from a folder; copies and pickles do not pass through it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an object of its parts; a folder, or nothing, are none.

        Raises:
            UserError: There are no parts.
        """
        if not kwargs and all(isinstance(one, (str, Path)) for one in args):
            folder = repr(str(args[0])) if args else "folder"
            raise UserError(f"{cls.__name__} is a trained model", f"load it: {cls.__name__}.load({folder})")
        return super().__call__(*args, **kwargs)
