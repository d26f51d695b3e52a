"""Seeds, and the state of every random generator, so that a resumed run draws the same numbers."""

from __future__ import annotations

import hashlib
import os
import random
from typing import Any

import numpy as np
import torch

from mamba_apps.errors import UserError

MAX_SEED = 2**32 - 1


def seed_everything(seed: int) -> int:
    """Seed Python, NumPy and torch (all devices), and let data-loading workers derive theirs from it.

    Args:
        seed: From 0 to 2**32 - 1.

    Returns:
        The seed.

    Raises:
        UserError: The seed is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed is {seed!r}, expected an integer from 0 to {MAX_SEED}", "choose another seed, e.g. 0")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the generator that other people's transforms draw from)
    torch.manual_seed(seed)
    # what Lightning reads to seed the workers of plain data loaders and the processes it starts
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = "1"
    return seed


def derive_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed; near inputs give unrelated seeds."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch's CPU from any non-negative integer, and nothing else."""
    random.seed(seed)
    np.random.seed(seed % (MAX_SEED + 1))  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Collect the state of the generators of Python, NumPy and torch, on all devices.

    Returns:
        Tensors and plain values only, so that it can be stored in a checkpoint and loaded safely.
    """
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state = {
        "python": [version, _bytes_tensor(np.asarray(internal, dtype=np.uint32)), gauss],
        "numpy": [kind, _bytes_tensor(np.asarray(keys, dtype=np.uint32)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators into a state collected by `random_state`.

    Args:
        state: What `random_state` returned. GPU states are set where as many GPUs are visible as then.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(_words(internal).tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, _words(keys), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def _bytes_tensor(words: np.ndarray) -> torch.Tensor:
    # unsigned 32-bit words are stored as bytes: every torch reads those back
    return torch.from_numpy(words.view(np.uint8).copy())


def _words(stored: torch.Tensor) -> np.ndarray:
    return stored.numpy().view(np.uint32)
