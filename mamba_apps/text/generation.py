"""Continuing texts token by token: how a token is chosen, and the loop that a GPU replays from a captured graph.

Dimensions in names: B batch, L length, V vocabulary, K tokens to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import State
from mamba_kernels.graph_steps import ReplayedStep, replays_safely

# Below it the capture takes longer than it saves.
_WORTH_A_CAPTURE = 32


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from logits, on their device and without reading anything back.

    Args:
        tokens: Number of tokens; logits past it stand for none.
        temperature: What logits are divided by before a token is drawn; 0 takes the most probable one.
        top_k: How many of the most probable tokens are drawn from; None for all.
        generator: Where random numbers come from, on the logits' device; None for PyTorch's own.

    Raises:
        UserError: If the temperature is negative or not finite, or ``top_k`` is not from 1 to ``tokens``.
    """

    tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"the temperature is {self.temperature}", "give 0 for the most probable token, or more")
        if self.top_k is not None and not 1 <= self.top_k <= self.tokens:
            raise UserError(f"top_k is {self.top_k}", f"give 1 to {self.tokens}, or None for all tokens")

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Return a token (B,) for each row of logits."""
        logits_BV = logits_BV[:, : self.tokens]
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        logits_BK, tokens_BK = logits_BV.float(), None
        if self.top_k is not None:
            logits_BK, tokens_BK = logits_BK.topk(self.top_k, dim=-1)
        # The largest of p / e over exponential e is a draw from p, and nothing is summed up or searched.
        rarity_BK = torch.empty_like(logits_BK).exponential_(generator=self.generator).log()
        chosen_B = (logits_BK / self.temperature - rarity_BK).argmax(dim=-1)
        return chosen_B if tokens_BK is None else tokens_BK.gather(1, chosen_B[:, None])[:, 0]


class CausalModel(Protocol):
    """What reads tokens with a state: `MambaLM`, and anything with these methods."""

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> list[State]:
        """Return the state before the first token."""

    def prefill(self, ids_BL: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Return the logits (B, V) after several tokens, and the state."""

    def step(self, ids_B: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Return the logits (B, V) after one token, and the state, which is updated in place."""


class Continuation:
    """Texts that are continued one token a call.

    Args:
        model: The model, in evaluation mode.
        prompt_BL: Token ids, at least one for each text.
        new_tokens: The most tokens that will be asked for.
        sampler: How they are chosen.
        replay: Whether steps are captured once in a graph and replayed, where there is a GPU.
    """

    def __init__(
        self, model: CausalModel, prompt_BL: Tensor, new_tokens: int, sampler: Sampler, *, replay: bool
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._length = prompt_BL.shape[1] + new_tokens
        self._step: ReplayedStep | None = None
        self._state: Any = self._read(prompt_BL)
        self._waiting: Tensor | None = self._state[0]
        if replay and new_tokens > 1:
            own = () if sampler.generator is None else (sampler.generator,)
            self._step = ReplayedStep(self._advance, (), self._state, steps=new_tokens - 1, generators=own)
            self._state = None

    def restart(self, prompt_BL: Tensor) -> None:
        """Continue other prompts of the same shape, without another capture."""
        state = self._read(prompt_BL)
        self._waiting = state[0]
        if self._step is None:
            self._state = state
        else:
            self._step.reset(state)

    @torch.no_grad()
    def next(self) -> Tensor:
        """Return the next token (B,) of every text."""
        if self._waiting is not None:
            ids_B, self._waiting = self._waiting, None
            return ids_B
        if self._step is not None:
            return self._step()
        ids_B, self._state = self._advance(self._state)
        return ids_B

    @torch.no_grad()
    def _read(self, prompt_BL: Tensor) -> tuple[Tensor, list[State]]:
        states = self._model.init_state(prompt_BL.shape[0], max_length=self._length)
        logits_BV, states = self._model.prefill(prompt_BL, states)
        return self._sampler(logits_BV), states

    def _advance(self, state: tuple[Tensor, list[State]]) -> tuple[Tensor, Any]:
        logits_BV, states = self._model.step(*state)
        ids_B = self._sampler(logits_BV)
        return ids_B, (ids_B, states)


def chosen_replay(model: nn.Module, prompt_BL: Tensor, new_tokens: int, replay: bool | None) -> bool:
    """Return whether generation replays its steps: as asked, or where that is safe and worth a capture."""
    if replay is not None:
        return replay
    return new_tokens >= _WORTH_A_CAPTURE and replays_safely(model, prompt_BL.device)
