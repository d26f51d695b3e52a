"""Series made longer: by steps that were not observed before their start, or by new observations after their end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest
from mamba_datasets.series.calendar import calendar_columns
from mamba_datasets.series.fill import fill_seasonal

if TYPE_CHECKING:
    from mamba_datasets.series.data import SeriesSet
    from mamba_datasets.series.frequency import Frequency


@dataclasses.dataclass
class _Part:
    """Steps of one series: their timestamps, y (T,), observed (T,) and x (T, P + F)."""

    index: pd.Index
    y: np.ndarray
    observed: np.ndarray
    x: np.ndarray


def lead_in(series_set: SeriesSet, counts: Sequence[int]) -> SeriesSet:
    """Put steps without an observation before the start of series; see `SeriesSet.lead_in`."""
    frequency, grown = series_set.frequency, [number for number, count in enumerate(counts) if count]
    before = {number: frequency.before(series_set.indexes[number], counts[number]) for number in grown}
    blank = _blank(series_set, list(before.values()), [int(series_set.bounds[number, 0]) for number in grown])
    made = dict(zip(before, blank, strict=True))
    return _laid_out(
        series_set,
        [[made[number], own] if number in made else [own] for number, own in enumerate(_parts(series_set))],
    )


def append(series_set: SeriesSet, new: SeriesSet, missing: str) -> SeriesSet:
    """Put new observations after the end of series; see `SeriesSet.append`."""
    for place, name in enumerate(new.ids):
        if name not in series_set.positions:
            found = f"a series that is known was expected, found {name!r}"
            raise DataError(new.source, "id", found, nearest(name, series_set.ids))
        if (new.static[place] != series_set.static[series_set.positions[name]]).any():
            found = f"the static covariates {list(series_set.static_names)} were expected as they were, found others"
            raise DataError(new.source, f"series {name!r}", found, "correct them, or fit anew")
    ends = [series_set.indexes[series_set.positions[name]] for name in new.ids]
    steps = [_gap(series_set, new, place, end, missing) for place, end in enumerate(ends)]
    late = [place for place, gap in enumerate(steps) if gap]
    between = [series_set.frequency.after(ends[place], steps[place]) for place in late]
    last = [int(series_set.bounds[series_set.positions[new.ids[place]], 1]) - 1 for place in late]
    gaps = dict(zip(late, _blank(series_set, between, last), strict=True))
    fresh = _parts(new)
    parts = []
    for own, name in zip(_parts(series_set), series_set.ids, strict=True):
        if name not in new.positions:
            parts.append([own])
            continue
        place = new.positions[name]
        pieces = [own, *([gaps[place]] if place in gaps else []), fresh[place]]
        parts.append([_filled(pieces, series_set.frequency, series_set.season, missing)])
    return _laid_out(series_set, parts)


def _gap(series_set: SeriesSet, new: SeriesSet, place: int, end: pd.Index, missing: str) -> int:
    """Return how many steps lie between the end of a series and its new observations, or refuse them."""
    name, first, source = new.ids[place], new.indexes[place][0], new.source
    expected = series_set.frequency.after(end, 1)[0]
    if first == expected:
        return 0
    where = f"series {name!r}, {first}"
    if first < expected:
        found = f"steps from {expected} on were expected, found one that is known already"
        raise DataError(source, where, found, f"leave out the rows before {expected}")
    grid = pd.Index([end[-1], first])
    steps = int(series_set.frequency.positions(grid)[1])
    if steps < 0:
        found = f"a step of freq={series_set.frequency} after {end[-1]} was expected"
        raise DataError(source, where, found, "correct the timestamps")
    if missing == "error":
        found = f"{expected} was expected next ({steps - 1} steps missing)"
        raise DataError(source, where, found, "add the rows, or fit with missing='mask' or 'seasonal'")
    return steps - 1


def _blank(series_set: SeriesSet, indexes: Sequence[pd.Index], like: Sequence[int]) -> list[_Part]:
    """Return steps without an observation that hold the values of a row each, with the calendar that is theirs."""
    if not indexes:
        return []
    parts = []
    calendar: Sequence[np.ndarray] = [np.empty((len(index), 0), dtype=np.float32) for index in indexes]
    if series_set.calendar is not None:
        _, calendar = calendar_columns(indexes, series_set.freq, series_set.calendar)
    for index, row, known in zip(indexes, like, calendar, strict=True):
        count = len(index)
        x = np.repeat(series_set.x[row : row + 1], count, axis=0)
        x[:, x.shape[1] - known.shape[1] :] = known
        y = np.repeat(series_set.y[row : row + 1], count)
        parts.append(_Part(index, y, np.zeros(count, dtype=bool), x))
    return parts


def _filled(pieces: Sequence[_Part], frequency: Frequency, season: int | None, missing: str) -> _Part:
    """Join pieces, and give what was not observed in them the value that the reader would have given."""
    y = np.concatenate([piece.y for piece in pieces])
    observed = np.concatenate([piece.observed for piece in pieces])
    known = len(pieces[0].y)
    if not observed[known:].all():
        wide = y.astype(np.float64)
        wide[known:][~observed[known:]] = np.nan
        y = fill_seasonal(wide, season)[0].astype(np.float32)
        if missing == "seasonal":
            observed[known:] = True
    index = frequency.range(pieces[0].index[0], len(y))
    return _Part(index, y, observed, np.concatenate([piece.x for piece in pieces]))


def _parts(series_set: SeriesSet) -> list[_Part]:
    return [
        _Part(index, series_set.y[first:last], series_set.observed[first:last], series_set.x[first:last])
        for index, (first, last) in zip(series_set.indexes, series_set.bounds, strict=True)
    ]


def _laid_out(series_set: SeriesSet, parts: Sequence[Sequence[_Part]]) -> SeriesSet:
    """Lay the pieces of each series end to end."""
    lengths = np.array([sum(len(piece.y) for piece in pieces) for pieces in parts], dtype=np.int64)
    ends = np.cumsum(lengths)
    flat = [piece for pieces in parts for piece in pieces]
    return dataclasses.replace(
        series_set,
        y=np.concatenate([piece.y for piece in flat]),
        observed=np.concatenate([piece.observed for piece in flat]),
        x=np.concatenate([piece.x for piece in flat]),
        bounds=np.column_stack([ends - lengths, ends]),
        indexes=tuple(
            pieces[0].index if len(pieces) == 1 else series_set.frequency.range(pieces[0].index[0], int(length))
            for pieces, length in zip(parts, lengths, strict=True)
        ),
    )
