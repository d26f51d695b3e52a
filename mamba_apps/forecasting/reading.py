"""How series are read for a model: the same way when it is trained and when it forecasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_apps.errors import UserError
from mamba_apps.forecasting.history import describe_columns
from mamba_datasets.series import SeriesSet, Table, read_series

if TYPE_CHECKING:
    import pandas as pd


def read_with_calendar(
    source: pd.DataFrame | Path | str | Table, *, calendar: bool, holidays: str | None, **reading: Any
) -> SeriesSet:
    """Read series and, if asked, add what their timestamps tell.

    Args:
        source: As in `read_series`.
        calendar: Whether calendar features are covariates known ahead.
        holidays: "US" adds the federal holidays to them.
        reading: Further arguments of `read_series`.

    Raises:
        DataError: The series cannot be used.
        UserError: There are holidays without a calendar.
    """
    check_holidays(calendar, holidays)
    found = read_series(source, **reading)
    return found.with_calendar(holidays=holidays) if calendar else found


def check_holidays(calendar: bool, holidays: str | None) -> None:
    """Refuse holidays without a calendar.

    Raises:
        UserError: That is so.
    """
    if holidays is not None and not calendar:
        raise UserError(f"holidays={holidays!r} is part of the calendar, which is off", "set calendar to true")


@dataclass(frozen=True, eq=False)
class Reading:
    """How the training data was read, so that further data is read alike.

    Args:
        columns: What `describe_columns` says of the training data.
        missing: "error", "mask" or "seasonal".
        season: The season in steps that missing values are filled from, or None for the frequency's usual one.
        tz: The time zone that local times were read in, if any.
    """

    columns: Mapping[str, Any]
    missing: str
    season: int | None
    tz: str | None = None

    @classmethod
    def of(cls, series_set: SeriesSet, missing: str, season: int | None) -> Reading:
        """Return the reading that gave a set."""
        return cls(describe_columns(series_set), missing, season)

    @property
    def calendar(self) -> bool:
        """Whether calendar features are covariates."""
        return self.columns["calendar"] is not None

    @property
    def holidays(self) -> str | None:
        """Whose holidays are among them."""
        return (self.columns["calendar"] or {}).get("holidays")

    @property
    def named(self) -> dict[str, Any]:
        """The columns by role: id_col, time_col, target_col, past, future, static."""
        return {name: tuple(v) if isinstance(v, list) else v for name, v in self.columns["columns"].items()}

    def read(self, source: pd.DataFrame | Path | str | Table) -> SeriesSet:
        """Read series with the columns, categories and calendar of the training data.

        Raises:
            DataError: They cannot be used.
        """
        return read_with_calendar(
            source,
            calendar=self.calendar,
            holidays=self.holidays,
            freq=self.columns["freq"],
            missing=self.missing,
            season=self.season,
            tz=self.tz,
            categories=self.columns["categories"],
            **self.named,
        )
