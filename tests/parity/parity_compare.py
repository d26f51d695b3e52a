"""Comparing what we computed with everything that a card holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from parity_cards import Card
from torch import Tensor

# What autocast may move a tensor by, as a part of its largest value; five times as much in a backward pass, which is
# the cards' own ratio, and in a loss, whose terms cancel.
_AUTOCAST, _AUTOCAST_BACKWARD = 3e-2, 15e-2


class Comparison:
    """Collects one run's results against a card; ``finish`` fails on differences and on what was left out.

    Args:
        card: The card whose outputs, states and gradients are expected.
        run: Which run of the case this is (dtype, backend), for the message.
    """

    def __init__(self, card: Card, run: str = "") -> None:
        self._card = card
        self._run = run
        self._expected = card.expected
        self._seen: set[str] = set()
        self._problems: list[str] = []

    def near(self, name: str, got: Tensor | None, *, atol: float, rtol: float = 0.0) -> None:
        """Expect ``got`` to be the card's tensor ``name``: same shape, |got - expected| <= atol + rtol |expected|."""
        if self._shapes_agree(name, got):
            assert got is not None
            self._close(name, got, self._expected[name], atol, rtol)

    def near_all(
        self,
        prefix: str,
        got: Mapping[str, Tensor | None],
        renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        *,
        atol: float,
        rtol: float,
    ) -> None:
        """Expect ``got`` to be all the card's tensors under ``prefix``, which ``renamed`` puts under our names."""
        names = [name for name in self._expected if name.startswith(prefix)]
        self._seen.update(names)
        expected = renamed({name[len(prefix) :]: self._expected[name] for name in names})
        for name in sorted(set(got) ^ set(expected)):
            self._problems.append(f"{prefix}{name}: {'not held by the card' if name in got else 'we have none'}")
        for name in sorted(set(got) & set(expected)):
            mine = got[name]
            if mine is None or mine.shape != expected[name].shape:
                self._problems.append(f"{prefix}{name}: expected shape {tuple(expected[name].shape)}, got {mine}")
            else:
                self._close(prefix + name, mine, expected[name], atol, rtol)

    def core(self, name: str, got: Tensor | None) -> None:
        """Expect ``got`` to be as near as its dtype allows, by the error of the reference's own float32 run."""
        if self._shapes_agree(name, got):
            assert got is not None
            self._close(name, got, self._expected[name], self.core_tolerance(name, got.dtype), 0.0)

    def core_tolerance(self, name: str, dtype: torch.dtype) -> float:
        """Return ten times the reference's float32 error, or what float64 (stored as it is) allows."""
        expected = self._expected[name]
        size = float(expected.abs().max()) if expected.numel() else 0.0
        if dtype == torch.float64:
            return size * (1e-11 if expected.dtype == torch.float64 else 1e-6)
        return 10 * self._card.entries.get("f32_err", {}).get(name, 0.0) + 1e-6 * size

    def same(self, name: str, got: Tensor) -> None:
        """Expect ``got`` to be exactly the card's tensor ``name``."""
        if self._shapes_agree(name, got) and not torch.equal(got, self._expected[name].to(got.dtype)):
            self._problems.append(f"{name}: {int((got != self._expected[name]).sum())} elements differ")

    def finish(self) -> None:
        """Raise AssertionError if anything differed, or if an expected tensor was never compared."""
        left_out = sorted(set(self._expected) - self._seen)
        problems = self._problems + [f"{name}: held by the card, but never compared" for name in left_out]
        assert not problems, "\n".join([f"{self._card.name} {self._run}".strip(), *problems])

    def _shapes_agree(self, name: str, got: Tensor | None) -> bool:
        assert name in self._expected, f"{self._card.name}: the card holds no {name!r}"
        self._seen.add(name)
        shape = None if got is None else tuple(got.shape)
        if shape != tuple(self._expected[name].shape):
            self._problems.append(f"{name}: expected shape {tuple(self._expected[name].shape)}, got {shape}")
            return False
        return True

    def _close(self, name: str, got: Tensor, expected: Tensor, atol: float, rtol: float) -> None:
        error = (got.detach().double() - expected.double()).abs()
        allowed = atol + rtol * expected.double().abs()
        if self._card.autocast is not None:
            part = _AUTOCAST_BACKWARD if name.startswith(("grad", "loss")) else _AUTOCAST
            # Nothing need be nearer than in float32: of a gradient whose terms cancel, rounding leaves nothing.
            allowed = allowed.clamp(min=part * float(expected.abs().max()))
        if not bool((error <= allowed).all()):
            worst = float((error - allowed).nan_to_num(nan=float("inf")).max())
            self._problems.append(f"{name}: off by {float(error.max()):.3g}, {worst:.3g} more than allowed")
