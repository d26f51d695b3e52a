"""What every trainer needs: one Trainer for the API and the command, lasting checkpoints, exact resume, saved models.

Nothing here imports torch or Lightning before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.training.chatter import quiet
    from mamba_apps.training.checkpoint import AtomicCheckpointIO, resume_path
    from mamba_apps.training.guard import NonFiniteGuard, NonFiniteLossError
    from mamba_apps.training.loader import ResumableLoader, ResumableSampler
    from mamba_apps.training.saved import ModelCard, load_card, load_weights, save_model, saved_folder
    from mamba_apps.training.seeding import seed_everything
    from mamba_apps.training.trainer import make_trainer

__all__ = [
    "make_trainer",
    "resume_path",
    "seed_everything",
    "ResumableLoader",
    "ResumableSampler",
    "quiet",
    "AtomicCheckpointIO",
    "NonFiniteGuard",
    "NonFiniteLossError",
    "ModelCard",
    "save_model",
    "saved_folder",
    "load_card",
    "load_weights",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "make_trainer": "trainer",
        "resume_path": "checkpoint",
        "seed_everything": "seeding",
        "ResumableLoader": "loader",
        "ResumableSampler": "loader",
        "quiet": "chatter",
        "AtomicCheckpointIO": "checkpoint",
        "NonFiniteGuard": "guard",
        "NonFiniteLossError": "guard",
        "ModelCard": "saved",
        "save_model": "saved",
        "saved_folder": "saved",
        "load_card": "saved",
        "load_weights": "saved",
    },
)
