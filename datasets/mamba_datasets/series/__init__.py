"""Series: read in the long format, scaled, given a calendar, and cut into windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mamba_datasets.series.calendar import CalendarFrame, calendar_frame, default_features
from mamba_datasets.series.data import Series, SeriesSet
from mamba_datasets.series.frequency import Frequency, default_season, infer_frequency
from mamba_datasets.series.guess import Guess, guess_table
from mamba_datasets.series.ltsf import LtsfSeries, read_ltsf
from mamba_datasets.series.read import read_series
from mamba_datasets.series.scaler import Scaler
from mamba_datasets.series.table import Table
from mamba_datasets.series.variates import Variates, read_variates

if TYPE_CHECKING:
    from mamba_datasets.series.windows import Columns, WindowDataset, collate

__all__ = [
    "read_series",
    "read_ltsf",
    "read_variates",
    "Variates",
    "LtsfSeries",
    "Series",
    "SeriesSet",
    "Scaler",
    "Table",
    "Guess",
    "guess_table",
    "WindowDataset",
    "Columns",
    "collate",
    "calendar_frame",
    "CalendarFrame",
    "default_features",
    "Frequency",
    "default_season",
    "infer_frequency",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for, so that checking a file does not wait for it."""
    if name in ("WindowDataset", "Columns", "collate"):
        from mamba_datasets.series import windows

        return getattr(windows, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
