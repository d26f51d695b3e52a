"""The nearest known name to one that was mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 40


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy: the names that ``name`` may have been meant for, or the first of them all if none is near.

    Args:
        name: What the person typed.
        known: The names that exist.
    """
    options = sorted(set(known))
    lowered = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(lowered[option]) for option in close) + "?"
    shown = options if len(options) <= _MOST else [*options[:_MOST], f"… ({len(options)} in all)"]
    return f"choose one of {', '.join(shown)}" if options else "there are none"
