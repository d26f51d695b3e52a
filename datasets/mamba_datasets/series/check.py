"""The check of a file of series, for the readers' registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mamba_datasets.errors import DataError
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Collector, Finding, Report
from mamba_datasets.series.read import read_into
from mamba_datasets.series.table import CSV_SUFFIXES, PARQUET_SUFFIXES


@register_reader("series", suffixes=(*CSV_SUFFIXES, *PARQUET_SUFFIXES))
def check_series(path: Path | str, *, freq: str | int | None = None, **options: Any) -> Report:
    """Check a file of series, and gather every problem of every series.

    Args:
        path: A CSV or Parquet file in the long format.
        freq: The frequency; None infers it.
        options: Further arguments of `read_series`, such as `target_col`.

    Returns:
        The report.
    """
    sink = Collector(path, keep=True)
    summary = ""
    try:
        read = read_into(sink, path, freq=freq, **options)
    except DataError as error:
        # What stops the reading altogether, such as a missing column, is the last finding.
        sink.findings.append(Finding.of(error))
        read = None
    if read is not None and not sink.findings:
        shortest, longest = int(read.lengths.min()), int(read.lengths.max())
        steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
        first = min(index[0] for index in read.indexes)
        last = max(index[-1] for index in read.indexes)
        summary = f"{len(read)} series of {steps} steps, freq={read.frequency}, {first} to {last}"
    return Report(str(path), "series", tuple(sink.findings), summary, tuple(sink.notes))
