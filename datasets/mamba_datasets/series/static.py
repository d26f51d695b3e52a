"""Static covariates: one value a series, checked to be one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mamba_datasets.report import Collector
from mamba_datasets.series.rows import SeriesRows
from mamba_datasets.series.values import Block


def static_covariates(rows: Sequence[SeriesRows], block: Block, sink: Collector) -> np.ndarray:
    """Take the value of each static covariate of each series.

    Args:
        rows: The rows of each series.
        block: The static columns as numbers.
        sink: Takes values that are missing or vary within a series.

    Returns:
        float32 (series, S).
    """
    values = np.zeros((len(rows), len(block.names)), dtype=np.float32)
    for number, one in enumerate(rows):
        own = block.values[one.rows]
        seen: set[str] = set()
        # A missing value differs from everything, itself too.
        for column in np.flatnonzero((own != own[:1]).any(axis=0)):
            name = block.source[column]
            if name in seen:
                continue
            seen.add(name)
            where = f"series {str(one.key)!r}, static column {name!r}"
            if np.isnan(own[:, column]).any():
                sink.add(where, "a value in every row was expected, found none in some", "fill it in")
            else:
                odd = int(np.flatnonzero(own[:, column] != own[0, column])[0])
                found = f"one value for the whole series was expected, found another at {one.index[odd]}"
                sink.add(where, found, "make it constant, or pass the column as past or future")
        values[number] = own[0]
    return values
