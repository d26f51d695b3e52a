"""What the audio models share beyond Vision Mamba: live sound, piece by piece, from a state of constant size.

Dimensions in names: B batch, L tokens, D channels of a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import State
from mamba_apps.vision import Vim
from mamba_apps.vision.vim_block import VimBlock


class LiveState(NamedTuple):
    """What a model remembers of the sound so far.

    Args:
        waiting: What each layer of the stem has seen and not yet used up.
        blocks: The blocks' states.
        sum_BD: The sum of the outputs, for their mean; in float64, since a day has millions of them.
        tokens: How many they were; in a tensor where steps are replayed from a captured graph.
    """

    waiting: tuple[Tensor, ...]
    blocks: tuple[State, ...]
    sum_BD: Tensor
    tokens: int | Tensor


class LiveMamba(Vim):
    """Vision Mamba's encoder over a line in time, which can also be read as it comes.

    A subclass implements ``stem_state`` and ``stem_step``. The arguments are ``Vim``'s.
    """

    def why_not_live(self) -> str:
        """Return what keeps the model from reading live sound; empty where nothing does."""
        if not all(block.mixer.causal for block in self._blocks):
            return 'its blocks look ahead: give route="forward" and a causal mixer'
        if self.pos_embed is not None or self.rope:
            return "its positions are those of a clip: give pos_embed=False and rope=False"
        if self.layout.place not in ("end", "none") or self.global_pool not in ("token", "avg"):
            return 'what it pools is not at hand: give class_token="end" or "none", and global_pool="token" or "avg"'
        if any(step > size for step, size in zip(self.patch_embed.stride, self.patch_embed.patch_size, strict=True)):
            return "there are gaps between its patches: give a stride of at most the patch"
        return ""

    def stem_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return what waits in the stem before the first piece."""
        raise NotImplementedError

    def stem_step(self, x: Tensor, waiting: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the tokens (B, L, D) that are whole after a piece, L from 0 up, and what waits."""
        raise NotImplementedError

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> LiveState:
        """Return the state before the first piece.

        Args:
            batch_size: Sounds that are read beside each other.
            max_length: The most tokens that will be read, for mixers that store every token.

        Raises:
            UserError: If the model cannot read live sound; the error says why.
        """
        if reason := self.why_not_live():
            raise UserError(f"{type(self).__name__} cannot read live sound", reason)
        blocks = tuple(block.mixer.init_state(batch_size, max_length=max_length) for block in self._blocks)
        device = self._blocks[0].norm.weight.device
        sum_BD = torch.zeros(batch_size, self.embed_dim, dtype=torch.float64, device=device)
        return LiveState(self.stem_state(batch_size), blocks, sum_BD, 0)

    def step(self, x: Tensor, state: LiveState) -> tuple[Tensor, LiveState]:
        """Read the next piece, however short, at a cost that does not depend on what came before.

        Args:
            x: What ``forward`` takes, cut in time.
            state: From ``init_state`` or the piece before; it is left as it was.

        Returns:
            The logits (B, num_classes) of all that was heard so far, which are those of ``forward`` on the whole once
            there is a token, and the state.
        """
        token_BLD, waiting = self.stem_step(x, state.waiting)
        state = state._replace(waiting=waiting)
        if token_BLD.shape[1]:
            out_BLD, blocks = self._read(token_BLD, state.blocks)
            sum_BD = state.sum_BD + out_BLD.double().sum(dim=1)
            state = LiveState(waiting, blocks, sum_BD, state.tokens + token_BLD.shape[1])
        if self.global_pool == "token":
            class_B1D = self.get_parameter("cls_token").expand(token_BLD.shape[0], -1, -1)
            pooled_BD = self._read(class_B1D, state.blocks)[0][:, 0]
        else:
            # A captured graph has the count on its device.
            count = state.tokens.clamp(min=1) if isinstance(state.tokens, Tensor) else max(state.tokens, 1)
            pooled_BD = (state.sum_BD / count).to(token_BLD.dtype)
        return self.head(self.head_drop(pooled_BD)), state

    @property
    def _blocks(self) -> list[VimBlock]:
        return cast(list[VimBlock], list(self.layers))

    def _read(self, hidden_BLD: Tensor, states: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        residual: Any = None
        after = []
        for block, state in zip(self._blocks, states, strict=True):
            hidden_BLD, residual, state = block.prefill(hidden_BLD, residual, state)
            after.append(state)
        return self._sum(hidden_BLD, residual, norm=True), tuple(after)
