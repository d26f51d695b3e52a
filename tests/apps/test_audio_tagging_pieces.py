"""Sound in pieces: what arrives bit by bit is resampled, cut and heard as the whole would be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_apps.audio.tagging.pieces import LiveResampler, cut_windows
from mamba_apps.audio.tagging.policy import ClipPolicy, by_clip
from mamba_apps.audio.tagging.sounds import samples_of
from mamba_apps.audio.tagging.store import ClipStore
from mamba_apps.errors import UserError
from mamba_datasets.audio import Clip, ClipSet, Place, resample
from mamba_datasets.errors import DataError


def in_pieces(wave_S: Tensor, longest: int) -> Iterator[Tensor]:
    random, at = np.random.default_rng(0), 0
    while at < len(wave_S):
        step = int(random.integers(1, longest))
        yield wave_S[at : at + step]
        at += step


@pytest.mark.parametrize("samples", [1, 63, 4000, 20011])
@pytest.mark.parametrize(
    ("rate", "to"), [(8000, 16000), (44100, 16000), (192000, 16000), (11025, 8000), (16000, 44100), (16000, 16000)]
)
def test_pieces_are_resampled_as_the_whole(rate: int, to: int, samples: int) -> None:
    wave_S = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    resampler = LiveResampler(rate, to)
    out_S = torch.cat(list(resampler.pieces(in_pieces(wave_S, 700))))
    whole_S = resample(wave_S, rate, to)
    assert len(out_S) == len(whole_S) == resampler.length(samples)
    torch.testing.assert_close(out_S, whole_S, rtol=0, atol=2e-6)


def test_an_absurd_rate_is_refused() -> None:
    with pytest.raises(DataError, match="rate"):
        LiveResampler(3, 16000)


@pytest.mark.parametrize(("starts", "size"), [([0, 3, 3, 50, 51], 20), ([0, 10, 20], 10), ([95], 20), ([7], 200)])
def test_windows_of_pieces_are_those_of_the_whole(starts: list[int], size: int) -> None:
    wave_S = torch.arange(100.0)
    found = list(cut_windows(in_pieces(wave_S, 9), starts, size))
    assert len(found) == len(starts)
    for start, cut_S in zip(starts, found, strict=True):
        assert cut_S.tolist() == wave_S[start : start + size].tolist()


@pytest.mark.parametrize(
    ("long", "length", "starts"),
    [
        ("windows", 100, [0]),
        ("windows", 101, [0, 1]),
        ("windows", 250, [0, 75, 150]),
        ("windows", 3, [0]),
        ("middle", 250, [75]),
        ("start", 250, [0]),
    ],
)
def test_windows_cover_a_long_sound(long: str, length: int, starts: list[int]) -> None:
    policy = ClipPolicy(1000, 0.1, long)  # type: ignore[arg-type]
    assert policy.starts(length) == starts


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rate": 10}, "rate is 10"),
        ({"seconds": 0.01}, "seconds is 0.01"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"long": "end"}, "long is 'end'"),
        ({"short": "noise"}, "short is 'noise'"),
    ],
)
def test_policies_that_mean_nothing(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ClipPolicy(**settings)  # type: ignore[arg-type]


class Memory(ClipSet):
    """Clips that lie in memory."""

    def __init__(self, waves: list[Tensor]) -> None:
        super().__init__([Place(str(n), (0,)) for n in range(len(waves))], ["a", "b"], rate=1000)
        self.waves = waves

    def __getitem__(self, index: int) -> Clip:
        return Clip(self.waves[index], 0, str(index), 0.0, len(self.waves[index]) / 1000)


@pytest.mark.parametrize("short", ["silence", "repeat"])
@pytest.mark.parametrize("long", ["windows", "middle", "start"])
def test_windows_cut_in_memory_are_those_of_the_policy(long: str, short: str) -> None:
    policy = ClipPolicy(1000, 0.05, long, short)  # type: ignore[arg-type]
    waves = [torch.randn(size) for size in (7, 50, 51, 220)]
    store = ClipStore(Memory(waves), limit_gib=1)
    wave_BS, lengths_B, clip_B = store.all_windows(torch.tensor([3, 0, 2, 1]), policy)
    expected = [policy.windows(waves[number]) for number in (3, 0, 2, 1)]
    assert torch.equal(wave_BS, torch.cat([wave for wave, _ in expected]))
    assert torch.equal(lengths_B, torch.cat([lengths for _, lengths in expected]))
    assert clip_B.tolist() == [n for n, (wave, _) in enumerate(expected) for _ in wave]


def test_random_windows_lie_within_their_clips() -> None:
    policy = ClipPolicy(1000, 0.05)
    waves = [torch.arange(size) + 1000.0 * number for number, size in enumerate((20, 50, 300))]
    store = ClipStore(Memory(waves), limit_gib=1)
    starts = set()
    for _ in range(40):
        wave_BS, lengths_B = store.random_windows(torch.tensor([2, 0, 1]), policy)
        assert lengths_B.tolist() == [50, 20, 50]
        first = int(wave_BS[0, 0]) - 2000
        starts.add(first)
        assert torch.equal(wave_BS[0], waves[2][first : first + 50])
        assert torch.equal(wave_BS[1, :20], waves[0])
        assert not wave_BS[1, 20:].any()
    assert len(starts) > 20
    assert 0 <= min(starts)
    assert max(starts) <= 250


def test_sounds_that_do_not_fit_into_memory_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"--data\.in_memory false"):
        ClipStore(Memory([torch.zeros(1000)] * 3), limit_gib=1e-6)


def test_probabilities_are_averaged_by_clip() -> None:
    found = by_clip(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.2, 0.8]]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5], [0.2, 0.8]]))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0, 16384, -32768], np.int16), [0.0, 0.5, -1.0]),
        (np.array([128, 192, 0], np.uint8), [0.0, 0.5, -1.0]),
        (np.array([0.25, -0.25]), [0.25, -0.25]),
        (torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]), [0.5, 0.5, 0.5]),
        (torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]]), [0.5, 0.5, 0.5]),
    ],
)
def test_arrays_of_every_kind_become_samples(array: object, expected: list[float]) -> None:
    wave_S, _ = samples_of(array)  # type: ignore[arg-type]
    assert wave_S.dtype == torch.float32
    assert wave_S.tolist() == expected


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([]), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.array(["a"]), "type"),
        (np.array([0.0, np.nan]), "frame 1: expected finite numbers, found nan"),
        (np.array([[0.0, np.inf], [0.0, 0.0], [0.0, 0.0]]), "frame 0: expected finite numbers, found inf in channel 1"),
        (np.array([0.0, 20000.0]), "divide 16-bit samples by 32768"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(array: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        samples_of(array)
