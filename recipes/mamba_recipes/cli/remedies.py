"""The readers' remedies name arguments of Python; here they name what is typed."""

from __future__ import annotations

import re
from collections.abc import Callable

_FORMAT = re.compile(r", or pass read_series time_format='([^']*)' or the like")
_ARGUMENT = re.compile(r"\b(missing|tz|freq|time_col|id_col|target_col)=(?:'([^']*)'(?: or '(\w+)')?|(\d+))")


def typed(remedy: str, option: Callable[[str, str], str], *, formats: bool) -> str:
    """Return a reader's remedy with options in place of arguments.

    Args:
        remedy: The remedy.
        option: Writes an option by its name and value.
        formats: Whether one of the options is how timestamps are written.
    """

    def replaced(found: re.Match[str]) -> str:
        name, word, other, number = found.groups()
        return option(name, word or number) + (f" or {other}" if other else "")

    remedy = _FORMAT.sub(lambda found: f", or pass {option('time_format', found[1])}" if formats else "", remedy)
    return _ARGUMENT.sub(replaced, remedy)
