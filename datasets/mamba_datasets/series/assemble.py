"""From checked rows to a regular grid: gaps and missing values refused or filled, and all series laid end to end.

Letters: N steps of all series together, P past covariates, F known-future ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mamba_datasets.report import Collector
from mamba_datasets.series.data import SeriesSet
from mamba_datasets.series.fill import carry_forward, fill_seasonal
from mamba_datasets.series.frequency import Frequency, infer_frequency
from mamba_datasets.series.rows import SeriesRows, is_clock_change
from mamba_datasets.series.table import Table
from mamba_datasets.series.values import Block

# So many equal gaps in a row are another frequency, not chance.
_RUN = 12


def assemble(
    table: Table,
    rows: Sequence[SeriesRows],
    frequency: Frequency | None,
    y: np.ndarray,
    past: Block,
    future: Block,
    static: Block,
    static_values: np.ndarray,
    sink: Collector,
    *,
    missing: str,
    season: int | None,
    inferred: bool,
    columns: Mapping[str, Any],
) -> SeriesSet | None:
    """Lay the rows of each series on its grid.

    Args:
        table: The table.
        rows: The rows of each series in time order.
        frequency: The frequency; None where findings are kept and it could not be inferred.
        y: float64 (rows,) the targets, NaN where missing.
        past: Past covariates.
        future: Known-future covariates.
        static: Static covariates, for their names.
        static_values: float32 (series, S).
        sink: Takes what cannot be used.
        missing: "error", "mask" or "seasonal".
        season: The season in steps to fill from; None takes the frequency's usual one.
        inferred: Whether the frequency was inferred.
        columns: What the reader was told of the columns.

    Returns:
        The series, or None where the sink has kept a finding.
    """
    season = frequency.season if season is None and frequency is not None else season
    if missing == "seasonal" and season is None and frequency is not None:
        sink.add("season", f"freq={frequency} has no usual season to fill from", "pass season, or missing='mask'")
    names = (columns["target_col"], past, future)
    grids = (
        [grid_steps(table, one, frequency, sink, missing, inferred) for one in rows] if frequency is not None else []
    )
    x = np.concatenate([past.values, future.values], axis=1)
    for one in rows:
        _check_values(table, one, y, x, *names, sink, missing)
    if sink.findings or frequency is None:
        return None
    filler = _Filler(table, sink, missing, season, [*past.source, *future.source])
    parts = [
        filler.fill(one, steps, y[one.rows], x[one.rows])
        for one, steps in zip(rows, grids, strict=True)
        if steps is not None
    ]
    if sink.findings:
        return None
    lengths = np.array([len(part[1]) for part in parts], dtype=np.int64)
    ends = np.cumsum(lengths)
    filler.tell(int(lengths.sum()))
    return SeriesSet(
        y=np.concatenate([part[1] for part in parts]),
        observed=np.concatenate([part[2] for part in parts]),
        x=np.concatenate([part[3] for part in parts]),
        static=static_values,
        bounds=np.column_stack([ends - lengths, ends]),
        indexes=_indexes(frequency, [one.index for one in rows], [part[0] for part in parts], lengths),
        keys=tuple(one.key for one in rows),
        freq=frequency.name,
        past_names=tuple(past.names),
        future_names=tuple(future.names),
        static_names=tuple(static.names),
        categories={**past.categories, **future.categories, **static.categories},
        binary=frozenset([*past.binary, *future.binary, *static.binary]),
        columns=columns,
        season=season,
        filled=filler.filled,
        notes=tuple(sink.notes),
        source=table.label,
    )


def _indexes(
    frequency: Frequency, given: Sequence[pd.Index], left_out: Sequence[int], lengths: np.ndarray
) -> tuple[pd.Index, ...]:
    """Make the grid of each series; series with the same first step share one."""
    longest: dict[Any, int] = {}
    for index, skip, length in zip(given, left_out, lengths, strict=True):
        longest[index[0]] = max(longest.get(index[0], 0), skip + int(length))
    grids = {start: frequency.range(start, steps) for start, steps in longest.items()}
    return tuple(
        grids[index[0]][skip : skip + int(length)] for index, skip, length in zip(given, left_out, lengths, strict=True)
    )


def grid_steps(
    table: Table, one: SeriesRows, frequency: Frequency, sink: Collector, missing: str, inferred: bool
) -> np.ndarray | None:
    """Return the step number of each row of a series, or report why its rows do not fit the frequency.

    Args:
        table: The table.
        one: The series' rows.
        frequency: The frequency.
        sink: Takes a row off the grid, and a gap where ``missing`` is "error".
        missing: As in `read_series`.
        inferred: Whether the frequency was inferred.
    """
    if not one.timed:
        return None
    said = f"freq={frequency}" + (" (inferred)" if inferred else "")
    steps = frequency.positions(one.index)
    off = np.flatnonzero(steps < 0)
    if len(off):
        fits = infer_frequency(one.index)
        # The first timestamp alone fixes the grid of hours and days; months and weeks have days of their own.
        anchor = f" counted from {one.index[0]}" if frequency.kind != "calendar" or off[0] > 0 else ""
        found = f"a step of {said}{anchor} was expected, found {one.index[off[0]]}"
        known = fits is not None and bool((fits.positions(one.index) >= 0).all())
        remedy = (
            f"the timestamps fit freq={fits}"
            if known
            else "correct the timestamps, or round them: they fit no frequency"
        )
        sink.add(one.place(table, int(off[0])), found, remedy)
        return None
    length = int(steps[-1]) + 1
    fits = infer_frequency(one.index) if length > len(steps) else None
    other = fits is not None and fits != frequency and bool((fits.positions(one.index) >= 0).all())
    hint = f"the timestamps fit freq={fits}" if other else "check freq"
    if length > 100 * len(steps) + 1000:
        found = f"{said} was expected to fit, but would make {length} steps of {len(steps)} rows"
        sink.add(f"series {str(one.key)!r}", found, hint)
        return None
    if length > len(steps) and _other_frequency(table, one, steps, said, sink, missing):
        return None
    gaps = np.flatnonzero(np.diff(steps) > 1).tolist()
    if len(gaps) and missing == "error":
        before = gaps[0]
        absent = frequency.after(one.index[before : before + 1], 1)[0]
        lost = length - len(steps)
        many = f"{lost} step{'s' * (lost > 1)} missing in {len(gaps)} gap{'s' * (len(gaps) > 1)}"
        found = f"{absent} was expected next, found {one.index[before + 1]} ({many})"
        remedy = "add the rows, or pass missing='mask' or 'seasonal'"
        if other:
            remedy = f"{hint}; else {remedy}"
        elif lost == len(gaps) and all(is_clock_change(one.index[gap + 1]) for gap in gaps):
            remedy += ", or tz='Europe/Berlin' or the like if these are local times where the clock is set forward"
        sink.add(f"{one.place(table, before)}", found, remedy)
    return steps


def _other_frequency(
    table: Table, one: SeriesRows, steps: np.ndarray, said: str, sink: Collector, missing: str
) -> bool:
    """Report rows in a part of a series that follow another frequency: taken for gaps, most of it would be filled."""
    apart = np.diff(steps)
    first = np.r_[0, np.flatnonzero(np.diff(apart)) + 1]
    last = np.r_[first[1:], len(apart)]
    runs = np.flatnonzero((apart[first] > 1) & (last - first >= _RUN))
    whole = len(first) == 1
    # Where gaps are refused anyway, the first one tells which frequency the whole series has.
    if not len(runs) or (whole and missing == "error"):
        return False
    begin, rows = int(first[runs[0]]), int(last[runs[0]] - first[runs[0]])
    found = f"steps of {said} throughout were expected, found {rows} rows that are {apart[begin]} steps apart"
    remedy = "bring the series to one frequency, or give each part an id of its own"
    fits = infer_frequency(one.index) if whole else None
    sink.add(one.place(table, begin), found, remedy if fits is None else f"the timestamps fit freq={fits}")
    return True


def _check_values(
    table: Table,
    one: SeriesRows,
    y: np.ndarray,
    x: np.ndarray,
    target: str,
    past: Block,
    future: Block,
    sink: Collector,
    missing: str,
) -> None:
    """Report the first value of each kind in a series that cannot be used."""
    own_y, own_x = y[one.rows], x[one.rows]
    _report(
        table, one, np.isinf(own_y), sink, f"target {target!r}", "an infinite value", "correct it or leave it empty"
    )
    nothing = np.isnan(own_y)
    if missing == "error":
        remedy = "fill it in, or pass missing='mask' or 'seasonal'"
        _report(table, one, nothing, sink, f"target {target!r}", "no value", remedy)
    if nothing.all():
        found = "at least one observed target was expected, found none"
        sink.add(f"series {str(one.key)!r}", found, "remove the series")
    absent = np.isnan(own_x)
    empty_row = nothing & absent.all(axis=1) & (missing != "error")
    split = len(past.names)
    for role, block, lost in (("past", past, absent[:, :split]), ("future", future, absent[:, split:])):
        for name in dict.fromkeys(block.source):
            column = lost[:, block.source.index(name)]
            where = f"{role} covariate {name!r}"
            if role == "future":
                remedy = "fill it in: a covariate known ahead has a value in every row"
                _report(table, one, column & ~empty_row, sink, where, "no value", remedy)
            elif missing == "error":
                remedy = "fill it in, or pass missing='mask' or 'seasonal'"
                _report(table, one, column, sink, where, "no value", remedy)
            if column.all() and missing != "error":
                found = f"at least one value of {where} was expected, found none"
                sink.add(f"series {str(one.key)!r}", found, "fill it in, or leave the column out")


def _report(
    table: Table, one: SeriesRows, bad: np.ndarray, sink: Collector, what: str, found: str, remedy: str
) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        more = f" ({len(rows)} such rows in this series)" if len(rows) > 1 else ""
        sink.add(one.place(table, int(rows[0])), f"a finite {what} was expected, found {found}{more}", remedy)


class _Filler:
    """Puts the rows of a series on its grid, fills what is missing, and counts."""

    def __init__(self, table: Table, sink: Collector, missing: str, season: int | None, names: Sequence[str]) -> None:
        self.table, self.sink, self.missing, self.season, self.names = table, sink, missing, season, names
        self.filled: dict[str, int] = {}
        self.left_out = self.carried = 0

    def fill(
        self, one: SeriesRows, steps: np.ndarray, values: np.ndarray, x: np.ndarray
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Return the number of leading steps left out, then y (T,), observed (T,) and x (T, P + F) in float32."""
        length = int(steps[-1]) + 1
        y_full = np.full(length, np.nan)
        x_full = np.full((length, x.shape[1]), np.nan)
        y_full[steps], x_full[steps] = values, x
        self.carried += int(np.isnan(x_full).any(axis=1).sum())
        x_full = carry_forward(x_full)
        skip = int((~np.isnan(y_full)).argmax())
        self.left_out += skip
        y_full, x_full = y_full[skip:], x_full[skip:]
        observed = ~np.isnan(y_full)
        if not observed.all():
            self.filled[str(one.key)] = int((~observed).sum())
            y_full, without = fill_seasonal(y_full, self.season)
            if self.missing == "seasonal":
                if without is not None:
                    found = (
                        f"a step {self.season} steps before was expected to fill step {skip + without} from, found none"
                    )
                    remedy = "pass missing='mask' or a shorter season, or begin the series later"
                    self.sink.add(f"series {str(one.key)!r}", found, remedy)
                observed = np.ones_like(observed)
        y_32 = self._narrow(one, y_full[:, None], ["the target"])[:, 0]
        x_32 = self._narrow(one, x_full, [f"covariate {name!r}" for name in self.names])
        return skip, np.ascontiguousarray(y_32), observed, x_32

    def _narrow(self, one: SeriesRows, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Round to float32, and refuse values whose differences would be lost in it."""
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
            lost = np.abs(narrow.astype(np.float64) - values).max(axis=0, initial=0)
            spread = values.std(axis=0)
        varies = spread > 1e-12 * np.abs(values).max(axis=0, initial=0)
        for column in np.flatnonzero(((lost > 0.01 * spread) & varies) | np.isinf(lost)).tolist():
            if np.isinf(lost[column]):
                found, remedy = (
                    f"{names[column]} reaches {np.abs(values[:, column]).max():.3g}: too much",
                    "change the unit",
                )
            else:
                found = f"{names[column]} varies by {spread[column]:.3g} around {values[0, column]:.6g}: too little"
                remedy = "subtract an offset"
            self.sink.add(f"series {str(one.key)!r}", f"{found} for float32", remedy)
        return narrow

    def tell(self, total: int) -> None:
        """Say what was filled and left out."""
        count = sum(self.filled.values())
        if count:
            how = "masked" if self.missing == "mask" else "filled and counted as data"
            source = f"from {self.season} steps before" if self.season else "from the last value"
            self.sink.note(f"{count} of {total} targets in {len(self.filled)} series were missing: {how}, {source}")
        if self.carried:
            self.sink.note(f"covariates of {self.carried} steps were missing: the last value was carried forward")
        if self.left_out:
            self.sink.note(f"{self.left_out} steps before the first observed target were left out")
