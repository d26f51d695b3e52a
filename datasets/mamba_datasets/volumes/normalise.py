"""Values of a channel as the network takes them: nnU-Net's schemes."""

from __future__ import annotations

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.volumes.plan import Normalisation

_LEAST = 1e-8


def normalise(values: np.ndarray, body: np.ndarray, rule: Normalisation, path: str) -> np.ndarray:
    """Normalise a channel.

    Args:
        values: (*axes).
        body: Which of its voxels belong to the image's body.
        rule: How.
        path: The file, for errors.

    Returns:
        A new float32 array.

    Raises:
        DataError: Values said to be of 8-bit colours are not.
    """
    result = values.astype(np.float32, order="C")
    if rule.scheme == "zscore":
        chosen = result[body] if rule.inside and body.any() else result.reshape(-1)
        # float32 sums of 1e8 voxels lose digits
        mean, std = float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64))
        chosen = (chosen - np.float32(mean)) / np.float32(max(std, _LEAST))
        if rule.inside and body.any():
            result[body] = chosen
        else:
            result = chosen.reshape(result.shape)
    elif rule.scheme == "ct":
        np.clip(result, rule.low, rule.high, out=result)
        result -= np.float32(rule.mean)
        result /= np.float32(max(rule.std, _LEAST))
    elif rule.scheme == "rescale":
        result -= result.min()
        result /= max(float(result.max()), _LEAST)
    elif rule.scheme == "rgb":
        low, high = float(result.min()), float(result.max())
        if low < 0 or high > 255:
            raise DataError(path, "values", f"expected colours from 0 to 255, found {low:g} to {high:g}", "save 8 bits")
        result /= 255
    return result
