"""A data loader whose order and randomness depend on (seed, epoch) alone, so that it can start anywhere in an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, get_worker_info

from mamba_apps.errors import UserError
from mamba_apps.training.seeding import derive_seed, seed_generators

_PIECE = 65_536


class ResumableSampler(DistributedSampler[int]):
    """Indices in an order that is a pure function of (seed, epoch), shared out over the processes of a group.

    It is a `DistributedSampler`, so Lightning tells it the epoch and adds no sampler of its own.

    Args:
        dataset: What is sampled; only its length is used.
        shuffle: A new order every epoch, or 0, 1, 2, ...
        seed: From 0; another one gives other orders.
        repeats: How often a sample comes in an epoch, several times in a row (repeated augmentation, arXiv 1902.05509);
            an epoch is as long as ever, and has that many times fewer of the samples.

    Raises:
        UserError: ``repeats`` is below 1.
    """

    def __init__(self, dataset: Any, *, shuffle: bool = True, seed: int = 0, repeats: int = 1) -> None:
        if repeats < 1:
            raise UserError(f"repeats is {repeats}", "give 1 to see each sample once an epoch, or more")
        grouped = distributed.is_available() and distributed.is_initialized()
        super().__init__(
            dataset,
            num_replicas=distributed.get_world_size() if grouped else 1,
            rank=distributed.get_rank() if grouped else 0,
            shuffle=shuffle,
            seed=seed,
        )
        self.repeats = repeats
        self._start = (0, 0)

    def skip(self, epoch: int, samples: int) -> None:
        """Leave out the first samples of the next pass, if that one is of this epoch."""
        self._start = (epoch, samples)

    def order(self) -> torch.Tensor:
        """Return this process's indices of the current epoch, but for those that are to be left out."""
        length = len(self.dataset)  # type: ignore[arg-type]
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(length, generator=generator)
        else:
            order = torch.arange(length)
        if self.repeats > 1:  # neighbours, which go to different processes
            order = order[: -(-length // self.repeats)].repeat_interleave(self.repeats)[:length]
        # the last processes repeat the first samples, so that all have as many
        order = order[torch.arange(self.total_size) % length] if length else order
        (epoch, samples), self._start = self._start, (0, 0)
        start = samples if epoch == self.epoch else 0
        return order[self.rank :: self.num_replicas][start:]

    def __iter__(self) -> Iterator[int]:
        """Yield this process's indices of the current epoch."""
        # in pieces, because ten million numbers of Python would take ten times the memory
        for part in self.order().split(_PIECE):
            yield from part.tolist()


class ResumableLoader(DataLoader[Any]):
    """`torch.utils.data.DataLoader` that a run resumed in mid-epoch continues without reading what was already seen.

    Random transforms of the dataset (Python, NumPy or torch) draw from generators seeded by (seed, epoch, first index
    of the batch): batches do not depend on the number of workers, and the training's own generators are left alone.
    A dataset that says ``by_numbers = True`` draws nothing, and is asked for batches by tensors of indices: thousands
    of Python's numbers a batch would take longer than a GPU learns from it.

    Args:
        dataset: A dataset with a length, read by index.
        batch_size: Samples a batch.
        shuffle: Read in a new order every epoch.
        seed: From 0; with the epoch it determines the order and the transforms' randomness.
        drop_last: Leave out a last batch that is not full.
        repeats: As in `ResumableSampler`.
        **options: Further options of `DataLoader`; not sampler, batch_sampler or generator.

    Raises:
        UserError: The dataset is an `IterableDataset`, a sampler is given, or there are more repeats than samples
            in a batch.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        repeats: int = 1,
        **options: Any,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UserError(
                f"ResumableLoader cannot start in the middle of a {type(dataset).__name__}, which has no indices",
                "give it a dataset with __len__ and __getitem__, or use a loader with state_dict (litdata)",
            )
        if taken := options.keys() & {"sampler", "batch_sampler", "generator"}:
            raise UserError(
                f"ResumableLoader was given {', '.join(sorted(taken))}, but has its own",
                "use torch's DataLoader (Lightning's overfit_batches and predict need it too)",
            )
        if repeats > (batch_size or 1):  # two batches would begin with one sample, and draw the same numbers for it
            raise UserError(f"repeats is {repeats}, batch_size {batch_size}", "give a batch at least all of them")
        self._order = ResumableSampler(dataset, shuffle=shuffle, seed=seed, repeats=repeats)
        # with repeats, batches of two processes may begin with the same sample
        self._randomness = _Randomness(dataset, (seed, self._order.rank) if self._order.rank else (seed,))
        self._worker_seeds = torch.Generator()
        super().__init__(
            self._randomness,
            batch_size=batch_size,
            sampler=self._order,
            drop_last=drop_last,
            generator=self._worker_seeds,
            **options,
        )

    def skip(self, epoch: int, batches: int) -> None:
        """Start the next pass after this many batches, if it is one of this epoch."""
        self._order.skip(epoch, batches * (self.batch_size or 1))

    @property
    def _index_sampler(self) -> Any:
        if self.batch_size is not None and self._randomness.by_numbers and not self.num_workers:
            return _Batches(self._order, self.batch_size, self.drop_last)
        return super()._index_sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of the current epoch."""
        # a generator, so that all this happens at the first batch: Lightning sets the epoch after it has called iter()
        self._randomness.epoch.fill_(self._order.epoch)
        self._worker_seeds.manual_seed(derive_seed(self._order.seed, self._order.epoch))
        yield from super().__iter__()


class _Batches:
    """The order of an epoch in batches, each a tensor."""

    def __init__(self, sampler: ResumableSampler, batch_size: int, drop_last: bool) -> None:
        self._sampler, self._batch_size, self._drop_last = sampler, batch_size, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self._sampler), self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self._sampler.order().split(self._batch_size):
            if len(batch) == self._batch_size or (len(batch) and not self._drop_last):
                yield batch


class _Randomness(Dataset[Any]):
    """The dataset, with the random generators seeded for every batch that is read from it."""

    def __init__(self, dataset: Dataset[Any], seeds: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.seeds = seeds
        self.by_numbers: bool = getattr(dataset, "by_numbers", False)
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch see it change

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self._read([index], batched=False)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self._read(indices, batched=True)

    def __getattr__(self, name: str) -> Any:
        # reached only for what is not found here: the dataset's own attributes
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _read(self, indices: Sequence[int], *, batched: bool) -> Any:
        if self.by_numbers:
            return self._fetch(indices, batched=batched)
        seed = derive_seed(*self.seeds, int(self.epoch), indices[0])
        if get_worker_info() is not None:
            seed_generators(seed)
            return self._fetch(indices, batched=batched)
        # datasets draw from the global generators, NumPy's legacy one among them
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        seed_generators(seed)
        try:
            return self._fetch(indices, batched=batched)
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            torch.set_rng_state(before[2])

    def _fetch(self, indices: Sequence[int], *, batched: bool) -> Any:
        if not batched:
            return self.dataset[indices[0]]
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]
