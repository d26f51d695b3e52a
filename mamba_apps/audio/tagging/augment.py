"""What is done to batches of sounds in training, on their device: every sound draws its own numbers.

Dimensions in names: B sounds, S samples, T frames, F mel bands, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid

from mamba_apps.errors import UserError


class SoundAugment:
    """Loudness, speed and mixtures of waveforms; shifts and masks of spectrograms.

    Args:
        mixup: The probability that a sound is mixed with another one of its batch.
        mixup_alpha: Of the Beta distribution that the mixture is drawn from.
        mask_frequency: The most mel bands that are masked.
        mask_time: The most frames that are masked.
        shift: The most frames that a spectrogram is moved by, either way, around its ends.
        gain: The most decibels that a sound is made louder or softer by.
        speed: The most that a sound is made faster or slower by, as a part.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        mixup: float = 0.0,
        mixup_alpha: float = 10.0,
        mask_frequency: int = 0,
        mask_time: int = 0,
        shift: int = 0,
        gain: float = 0.0,
        speed: float = 0.0,
    ) -> None:
        if not 0 <= mixup <= 1:
            raise UserError(f"mixup is {mixup}", "give a probability in [0, 1]")
        if not mixup_alpha > 0:
            raise UserError(f"mixup_alpha is {mixup_alpha}", "give a number above 0, such as 10")
        if not 0 <= speed < 1:
            raise UserError(f"speed is {speed}", "give a part in [0, 1), such as 0.1")
        sizes = {"mask_frequency": mask_frequency, "mask_time": mask_time, "shift": shift, "gain": gain}
        for name, value in sizes.items():
            if value < 0:
                raise UserError(f"{name} is {value}", "give 0 for none, or more")
        self.mixup, self.mixup_alpha = mixup, mixup_alpha
        self.mask_frequency, self.mask_time, self.shift = mask_frequency, mask_time, shift
        self.gain, self.speed = gain, speed

    def waves(self, wave_BS: Tensor, lengths_B: Tensor, target_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sounds, their own samples and their targets, changed; draws from torch's generator of the device."""
        if self.speed:
            wave_BS, lengths_B = _faster(wave_BS, lengths_B, 1 + self.speed * _around_zero(wave_BS))
        if self.gain:
            wave_BS = wave_BS * 10 ** (self.gain * _around_zero(wave_BS)[:, None] / 20)
        if self.mixup and len(wave_BS) > 1:
            return self._mixed(wave_BS, lengths_B, target_BK)
        return wave_BS, lengths_B, target_BK

    def spectrograms(self, x_BTF: Tensor, fill: float) -> Tensor:
        """Return normalised spectrograms, moved and masked.

        Args:
            x_BTF: The spectrograms.
            fill: What stands where nothing is heard: that which padding becomes, as published.
        """
        if self.shift:
            step_B = torch.randint(-self.shift, self.shift + 1, (len(x_BTF),), device=x_BTF.device)
            at_BT = (torch.arange(x_BTF.shape[1], device=x_BTF.device) - step_B[:, None]) % x_BTF.shape[1]
            x_BTF = x_BTF.gather(1, at_BT[..., None].expand_as(x_BTF))
        for most, axis in ((self.mask_time, 2), (self.mask_frequency, 3)):
            if most:
                x_BTF = mask_along_axis_iid(x_BTF[:, None], most, fill, axis)[:, 0]
        return x_BTF

    def _mixed(self, wave_BS: Tensor, lengths_B: Tensor, target_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix some sounds with another one of the batch."""
        device = wave_BS.device
        alpha = torch.full((len(wave_BS),), self.mixup_alpha, device=device)
        part_B = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        chosen_B = torch.rand(len(wave_BS), device=device) < self.mixup
        part_B = torch.where(chosen_B, part_B, 1.0)
        other_B = torch.randperm(len(wave_BS), device=device)
        wave_BS = torch.lerp(wave_BS[other_B], wave_BS, part_B[:, None])
        target_BK = torch.lerp(target_BK[other_B], target_BK, part_B[:, None])
        return wave_BS, torch.where(chosen_B, torch.maximum(lengths_B, lengths_B[other_B]), lengths_B), target_BK


def _faster(wave_BS: Tensor, lengths_B: Tensor, factor_B: Tensor) -> tuple[Tensor, Tensor]:
    """Play each sound so many times as fast, as a tape: pitch moves along."""
    samples = wave_BS.shape[1]
    place_BS = torch.arange(samples, device=wave_BS.device) * factor_B[:, None]
    before_BS = place_BS.long()
    heard_BS = before_BS < samples - 1
    before_BS = before_BS.clamp(max=samples - 2)
    between_BS = (place_BS - before_BS).clamp(max=1)
    wave_BS = torch.lerp(wave_BS.gather(1, before_BS), wave_BS.gather(1, before_BS + 1), between_BS)
    lengths_B = (lengths_B / factor_B).ceil().clamp(max=samples).long()
    return wave_BS * heard_BS, torch.minimum(lengths_B, heard_BS.sum(dim=1).clamp(min=1))


def _around_zero(x_BS: Tensor) -> Tensor:
    return 2 * torch.rand(len(x_BS), device=x_BS.device) - 1
