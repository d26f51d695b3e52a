"""A set of series as tensors and plain values, so that a saved forecaster can go on from where its data ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mamba_datasets.series import Frequency, SeriesSet

_PLAIN = ("freq", "past_names", "future_names", "static_names", "season", "source")


def describe_columns(series_set: SeriesSet) -> dict[str, Any]:
    """Return what a set's columns are, as plain JSON values, without the series themselves."""
    found: dict[str, Any] = {name: _listed(getattr(series_set, name)) for name in _PLAIN}
    found["categories"] = {name: list(values) for name, values in series_set.categories.items()}
    found["binary"] = sorted(series_set.binary)
    found["calendar"] = None if series_set.calendar is None else _listed_values(series_set.calendar)
    found["columns"] = _listed_values(series_set.columns)
    return found


def history_state(series_set: SeriesSet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a set as tensors and plain JSON values.

    Args:
        series_set: The set; cut it with `last` first to store less.
    """
    rows = np.concatenate([np.arange(first, last) for first, last in series_set.bounds])
    tensors = {
        "y": torch.from_numpy(series_set.y[rows]),
        "observed": torch.from_numpy(series_set.observed[rows].astype(np.uint8)),
        "x": torch.from_numpy(series_set.x[rows]),
        "static": torch.from_numpy(series_set.static.copy()),
    }
    plain = {
        "keys": list(series_set.keys),
        "lengths": series_set.lengths.tolist(),
        "starts": [_start(index) for index in series_set.indexes],
        **describe_columns(series_set),
    }
    return tensors, plain


def from_history_state(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> SeriesSet:
    """Return the set that `history_state` took apart."""
    frequency = Frequency.parse(plain["freq"])
    ends = np.cumsum(np.asarray(plain["lengths"], dtype=np.int64))
    calendar = plain["calendar"]
    return SeriesSet(
        y=tensors["y"].numpy(),
        observed=tensors["observed"].numpy().astype(bool),
        x=tensors["x"].numpy(),
        static=tensors["static"].numpy(),
        bounds=np.column_stack([ends - np.asarray(plain["lengths"], dtype=np.int64), ends]),
        indexes=tuple(
            frequency.range(_restart(start), length)
            for start, length in zip(plain["starts"], plain["lengths"], strict=True)
        ),
        keys=tuple(plain["keys"]),
        freq=plain["freq"],
        past_names=tuple(plain["past_names"]),
        future_names=tuple(plain["future_names"]),
        static_names=tuple(plain["static_names"]),
        categories={name: tuple(values) for name, values in plain["categories"].items()},
        binary=frozenset(plain["binary"]),
        calendar=None if calendar is None else _tupled_values(calendar),
        columns=_tupled_values(plain["columns"]),
        season=plain["season"],
        source=plain["source"],
    )


def same_columns(a: SeriesSet, b: SeriesSet) -> bool:
    """Whether two sets have the same frequency and covariates."""
    fields = ("freq", "past_names", "future_names", "static_names")
    return all(getattr(a, name) == getattr(b, name) for name in fields)


def _start(index: pd.Index) -> dict[str, Any]:
    first = index[0]
    if not isinstance(first, pd.Timestamp):
        return {"step": int(first)}
    zone = None if first.tz is None else str(first.tz)
    return {"time": first.isoformat(), "zone": zone, "unit": first.unit}


def _restart(start: Mapping[str, Any]) -> pd.Timestamp | int:
    if "step" in start:
        return int(start["step"])
    stamp = pd.Timestamp(start["time"]).as_unit(start["unit"])
    return stamp if start["zone"] is None else stamp.tz_convert(start["zone"])


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _listed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _listed(value) for name, value in values.items()}


def _tupled_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
