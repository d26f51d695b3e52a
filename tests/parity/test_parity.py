"""Everything a card holds equals what we compute: outputs, states, gradients, losses, greedy tokens."""

from __future__ import annotations

import families_audio  # noqa: F401  registers its families
import families_forecasting  # noqa: F401
import families_mambavision  # noqa: F401
import families_operators  # noqa: F401
import families_routes  # noqa: F401
import families_text  # noqa: F401
import families_umamba  # noqa: F401
import families_vim  # noqa: F401
import families_vmamba  # noqa: F401
from parity_cards import Card
from parity_families import check_card


def test_card(card: Card) -> None:
    check_card(card)
