"""The spectrogram that Audio Mamba and AST see: Kaldi's log mel filter banks, in batches and on any device.

What is computed is ``torchaudio.compliance.kaldi.fbank`` with a Hann window and neither dither nor energy; that
function takes one clip at a time. The published front end takes the mean of a whole clip off before. Kaldi takes each
frame's mean off, which leaves nothing of the clip's; this is why there is one form for whole clips and for live sound.

Dimensions in names: B batch, S samples, T frames, W samples of a frame, F mel bands.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from mamba_apps.audio.windows import whole_windows
from mamba_apps.errors import UserError

STATISTICS = {
    "audioset": (-4.2677393, 4.5689974),
    "vggsound": (-5.0767093, 4.4533687),
    "voxceleb": (-3.7614744, 4.2011642),
    "speech_commands": (-6.845978, 5.5654526),
}
"""Mean and standard deviation of the logarithms, by the data that the published models were trained on."""

_FRAME_SECONDS, _HOP_SECONDS = 0.025, 0.010
_PREEMPHASIS = 0.97
# Below Kaldi's lowest band there is nothing but rumble.
_LOWEST_HZ = 20.0


class FilterBank(nn.Module):
    """Log mel energies of overlapping frames, padded or cropped to a length, and then normalised.

    The padding is zeros among the logarithms, as published, so that it is ``-mean / (2 std)`` in what comes out.

    Args:
        sample_rate: Samples a second that come in.
        mels: Mel bands (F).
        frames: Frames that come out (T); None for as many as the clip has.
        mean: Mean of the logarithms over the training data.
        std: Their standard deviation.

    Raises:
        UserError: If an option is out of range.
    """

    window_W: Tensor
    mel_weight_PF: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        mels: int = 128,
        frames: int | None = None,
        mean: float = STATISTICS["audioset"][0],
        std: float = STATISTICS["audioset"][1],
    ) -> None:
        super().__init__()
        self.size, self.hop = int(sample_rate * _FRAME_SECONDS), int(sample_rate * _HOP_SECONDS)
        if self.hop < 1 or 2 * _LOWEST_HZ >= sample_rate:
            raise UserError(f"filter bank: sample_rate is {sample_rate}", "give samples a second, such as 16000")
        if mels < 4:
            raise UserError(f"filter bank: mels is {mels}", "give at least 4 bands, such as 128")
        if frames is not None and frames < 1:
            raise UserError(f"filter bank: frames is {frames}", "give at least 1, or None for any length")
        if not std > 0:
            raise UserError(f"filter bank: std is {std}", "give the standard deviation of the training data")
        self.sample_rate, self.mels, self.frames, self.mean, self.std = sample_rate, mels, frames, mean, std
        self.points = 1 << (self.size - 1).bit_length()
        window_W = torch.hann_window(self.size, periodic=False)
        weight_FP, _ = kaldi.get_mel_banks(mels, self.points, sample_rate, _LOWEST_HZ, 0.0, 100.0, -500.0, 1.0)
        # The highest frequency, half the sample rate, is in no band.
        self.register_buffer("window_W", window_W, persistent=False)
        self.register_buffer("mel_weight_PF", F.pad(weight_FP, (0, 1)).mT.contiguous(), persistent=False)

    @property
    def silence(self) -> float:
        """What padding is in the normalised spectrograms."""
        return -self.mean / (2 * self.std)

    def forward(self, wave_BS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return the normalised spectrograms (B, T, F) of sounds.

        Args:
            wave_BS: Samples in [-1, 1].
            lengths_B: Each clip's own samples, where shorter ones were padded to the batch's length.

        Raises:
            UserError: If the shape does not fit, or the sounds are shorter than a frame.
        """
        log_BTF = self.log_mel(wave_BS)
        if lengths_B is not None:
            own_B = torch.div(lengths_B.to(log_BTF.device) - self.size, self.hop, rounding_mode="floor") + 1
            frame_T = torch.arange(log_BTF.shape[1], device=log_BTF.device)
            log_BTF = log_BTF.masked_fill((frame_T >= own_B[:, None])[..., None], 0.0)
        if self.frames is not None:
            log_BTF = F.pad(log_BTF, (0, 0, 0, self.frames - log_BTF.shape[1]))
        return (log_BTF - self.mean) / (2 * self.std)

    def log_mel(self, wave_BS: Tensor) -> Tensor:
        """Return the logarithms (B, T, F) of as many frames as lie in the sounds, in float32.

        Raises:
            UserError: If the shape does not fit, or the sounds are shorter than a frame.
        """
        if wave_BS.dim() != 2:
            raise UserError(
                f"filter bank: the sounds have shape {tuple(wave_BS.shape)}", "give (batch, samples), one channel each"
            )
        if wave_BS.shape[1] < self.size:
            raise UserError(
                f"filter bank: the sounds have {wave_BS.shape[1]} samples, fewer than a frame's {self.size} "
                f"({_FRAME_SECONDS * 1000:g} ms at {self.sample_rate} Hz)",
                "give longer sounds, or pad them",
            )
        with torch.autocast(wave_BS.device.type, enabled=False):
            frame_BTW = wave_BS.float().unfold(1, self.size, self.hop)
            frame_BTW = frame_BTW - frame_BTW.mean(dim=-1, keepdim=True)
            earlier_BTW = torch.cat([frame_BTW[..., :1], frame_BTW[..., :-1]], dim=-1)
            frame_BTW = (frame_BTW - _PREEMPHASIS * earlier_BTW) * self.window_W
            # Quiet bins hold little more than the transform's rounding, which shows in the logarithms. The CPU's in
            # float32 is the references'; a GPU's is another, and none in float64.
            exact_BTW = frame_BTW.double() if frame_BTW.is_cuda else frame_BTW
            power_BTP = torch.fft.rfft(exact_BTW, n=self.points).abs().square()
            # In float64, as TensorFloat-32 products, which users may allow, show in the logarithms.
            mel_BTF = (power_BTP.double() @ self.mel_weight_PF.double()).float()
            return mel_BTF.clamp(min=torch.finfo(torch.float32).eps).log()

    def init_state(self, batch_size: int) -> Tensor:
        """Return what waits before the first sample: nothing."""
        return self.window_W.new_zeros(batch_size, 0)

    def step(self, wave_BS: Tensor, waiting_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Read the next piece of the sounds, however short; ``frames`` does not count here.

        Args:
            wave_BS: The piece.
            waiting_BS: What waited, from ``init_state`` or the piece before.

        Returns:
            The frames (B, T, F) that are whole by now, T from 0 up, and what waits for the next piece.
        """
        whole_BS, waiting_BS = whole_windows(torch.cat([waiting_BS, wave_BS.float()], dim=1), self.size, self.hop)
        if whole_BS.shape[1] == 0:
            return whole_BS.new_zeros(whole_BS.shape[0], 0, self.mels), waiting_BS
        return (self.log_mel(whole_BS) - self.mean) / (2 * self.std), waiting_BS
