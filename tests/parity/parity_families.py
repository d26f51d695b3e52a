"""Which module checks which cards: families register themselves by the pattern of the cards' names."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

import torch
from parity_cards import Card, UnsupportedCardError

Check = Callable[[Card], None]

_families: dict[str, Check] = {}


def family(*patterns: str) -> Callable[[Check], Check]:
    """Register the function that checks every card whose name matches one of the patterns."""

    def register(check: Check) -> Check:
        _families.update(dict.fromkeys(patterns, check))
        return check

    return register


def check_card(card: Card) -> None:
    """Check one card with its family, on the card's device and in its precision.

    Raises:
        UnsupportedCardError: If no family of this project checks such cards, naming the card.
        AssertionError: If what we compute differs from what the card holds.
    """
    fitting = [pattern for pattern in _families if fnmatch.fnmatchcase(card.name, pattern)]
    if not fitting:
        raise UnsupportedCardError(
            f"{card.name}: unsupported family ({card.kind or 'the card does not say what it is'})"
        )
    with (
        torch.device(card.device),
        torch.autocast(card.device, card.autocast, enabled=card.autocast is not None),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        _families[max(fitting, key=len)](card)
