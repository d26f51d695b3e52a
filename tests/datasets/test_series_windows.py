"""Windows: which there are, what is in them, that they share memory, and that a batch equals its items."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, default_collate

from mamba_datasets.errors import DataError
from mamba_datasets.series import Columns, SeriesSet, WindowDataset, collate, read_series

STARTS = {"a": ("2020-01-01", 60), "b": ("2020-01-20", 33), "c": ("2019-12-01", 20), "d": ("2020-01-05", 90)}


@pytest.fixture(scope="module")
def four() -> SeriesSet:
    """Four daily series of unequal starts and lengths, with gaps, two past, one future and one static covariate."""
    parts = []
    for number, (name, (start, days)) in enumerate(STARTS.items()):
        index = pd.date_range(start, periods=days, freq="D")
        steps = np.arange(days)
        part = pd.DataFrame({"unique_id": name, "ds": index, "y": 1000.0 * number + steps})
        parts.append(part.assign(p=steps * 0.5, q=-1.0 * steps, f=steps % 7.0, s=number * 1.0).drop(index=[5, 6, 11]))
    frame = pd.concat(parts, ignore_index=True)
    return read_series(frame, freq="D", past=["p", "q"], future=["f"], static=["s"], missing="mask")


def brute_force(
    series_set: SeriesSet, lookback: int, horizon: int, first: Any, last: Any, stride: int
) -> list[tuple[int, int]]:
    found = []
    for number, one in enumerate(series_set):
        origins = []
        for origin in range(lookback, len(one) - horizon + 1):
            ahead = one.index[origin : origin + horizon]
            if (first is None or ahead[0] >= pd.Timestamp(first)) and (last is None or ahead[-1] < pd.Timestamp(last)):
                origins.append((number, origin))
        found += origins[::stride]
    return found


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize(
    ("first", "last"),
    [
        (None, None),
        ("2020-02-01", None),
        (None, "2020-02-01"),
        ("2020-01-15", "2020-02-10"),
        ("2020-01-15 12:00", "2020-02-10 01:00"),
    ],
)
@pytest.mark.parametrize(("lookback", "horizon"), [(1, 1), (10, 3), (7, 12)])
def test_origins(four: SeriesSet, lookback: int, horizon: int, first: Any, last: Any, stride: int) -> None:
    windows = WindowDataset(four, lookback, horizon, origins=(first, last), stride=stride)
    want = brute_force(four, lookback, horizon, first, last, stride)
    assert len(windows) == len(want) > 0
    series, origin = windows.locate(range(len(windows)))
    assert list(zip(series.tolist(), origin.tolist(), strict=True)) == want
    if first is None and last is None:
        assert len(WindowDataset(four, lookback, horizon, stride=stride)) == len(want)


def test_items(four: SeriesSet) -> None:
    windows = WindowDataset(four, 10, 3)
    for index in range(len(windows)):
        item = windows[index]
        one, origin = four.series[int(item["series"])], int(item["origin"])
        past, ahead = slice(origin - 10, origin), slice(origin, origin + 3)
        want = {
            "past_y": one.y[past, None],
            "past_observed": one.observed[past, None],
            "past_x": np.concatenate([one.past[past], one.future[past]], axis=1),
            "future_x": one.future[ahead],
            "static": one.static,
            "future_y": one.y[ahead, None],
            "future_observed": one.observed[ahead, None],
        }
        assert set(item) == {*want, "series", "origin"}
        for name, value in want.items():
            np.testing.assert_array_equal(item[name].numpy(), value)
            assert item[name].numpy().dtype == value.dtype
            assert np.shares_memory(item[name].numpy(), value) or name == "past_x"
        assert np.shares_memory(item["past_x"].numpy(), four.x)
        assert list(windows.horizon_index(index)) == list(one.index[ahead])
    assert item["series"].dtype == item["origin"].dtype == torch.int64
    assert item["series"].shape == ()


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


@pytest.mark.parametrize("options", [{}, {"stride": 4}, {"drop_unobserved": True}, {"origins": ("2020-01-15", None)}])
def test_batch_equals_items(four: SeriesSet, options: dict[str, Any]) -> None:
    windows = WindowDataset(four, 10, 2, **options)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    want = default_collate([windows[index] for index in order.tolist()])
    for indices in (order, order.numpy(), order.tolist()):
        assert equal(windows.batch(indices), want)
    fetched = windows.__getitems__(order.tolist())
    assert collate(fetched) is fetched.batch
    assert equal(default_collate(fetched), want)  # type: ignore[arg-type]
    assert equal(collate([windows[index] for index in order.tolist()]), want)
    assert all(value.is_contiguous() for value in fetched.batch.values())


def test_batch_is_a_copy(four: SeriesSet) -> None:
    batch = WindowDataset(four, 10, 2).batch([0, 1])
    assert not np.shares_memory(batch["past_y"].numpy(), four.y)
    assert not np.shares_memory(batch["static"].numpy(), four.static)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_agree(four: SeriesSet, workers: int) -> None:
    windows = WindowDataset(four, 10, 2)
    fast = list(windows.loader(16, num_workers=workers))
    plain = list(DataLoader(windows, batch_size=16))
    assert len(fast) == len(plain) == -(-len(windows) // 16)
    assert all(equal(one, other) for one, other in zip(fast, plain, strict=True))


def test_shuffled_loader_covers_every_window(four: SeriesSet) -> None:
    windows = WindowDataset(four, 10, 2)
    seen = [
        pair
        for batch in windows.loader(7, shuffle=True)
        for pair in zip(batch["series"].tolist(), batch["origin"].tolist(), strict=True)
    ]
    assert seen != sorted(seen)
    assert sorted(seen) == brute_force(four, 10, 2, None, None, 1)


def test_last_origins(four: SeriesSet) -> None:
    windows = WindowDataset(four, 10, 3, origins="last")
    assert len(windows) == 4
    assert [windows.horizon_index(index)[-1] for index in range(4)] == [one.index[-1] for one in four]


def test_negative_index(four: SeriesSet) -> None:
    windows = WindowDataset(four, 10, 3)
    assert equal(windows[-1], windows[len(windows) - 1])
    assert equal(windows.batch([-1]), windows.batch([len(windows) - 1]))
    for index in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[index]
        with pytest.raises(IndexError):
            windows.batch([0, index])


def test_windows_without_a_target_can_be_left_out() -> None:
    y = np.arange(50.0)
    y[20:30] = np.nan
    series_set = read_series(pd.DataFrame({"ds": range(50), "y": y}), freq=1, missing="mask")
    every = WindowDataset(series_set, 5, 4)
    kept = WindowDataset(series_set, 5, 4, drop_unobserved=True)
    lost = [index for index in range(len(every)) if not every[index]["future_observed"].any()]
    assert len(lost) == 7
    assert len(kept) == len(every) - 7
    assert all(kept[index]["future_observed"].any() for index in range(len(kept)))
    with pytest.raises(DataError, match="observed target in its horizon"):
        WindowDataset(series_set, 5, 4, origins=(21, 28), drop_unobserved=True)


def test_no_covariates() -> None:
    windows = WindowDataset(read_series(pd.DataFrame({"ds": range(50), "y": 1.0}), freq=1), 5, 4)
    batch = windows.batch([0, 3])
    assert batch["past_x"].shape == (2, 5, 0)
    assert batch["future_x"].shape == (2, 4, 0)
    assert batch["static"].shape == (2, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lookback", 0),
        ("horizon", 0),
        ("lookback", -3),
        ("horizon", -1),
        ("stride", 0),
        ("horizon", 2.0),
        ("lookback", True),
    ],
)
def test_out_of_range_is_refused(four: SeriesSet, name: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"{name}: a whole number of at least 1 was expected, found {value}"):
        WindowDataset(four, **{"lookback": 4, "horizon": 2, name: value})


def test_short_series(four: SeriesSet) -> None:
    with pytest.raises(DataError, match=r"series 'c': at least lookback \+ horizon = 15 \+ 6 = 21 steps .* found 20; "):
        WindowDataset(four, 15, 6)
    with pytest.raises(DataError, match=r"series 'b': .*found 33 \(and 1 other series\)"):
        WindowDataset(four, 30, 6)
    windows = WindowDataset(four, 30, 6, short="skip")
    assert windows.skipped == ["b", "c"]
    assert set(windows.locate(range(len(windows)))[0].tolist()) == {0, 3}


def test_part_without_windows_is_refused(four: SeriesSet) -> None:
    for origins in (("2030-01-01", None), (None, "2019-01-01"), ("2020-02-01", "2020-02-02")):
        with pytest.raises(DataError, match="at least one window"):
            WindowDataset(four, 10, 3, origins=origins)


@pytest.mark.parametrize(
    "origins", ["first", ("2020-01-01",), 3, (1, 2), ("soon", None), (pd.Timestamp("2020", tz="UTC"), None)]
)
def test_odd_origins_are_refused(four: SeriesSet, origins: Any) -> None:
    with pytest.raises(DataError):
        WindowDataset(four, 10, 3, origins=origins)


def test_slices_share_memory(four: SeriesSet) -> None:
    for part in (
        four.before("2020-02-01"),
        four.since("2020-02-01"),
        four.between("2020-01-10", "2020-02-01"),
        four.last(12),
    ):
        assert part.y is four.y
        assert part.x is four.x
        for one, whole in zip(part, four, strict=True):
            inside = whole.index.isin(one.index)
            np.testing.assert_array_equal(one.y, whole.y[inside])
            np.testing.assert_array_equal(one.future, whole.future[inside])
            if len(one):
                assert np.shares_memory(one.y, whole.y)
                assert np.shares_memory(one.past, whole.past)
                assert np.shares_memory(one.observed, whole.observed)


def test_slices_by_time(four: SeriesSet) -> None:
    assert four.before("2020-02-01")["a"].index[-1] == pd.Timestamp("2020-01-31")
    assert four.since("2020-02-01")["a"].index[0] == pd.Timestamp("2020-02-01")
    assert len(four.since("2020-02-01")["c"]) == 0
    assert list(four.between("2020-01-10", "2020-01-12")["d"].index) == list(
        pd.to_datetime(["2020-01-10", "2020-01-11"])
    )
    assert four.last(12).lengths.tolist() == [12, 12, 12, 12]
    assert four.without_last(12).lengths.tolist() == [48, 21, 8, 78]
    assert four.without_last(30).lengths.tolist() == [30, 3, 0, 60]
    assert np.shares_memory(four.without_last(12)["a"].y, four["a"].y)
    assert four.last(12).before("2020-02-25")["a"].index[0] == pd.Timestamp("2020-02-18")


def test_selection(four: SeriesSet) -> None:
    part = four.select(["d", "b"])
    assert part.ids == ["d", "b"]
    assert part["b"].static.tolist() == [1]
    assert np.shares_memory(part["d"].y, four["d"].y)
    with pytest.raises(DataError, match="no series 'e'"):
        four.select(["e"])


def test_windows_of_a_slice_end_with_it(four: SeriesSet) -> None:
    windows = WindowDataset(four.before("2020-02-01").select(["a", "d"]), 5, 2)
    assert max(windows.horizon_index(index)[-1] for index in range(len(windows))) == pd.Timestamp("2020-01-31")


def test_many_windows_need_no_memory() -> None:
    """A million windows of 1,000 steps are index arithmetic: nothing as long as their number is kept."""
    y = np.zeros(1_001_010, dtype=np.float32)
    one = read_series(pd.DataFrame({"ds": range(20), "y": 1.0}), freq=1)
    big = dataclasses.replace(
        one,
        y=y,
        observed=np.ones(len(y), dtype=bool),
        x=np.empty((len(y), 0), dtype=np.float32),
        bounds=np.array([[0, len(y)]]),
        indexes=(pd.RangeIndex(len(y)),),
    )
    windows = WindowDataset(big, 1000, 10)
    assert len(windows) == 1_000_001
    own = [value for value in vars(windows).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in own) < 1000


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_batch_gathered_on_a_device_is_that_of_the_host(four: SeriesSet, device: str) -> None:
    windows = WindowDataset(four, 7, 3, stride=2)
    numbers = [3, 0, len(windows) - 1, 3]
    expected = windows.batch(numbers)
    there = windows.gathered_from(Columns.of(four).to(device))
    got = there.batch(numbers)
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert got[name].device.type == device
        torch.testing.assert_close(got[name].cpu(), values, rtol=0, atol=0)
    assert got.to(got["past_y"].device) is got
    (where_3B,), structure = pytree.tree_flatten(got)  # all that a captured step is handed
    assert where_3B.shape == (3, 4)
    again = pytree.tree_unflatten([where_3B], structure)
    moved = there.batch(numbers).to("meta")
    doubled = type(got)({name: values.double() for name, values in got.items()})  # as Lightning casts a batch
    parts, of_parts = pytree.tree_flatten(doubled)
    assert len(parts) == len(doubled) == len(got) == 9
    for name, values in expected.items():
        torch.testing.assert_close(again[name].cpu(), values, rtol=0, atol=0)
        assert moved[name].device.type == "meta"
        torch.testing.assert_close(pytree.tree_unflatten(parts, of_parts)[name].cpu(), values.double(), rtol=0, atol=0)
    for batch in (got, doubled):
        for name in ("y", "past_z", "present_y", "past_static", "other"):
            assert name not in batch
    columns = Columns.of(four).to(device)
    structures = [pytree.tree_flatten(windows.gathered_from(columns).batch([n]))[1] for n in (0, 1)]
    assert pytree.tree_flatten(there.batch(numbers))[1] == structure
    assert structures[0] == structures[1] != structure  # a captured step is for the columns that it was handed
    part = WindowDataset(four.last(15), 7, 3).gathered_from(Columns.of(four).to(device))  # cut from the same columns
    torch.testing.assert_close(part.batch([4])["past_y"].cpu(), WindowDataset(four.last(15), 7, 3).batch([4])["past_y"])
    assert windows.batch([0])["past_y"].device.type == "cpu"
    assert Columns.of(four).nbytes == sum(getattr(four, name).nbytes for name in ("y", "observed", "x", "static"))


def test_at_most_so_many_windows_are_taken_evenly(four: SeriesSet) -> None:
    every = WindowDataset(four, 7, 3)
    some = WindowDataset(four, 7, 3, at_most=20)
    assert len(some) == 20
    where = np.stack(every.locate(range(len(every)))).T.tolist()
    places = [where.index(list(place)) for place in np.stack(some.locate(range(20))).T.tolist()]
    assert (places[0], places[-1]) == (0, len(every) - 1)
    assert set(np.diff(places)) <= {len(every) // 20, len(every) // 20 + 1, len(every) // 20 + 2}
    assert len(WindowDataset(four, 7, 3, at_most=10_000)) == len(every)
    kept = WindowDataset(four, 7, 3, drop_unobserved=True, at_most=5)
    assert all(bool(kept[number]["future_observed"].any()) for number in range(5))
    with pytest.raises(DataError, match="at_most"):
        WindowDataset(four, 7, 3, at_most=0)
