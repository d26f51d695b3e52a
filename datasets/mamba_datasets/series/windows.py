"""Windows of many series for training and scoring: index arithmetic over shared memory, nothing is copied up front.

Letters: B batch, L lookback, H horizon, P past covariates, F known-future ones, S static ones, N rows of all series.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mamba_datasets.errors import DataError
from mamba_datasets.series.data import SeriesSet
from mamba_datasets.series.gathered import GatheredWindows, Source

Item = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a set of series as tensors, which windows are gathered from.

    Args:
        y: float32 (N,) the targets of all series, one after the other.
        observed: bool (N,) whether a target counts.
        x: float32 (N, P + F) past covariates, then known-future ones.
        static: float32 (series, S).
    """

    y: Tensor
    observed: Tensor
    x: Tensor
    static: Tensor

    @classmethod
    def of(cls, series_set: SeriesSet) -> Columns:
        """Return the columns of a set, in its memory."""
        return cls(*(torch.from_numpy(getattr(series_set, item.name)) for item in fields(cls)))

    def to(self, device: torch.device | str) -> Columns:
        """Return them on a device."""
        return Columns(*(getattr(self, item.name).to(device) for item in fields(self)))

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(getattr(self, item.name).nbytes for item in fields(self))


class WindowDataset(Dataset[Item]):
    """Windows of a set of series: L steps of the past, H steps to forecast.

    An item is a dict of views: past_y (L, 1), past_observed (L, 1) bool, past_x (L, P + F), future_x (H, F),
    static (S,), future_y (H, 1), future_observed (H, 1) bool, series () int64 (the position in `series_set.ids`),
    origin () int64 (the step of that series which is forecast first).

    Args:
        series_set: The series, scaled or not.
        lookback: L, at least 1.
        horizon: H, at least 1.
        origins: Which origins, the timestamps of the first forecast step: "all"; "last", the last one of each series;
            or timestamps (first, last), None for an open end: every origin whose whole horizon lies at `first` or later
            and before `last`. The past of a window may reach before `first`.
        stride: Take every so many-th origin of a series, counted from its first.
        short: What to do about a series shorter than L + H: "error", or "skip" (listed in `skipped`).
        drop_unobserved: Whether to leave out windows that have no observed target in the horizon.
        at_most: Take so many windows, evenly spread over all; None takes all.

    Raises:
        DataError: An argument is out of range, a series is too short, or there is no window at all.
    """

    by_numbers = True
    """Whether a batch is the same for the same numbers, which may come in a tensor: nothing is drawn at random."""

    def __init__(
        self,
        series_set: SeriesSet,
        lookback: int,
        horizon: int,
        *,
        origins: Literal["all", "last"] | tuple[Any, Any] = "all",
        stride: int = 1,
        short: Literal["error", "skip"] = "error",
        drop_unobserved: bool = False,
        at_most: int | None = None,
    ) -> None:
        limit = 1 if at_most is None else at_most
        for name, value in (("lookback", lookback), ("horizon", horizon), ("stride", stride), ("at_most", limit)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                found = f"a whole number of at least 1 was expected, found {value!r}"
                raise DataError(series_set.source, name, found, f"pass {name}=1 or more")
        self.series_set, self.lookback, self.horizon, self.stride = series_set, int(lookback), int(horizon), int(stride)
        self.skipped = self._check_lengths(short)
        first, count = self._ranges(origins)
        self._first = first
        self._ends = np.cumsum(count)
        self._kept: np.ndarray | None = None
        if not len(self._ends) or self._ends[-1] == 0:
            found = (
                f"at least one window of {lookback} + {horizon} steps was expected in origins={origins!r}, found none"
            )
            raise DataError(series_set.source, "origins", found, "widen the part, or shorten lookback or horizon")
        self._start = series_set.bounds[:, 0]
        self._columns = Columns.of(series_set)
        self._source: Source | None = None
        if drop_unobserved and not series_set.observed.all():
            self._kept = self._with_target()
        if at_most is not None and len(self) > at_most:
            spread = np.linspace(0, len(self) - 1, at_most).round().astype(np.int64)
            self._kept = spread if self._kept is None else self._kept[spread]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Item:
        """Return one window as views of the set's memory."""
        series, origin = (int(value[0]) for value in self.locate([index]))
        now, columns = int(self._start[series]) + origin, self._columns
        past, ahead = slice(now - self.lookback, now), slice(now, now + self.horizon)
        return {
            "past_y": columns.y[past, None],
            "past_observed": columns.observed[past, None],
            "past_x": columns.x[past],
            "future_x": columns.x[ahead, len(self.series_set.past_names) :],
            "static": columns.static[series],
            "future_y": columns.y[ahead, None],
            "future_observed": columns.observed[ahead, None],
            "series": torch.tensor(series),
            "origin": torch.tensor(origin),
        }

    def __getitems__(self, indices: Sequence[int] | Tensor) -> WindowBatch:
        """Return many windows with one gather; torch's loader asks for a batch this way."""
        return WindowBatch(self.batch(indices))

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> Mapping[str, Tensor]:
        """Gather many windows at once.

        Args:
            indices: B window numbers.

        Returns:
            The items' dict with a leading B.
        """
        series, origin = self.locate(indices)
        now = self._start[series] + origin
        if self._source is not None:
            return self._gathered(self._source, series, origin, now)
        past = now - self.lookback
        data = self.series_set
        y, observed, future = data.y[:, None], data.observed[:, None], data.x[:, len(data.past_names) :]
        return {
            "past_y": _gather(y, past, self.lookback),
            "past_observed": _gather(observed, past, self.lookback),
            "past_x": _gather(data.x, past, self.lookback),
            "future_x": _gather(future, now, self.horizon),
            "static": torch.from_numpy(data.static[series]),
            "future_y": _gather(y, now, self.horizon),
            "future_observed": _gather(observed, now, self.horizon),
            "series": torch.from_numpy(series),
            "origin": torch.from_numpy(origin),
        }

    def gathered_from(self, columns: Columns) -> WindowDataset:
        """Return the same windows, gathered from columns that lie on a device, and there, when they are read.

        Args:
            columns: `Columns.of(series_set).to(device)`. Sets that are cut from one share their columns.
        """
        there = copy.copy(self)
        there._source = Source(columns, self.lookback, self.horizon, len(self.series_set.past_names))
        return there

    def _gathered(self, source: Source, series: np.ndarray, origin: np.ndarray, now: np.ndarray) -> GatheredWindows:
        device = source.columns.y.device
        # One transfer for all that the host knows of a batch.
        where_3B = torch.from_numpy(np.stack([series, origin, now]))
        if device.type == "cuda":
            where_3B = where_3B.pin_memory()
        return GatheredWindows({}, source, where_3B.to(device, non_blocking=True))

    def loader(self, batch_size: int, *, shuffle: bool = False, **options: Any) -> DataLoader[Item]:
        """Return a DataLoader that gathers each batch at once.

        Args:
            batch_size: B.
            shuffle: Whether to shuffle the windows each epoch.
            options: Further arguments of DataLoader.

        Returns:
            The loader; its batches are dicts with a leading B.
        """
        return DataLoader(self, batch_size=batch_size, shuffle=shuffle, collate_fn=collate, **options)

    def locate(self, indices: Sequence[int] | np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Tell where windows lie.

        Args:
            indices: B window numbers; negative ones count from the end.

        Returns:
            int64 (B,) the position of their series, and int64 (B,) the step of that series which is forecast first.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"window numbers {np.asarray(indices)} of {len(self)} windows")
        if self._kept is not None:
            numbers = self._kept[numbers]
        series = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(series > 0, self._ends[series - 1], 0)
        return series, self._first[series] + (numbers - before) * self.stride

    def numbers(self, series: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Return the numbers of the windows that lie somewhere, what `locate` tells the other way round.

        Args:
            series: int64, positions of series.
            origin: int64 of the same shape, the step of each that is forecast first; one that no window has gives the
                number of another.

        Raises:
            DataError: Some windows were left out or skipped over, so that numbers do not follow from places.
        """
        if self._kept is not None or self.stride != 1:
            found = "every window of every step was expected, found some of them"
            raise DataError(self.series_set.source, "windows", found, "make them without stride and at_most")
        return np.concatenate([[0], self._ends[:-1]])[series] + origin - self._first[series]

    def horizon_index(self, index: int) -> pd.Index:
        """Return the H timestamps that a window forecasts."""
        series, origin = (int(value[0]) for value in self.locate([index]))
        return self.series_set.indexes[series][origin : origin + self.horizon]

    def _check_lengths(self, short: str) -> list[str]:
        lengths, need = self.series_set.lengths, self.lookback + self.horizon
        found = np.flatnonzero(lengths < need)
        if len(found) and short != "skip":
            number = int(found[0])
            others = f" (and {len(found) - 1} other series)" if len(found) > 1 else ""
            raise DataError(
                self.series_set.source,
                f"series {self.series_set.ids[number]!r}",
                f"at least lookback + horizon = {self.lookback} + {self.horizon} = {need} steps were expected, "
                f"found {lengths[number]}{others}",
                "shorten lookback or horizon, or pass short='skip' to leave short series out",
            )
        return [self.series_set.ids[number] for number in found]

    def _ranges(self, origins: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return for each series the step of its first origin and the number of its origins."""
        lengths = self.series_set.lengths
        first, last = np.zeros_like(lengths), lengths.copy()
        if isinstance(origins, str) and origins in ("all", "last"):
            if origins == "last":
                first = np.maximum(lengths - self.horizon, 0)
        elif isinstance(origins, (tuple, list)) and len(origins) == 2:
            for values, bound in zip((first, last), origins, strict=True):
                if bound is not None:
                    stamp = self.series_set.bound(bound)
                    values[:] = [index.searchsorted(stamp) for index in self.series_set.indexes]
        else:
            found = f"'all', 'last' or two timestamps (first, last) were expected, found {origins!r}"
            raise DataError(self.series_set.source, "origins", found, "pass one of these")
        first = np.maximum(first, self.lookback)
        count = np.maximum(last - self.horizon - first + 1, 0)
        return first, (count + self.stride - 1) // self.stride

    def _with_target(self) -> np.ndarray:
        """Return the numbers of the windows with an observed target in the horizon."""
        total = np.concatenate([[0], np.cumsum(self.series_set.observed, dtype=np.int64)])
        series, origin = self.locate(np.arange(len(self)))
        row = self._start[series] + origin
        kept = np.flatnonzero(total[row + self.horizon] > total[row])
        if not len(kept):
            found = "at least one window with an observed target in its horizon was expected, found none"
            raise DataError(self.series_set.source, "origins", found, "widen the part")
        return kept


class WindowBatch(Sequence[Item]):
    """A gathered batch that also reads as a list of items, so that torch's own collate works on it too.

    Args:
        batch: The items' dict with a leading B.
    """

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["series"])

    def __getitem__(self, index: Any) -> Any:
        """Return one item as views of the batch."""
        return self._items[index]

    @cached_property
    def _items(self) -> list[Item]:
        parts = (value.unbind() for value in self.batch.values())
        return [dict(zip(self.batch, item, strict=True)) for item in zip(*parts, strict=True)]


def collate(items: Sequence[Item]) -> Mapping[str, Tensor]:
    """Make a batch of items: what was gathered at once is taken as it is, the rest is stacked as torch does.

    Args:
        items: What a loader fetched from a `WindowDataset`.

    Returns:
        The items' dict with a leading B.
    """
    return items.batch if isinstance(items, WindowBatch) else default_collate(list(items))


def _gather(rows: np.ndarray, first: np.ndarray, steps: int) -> Tensor:
    """Copy windows of rows (N, C) that begin at some rows: (B, steps, C)."""
    shape = (len(rows) - steps + 1, steps, rows.shape[1])
    # Each window is one run of memory in this view: a copy takes a third of the time that row numbers do.
    windows = np.lib.stride_tricks.as_strided(rows, shape, (rows.strides[0], *rows.strides))
    return torch.from_numpy(windows[first])
