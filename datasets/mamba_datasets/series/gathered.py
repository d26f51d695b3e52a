"""Batches of windows that are gathered where their series lie, each part when it is first read.

A training step that a GPU replays from a captured graph gathers its windows within the graph: what such a batch hands
over is where they lie, and nothing else.

Letters: B batch, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from mamba_datasets.series.windows import Columns

NAMES = (
    "past_y",
    "past_observed",
    "past_x",
    "future_x",
    "static",
    "future_y",
    "future_observed",
    "series",
    "origin",
)


@dataclass(frozen=True)
class Source:
    """What windows are gathered from.

    Args:
        columns: The series, on some device.
        lookback: L.
        horizon: H.
        past: How many of the covariates are known up to the present only.
    """

    columns: Columns
    lookback: int
    horizon: int
    past: int


class GatheredWindows(Mapping[str, Tensor]):
    """A batch of windows; the tensors that `WindowDataset` describes, with a leading B.

    Args:
        found: What is gathered already, by name.
        source: What the rest is gathered from; None where everything is found.
        where_3B: int64 on the source's device, of each window the number of its series, the step of that series which
            is forecast first, and the row of this step.
    """

    def __init__(
        self, found: Mapping[str, Tensor], source: Source | None = None, where_3B: Tensor | None = None
    ) -> None:
        self._found = dict(found)
        self.source, self.where_3B = source, where_3B

    def __getitem__(self, name: str) -> Tensor:
        """Return a part of the batch."""
        if name not in self._found:
            if self.source is None or self.where_3B is None or name not in NAMES:
                raise KeyError(name)
            self._found[name] = _gather(self.source, self.where_3B, name)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the parts."""
        return iter(self._found if self.source is None else NAMES)

    def __len__(self) -> int:
        """Return how many parts there are."""
        return len(self._found if self.source is None else NAMES)

    def to(self, device: torch.device | str, **options: Any) -> GatheredWindows:
        """Return the batch on a device.

        Args:
            device: The device.
            options: As in `torch.Tensor.to`.
        """
        if self.where_3B is not None and self.where_3B.device == torch.device(device):
            return self
        return GatheredWindows({name: value.to(device, **options) for name, value in self.items()})


def _gather(source: Source, where_3B: Tensor, name: str) -> Tensor:
    series_B, origin_B, now_B = where_3B
    if name in ("series", "origin"):
        return series_B if name == "series" else origin_B
    if name == "static":
        return source.columns.static[series_B]
    part, column = name.split("_")
    first, end = (-source.lookback, 0) if part == "past" else (0, source.horizon)
    values = getattr(source.columns, column)[now_B[:, None] + torch.arange(first, end, device=where_3B.device)]
    if column != "x":
        return values[..., None]
    return values if part == "past" else values[..., source.past :]


def _flatten(batch: GatheredWindows) -> tuple[list[Tensor], Any]:
    if batch.where_3B is None:
        return list(batch.values()), tuple(batch)
    return [batch.where_3B], batch.source


def _unflatten(tensors: Any, context: Any) -> GatheredWindows:
    tensors = list(tensors)
    if isinstance(context, Source):
        return GatheredWindows({}, context, tensors[0])
    return GatheredWindows(dict(zip(context, tensors, strict=True)))


_register: Callable[..., None] = pytree.register_pytree_node
_register(GatheredWindows, _flatten, _unflatten)
