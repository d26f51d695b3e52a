"""What a benchmark measures: chosen by the words of its name, one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from mamba_apps.errors import UserError

T = TypeVar("T")


def chosen(cases: Mapping[str, T], filters: Sequence[str], known: str | None = None) -> dict[str, T]:
    """Return the cases whose name has all words of one filter or another, or all where there is no filter.

    Args:
        cases: By name.
        filters: Words, in upper case or lower.
        known: What there is, for the remedy; None for the names.

    Raises:
        UserError: If there is no such case.
    """
    wanted = [text.lower().split() for text in filters]
    found = {
        name: case
        for name, case in cases.items()
        if not wanted or any(all(word in name.lower() for word in words) for words in wanted)
    }
    if not found:
        raise UserError(f"--only {' --only '.join(filters)} matches no case", f"there is {known or '; '.join(cases)}")
    return found


def measure_each(works: Mapping[str, Callable[[], T]], talk: Callable[[str], None]) -> list[T]:
    """Return what each work does, told before it starts; each draws the same numbers and begins with free memory."""
    results = []
    for name, work in works.items():
        talk(name)
        torch.manual_seed(0)
        results.append(work())
        torch.cuda.empty_cache()
    return results
