"""The residual block of Mamba's models: add, normalise, mix.

Dimensions in names: B batch, L length, D channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from mamba_apps.mixers.base import Mixer, State
from mamba_apps.mixers.norms import LayerNorm, RMSNorm


class MixerBlock(nn.Module):
    """Add the last block's output to the residual, normalise the sum, and mix it.

    The sum stands apart from the block's output until the next block adds them, so that one operator does both; the
    last block's pair goes through ``norm.add`` of the model's final norm.

    Args:
        mixer: The mixer.
        norm: The norm of its input.
        residual_in_fp32: Whether the residual is kept in float32, whatever the dtype of the blocks' outputs.
    """

    def __init__(self, mixer: Mixer, norm: RMSNorm | LayerNorm, residual_in_fp32: bool = True) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.residual_in_fp32 = residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, *, seq_idx_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            hidden: What the mixer takes, (B, L, D) or a grid: the last block's output.
            residual: The residual before that output is added; None in the first block.
            seq_idx_BL: As in ``Mixer.forward``.

        Returns:
            The mixer's output, and the residual to which it is still to be added.
        """
        hidden, residual = self.norm.add(hidden, residual, self.residual_in_fp32)
        return self.mixer(hidden, seq_idx_BL=seq_idx_BL), residual

    def prefill(self, hidden_BLD: Tensor, residual_BLD: Tensor | None, state: State) -> tuple[Tensor, Tensor, State]:
        """Run the block on several tokens from a state; see ``Mixer.prefill``."""
        hidden_BLD, residual_BLD = self.norm.add(hidden_BLD, residual_BLD, self.residual_in_fp32)
        hidden_BLD, state = self.mixer.prefill(hidden_BLD, state)
        return hidden_BLD, residual_BLD, state

    def step(self, hidden_BD: Tensor, residual_BD: Tensor | None, state: State) -> tuple[Tensor, Tensor, State]:
        """Run the block on one token from a state; see ``Mixer.step``."""
        hidden_BD, residual_BD = self.norm.add(hidden_BD, residual_BD, self.residual_in_fp32)
        hidden_BD, state = self.mixer.step(hidden_BD, state)
        return hidden_BD, residual_BD, state
