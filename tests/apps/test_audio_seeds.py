"""Whatever is drawn for sounds in training, one seed draws it again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mamba_apps.audio.tagging.augment import SoundAugment
from mamba_apps.audio.tagging.loading import BalancedDraw
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_datasets.audio import ClipSet, Place

LENGTHS = torch.tensor([4000, 3000, 4000, 1000])


def _waves(**settings: float) -> Callable[[], Tensor]:
    wave_BS = torch.randn(4, 4000, generator=torch.Generator().manual_seed(1))
    augment = SoundAugment(**settings)  # type: ignore[arg-type]
    return lambda: torch.cat([part.flatten() for part in augment.waves(wave_BS, LENGTHS, torch.eye(4))])


def _spectrograms() -> Tensor:
    x_BTF = torch.arange(4 * 100 * 64.0).reshape(4, 100, 64)
    return SoundAugment(mask_frequency=20, mask_time=30, shift=9).spectrograms(x_BTF, -1.0)


def _draws() -> Tensor:
    clips = ClipSet([Place(str(number), (number % 3 == 0,)) for number in range(50)], ["a", "b"], rate=8000)
    draw = BalancedDraw(clips)
    return torch.tensor([draw(index) for index in range(50)])


def _windows() -> Tensor:
    policy = ClipPolicy(1000, 0.5)
    return torch.stack([policy.random_window(torch.arange(5000.0))[0] for _ in range(9)])


@pytest.mark.parametrize(
    "work",
    [_waves(mixup=1.0), _waves(gain=6.0), _waves(speed=0.2), _spectrograms, _draws, _windows],
    ids=["mixup", "gain", "speed", "spectrograms", "balanced", "windows"],
)
def test_a_seed_draws_the_same_again_and_another_something_else(work: Callable[[], Tensor]) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(work())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(found[0], found[2])


def test_every_sound_draws_its_own_numbers() -> None:
    torch.manual_seed(0)
    masked = SoundAugment(mask_frequency=20, mask_time=30).spectrograms(torch.ones(16, 100, 64), -1.0)
    assert len({row.numpy().tobytes() for row in masked}) > 12
    silent_BT, silent_BF = (masked == -1).all(dim=2), (masked == -1).all(dim=1)
    assert silent_BT.sum(dim=1).max() <= 30
    assert silent_BF.sum(dim=1).max() <= 20
