"""The loader that starts anywhere: order and randomness depend on (seed, epoch) alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from mamba_apps.errors import UserError
from mamba_apps.training import ResumableLoader, ResumableSampler, seed_everything
from mamba_apps.training.seeding import derive_seed, random_state, set_random_state

# Python 3.12 warns when torch forks its workers from a process with threads, which any earlier test may have started
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Random(Dataset[torch.Tensor]):
    """Its index and one draw from each generator."""

    name = "random"

    def __init__(self, length: int = 23) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= self.length:
            raise IndexError(index)
        draws = [random.random(), float(np.random.rand()), torch.rand(()).item()]  # noqa: NPY002, S311
        return torch.tensor([index, *draws], dtype=torch.float64)


def read(loader: ResumableLoader, epoch: int) -> list[torch.Tensor]:
    loader.sampler.set_epoch(epoch)  # what Lightning does
    return list(loader)


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_those_of_seed_and_epoch(shuffle: bool, workers: int) -> None:
    def loader(seed: int = 7, workers: int = 0) -> ResumableLoader:
        return ResumableLoader(Random(), batch_size=4, shuffle=shuffle, seed=seed, num_workers=workers)

    whole = read(loader(workers=workers), 2)
    assert len(whole) == len(loader()) == 6
    seen = torch.cat(whole)[:, 0].tolist()
    assert sorted(seen) == list(range(23))
    assert (seen == sorted(seen)) is not shuffle
    assert same(read(loader(), 2), whole)
    assert not same(read(loader(), 3), whole)
    assert not same(read(loader(seed=8), 2), whole)
    again = loader(workers=workers)
    read(again, 1)
    again.skip(2, 4)
    assert same(read(again, 2), whole[4:])
    assert same(read(again, 2), whole)


def test_persistent_workers_follow_the_epoch() -> None:
    loader = ResumableLoader(Random(8), batch_size=4, seed=7, num_workers=1, persistent_workers=True)
    once = ResumableLoader(Random(8), batch_size=4, seed=7)
    for epoch in (0, 1):
        assert same(read(loader, epoch), read(once, epoch))


def test_neighbouring_seeds_and_epochs_share_nothing() -> None:
    orders = [
        tuple(torch.cat(read(ResumableLoader(Random(), batch_size=4, seed=seed), epoch))[:, 0].tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert len({derive_seed(a, b) for a in range(30) for b in range(30)}) == 900


def test_reading_leaves_the_generators_alone() -> None:
    seed_everything(3)
    before = random_state()
    read(ResumableLoader(Random(), batch_size=4), 0)
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["python"][1], after["python"][1])
    assert torch.equal(before["numpy"][1], after["numpy"][1])


def test_skip_of_another_epoch_is_forgotten() -> None:
    loader = ResumableLoader(Random(), batch_size=4, seed=7)
    loader.skip(1, 6)
    assert len(read(loader, 2)) == 6
    assert len(read(loader, 1)) == 6


@pytest.mark.parametrize("drop_last", [True, False])
def test_lengths(drop_last: bool) -> None:
    loader = ResumableLoader(Random(), batch_size=5, drop_last=drop_last)
    assert len(loader) == len(read(loader, 0)) == (4 if drop_last else 5)
    assert len(read(ResumableLoader(Random(3), batch_size=5), 0)) == 1
    unbatched = ResumableLoader(Random(3), batch_size=None)
    assert [value.shape for value in read(unbatched, 0)] == [(4,)] * 3


def test_dataset_is_reached_through_the_loader() -> None:
    loader = ResumableLoader(Random())
    assert loader.dataset.name == "random"
    assert len(loader.dataset) == 23
    with pytest.raises(AttributeError):
        _ = loader.dataset.nothing


class Numbers(Dataset[torch.Tensor]):
    """Its indices; nothing is drawn."""

    def __init__(self, by_numbers: bool) -> None:
        self.by_numbers, self.kinds = by_numbers, set[type]()

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)

    def __getitems__(self, indices: Any) -> list[torch.Tensor]:
        self.kinds.add(type(indices))
        return [torch.tensor(int(index)) for index in indices]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"shuffle": False}, {"repeats": 2}])
def test_batches_by_numbers_are_the_same(options: dict[str, Any], workers: int) -> None:
    loaders = [ResumableLoader(Numbers(by), 4, seed=7, num_workers=by * workers, **options) for by in (False, True)]
    for epoch, skipped in ((0, 0), (1, 0), (2, 3)):
        for loader in loaders:
            loader.skip(epoch, skipped)
        plain, by_numbers = (read(loader, epoch) for loader in loaders)
        assert same(plain, by_numbers)
        assert len(loaders[0]) == len(loaders[1]) == len(plain) + skipped
    assert loaders[0].dataset.kinds == {list}
    assert loaders[1].dataset.kinds == (set() if workers else {torch.Tensor})


def test_dataset_that_reads_whole_batches() -> None:
    class Whole(Random):
        def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
            return [torch.tensor([index, len(indices)]) for index in indices]

    batches = read(ResumableLoader(Whole(), batch_size=4, shuffle=False), 0)
    assert batches[0].tolist() == [[0, 4], [1, 4], [2, 4], [3, 4]]


def test_stream_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    with pytest.raises(UserError, match="cannot start in the middle of a Stream"):
        ResumableLoader(Stream())


def test_sampler_of_ones_own_is_refused() -> None:
    with pytest.raises(UserError, match="was given sampler, but has its own"):
        ResumableLoader(Random(), sampler=range(3))


@pytest.mark.parametrize("length", [1, 7, 8])
def test_processes_share_the_order_out(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        sampler = ResumableSampler(range(length), seed=1)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler)
    assert len({len(part) for part in parts}) == 1
    assert set().union(*parts) == set(range(length))


def test_repeats_are_neighbours_that_differ_and_can_be_resumed() -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(Random(), batch_size=5, seed=7, repeats=3)

    batches = read(loader(), 2)
    seen = torch.cat(batches)
    assert len(seen) == len(Random())
    numbers = seen[:, 0].tolist()
    assert numbers[::3] == list(dict.fromkeys(numbers))  # each three times in a row, but for the last
    assert numbers[1:-2:3] == numbers[:-2:3]
    assert len(torch.unique(seen[:, 1:], dim=0)) == len(seen)
    assert set(torch.cat(read(loader(), 3))[:, 0].tolist()) != set(numbers)
    resumed = loader()
    resumed.skip(2, 2)
    assert same(read(resumed, 2), batches[2:])


@pytest.mark.parametrize("processes", [2, 3])
def test_repeats_go_to_different_processes_with_different_randomness(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
    for rank in range(processes):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        parts.append(torch.cat(read(ResumableLoader(Random(24), batch_size=4, seed=7, repeats=3), 1)))
    together = torch.stack(parts, dim=1).flatten(0, 1)  # as they were dealt out
    assert together[:, 0].view(-1, 3).unique(dim=1).shape == (8, 1)
    assert len(torch.unique(together[:, 1:], dim=0)) == 24


@pytest.mark.parametrize(("repeats", "says"), [(0, "repeats is 0"), (5, "repeats is 5, batch_size 4")])
def test_repeats_out_of_range(repeats: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ResumableLoader(Random(), batch_size=4, repeats=repeats)


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5])
def test_seed_out_of_range(seed: Any) -> None:
    with pytest.raises(UserError, match="expected an integer from 0 to 4294967295"):
        seed_everything(seed)


def test_random_state_round_trip(tmp_path: Any) -> None:
    def draw() -> list[float]:
        numbers = np.random
        return [random.random(), random.gauss(), numbers.rand(), numbers.randn(), torch.randn(1).item()]  # noqa: S311

    seed_everything(11)
    draw()
    torch.save(random_state(), tmp_path / "state")
    expected = [draw() for _ in range(3)]
    seed_everything(12)
    set_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert [draw() for _ in range(3)] == expected
