"""Small made-up volumes in nnU-Net's raw layout: an ellipsoid with another in it, for tests and first tries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mamba_datasets.files import storage_error, write_whole
from mamba_datasets.volumes.nifti import write_nifti
from mamba_datasets.volumes.raw import DESCRIPTION

LABELS = {"background": 0, "organ": 1, "lesion": 2}
# Brightness of each label, far enough apart to be told from noise of this spread.
_BRIGHTNESS = np.array([100.0, 300.0, 500.0])
_NOISE = 30.0


def write_synthetic(
    root: str | Path,
    cases: int = 10,
    shape: Sequence[int] = (32, 28, 24),
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    channels: int = 1,
    test_cases: int = 0,
    seed: int = 0,
) -> Path:
    """Write a data set of ellipsoids: an organ, and a lesion inside of it.

    Args:
        root: The folder, made where it is missing.
        cases: Of imagesTr and labelsTr.
        shape: Voxels along the file's axes x, y, z; the cases vary around it by an eighth.
        spacing: Millimetres between them.
        channels: The same object in as many contrasts.
        test_cases: Of imagesTs and labelsTs.
        seed: Determines all of it.

    Returns:
        The folder.

    Raises:
        DataError: It cannot be written there.
    """
    root = Path(root)
    generator = np.random.default_rng(seed)
    affine = np.diag([*spacing, 1.0])
    for part, count in (("Tr", cases), ("Ts", test_cases)):
        for number in range(count):
            name = f"case_{part.lower()}_{number:03d}"
            extent = tuple(int(size + generator.integers(-(size // 8), size // 8 + 1)) for size in shape[::-1])
            label = _ellipsoids(extent, generator)
            for channel in range(channels):
                image = _BRIGHTNESS[label] * (1 + channel) + generator.normal(0, _NOISE, extent)
                _write(root / f"images{part}" / f"{name}_{channel:04d}.nii.gz", image.astype(np.int16), affine)
            _write(root / f"labels{part}" / f"{name}.nii.gz", label, affine)
    description = {
        "name": "Ellipsoids",
        "channel_names": {str(channel): f"contrast {channel}" for channel in range(channels)},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    text = json.dumps(description, indent=1) + "\n"
    write_whole(root / DESCRIPTION, lambda file: file.write(text.encode()))
    return root


def _ellipsoids(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Return labels (z, y, x) of a large ellipsoid with a smaller one in it."""
    extent = np.array(shape)
    centre = extent * generator.uniform(0.4, 0.6, 3)
    radius = extent * generator.uniform(0.2, 0.35, 3)
    inner_centre = centre + radius * generator.uniform(-0.3, 0.3, 3)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    label[(((places - centre) / radius) ** 2).sum(-1) <= 1] = 1
    label[(((places - inner_centre) / (radius * 0.5)) ** 2).sum(-1) <= 1] = 2
    return label


def _write(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path.parent, error) from None
    write_whole(path, lambda file: write_nifti(file, path.name, values, affine, None))
