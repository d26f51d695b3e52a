"""A sample of labelled sounds that is made, not recorded: tones, sweeps and bursts of noise, as a folder of WAV files.

Dimensions in names: S samples.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_datasets.errors import DataError

RATE = 16000
# Raised when the sounds change, so that those in a cache are made anew.
_VERSION = 1
_SHORTEST_S, _LONGEST_S = 0.25, 0.5
_LOWEST_HZ, _HIGHEST_HZ = 250.0, 2500.0
_HISS = 0.0005

Wave = NDArray[np.float64]
Maker = Callable[[np.random.Generator, Wave], Wave]


def _sweep(random: np.random.Generator, time_S: Wave, octaves: float) -> Wave:
    """Return a sine whose pitch moves steadily by so many octaves."""
    middle = np.exp(random.uniform(np.log(_LOWEST_HZ), np.log(_HIGHEST_HZ)))
    hertz_S = middle * 2 ** (octaves * (time_S / time_S[-1] - 0.5))
    return np.sin(2 * np.pi * np.cumsum(hertz_S) / RATE)


def _noise(random: np.random.Generator, time_S: Wave) -> Wave:
    """Return three bursts of noise."""
    bursts_S = np.sin(3 * np.pi * time_S / time_S[-1]) ** 2
    return random.uniform(-1, 1, len(time_S)) * bursts_S


SOUNDS: dict[str, Maker] = {
    "falling": lambda random, time_S: _sweep(random, time_S, random.uniform(-2, -1)),
    "noise": _noise,
    "rising": lambda random, time_S: _sweep(random, time_S, random.uniform(1, 2)),
    "tone": lambda random, time_S: _sweep(random, time_S, 0.0),
}
"""What makes a sound of each class, from random numbers and its times in seconds."""


def make_sound(name: str, seed: int) -> NDArray[np.float32]:
    """Return a sound (S,) of a class at 16 kHz: between a quarter and half a second, at any loudness, in a faint hiss.

    Args:
        name: One of "falling", "noise", "rising" and "tone".
        seed: From 0; another one gives another pitch, slope, loudness and length.
    """
    random = np.random.default_rng([seed, list(SOUNDS).index(name)])
    time_S = np.arange(round(RATE * random.uniform(_SHORTEST_S, _LONGEST_S))) / RATE
    wave_S = SOUNDS[name](random, time_S) * np.sqrt(np.abs(np.sin(np.pi * time_S / time_S[-1])))
    wave_S = random.uniform(0.05, 0.8) * wave_S + random.normal(0, _HISS, len(time_S))
    return wave_S.astype(np.float32)


def write_sounds(folder: str | Path, *, train: int = 20, test: int = 10, seed: int = 0) -> Path:
    """Write labelled sounds as `train/CLASS/*.wav` and `test/CLASS/*.wav`; with the defaults, 45 seconds in 4 classes.

    Args:
        folder: Where; it must not exist yet. It appears when it is complete.
        train: Sounds a class to train on.
        test: Sounds a class for the test.
        seed: From 0; another one gives other sounds.

    Returns:
        The folder.

    Raises:
        DataError: It exists, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(folder, "folder", "exists already", "name another, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            for split, numbers in (("train", range(train)), ("test", range(train, train + test))):
                for name in SOUNDS:
                    (unfinished / split / name).mkdir(parents=True)
                    for number in numbers:
                        wave_S = make_sound(name, seed * 1_000_000 + number)
                        soundfile.write(unfinished / split / name / f"{number:03d}.wav", wave_S, RATE)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(folder, "folder", f"cannot be written: {error.strerror}", "name another folder") from None
    return folder


def sounds_path() -> Path:
    """Return the folder of the sample, in the user's cache; it is written when it is first asked for.

    Raises:
        DataError: It cannot be written.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    folder = cache / "mamba-apps" / f"sounds-{_VERSION}"
    if not folder.exists():
        try:
            write_sounds(folder)
        except DataError:
            if not folder.exists():  # else another process wrote it meanwhile
                raise
    return folder
