"""The long-term forecasting benchmarks: their files, exact split borders and scales.

All variates of a set are one multivariate series. Each of the three parts is scaled by the first one's mean and
population standard deviation a variate, and every window of a part is one of its windows.

Letters: T rows, C channels (variates), L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest
from mamba_datasets.series.table import load_table
from mamba_datasets.series.timestamps import parse_timestamps
from mamba_datasets.series.values import numbers

PARTS = ("train", "val", "test")
_MONTHS = {"etth": 30 * 24, "ettm": 30 * 96}
_ETT = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
_DAMAGED = "it is damaged or cut short: get the benchmark's file again"


@dataclass(frozen=True)
class LtsfSet:
    """What is known of a benchmark's file.

    Args:
        file: Its name; the ending says how it is read: ".csv" with dates, ".txt" without, ".npz" for PEMS.
        rows: How many rows it has; None for a file of the user's own.
        channels: How many variates.
        split: "etth" and "ettm" (12, 4 and 4 months of 30 days, hourly or of quarter hours), "ratio" (70, 10 and 20 %)
            or "pems" (60, 20 and 20 %, whose windows never look back into the part before).
        season: Steps of its usual season; None where it is not known.
        columns: The names of the variates, where they are always the same.
        mean: The mean of all values of the training part, where it is known.
    """

    file: str
    rows: int | None = None
    channels: int | None = None
    split: Literal["etth", "ettm", "ratio", "pems"] = "ratio"
    season: int | None = None
    columns: tuple[str, ...] = ()
    mean: float | None = None


SETS = {
    "ETTh1": LtsfSet("ETTh1.csv", 17_420, 7, "etth", 24, _ETT, 5.211887798814759),
    "ETTh2": LtsfSet("ETTh2.csv", 17_420, 7, "etth", 24, _ETT, 19.518858837708827),
    "ETTm1": LtsfSet("ETTm1.csv", 69_680, 7, "ettm", 96, _ETT),
    "ETTm2": LtsfSet("ETTm2.csv", 69_680, 7, "ettm", 96, _ETT),
    "exchange_rate": LtsfSet("exchange_rate.csv", 7_588, 8, season=7, mean=0.6641466291658823),
    "weather": LtsfSet("weather.csv", 52_696, 21, season=144),
    "electricity": LtsfSet("electricity.csv", 26_304, 321, season=24),
    "traffic": LtsfSet("traffic.csv", 17_544, 862, season=24),
    "illness": LtsfSet("national_illness.csv", 966, 7, season=52),
    "solar": LtsfSet("solar_AL.txt", 52_560, 137, season=144),
    "PEMS03": LtsfSet("PEMS03.npz", 26_208, 358, "pems", 288),
    "PEMS04": LtsfSet("PEMS04.npz", 16_992, 307, "pems", 288),
    "PEMS07": LtsfSet("PEMS07.npz", 28_224, 883, "pems", 288),
    "PEMS08": LtsfSet("PEMS08.npz", 17_856, 170, "pems", 288),
}


@dataclass(frozen=True, eq=False)
class LtsfSeries:
    """One multivariate series with the benchmark's split and scale.

    Args:
        name: The set's name.
        known: What is known of it.
        path: The file it was read from.
        columns: The names of the variates (C).
        values: float64 (T, C), as in the file.
        index: The timestamps (T,); None where the file has none.
    """

    name: str
    known: LtsfSet
    path: Path
    columns: tuple[str, ...]
    values: np.ndarray
    index: pd.DatetimeIndex | None

    @property
    def borders(self) -> tuple[tuple[int, int], ...]:
        """The rows (first, end) of the training, validation and test part."""
        return _borders(self.known.split, len(self.values))

    @cached_property
    def mean(self) -> np.ndarray:
        """The training part's mean of each variate (C,)."""
        return self.values[slice(*self.borders[0])].mean(axis=0)

    @cached_property
    def std(self) -> np.ndarray:
        """The training part's population standard deviation of each variate (C,); 1 for a constant."""
        found = self.values[slice(*self.borders[0])].std(axis=0)
        return np.where(found == 0, 1.0, found)

    @cached_property
    def scaled(self) -> np.ndarray:
        """All values at the benchmark's scale, float64 (T, C)."""
        return (self.values - self.mean) / self.std

    @cached_property
    def marks(self) -> np.ndarray | None:
        """Hour, weekday, day of the month and of the year, each in [-0.5, 0.5], float32 (T, 4); None without dates."""
        if self.index is None:
            return None
        index = self.index
        parts = (index.hour / 23, index.dayofweek / 6, (index.day - 1) / 30, (index.dayofyear - 1) / 365)
        return np.stack(parts, axis=1).astype(np.float32) - np.float32(0.5)

    def starts(self, part: str, lookback: int, horizon: int) -> range:
        """Return the first rows of every window of a part.

        Args:
            part: "train", "val" or "test".
            lookback: Steps of the past (L), at least 1.
            horizon: Steps to forecast (H), at least 1.

        Raises:
            DataError: The part has no such window.
        """
        first, end = self.borders[PARTS.index(part)]
        if part != "train" and self.known.split != "pems":
            first -= lookback
        found = range(max(first, 0), end - lookback - horizon + 1)
        if not found:
            expected = f"windows of {lookback} + {horizon} steps were expected, the {part} part has {end - first}"
            raise DataError(self.path, f"{part} part", expected, "shorten the horizon or the lookback")
        return found


