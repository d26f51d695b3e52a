"""Series in: a CSV file, a Parquet file or a frame in the long format becomes a checked `SeriesSet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector
from mamba_datasets.series.assemble import assemble
from mamba_datasets.series.data import SeriesSet
from mamba_datasets.series.frequency import Frequency, infer_frequency
from mamba_datasets.series.rows import SeriesRows, group_rows
from mamba_datasets.series.static import static_covariates
from mamba_datasets.series.table import Table, load_table
from mamba_datasets.series.timestamps import parse_timestamps
from mamba_datasets.series.values import covariates, numbers, series_ids

Missing = Literal["error", "mask", "seasonal"]


def read_series(
    source: Path | str | pd.DataFrame | Table,
    *,
    freq: str | int | None,
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    past: Sequence[str] = (),
    future: Sequence[str] = (),
    static: Sequence[str] = (),
    missing: Missing = "error",
    season: int | None = None,
    sort: bool = False,
    tz: str | None = None,
    time_format: str | None = None,
    separator: str = ",",
    categories: Mapping[str, Sequence[str]] | None = None,
) -> SeriesSet:
    """Read series in the long format and check them; what is wrong is named, nothing is changed silently.

    Columns that are not named are left out. Boolean covariates become 0 and 1. A covariate of text none of which reads
    as a number, or of pandas' categories, becomes one 0/1 column a category, named "column=value"; at most 64 of them.

    Missing steps are rows that are not there, rows without target and covariates, and missing targets or past
    covariates. With "mask" the target of such a step does not count (`observed` is False) and holds the value one
    season before as an input (the last value where there is none, or no season); with "seasonal" that value counts as
    data, and a step without one season before is refused. Either way covariates carry their last value forward (before
    their first value they take that one), a known-future covariate may be missing only where the whole row is, steps
    before the first observed target are left out, and `notes` says how many of each.

    Args:
        source: A CSV or Parquet file (".csv", ".tsv", ".csv.gz", ".parquet"), a frame, or what `guess_table` made of a
            file.
        freq: A pandas offset alias, or a whole number for whole-number steps; None infers it and says so in `notes`.
        id_col: The column of series ids, text or whole numbers. Where there is no column of the default name, the
            source is a single series, named after the file ("series" for a frame).
        time_col: The column of timestamps or whole numbers.
        target_col: The column of targets.
        past: Columns known up to the present only.
        future: Columns known ahead.
        static: Columns with one value a series.
        missing: What to do about missing steps: "error", "mask" or "seasonal".
        season: The season in steps to fill from; None takes the frequency's usual one.
        sort: Whether to sort rows that are not in time order; otherwise they are refused.
        tz: The time zone to convert timestamps into; local times without a zone are read as times of it.
        time_format: The format of timestamps in text, as in `datetime.strptime`; ISO 8601 if None.
        separator: What separates the columns of a CSV file.
        categories: The `categories` of the training data, for each of its columns that is not numeric: other values are
            refused. None takes them from the source.

    Returns:
        The series, float32 in memory.

    Raises:
        DataError: The data cannot be used; the error names file, place, what was expected and the remedy.
    """
    label = (
        "DataFrame" if isinstance(source, pd.DataFrame) else source.label if isinstance(source, Table) else str(source)
    )
    result = read_into(
        Collector(label),
        source,
        freq=freq,
        id_col=id_col,
        time_col=time_col,
        target_col=target_col,
        past=past,
        future=future,
        static=static,
        missing=missing,
        season=season,
        sort=sort,
        tz=tz,
        time_format=time_format,
        separator=separator,
        categories=categories,
    )
    assert result is not None  # noqa: S101  (a collector that keeps nothing has raised)
    return result


def read_into(
    sink: Collector,
    source: Path | str | pd.DataFrame | Table,
    *,
    freq: str | int | None,
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    past: Sequence[str] = (),
    future: Sequence[str] = (),
    static: Sequence[str] = (),
    missing: Missing = "error",
    season: int | None = None,
    sort: bool = False,
    tz: str | None = None,
    time_format: str | None = None,
    separator: str = ",",
    categories: Mapping[str, Sequence[str]] | None = None,
) -> SeriesSet | None:
    """Read as `read_series` does, and hand every problem to a collector.

    Returns:
        The series, or None where the collector has kept a finding.
    """
    past, future, static = (column_names(value) for value in (past, future, static))
    _check_options(sink.path, missing, season, tz, [id_col, time_col, target_col, *past, *future, *static])
    wanted = None if freq is None else Frequency.parse(freq, sink.path)
    required = [time_col, target_col, *past, *future, *static]
    table = load_table(source, id_col=id_col, required=required, separator=separator)
    codes, keys = series_ids(table, sink)
    y = numbers(table, target_col, sink, "target")
    blocks = [covariates(table, columns, sink, categories) for columns in (past, future, static)]
    whole = None if wanted is None else wanted.kind == "integer"
    times = parse_timestamps(table, time_col, sink, whole_numbers=whole, time_format=time_format, tz=tz)
    rows = group_rows(table, codes, keys, times, sink, sort=sort, tz=tz)
    frequency = wanted or inferred_frequency(rows, sink)
    static_values = static_covariates(rows, blocks[2], sink)
    return assemble(
        table,
        rows,
        frequency,
        y,
        blocks[0],
        blocks[1],
        blocks[2],
        static_values,
        sink,
        missing=missing,
        season=season,
        inferred=wanted is None,
        columns={
            "id_col": id_col,
            "time_col": time_col,
            "target_col": target_col,
            "past": past,
            "future": future,
            "static": static,
        },
    )


def column_names(value: Sequence[str] | str) -> tuple[str, ...]:
    """Return names of columns, of which a single one may stand by itself."""
    return (value,) if isinstance(value, str) else tuple(value)


def _check_options(label: str, missing: str, season: int | None, tz: str | None, columns: Sequence[str]) -> None:
    if missing not in ("error", "mask", "seasonal"):
        found = f"'error', 'mask' or 'seasonal' was expected, found {missing!r}"
        raise DataError(label, "missing", found, "choose one of the three")
    if season is not None and season < 1:
        raise DataError(
            label, "season", f"at least 1 step was expected, found {season}", "leave it out for the usual one"
        )
    twice = next((name for name in columns if list(columns).count(name) > 1), None)
    if twice is not None:
        raise DataError(label, "columns", f"{twice!r} is asked for in two roles", "name each column once")
    check_zone(label, tz)


def check_zone(label: str, tz: str | None) -> None:
    """Refuse a time zone that there is not.

    Raises:
        DataError: That is so.
    """
    if tz is None:
        return
    try:
        pd.Timestamp("2000-01-01", tz=tz)
    except Exception as error:
        # The class depends on pandas' version and on whether zoneinfo or pytz looks the name up.
        found = f"{tz!r} is not a time zone"
        raise DataError(label, "tz", found, "use a name such as 'UTC' or 'Europe/Berlin'") from error


def inferred_frequency(rows: Sequence[SeriesRows], sink: Collector) -> Frequency | None:
    """Infer the frequency from the longest series, or report that it cannot be told."""
    timed = [one for one in rows if one.timed]
    if not timed:
        return None
    longest = max(timed, key=lambda one: len(one.index))
    frequency = infer_frequency(longest.index)
    if frequency is None:
        found = f"no frequency can be told from its {len(longest.index)} timestamps"
        sink.add(f"series {str(longest.key)!r}", found, "pass freq='h', 'D', 'MS' or the like")
        return None
    sink.note(f"freq={frequency.name!r} was inferred from series {str(longest.key)!r}")
    return frequency
