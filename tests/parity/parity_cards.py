"""Cards: what a public reference implementation computed for one small case, and the search for them.

A card is ``NAME.json`` (which operator or model, its arguments, tolerances) beside ``NAME.safetensors`` (inputs,
parameters, outputs, states, gradients). A list of a checkpoint's keys (``keys``, and what
they belong to) is a card without tensors, named after its file. Other JSON files without a ``name`` are no cards.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Tensors that go into a computation; all others are what it must give back.
_GIVEN = ("in.", "input.", "param.", "buffer.", "cot.", "cotangent.", "lossw.")


class UnsupportedCardError(Exception):
    """The project does not support what a card asks for."""


@dataclass(frozen=True, eq=False)
class Card:
    """One case: the card's entries and, loaded when first asked for, its tensors.

    Args:
        path: Of the JSON file.
        entries: What it holds.
        device: Where the tensors are loaded to, and the case is run.
        autocast: The dtype that the case is run in where PyTorch chooses precisions; None for full precision.
    """

    path: Path
    entries: dict[str, Any]
    device: str = "cpu"
    autocast: torch.dtype | None = None

    @property
    def name(self) -> str:
        return self.entries["name"]

    @property
    def kind(self) -> str:
        """What the card says it is, in whichever entry its family says so."""
        return next((str(self.entries[key]) for key in ("op", "class", "official") if key in self.entries), "")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        path = self.path.with_suffix(".safetensors")
        if not path.is_file():
            raise FileNotFoundError(f"{self.path.name}: its tensors are not beside it ({path.name})")
        if "sha256" in self.entries:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest == self.entries["sha256"], f"{path.name}: not the file that the card describes"
        return load_file(path, device=self.device)

    @property
    def expected(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.tensors.items() if not name.startswith(_GIVEN)}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """What operators are run in: on a GPU float32 alone, in which its kernels compute."""
        return (torch.float32, torch.float64) if self.device == "cpu" else (torch.float32,)

    def group(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return copies of the tensors under ``prefix``, without it; floating ones in ``dtype``."""
        found = {name[len(prefix) :]: x for name, x in self.tensors.items() if name.startswith(prefix)}
        return {
            name: x.to(dtype, copy=True) if dtype is not None and x.is_floating_point() else x.clone()
            for name, x in found.items()
        }

    def options(self, entry: str, *known: str) -> dict[str, Any]:
        """Return the card's options, refusing those the family does not know by name."""
        options = dict(self.entries.get(entry) or {})
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise UnsupportedCardError(
                f"{self.name}: unsupported option {', '.join(f'{key}={options[key]!r}' for key in unknown)}"
            )
        return options


def read_card(path: Path) -> Card | None:
    """Return the card in a JSON file, or None where the file is no card."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(entries, dict) and "keys" in entries:
        entries["name"] = path.stem
    return Card(path, entries) if isinstance(entries, dict) and "name" in entries else None


def find_cards(folder: Path, patterns: Sequence[str] = ("*",)) -> list[Card]:
    """Return the cards of a folder whose names match one of the patterns, sorted by name.

    Raises:
        FileNotFoundError: If the folder does not exist, or a pattern matches no card in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--parity-dir {folder}: no such folder")
    cards = sorted(_read_all(folder.glob("*.json")), key=lambda card: card.name)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(card.name, pattern) for card in cards):
            raise FileNotFoundError(f"--cases {pattern!r}: none of the {len(cards)} cards in {folder} matches")
    return [card for card in cards if any(fnmatch.fnmatchcase(card.name, pattern) for pattern in patterns)]


def _read_all(paths: Iterable[Path]) -> list[Card]:
    return [card for card in map(read_card, paths) if card is not None]