def read_ltsf(root: str | Path, name: str) -> LtsfSeries:
    """Read a benchmark's file, or a CSV file of the user's own in the same layout.

    Args:
        root: The folder it lies in, itself or in a subfolder.
        name: The benchmark's name, one of `SETS`; or that of a file NAME.csv, which is split 70/10/20.

    Returns:
        The series.

    Raises:
        DataError: There is no such file, or it is not the benchmark's.
    """
    known = _known(name)
    return read_into(Collector(_located(Path(root), known.file, name)), name, known)


def read_into(sink: Collector, name: str, known: LtsfSet) -> LtsfSeries:
    """Read the file of a collector, which takes every way in which it is not the benchmark's."""
    path = Path(sink.path)
    columns, values, index = _READERS[path.suffix](path, sink)
    series = LtsfSeries(name, known, path, tuple(columns), values, index)
    rows, channels = values.shape
    again = f"get the file of {name} as its authors give it"
    if known.columns and tuple(columns) != known.columns:
        sink.add("columns", f"{', '.join(known.columns)} were expected, found {', '.join(columns[:8])}", again)
    if known.channels is not None and channels != known.channels:
        sink.add("columns", f"{known.channels} variates were expected, found {channels}", again)
    if known.rows is not None and rows != known.rows:
        sink.add("rows", f"{known.rows} rows were expected, found {rows}", again)
    elif known.mean is not None and not np.isclose(series.mean.mean(), known.mean, rtol=1e-6):
        found = f"a mean of {known.mean:.6f} was expected in the training part, found {series.mean.mean():.6f}"
        sink.add("values", found, f"{again}: its values are not scaled or changed")
    return series


def _borders(split: str, rows: int) -> tuple[tuple[int, int], ...]:
    if split in _MONTHS:
        month = _MONTHS[split]
        first, second, end = 12 * month, 16 * month, 20 * month
    elif split == "pems":
        first, second, end = int(0.6 * rows), int(0.8 * rows), rows
    else:
        first, second, end = int(0.7 * rows), rows - int(0.2 * rows), rows
    return (0, first), (first, second), (second, end)


def _known(name: str) -> LtsfSet:
    return SETS.get(name) or LtsfSet(f"{name}.csv")


def _located(root: Path, file: str, name: str) -> Path:
    if not root.is_dir():
        raise DataError(root, "folder", "there is no such folder", "give the folder that holds the benchmarks' files")
    found = [path for path in (root / file, *sorted(root.glob(f"*/{file}"))) if path.is_file()]
    if not found:
        there = [path.stem for path in root.glob("*.csv")]
        raise DataError(root, "files", f"there is no {file}, the file of {name}", nearest(name, there or list(SETS)))
    return found[0]


_Read = tuple[Sequence[str], np.ndarray, pd.DatetimeIndex | None]


def _read_csv(path: Path, sink: Collector) -> _Read:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first, *columns = (name.strip().strip('"') for name in file.readline().split(","))
    if first != "date" or not columns:
        expected = f"a first column 'date' and variates after it were expected, found {first!r}"
        raise DataError(path, "columns", expected, "the benchmarks' files begin with their dates")
    table = load_table(path, id_col="unique_id", required=["date", *columns])
    values = np.stack([numbers(table, name, sink, "variate") for name in columns], axis=1)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        where = f"{table.place(row)}, column {columns[column]!r}"
        sink.add(where, f"a finite number was expected ({len(wrong)} such values)", "the benchmarks have no gaps")
    index = parse_timestamps(table, "date", sink, whole_numbers=False)
    return columns, values, index if isinstance(index, pd.DatetimeIndex) else None


def _read_txt(path: Path, sink: Collector) -> _Read:
    try:
        values = pd.read_csv(path, header=None, dtype=np.float64).to_numpy()
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(path, "rows", f"rows of numbers were expected ({reason})", _DAMAGED) from None
    return _numbered(values, sink)


def _read_npz(path: Path, sink: Collector) -> _Read:
    try:
        with np.load(path, allow_pickle=False) as file:
            values = file["data"][:, :, 0].astype(np.float64)
    except (KeyError, IndexError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(path, "file", f"an array 'data' (T, C, 1 or more) was expected ({reason})", _DAMAGED) from None
    return _numbered(values, sink)


def _numbered(values: np.ndarray, sink: Collector) -> _Read:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        sink.add(f"row {row}, column {column}", "a finite number was expected", "the benchmarks have no gaps")
    return [str(number) for number in range(values.shape[1])], values, None


_READERS = {".csv": _read_csv, ".txt": _read_txt, ".npz": _read_npz}
