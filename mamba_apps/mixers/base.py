"""What every sequence mixer is: a module from (B, L, D) to (B, L, D) that says what it can stand in for.

Dimensions in names: B batch, L length, D channels (``d_model``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_kernels import Route
from mamba_kernels.routes.route import NAMES

State: TypeAlias = tuple[Any, ...]
"""What a causal mixer remembers of the tokens read so far; each mixer defines its own named tuple."""

ROUTE_NAMES = frozenset(NAMES)


class Mixer(nn.Module, ABC):
    """Mix information along a sequence.

    A subclass sets the attributes below, implements ``forward`` and ``reset_parameters``, and, where it is causal,
    ``init_state``, ``prefill`` and ``step``. Reading a sequence step by step, at once, or partly each way gives the
    same result.

    Args:
        d_model: Channels of the input and of the output.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each operator choose.
    """

    causal: bool
    """Whether the output at a position depends only on the inputs up to it."""

    routes: frozenset[str]
    """Names of the routes ``RoutedMixer`` may lay this mixer on."""

    shared_projections: ClassVar[tuple[str, ...]] = ()
    """Submodules all readings share under ``share="projections"``; empty where the mixer has no such form."""

    undecayed: ClassVar[tuple[str, ...]] = ()
    """Parameters that take no weight decay."""

    def __init__(self, d_model: int, backend: str | None = None) -> None:
        super().__init__()
        if not isinstance(d_model, int) or d_model < 1:
            raise UserError(f"d_model is {d_model!r}", "give a whole number of at least 1 channel")
        self.d_model = d_model
        self.backend = backend

    @abstractmethod
    def forward(self, x_BLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix a batch of sequences, all positions at once.

        Args:
            x_BLD: The input, L at least 1.
            seq_idx_BL: Which sequence each position belongs to, for several packed into one row: nothing passes from
                one to the next where the value changes. Negative marks padding, whose values reach neither the
                result nor a gradient, and whose output is the output projection of zero.

        Returns:
            The output (B, L, D).

        Raises:
            UserError: If a shape does not fit.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw every parameter anew from torch's random generator."""

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """Return the state before the first token.

        Args:
            batch_size: Number of sequences.
            max_length: The most tokens that will be read; only mixers that store every token need it.
            dtype: Of what is stored per token; None for the parameters' own. Recurrent states stay in float32.
            device: None for the parameters' own.

        Raises:
            UserError: If the mixer is not causal.
        """
        raise self._not_causal("init_state")

    def prefill(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        """Read several tokens at once, starting from ``state``, which is left as it was.

        Returns:
            The output (B, L, D) and the state after the last token; gradients flow through both.

        Raises:
            UserError: If the mixer is not causal, or the state has no room for the tokens.
        """
        raise self._not_causal("prefill")

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token. The buffers of ``state`` are updated in place and returned: for inference only.

        Returns:
            The output (B, D) and the state after the token.

        Raises:
            UserError: If the mixer is not causal, the token's shape does not fit, a gradient would be recorded, or the
                state has no room for the token.
        """
        raise self._not_causal("step")

    def forward_route(self, x: Tensor, route: Route, sets: Sequence[Mixer]) -> Tensor:
        """Read a grid along every reading of ``route``, with the projections shared; ``sets[0]`` is this mixer.

        Args:
            x: The grid (B, *spatial, D).
            route: The route; its name is in ``routes``.
            sets: One mixer per reading, of this class; all but the first lack the shared projections.

        Returns:
            The output (B, *spatial, D).
        """
        raise UserError(
            f"{type(self).__name__} has no projections that its readings could share", 'use share="all" or share="none"'
        )

    def forward_everywhere(self, x: Tensor, route: Route) -> Tensor | None:
        """Return the merge of what this mixer makes of each reading of ``route``, without permuting the grid.

        The results are those of ``forward`` on each reading, put back on the grid and merged, with the projections run
        once.

        Args:
            x: The grid (B, *spatial, D).
            route: The route; its name is in ``routes``.

        Returns:
            The output (B, *spatial, D), or None where the mixer has no such form for this merge.
        """
        return None

    def flag_parameters(self) -> None:
        """Mark the parameters in ``undecayed`` the way optimisers elsewhere look for (``_no_weight_decay``)."""
        for name in self.undecayed:
            parameter = getattr(self, name, None)
            if parameter is not None:
                parameter._no_weight_decay = True

    def checked(self, x_BLD: Tensor, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Return the input with zeros in place of padding.

        Raises:
            UserError: Unless the input is (B, L, d_model) with L at least 1, and the ids are (B, L).
        """
        if x_BLD.dim() != 3 or x_BLD.shape[-1] != self.d_model or x_BLD.shape[1] < 1:
            raise UserError(
                f"{type(self).__name__} got an input of shape {tuple(x_BLD.shape)}",
                f"give (batch, length, {self.d_model}) with a length of at least 1",
            )
        if seq_idx_BL is None:
            return x_BLD
        if seq_idx_BL.shape != x_BLD.shape[:2]:
            raise UserError(
                f"{type(self).__name__} got seq_idx of shape {tuple(seq_idx_BL.shape)}",
                f"give (batch, length) = {tuple(x_BLD.shape[:2])}",
            )
        return x_BLD.masked_fill((seq_idx_BL < 0)[..., None], 0.0)

    def checked_token(self, x_BD: Tensor, weight: Tensor) -> Tensor:
        """Return the token, before anything of the state has changed.

        Args:
            x_BD: The token.
            weight: What it is projected by first.

        Raises:
            UserError: Unless the token is (B, d_model), and no gradient would be recorded.
        """
        if x_BD.dim() != 2 or x_BD.shape[-1] != self.d_model:
            raise UserError(
                f"{type(self).__name__}.step got a token of shape {tuple(x_BD.shape)}", f"give (batch, {self.d_model})"
            )
        if torch.is_grad_enabled() and (x_BD.requires_grad or weight.requires_grad):
            raise UserError(
                f"{type(self).__name__}.step changes its state in place, which has no gradient",
                "call it under torch.no_grad(), or use forward or prefill",
            )
        return x_BD

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copying a module drops the attributes of its parameters.
        super().__setstate__(state)
        self.flag_parameters()

    def _not_causal(self, method: str) -> UserError:
        return UserError(
            f"{type(self).__name__}.{method} needs a causal mixer, and this one looks ahead",
            "use forward, or a causal mixer",
        )


def projects_merged(route: Route, projection: nn.Linear) -> bool:
    """Return whether projecting the merged readings of a route is merging the projected ones."""
    # A sum has the projection's bias as often as there are readings.
    return route.merge == "mean" or (route.merge == "sum" and projection.bias is None)


def no_weight_decay(module: nn.Module) -> frozenset[str]:
    """Return the full names of the parameters in ``module`` that its mixers want without weight decay."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, Mixer)
        for name in part.undecayed
    )
