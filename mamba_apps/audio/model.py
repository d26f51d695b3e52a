"""From samples to classes: a front end and a backbone behind one interface.

Dimensions in names: B batch, S samples, D channels of an embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.audio.ast import AST
from mamba_apps.audio.filterbank import FilterBank
from mamba_apps.audio.live import LiveMamba, LiveState
from mamba_apps.errors import UserError


class RawSound(nn.Module):
    """The front end of models that take samples: it pads or crops them, and no more.

    Args:
        sample_rate: Samples a second.
        samples: How many come out; None for as many as the clip has.
    """

    nothing: Tensor

    def __init__(self, sample_rate: int = 16000, samples: int | None = None) -> None:
        super().__init__()
        self.sample_rate, self.samples = sample_rate, samples
        # It goes where the model goes, and tells a state made here where to lie.
        self.register_buffer("nothing", torch.empty(0), persistent=False)

    def forward(self, wave_BS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return the sounds (B, samples), silent past each clip's own samples ``lengths_B``."""
        if lengths_B is not None:
            sample_S = torch.arange(wave_BS.shape[1], device=wave_BS.device)
            wave_BS = wave_BS.masked_fill(sample_S >= lengths_B.to(wave_BS.device)[:, None], 0.0)
        return wave_BS if self.samples is None else F.pad(wave_BS, (0, self.samples - wave_BS.shape[1]))

    def init_state(self, batch_size: int) -> Tensor:
        """Return what waits before the first sample: nothing ever does."""
        return self.nothing.new_zeros(batch_size, 0)

    def step(self, wave_BS: Tensor, waiting_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next piece as it is."""
        return wave_BS, waiting_BS


class SoundState(NamedTuple):
    """What a model remembers of live sound.

    Args:
        waiting: What waits in the front end.
        backbone: What the backbone remembers.
    """

    waiting: Tensor
    backbone: LiveState


class AudioModel(nn.Module):
    """A front end and a backbone.

    Args:
        frontend: From samples to what the backbone takes.
        backbone: From there to logits.
    """

    def __init__(self, frontend: FilterBank | RawSound, backbone: LiveMamba | AST) -> None:
        super().__init__()
        self.frontend, self.backbone = frontend, backbone

    @property
    def sample_rate(self) -> int:
        """Samples a second that the model takes."""
        return self.frontend.sample_rate

    def forward(self, wave_BS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return the logits (B, num_classes) of sounds.

        Args:
            wave_BS: Samples in [-1, 1], at the model's rate.
            lengths_B: Each clip's own samples, where shorter ones were padded to the batch's length.
        """
        return self.backbone(self.frontend(wave_BS, lengths_B))

    def embed(self, wave_BS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return what the classifier sees (B, D) of sounds; the arguments are those of ``forward``."""
        features = self.backbone.forward_features(self.frontend(wave_BS, lengths_B))
        return self.backbone.forward_head(features, pre_logits=True)

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> SoundState:
        """Return the state before the first sample of live sound; see ``LiveMamba.init_state``.

        Raises:
            UserError: If the model cannot read live sound; the error says why.
        """
        if not isinstance(self.backbone, LiveMamba):
            raise UserError("AST cannot read live sound", "its attention looks ahead: give a causal model")
        return SoundState(
            self.frontend.init_state(batch_size), self.backbone.init_state(batch_size, max_length=max_length)
        )

    def step(self, wave_BS: Tensor, state: SoundState) -> tuple[Tensor, SoundState]:
        """Read the next piece of live sound, however short; see ``LiveMamba.step``.

        Returns:
            The logits of all that was heard so far, and the state. They are those of ``forward`` where the front end
            neither pads nor crops.
        """
        assert isinstance(self.backbone, LiveMamba)  # noqa: S101  a state exists
        x, waiting = self.frontend.step(wave_BS, state.waiting)
        logits_BC, backbone = self.backbone.step(x, state.backbone)
        return logits_BC, SoundState(waiting, backbone)
