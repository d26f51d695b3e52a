"""What each candidate of a comparison may spend: epochs, steps or seconds, one of them, equal for all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mamba_apps.errors import UserError

_UNITS = {
    "epoch": ("epochs", 1),
    "epochs": ("epochs", 1),
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "s": ("seconds", 1),
    "second": ("seconds", 1),
    "seconds": ("seconds", 1),
    "min": ("seconds", 60),
    "minutes": ("seconds", 60),
}


@dataclass(frozen=True)
class Budget:
    """An amount of training.

    Args:
        kind: "epochs", "steps" (of the optimiser) or "seconds" (of training).
        amount: How many; at least 1 epoch or step, more than 0 seconds.
    """

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "300steps", "5epochs" or "60s".

        Raises:
            UserError: If it is none of these.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
        unit = _UNITS.get(match.group(2)) if match else None
        amount = float(match.group(1)) * unit[1] if match and unit else 0.0
        if unit is None or amount <= 0 or (unit[0] != "seconds" and amount != int(amount)):
            raise UserError(f"budget {text!r} is not understood", "write it like 300steps, 5epochs or 60s")
        return cls(unit[0], amount if unit[0] == "seconds" else int(amount))

    def __str__(self) -> str:
        unit = self.kind if self.amount != 1 else self.kind[:-1]
        return f"{self.amount:g} {unit}"

    def trainer_options(self) -> dict[str, float | int | None]:
        """Return the limits as `make_trainer` takes them: the one that holds, and None for the others."""
        return {
            "max_epochs": int(self.amount) if self.kind == "epochs" else None,
            "max_steps": int(self.amount) if self.kind == "steps" else None,
            "max_seconds": self.amount if self.kind == "seconds" else None,
        }
