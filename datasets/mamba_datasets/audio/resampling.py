"""Sound at another rate: brought to the one that is wanted, and said so, or refused."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torchaudio.transforms import Resample

from mamba_datasets.audio.read import check_rate
from mamba_datasets.errors import DataError

_log = logging.getLogger(__name__)

# Coefficients of the filters; two rates without a large common factor need more and more of them.
_MOST_COEFFICIENTS = 2**25


def resample(wave: Tensor, rate: int, to: int, path: str | Path = "sound") -> Tensor:
    """Return a sound at another rate; the log warns of each pair of rates once.

    Args:
        wave: Samples along the last dimension.
        rate: How many of them make a second.
        to: How many shall.
        path: Where it came from, for errors.

    Raises:
        DataError: ``rate`` is no rate of sound, or too odd to be resampled.
    """
    check_rate(rate, path)
    if rate == to:
        return wave
    if rate * to // math.gcd(rate, to) ** 2 > _MOST_COEFFICIENTS:
        expected = f"{rate} and {to} samples a second have no large common factor"
        raise DataError(path, "rate", expected, "convert the file first")
    _say(rate, to)
    with torch.autocast(wave.device.type, enabled=False):
        return _resampler(rate, to, wave.device)(wave.float())


@lru_cache(maxsize=8)
def _resampler(rate: int, to: int, device: torch.device) -> Resample:
    """Keep the filters: for many a pair of rates they take longer than a clip does."""
    return Resample(rate, to).to(device)


@lru_cache
def _say(rate: int, to: int) -> None:
    _log.warning("sounds of %d Hz are resampled to %d Hz", rate, to)
