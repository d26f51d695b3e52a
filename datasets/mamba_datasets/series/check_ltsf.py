"""The check of a long-term forecasting benchmark's file, for the readers' registry."""

from __future__ import annotations

from pathlib import Path

from mamba_datasets.errors import DataError
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Collector, Finding, Report, nearest
from mamba_datasets.series.ltsf import SETS, read_into


@register_reader("ltsf")
def check_ltsf(path: Path | str, *, name: str | None = None) -> Report:
    """Check whether a file is the one that a benchmark's published figures are measured on.

    Args:
        path: The file.
        name: The benchmark's name; None takes it from the file's.

    Returns:
        The report.
    """
    path = Path(path)
    sink = Collector(path, keep=True)
    by_file = {known.file: benchmark for benchmark, known in SETS.items()}
    name = name or by_file.get(path.name)
    if name not in SETS:
        found = f"the name of a benchmark was expected, found {name or path.name!r}"
        sink.add("name", found, f"{nearest(name or path.stem, SETS)} Say it with --set name=NAME")
        return Report(str(path), "ltsf", tuple(sink.findings))
    summary = ""
    try:
        series = read_into(sink, name, SETS[name])
        rows, channels = series.values.shape
        parts = ", ".join(f"{end - first}" for first, end in series.borders)
        summary = f"{name}: {rows} rows of {channels} variates; train, val, test: {parts} rows"
    except DataError as error:
        sink.findings.append(Finding.of(error))
    return Report(str(path), "ltsf", tuple(sink.findings), "" if sink.findings else summary)
