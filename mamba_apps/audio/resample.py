"""Sound at another rate: brought to the model's, and said so, or refused."""

from __future__ import annotations

import logging
import math
from functools import lru_cache

import torch
from torch import Tensor
from torchaudio.functional import resample as _resample

from mamba_apps.errors import UserError

_log = logging.getLogger(__name__)

RATES = (1000, 768_000)
"""The lowest and the highest rate that a sound may have, in samples a second."""

# Coefficients of the filters; two rates without a large common factor need more and more of them.
_MOST_COEFFICIENTS = 2**25


def resample(wave: Tensor, rate: int, to: int) -> Tensor:
    """Return a sound at another rate; the log warns of each pair of rates once.

    Args:
        wave: Samples along the last dimension.
        rate: How many of them make a second.
        to: How many shall.

    Raises:
        UserError: If ``rate`` is no rate of sound, or too odd to be resampled.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(
            f"a sound is said to have {rate} samples a second, expected {RATES[0]} to {RATES[1]}",
            "check the header, or give its true rate",
        )
    if rate == to:
        return wave
    common = math.gcd(rate, to)
    if rate * to // common**2 > _MOST_COEFFICIENTS:
        raise UserError(f"{rate} and {to} samples a second have no large common factor", "convert the file first")
    _say(rate, to)
    with torch.autocast(wave.device.type, enabled=False):
        return _resample(wave.float(), rate, to)


@lru_cache
def _say(rate: int, to: int) -> None:
    _log.warning("sounds of %d Hz are resampled to %d Hz", rate, to)
