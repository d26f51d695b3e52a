"""Windows of one multivariate series: a batch is the rows they start at, and is gathered where the model is.

Dimensions in names: B batch, T rows of the series or of a window (L + H), W windows, L lookback, H horizon, C channels
(variates), M time marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mamba_apps.errors import UserError
from mamba_apps.training import ResumableLoader
from mamba_datasets.series.ltsf import PARTS, LtsfSeries, read_ltsf

Windows = Mapping[str, Tensor]
"""A batch: start (B,) int64, past (B, L, C), future (B, H, C) and, where the file has dates, marks (B, L, M)."""


class LtsfData(pl.LightningDataModule):
    """A benchmark's windows, all of them: no part drops its last batch.

    Args:
        root: The folder that the benchmark's file lies in, itself or in a subfolder.
        name: The benchmark's name, such as "ETTh1" or "exchange_rate", or that of a file NAME.csv of one's own.
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        batch_size: Windows a training batch.
        eval_batch_size: Windows a batch of validation and test.
        test_stride: Only every so many-th window of the test part is tested; published PEMS figures have 12.
        drop_last: Also score the windows that a test loader with this batch size and ``drop_last`` would keep, as some
            published figures do; None does not.

    Raises:
        UserError: If a number is out of range, or there is no root when the file is first read.
        DataError: If the file is not there or not the benchmark's, when it is first read.
    """

    def __init__(
        self,
        root: str | None = None,
        name: str = "ETTh1",
        *,
        lookback: int = 96,
        horizon: int = 96,
        batch_size: int = 32,
        eval_batch_size: int = 512,
        test_stride: int = 1,
        drop_last: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"lookback": lookback, "horizon": horizon, "batch_size": batch_size}
        counts |= {"eval_batch_size": eval_batch_size, "test_stride": test_stride}
        for option, count in (counts | ({} if drop_last is None else {"drop_last": drop_last})).items():
            if count < 1:
                raise UserError(f"{option} is {count}", "give at least 1")
        self.root, self.benchmark = root, name
        self.lookback, self.horizon = lookback, horizon
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.test_stride, self.drop_last = test_stride, drop_last
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = {}

    @cached_property
    def series(self) -> LtsfSeries:
        """The series as it was read."""
        if self.root is None:
            raise UserError("the folder of the benchmarks' files is not given", "give it: --data.root DIR")
        return read_ltsf(self.root, self.benchmark)

    @property
    def channels(self) -> int:
        """The number of variates (C)."""
        return self.series.values.shape[1]

    def starts(self, part: str) -> range:
        """Return the rows at which the windows of "train", "val" or "test" start."""
        found = self.series.starts(part, self.lookback, self.horizon)
        return found[:: self.test_stride] if part == "test" else found

    def describe(self) -> str:
        """Return a line on the data, for a header."""
        counts = " + ".join(f"{len(self.starts(part)):,}" for part in PARTS)
        return f"{self.series.path.name} ({self.channels} variates, {counts} windows of {self.lookback}+{self.horizon})"

    def gather(self, start_B: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return the windows that start at some rows, on the device of those."""
        values_TC, marks_TM = self._on(start_B.device, dtype)
        rows_BT = start_B[:, None] + torch.arange(self.lookback + self.horizon, device=start_B.device)
        past_BLC, future_BHC = values_TC[rows_BT].split([self.lookback, self.horizon], dim=1)
        found = {"start": start_B, "past": past_BLC, "future": future_BHC}
        return found if marks_TM is None else {**found, "marks": marks_TM[rows_BT[:, : self.lookback]]}

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> dict[str, Tensor]:
        """Gather a batch of starts; Lightning calls this on the model's device."""
        return self.gather(batch)

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches, in a new order every epoch."""
        return ResumableLoader(
            _Starts(self.starts("train")),
            self.batch_size,
            shuffle=True,
            seed=torch.initial_seed() % 2**32,
            collate_fn=_as_they_are,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test batches."""
        return self._loader("test")

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return the whole series and its marks on a device, where they stay."""
        if (device, dtype) not in self._placed:
            values, marks = self.series.scaled, self.series.marks
            self._placed[device, dtype] = (
                torch.from_numpy(values).to(device, dtype),
                None if marks is None else torch.from_numpy(marks).to(device, dtype),
            )
        return self._placed[device, dtype]

    def _loader(self, part: str) -> DataLoader[Any]:
        return DataLoader(_Starts(self.starts(part)), self.eval_batch_size, collate_fn=_as_they_are)


class _Starts(Dataset[Tensor]):
    """The windows' starts, read by whole batches."""

    by_numbers = True

    def __init__(self, starts: range) -> None:
        self.start_W = torch.tensor(starts)

    def __len__(self) -> int:
        return len(self.start_W)

    def __getitem__(self, index: int) -> Tensor:
        return self.start_W[index]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self.start_W[torch.as_tensor(indices)]


def _as_they_are(batch: Any) -> Any:
    return batch
