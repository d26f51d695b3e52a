"""The steps to come of one series, moved on one at a time: their timestamps and their calendar."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pandas as pd

from mamba_datasets.series import SeriesSet, calendar_frame


class Clock:
    """The timestamps of the next steps and what the calendar says of them.

    Args:
        history: A set of one series, at whose end the clock stands.
        horizon: How many steps it looks ahead.
    """

    def __init__(self, history: SeriesSet, horizon: int) -> None:
        self._frequency, self._calendar = history.frequency, history.calendar
        ahead = self._frequency.after(history.indexes[0], horizon)
        self._steps: deque[Any] = deque(ahead)
        self._features: deque[np.ndarray] = deque(self._features_of(ahead))

    @property
    def next(self) -> Any:
        """The timestamp or whole number of the next step."""
        return self._steps[0]

    @property
    def index(self) -> pd.Index:
        """Those of all steps of the horizon."""
        return pd.Index(list(self._steps))

    @property
    def features(self) -> np.ndarray:
        """The calendar of the horizon, float32 (H, features); no features where the forecaster has no calendar."""
        return np.stack(list(self._features))

    def steps_to(self, stamp: Any) -> int:
        """Return how many steps lie between the next one and a timestamp; negative where it is earlier or on no step.

        Args:
            stamp: A timestamp or whole number, in the time zone of the series.
        """
        if stamp < self.next:
            return -1
        return int(self._frequency.positions(pd.Index([self.next, stamp]))[-1]) if stamp != self.next else 0

    def tick(self) -> np.ndarray:
        """Move on by a step, and return the calendar of the one that has passed (features,)."""
        last = self._frequency.after(pd.Index([self._steps[-1]]), 1)
        self._steps.popleft()
        self._steps.append(last[0])
        self._features.extend(self._features_of(last))
        return self._features.popleft()

    def _features_of(self, index: pd.Index) -> np.ndarray:
        if self._calendar is None:
            return np.empty((len(index), 0), dtype=np.float32)
        return calendar_frame(index, self._frequency.name, **self._calendar).values
