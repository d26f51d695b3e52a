"""Scaling: statistics of the observed training values only, and the way back."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_datasets.errors import DataError
from mamba_datasets.series import Scaler, SeriesSet, WindowDataset, read_series

CUT = "2020-03-01"


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    index = pd.date_range("2020-01-01", periods=100, freq="D")
    parts = [
        pd.DataFrame(
            {"unique_id": name, "ds": index, "y": rng.normal(mean, spread, 100), "heat": rng.normal(mean, 2, 100)}
        )
        for name, mean, spread in (("a", 10, 1), ("b", -500, 30))
    ]
    made = pd.concat(parts, ignore_index=True)
    return made.assign(
        price=rng.uniform(5, 9, 200), promo=rng.random(200) < 0.5, size=made["unique_id"].map({"a": 1.0, "b": 5.0})
    )


def read(made: pd.DataFrame) -> SeriesSet:
    return read_series(
        made, freq="D", past=["heat"], future=["price", "promo"], static=["size"], missing="mask"
    ).with_calendar()


def test_statistics() -> None:
    made = frame()
    scaler = Scaler.fit(read(made).before(CUT))
    train = made[made["ds"] < CUT]
    for number, name in enumerate(("a", "b")):
        rows = train[train["unique_id"] == name]
        np.testing.assert_allclose(scaler.y_mean[number], rows["y"].mean(), rtol=1e-6)
        np.testing.assert_allclose(scaler.y_scale[number], rows["y"].std(ddof=0), rtol=1e-5)
        np.testing.assert_allclose(scaler.x_mean[number, :2], rows[["heat", "price"]].mean(), rtol=1e-6)
        np.testing.assert_allclose(scaler.x_scale[number, :2], rows[["heat", "price"]].std(ddof=0), rtol=1e-5)
    assert scaler.static_mean.tolist() == [3]
    assert scaler.static_scale.tolist() == [2]


def test_transform() -> None:
    whole = read(frame())
    scaled = Scaler.fit(whole.before(CUT)).transform(whole)
    for one in scaled.before(CUT):
        np.testing.assert_allclose(one.y.mean(), 0, atol=1e-5)
        np.testing.assert_allclose(one.y.std(), 1, rtol=1e-5)
        np.testing.assert_allclose(one.past.std(axis=0), 1, rtol=1e-5)
    assert np.abs(scaled["b"].y).max() < 6
    assert scaled["a"].static.tolist() == [-1]
    # 0/1 columns and the calendar stay as they are; the set that was read is untouched.
    np.testing.assert_array_equal(scaled.x[:, 2:], whole.x[:, 2:])
    np.testing.assert_array_equal(whole.y, read(frame()).y)


def test_nothing_of_the_test_part_leaks() -> None:
    made = frame()
    later = made["ds"] >= CUT
    poisoned = made.copy()
    poisoned.loc[later, ["y", "heat", "price"]] = 1e6
    one, other = (Scaler.fit(read(data).before(CUT)).state_dict() for data in (made, poisoned))
    assert one == other
    assert Scaler.fit(read(made)).state_dict() != one


def test_masked_targets_do_not_count() -> None:
    made = frame()
    lost = made["ds"].between("2020-01-20", "2020-02-05") & (made["unique_id"] == "b")
    made.loc[lost, "y"] = np.nan
    whole = read(made)
    assert (~whole.observed).sum() == 17
    scaler = Scaler.fit(whole.before(CUT))
    seen = made[(made["ds"] < CUT) & (made["unique_id"] == "b")]["y"]
    np.testing.assert_allclose(scaler.y_mean[1], seen.mean(), rtol=1e-6)
    np.testing.assert_allclose(scaler.y_scale[1], seen.std(ddof=0), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3e7, 1e-12])
def test_constant_series_has_scale_one(value: float) -> None:
    made = frame().assign(y=value, heat=value)
    whole = read(made)
    scaler = Scaler.fit(whole.before(CUT))
    assert scaler.y_scale.tolist() == [1, 1]
    assert scaler.x_scale[:, 0].tolist() == [1, 1]
    scaled = scaler.transform(whole)
    assert (scaled.y == 0).all()
    assert (scaled.x[:, 0] == 0).all()
    np.testing.assert_array_equal(scaler.inverse_y(scaled.y[:1], [0]), whole.y[:1])


@pytest.mark.parametrize("shape", [(), (1,), (1, 3)])
def test_inverse(shape: tuple[int, ...]) -> None:
    whole = read(frame())
    scaler = Scaler.fit(whole.before(CUT))
    windows = WindowDataset(scaler.transform(whole), 20, 5)
    plain = WindowDataset(whole, 20, 5)
    indices = [0, 3, len(windows) - 1]
    batch, want = windows.batch(indices), plain.batch(indices)["future_y"].reshape(3, 5, *(1,) * len(shape))
    values = batch["future_y"].reshape(3, 5, *(1,) * len(shape)).expand(3, 5, *shape)
    for back in (scaler.inverse_y(values, batch["series"]), scaler.inverse_y(values, ["a", "a", "b"])):
        assert back.dtype == torch.float32
        torch.testing.assert_close(back, want.expand(3, 5, *shape), rtol=1e-5, atol=1e-4)
    array = scaler.inverse_y(values.numpy(), batch["series"].numpy())
    np.testing.assert_allclose(array, want.expand(3, 5, *shape).numpy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(scaler.spread(batch["series"]), scaler.y_scale[[0, 0, 1]])


def test_state_goes_through_json() -> None:
    whole = read(frame())
    scaler = Scaler.fit(whole.before(CUT))
    again = Scaler.from_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert again.state_dict() == scaler.state_dict()
    np.testing.assert_array_equal(again.transform(whole).x, scaler.transform(whole).x)


def test_state_without_covariates_goes_through_json() -> None:
    whole = read_series(frame(), freq="D")
    scaler = Scaler.fit(whole)
    again = Scaler.from_state_dict(json.loads(json.dumps(scaler.state_dict())))
    np.testing.assert_array_equal(again.transform(whole).y, scaler.transform(whole).y)


@pytest.mark.parametrize("change", [{"format_version": 9}, {"y_mean": None}])
def test_odd_state_is_refused(change: dict[str, object]) -> None:
    state = {**Scaler.fit(read(frame())).state_dict(), **change}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(DataError, match=next(iter(change))):
        Scaler.from_state_dict(state)


def test_some_series_and_other_orders() -> None:
    whole = read(frame())
    scaler = Scaler.fit(whole)
    part = whole.select(["b"])
    np.testing.assert_array_equal(scaler.transform(part)["b"].y, scaler.transform(whole)["b"].y)
    np.testing.assert_array_equal(scaler.select(["b"]).spread([0]), scaler.y_scale[[1]])


def test_foreign_sets_are_refused() -> None:
    scaler = Scaler.fit(read(frame()))
    made = frame()
    with pytest.raises(DataError, match=r"a series of the training data was expected, found 'c'"):
        scaler.transform(read(made.assign(unique_id=made["unique_id"].replace({"b": "c"}))))
    with pytest.raises(DataError, match="covariates"):
        scaler.transform(read_series(made, freq="D"))
    with pytest.raises(DataError, match="found 'z'"):
        scaler.inverse_y(np.zeros((1, 2)), ["z"])


def test_series_without_training_part_is_refused() -> None:
    made = frame()
    late = made[(made["unique_id"] == "a") | (made["ds"] >= CUT)].reset_index(drop=True)
    with pytest.raises(DataError, match=r"series 'b': at least one observed target in the training part"):
        Scaler.fit(read(late).before(CUT))


def test_a_covariate_counts_up_to_five_deviations() -> None:
    steps = np.arange(100)
    rain = np.where(steps % 25 == 3, 0.1, 0.0)
    rain[95] = 50.0
    frame = pd.DataFrame(
        {"ds": pd.date_range("2024", periods=100, freq="D"), "y": steps + 1.0, "rain": rain, "snow": 0.0}
    )
    frame.loc[96, "snow"] = 30.0
    read = read_series(frame, freq="D", past=["rain"], future=["snow"])
    scaler = Scaler.fit(read.without_last(10))
    scaled = scaler.transform(read)
    assert scaled.x[95].tolist() == [5.0, 0.0]
    assert scaled.x[96, 1] == 5.0
    assert 4 < scaled.x[28, 0] <= 5  # what was seen while training stays about what it was
    assert scaled.y[99] > scaled.y[90]
    np.testing.assert_array_equal(scaler.scaled_x(read.x[95:97, 1:], 0, slice(1, 2)), scaled.x[95:97, 1:])
