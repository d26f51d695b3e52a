"""The check of a file of series, for the readers' registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mamba_datasets.errors import DataError
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Collector, Finding, Report
from mamba_datasets.series.data import SeriesSet
from mamba_datasets.series.guess import guess_table
from mamba_datasets.series.read import read_into
from mamba_datasets.series.table import CSV_SUFFIXES, PARQUET_SUFFIXES


@register_reader("series", suffixes=(*CSV_SUFFIXES, *PARQUET_SUFFIXES))
def check_series(path: Path | str, *, freq: str | int | None = None, **options: Any) -> Report:
    """Check a file of series, and gather every problem of every series.

    A file that has problems in the long format is read as `guess_table` reads it, where no options say otherwise and
    that has none; one without the format's columns is read so in any case.

    Args:
        path: A CSV or Parquet file.
        freq: The frequency; None infers it.
        options: Further arguments of `read_series`, such as `target_col`.

    Returns:
        The report.
    """
    sink, read = _kept(path, lambda sink: read_into(sink, path, freq=freq, **options))
    if sink.findings and not options:
        guessed, found = _kept(path, lambda sink: _guess(sink, path, freq))
        if not guessed.findings or sink.findings[-1].where == "columns":
            sink, read = guessed, found
    summary = ""
    if read is not None and not sink.findings:
        shortest, longest = int(read.lengths.min()), int(read.lengths.max())
        steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
        first = min(index[0] for index in read.indexes)
        last = max(index[-1] for index in read.indexes)
        summary = f"{len(read)} series of {steps} steps, freq={read.frequency}, {first} to {last}"
    return Report(str(path), "series", tuple(sink.findings), summary, tuple(sink.notes))


def _kept(path: Path | str, read: Callable[[Collector], SeriesSet | None]) -> tuple[Collector, SeriesSet | None]:
    """Read with a collector that keeps all findings."""
    sink = Collector(path, keep=True)
    try:
        return sink, read(sink)
    except DataError as error:
        # What stops the reading altogether, such as a missing column, is the last finding.
        sink.findings.append(Finding.of(error))
        return sink, None


def _guess(sink: Collector, path: Path | str, freq: str | int | None) -> SeriesSet | None:
    guess = guess_table(path)
    for note in guess.notes:
        sink.note(note)
    return read_into(
        sink, guess.table, freq=freq, id_col=guess.id_col, time_col=guess.time_col, target_col=guess.target_col
    )
