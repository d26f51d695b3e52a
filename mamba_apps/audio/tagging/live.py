"""Live sound, from a microphone or a network: tagged piece by piece, from a state of constant size.

Dimensions in names: S samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mamba_apps.audio.model import AudioModel
from mamba_apps.audio.tagging.pieces import LiveResampler
from mamba_apps.audio.tagging.sounds import Array, Channel, Hearing, samples_of
from mamba_apps.audio.tagging.tags import Tags, likeliest
from mamba_kernels.graph_steps import ReplayedStep, replays_safely


class LiveTagger:
    """What a causal model has heard so far; `AudioTagger.stream` makes one.

    The tags after all pieces are those of the whole sound. A piece costs the same at any time. On a GPU, as soon as
    pieces of one length leave a state of the same shapes, which those of whole tokens do, their step is captured in a
    CUDA graph and replayed, until a piece of another length comes.

    Args:
        network: The model.
        labels: The names of its classes.
        rate: Samples a second of the pieces.
        binary: Whether each class has a probability of its own.
        channel: "mean" of the channels, or the number of one of them, from 0.
        top: How many classes to return, at most all.

    Raises:
        UserError: The model cannot read live sound; the error says why.
        DataError: It is no rate of sound.
    """

    def __init__(
        self,
        network: AudioModel,
        labels: Sequence[str],
        rate: int,
        *,
        binary: bool = False,
        channel: Channel = "mean",
        top: int = 5,
    ) -> None:
        self.network, self.labels, self.rate = network, list(labels), rate
        self.binary, self.channel, self.top = binary, channel, top
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._state: Any = self.network.init_state(1)
        self._replayed: ReplayedStep | None = None
        self._layout: tuple[Any, ...] = ()
        self._resampler = LiveResampler(self.rate, self.network.sample_rate, "the stream")
        self._logits_K: Tensor | None = None
        self._heard = 0
        self._peak = 0.0

    @property
    def seconds(self) -> float:
        """How much was heard."""
        return self._heard / self.rate

    @property
    def logits(self) -> Tensor | None:
        """The classes' scores (K,) of all that was heard; None before the first token."""
        return self._logits_K

    def feed(self, samples: Array) -> Tags | None:
        """Hear the next piece, however short.

        Args:
            samples: The piece: (S,), (S, C) or (C, S), as floats in [-1, 1] or as integers.

        Returns:
            The likeliest classes of all that was heard so far; None before the model's first token is whole.

        Raises:
            DataError: The piece is empty or not finite; it is then not heard.
        """
        wave_S, _ = samples_of(samples, self.channel)
        self._heard += len(wave_S)
        self._peak = max(self._peak, float(wave_S.abs().max()))
        return self._hear(self._resampler.step(wave_S))

    def finish(self) -> Tags | None:
        """Hear what still waits in the resampler, after which `reset` begins anew; return the tags of the whole."""
        return self._hear(self._resampler.finish())

    @torch.inference_mode()
    def _hear(self, wave_S: Tensor) -> Tags | None:
        if len(wave_S):
            device = next(self.network.parameters()).device
            logits_1K = self._step(wave_S[None].to(device))
            if self._state.backbone.tokens:
                self._logits_K = logits_1K[0].float().cpu()
        if self._logits_K is None:
            return None
        probability_K = self._logits_K.sigmoid() if self.binary else self._logits_K.softmax(dim=-1)
        to = self.network.sample_rate
        notes = [] if self.rate == to else [f"resampled from {self.rate} Hz to {to} Hz"]
        hearing = Hearing("", self.seconds, 0, iter(()), notes, self._peak)
        return likeliest(hearing, probability_K, self.labels, self.top)

    def _step(self, wave_1S: Tensor) -> Tensor:
        """Return the logits after a piece, by a captured step where there is one for its length."""
        if self._replayed is not None:
            if wave_1S.shape == self._layout[0]:
                logits_1K = self._replayed(wave_1S)
                self._state = self._replayed.state
                return logits_1K
            self._replayed = None
        logits_1K, self._state = self.network.step(wave_1S, self._state)
        tensors = (x for x in pytree.tree_leaves(self._state) if isinstance(x, Tensor))
        before, self._layout = self._layout, (wave_1S.shape, *[x.shape for x in tensors])
        if self._layout == before and replays_safely(self.network, wave_1S.device):
            self._replayed = ReplayedStep(self.network.step, [wave_1S], self._state)
            self._state = self._replayed.state
        return logits_1K
