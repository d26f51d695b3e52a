"""Windows of multivariate series with holes in, and gaps drawn into them.

Dimensions in names: S series, B windows, L steps of a window, T steps of a series, C variates, K known columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mamba_apps.errors import UserError
from mamba_apps.imputation.gaps import any_gaps
from mamba_apps.training import ResumableLoader

_EVAL_BATCH = 128
# Validation reads no more windows than tell one fit from another.
_EVAL_WINDOWS = 20_000


class Steps:
    """Scaled values and known columns of series, each led in by unobserved steps to at least a window.

    Args:
        values: For each series float32 (T, C), NaN where nothing was observed.
        known: For each series float32 (T, K).
        window: Steps of a window (L).
    """

    def __init__(self, values: Sequence[np.ndarray], known: Sequence[np.ndarray], window: int) -> None:
        self.window = window
        self.lead_S = np.array([max(0, window - len(one)) for one in values])
        self.length_S = np.array([len(one) for one in values]) + self.lead_S
        self.first_S = np.cumsum(self.length_S) - self.length_S
        self._y = _laid_out(values, self.lead_S, np.nan)
        self._known = _laid_out(known, self.lead_S, 0.0)

    @property
    def gaps(self) -> np.ndarray:
        """bool, for each row whether a value is missing; steps before a series count as missing."""
        return self._y.isnan().any(dim=1).numpy()

    def gather(self, start_B: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return the windows that begin at rows: values with 0 for NaN, what was observed, known columns."""
        rows_BL = torch.from_numpy(start_B)[:, None] + torch.arange(self.window)
        y_BLC = self._y[rows_BL]
        return y_BLC.nan_to_num(), ~y_BLC.isnan(), self._known[rows_BL]


class GapWindows(Dataset[dict[str, Tensor]]):
    """Windows with gaps drawn into what was observed.

    A batch is a dict: y (B, L, C), seen (B, L, C) bool what the network may see, hidden (B, L, C) bool what it is
    scored on, known (B, L, K).

    Args:
        steps: The series.
        starts: The rows at which windows begin.
        seed: Draws the same gaps at every reading in the same batches; None draws them from torch's generator.
    """

    def __init__(self, steps: Steps, starts: np.ndarray, seed: int | None = None) -> None:
        self._steps, self._starts, self._seed = steps, starts, seed

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one window."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch; torch's loader asks for it this way."""
        y_BLC, observed_BLC, known_BLK = self._steps.gather(self._starts[list(indices)])
        seed = None if self._seed is None else self._seed + int(indices[0])
        hidden_BLC = any_gaps(observed_BLC, None if seed is None else torch.Generator().manual_seed(seed))
        return {"y": y_BLC, "seen": observed_BLC & ~hidden_BLC, "hidden": hidden_BLC, "known": known_BLK}


class GapData(pl.LightningDataModule):
    """Training windows of every step but the last of the longer series, which are held back for validation.

    Args:
        steps: The series.
        batch_size: Windows a training batch.

    Raises:
        UserError: No series is long enough to hold a window back.
    """

    def __init__(self, steps: Steps, batch_size: int) -> None:
        super().__init__()
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}", "give a whole number of at least 1")
        window, self.batch_size = steps.window, batch_size
        held_S = held_back(steps.length_S, window)
        if not held_S.any():
            raise UserError(
                f"no series has two windows of {window} steps, one to learn from and one to validate on",
                "give a smaller window",
            )
        end_S = steps.first_S + steps.length_S
        starts = [np.arange(first, end - window + 1) for first, end in zip(steps.first_S, end_S - held_S, strict=True)]
        held = [np.arange(end - window, end - kept - 1, -window)[::-1] for end, kept in zip(end_S, held_S, strict=True)]
        self.train = GapWindows(steps, np.concatenate(starts))
        every = np.concatenate(held)
        spread = np.linspace(0, len(every) - 1, min(len(every), _EVAL_WINDOWS)).round().astype(np.int64)
        self.val = GapWindows(steps, every[spread], seed=0)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, in an order and with gaps that follow the run's seed."""
        seed = torch.initial_seed() % 2**32
        return ResumableLoader(self.train, self.batch_size, seed=seed, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches, whose gaps never change."""
        return DataLoader(self.val, batch_size=_EVAL_BATCH, collate_fn=_as_it_is)


def held_back(length_S: np.ndarray, window: int) -> np.ndarray:
    """Return the steps at the end of each series that are held back: a tenth, at least a window, where two fit."""
    return np.where(length_S >= 2 * window, np.maximum(window, length_S // 10), 0)


def _laid_out(parts: Sequence[np.ndarray], lead_S: np.ndarray, fill: float) -> Tensor:
    pieces = [
        piece
        for part, lead in zip(parts, lead_S, strict=True)
        for piece in (np.full((lead, part.shape[1]), fill, dtype=np.float32), part)
    ]
    return torch.from_numpy(np.concatenate(pieces).astype(np.float32, copy=False))


def _as_it_is(batch: Any) -> Any:
    return batch
