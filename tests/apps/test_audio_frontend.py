"""The front end: Kaldi's filter banks in batches and piece by piece, and other sample rates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from mamba_apps.audio import STATISTICS, FilterBank, RawSound
from mamba_apps.errors import UserError


def sounds(samples: int = 16000, batch: int = 3) -> Tensor:
    """Noise that grows, with an offset, and silence at the end of the last."""
    generator = torch.Generator().manual_seed(0)
    wave_BS = torch.randn(batch, samples, generator=generator) * torch.linspace(0.01, 0.3, samples) + 0.1
    wave_BS[-1, samples // 2 :] = 0.0
    return wave_BS


def published(wave_S: Tensor, rate: int, mels: int) -> Tensor:
    return kaldi.fbank(
        (wave_S - wave_S.mean())[None],
        htk_compat=True,
        sample_frequency=rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=mels,
        dither=0.0,
        frame_shift=10,
    )


@pytest.mark.parametrize(("rate", "mels"), [(16000, 128), (8000, 64)])
def test_float32_is_within_a_ten_thousandth_of_what_a_gpu_computes(rate: int, mels: int) -> None:
    bank = FilterBank(rate, mels)
    wave_BS = 0.1 * torch.randn(4, 10 * rate, generator=torch.Generator().manual_seed(0))
    # the steps written out, with the transform in float64 as on a GPU
    frame_BTW = wave_BS.unfold(1, bank.size, bank.hop)
    frame_BTW = frame_BTW - frame_BTW.mean(dim=-1, keepdim=True)
    earlier_BTW = torch.cat([frame_BTW[..., :1], frame_BTW[..., :-1]], dim=-1)
    frame_BTW = (frame_BTW - 0.97 * earlier_BTW) * torch.hann_window(bank.size, periodic=False)
    power_BTP = torch.fft.rfft(frame_BTW.double(), n=bank.points).abs().square()
    exact_BTF = (power_BTP @ bank.mel_weight_PF.double()).clamp(min=torch.finfo(torch.float32).eps).log()
    found_BTF = bank.log_mel(wave_BS).double()
    torch.testing.assert_close(found_BTF / (2 * bank.std), exact_BTF / (2 * bank.std), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
@pytest.mark.parametrize(("rate", "mels"), [(16000, 128), (8000, 128), (44100, 64), (11025, 40)])
def test_a_batch_is_what_torchaudio_makes_of_each_clip(rate: int, mels: int) -> None:
    wave_BS = sounds(rate)
    found = FilterBank(rate, mels).log_mel(wave_BS)
    for log_TF, wave_S in zip(found, wave_BS, strict=True):
        torch.testing.assert_close(log_TF, published(wave_S, rate, mels), rtol=0, atol=2e-3)


@pytest.mark.parametrize("frames", [50, 98, 130])
def test_clips_are_padded_before_they_are_normalised_or_cropped(frames: int) -> None:
    mean, std = STATISTICS["speech_commands"]
    front = FilterBank(frames=frames, mean=mean, std=std)
    found = front(sounds())
    assert found.shape == (3, frames, 128)
    own = min(frames, 98)
    expected = (front.log_mel(sounds()) - mean) / (2 * std)
    torch.testing.assert_close(found[:, :own], expected[:, :own])
    torch.testing.assert_close(found[:, own:], torch.full_like(found[:, own:], -mean / (2 * std)))


@pytest.mark.parametrize("frames", [None, 120])
def test_shorter_clips_in_a_batch_are_as_if_they_were_alone(frames: int | None) -> None:
    front = FilterBank(frames=frames)
    wave_BS, lengths_B = sounds(), torch.tensor([16000, 7777, 400])
    found = front(wave_BS, lengths_B)
    for row_TF, wave_S, length in zip(found, wave_BS, lengths_B.tolist(), strict=True):
        alone_TF = front(wave_S[None, :length])[0]
        torch.testing.assert_close(row_TF[: len(alone_TF)], alone_TF)
        assert (row_TF[len(alone_TF) :] == -front.mean / (2 * front.std)).all()


@pytest.mark.parametrize("pieces", [[1] * 500, [1600] * 10, [399, 1, 160, 159, 1, 4000], [16000]], ids=len)
@pytest.mark.parametrize("rate", [16000, 8000])
def test_piece_by_piece_equals_the_whole(pieces: list[int], rate: int) -> None:
    front = FilterBank(rate)
    wave_BS = sounds(sum(pieces))
    found, waiting = [], front.init_state(3)
    for piece in wave_BS.split(pieces, dim=1):
        frames, waiting = front.step(piece, waiting)
        found.append(frames)
        assert waiting.shape[1] < front.size
    torch.testing.assert_close(torch.cat(found, dim=1), front(wave_BS), rtol=0, atol=1e-6)


def test_silence_is_finite_and_the_floor() -> None:
    found = FilterBank().log_mel(torch.zeros(1, 4000))
    assert (found == math.log(torch.finfo(torch.float32).eps)).all()


def test_it_stays_in_float32_under_autocast_and_has_no_weights() -> None:
    front = FilterBank()
    with torch.autocast("cpu", torch.bfloat16):
        found = front(sounds())
    torch.testing.assert_close(found, front(sounds()), rtol=0, atol=0)
    assert not front.state_dict()
    torch.testing.assert_close(front(sounds().double()), front(sounds()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FilterBank()(torch.zeros(1, 399)), "399 samples, fewer than a frame's 400 \\(25 ms at 16000 Hz\\)"),
        (lambda: FilterBank()(torch.zeros(400)), "have shape \\(400,\\)"),
        (lambda: FilterBank()(torch.zeros(1, 2, 4000)), "have shape \\(1, 2, 4000\\)"),
        (lambda: FilterBank(0), "sample_rate is 0"),
        (lambda: FilterBank(mels=3), "mels is 3"),
        (lambda: FilterBank(frames=0), "frames is 0"),
        (lambda: FilterBank(std=0.0), "std is 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert caught.value.remedy


def test_raw_sound_is_padded_cropped_and_silenced() -> None:
    wave_BS = sounds(100)
    assert torch.equal(RawSound()(wave_BS), wave_BS)
    assert torch.equal(RawSound(samples=60)(wave_BS), wave_BS[:, :60])
    found = RawSound(samples=120)(wave_BS, torch.tensor([100, 50, 1]))
    assert torch.equal(found[:, 100:], torch.zeros(3, 20))
    assert torch.equal(found[1, :50], wave_BS[1, :50])
    assert not found[1, 50:].any()
