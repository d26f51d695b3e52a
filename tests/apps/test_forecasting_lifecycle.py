"""A forecaster after its fit: more training, new observations, its own past, anomalies, devices, formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_apps import Forecaster
from mamba_apps.errors import UserError
from mamba_apps.forecasting import devices
from mamba_apps.forecasting.models import names, spec
from mamba_apps.training.graph import GraphedTraining
from mamba_datasets.errors import DataError

SMALL = {"d_model": 16, "layers": 1, "decoder": 8}


def daily(lengths: tuple[int, ...] = (150, 120), noise: float = 0.2) -> pd.DataFrame:
    """A weekly wave a series on a level of its own, with promotions, rain and a kind."""
    rng = np.random.default_rng(0)
    frames = []
    for number, length in enumerate(lengths):
        y = 10 * (number + 1) + 3 * np.sin(2 * np.pi * np.arange(length) / 7) + rng.normal(0, noise, length)
        frame = pd.DataFrame(
            {"unique_id": f"s{number}", "ds": pd.date_range("2021-01-01", periods=length, freq="D"), "y": y}
        )
        promo, rain = (rng.random(length) > 0.7).astype(float), rng.normal(size=length)
        frames.append(frame.assign(promo=promo, rain=rain, kind="big" if number % 2 else "small"))
    return pd.concat(frames, ignore_index=True)


def make(model: str = "ridge", **options: Any) -> Forecaster:
    given = {"horizon": 7, "freq": "D", "lookback": 28, "max_steps": 10, "accelerator": "cpu", "progress": False}
    extra = {"model_options": SMALL} if model == "patch" else {}
    return Forecaster(model, **{**given, **extra, **options})


ROLES = {"past": ["rain"], "future": ["promo"], "static": ["kind"]}


def split(frame: pd.DataFrame, days: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    left = frame.groupby("unique_id").cumcount(ascending=False)
    return frame[left >= days], frame[left < days]


def ahead(frame: pd.DataFrame, promo: float = 1.0) -> pd.DataFrame:
    days = [
        pd.DataFrame({"unique_id": name, "ds": pd.date_range(end, periods=8, freq="D")[1:], "promo": promo})
        for name, end in frame.groupby("unique_id")["ds"].max().items()
    ]
    return pd.concat(days, ignore_index=True)


@pytest.mark.parametrize("model", ["ridge", "patch"])
def test_update_goes_on_from_new_observations(model: str, tmp_path: Path) -> None:
    frame = daily()
    known, new = split(frame, 10)
    forecaster = make(model, levels=[80], **ROLES).fit(known)
    expected = forecaster.predict(ahead(frame), df=frame)
    forecaster.save(tmp_path)
    for one in (forecaster, Forecaster.load(tmp_path, accelerator="cpu")):
        assert one.update(new) is one
        pd.testing.assert_frame_equal(one.predict(ahead(frame)), expected, rtol=1e-5)
        one.save(tmp_path / "again")
        pd.testing.assert_frame_equal(Forecaster.load(tmp_path / "again").predict(ahead(frame)), expected, rtol=1e-5)


def test_update_in_many_small_parts_and_of_some_series() -> None:
    frame = daily()
    known, new = split(frame, 4)
    forecaster = make("seasonal_naive").fit(known)
    for _, rows in new.groupby("ds", sort=True):
        forecaster.update(rows)
    pd.testing.assert_frame_equal(forecaster.predict(), forecaster.predict(df=frame))
    other = make("seasonal_naive").fit(known).update(new[new.unique_id == "s1"])
    ends = other.predict().groupby("unique_id")["ds"].min()
    assert ends["s0"] == pd.Timestamp("2021-05-27")
    assert ends["s1"] == pd.Timestamp("2021-05-01")


@pytest.mark.parametrize("missing", ["mask", "seasonal"])
def test_update_fills_gaps_as_the_fit_does(missing: str) -> None:
    frame = daily().drop(index=[143, 146])
    known, new = frame[frame.ds < "2021-05-23"], frame[(frame.ds >= "2021-05-23") & (frame.unique_id == "s0")]
    assert new["ds"].iloc[0] == pd.Timestamp("2021-05-23")
    forecaster = make("seasonal_naive", missing=missing).fit(known)
    expected = forecaster.predict(df=frame)
    new = new.iloc[2:]  # a gap between the end and the new rows, too
    got = forecaster.update(new).predict()
    if missing == "mask":
        expected = forecaster.predict(df=frame[~frame.ds.isin(["2021-05-23", "2021-05-25"])])
    assert len(got) == len(expected) == 14
    assert got["seasonal_naive"].notna().all()
    assert (got["ds"] == expected["ds"]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda new: new.assign(unique_id="s7"), ("'s7'",)),
        (lambda new: new.assign(ds=new["ds"] + pd.Timedelta(days=2)), ("steps missing", "2021-05-21")),
        (lambda new: new.assign(ds=new["ds"] - pd.Timedelta(days=2)), ("known already", "leave out")),
        (lambda new: new.assign(kind="big"), ("static", "'s0'")),
        (lambda new: new.assign(kind="huge"), ("huge",)),
        (lambda new: new.drop(columns="rain"), ("rain",)),
        (lambda new: new.assign(ds=pd.date_range("2021-05-21", periods=10, freq="h")), ("freq='D'",)),
    ],
    ids=["unknown-id", "late", "early", "static-changed", "unseen-category", "no-column", "hourly"],
)
def test_new_observations_that_do_not_fit_leave_it_as_it_was(change: Any, says: tuple[str, ...]) -> None:
    frame = daily((150, 150))
    known, new = split(frame, 10)
    forecaster = make(**ROLES).fit(known)
    before = forecaster.predict(ahead(known))
    with pytest.raises(DataError) as caught:
        forecaster.update(change(new[new.unique_id == "s0"]))
    assert all(word in str(caught.value) for word in says), caught.value
    pd.testing.assert_frame_equal(forecaster.predict(ahead(known)), before)


def test_a_warm_start_begins_where_the_last_fit_ended(tmp_path: Path) -> None:
    frame = daily()
    # With a closed form beside it a network that learned nothing would be as good from the start.
    options: dict[str, Any] = {"model_options": {**SMALL, "closed_form": False}, "levels": [80], **ROLES}
    forecaster = make("patch", max_steps=60, lr=1e-2, **options).fit(frame)
    forecaster.save(tmp_path)
    begun = forecaster.metrics["val/mae"]
    fresh = make("patch", max_steps=2, lr=1e-6, **options).fit(frame).metrics["val/mae"]
    loaded = Forecaster.load(tmp_path, accelerator="cpu", progress=False)
    assert (loaded.lr, loaded.loss, loaded.batch_size, loaded.max_steps) == (1e-2, "mae", 64, 60)
    for one in (forecaster, loaded):
        one.max_steps, one.lr = 2, 1e-6
        one.fit(frame, warm_start=True)
        assert one.metrics["val/mae"] == pytest.approx(begun, rel=1e-3)
        assert one.metrics["val/mae"] < 0.7 * fresh


def test_a_warm_start_takes_other_series_but_no_other_columns() -> None:
    frame = daily((150, 120, 110))
    forecaster = make("patch", **ROLES).fit(frame[frame.unique_id != "s2"])
    forecaster.fit(frame, warm_start=True)
    assert forecaster.predict(ahead(frame))["unique_id"].unique().tolist() == ["s0", "s1", "s2"]
    with pytest.raises(DataError, match="huge"):
        forecaster.fit(frame.assign(kind="huge"), warm_start=True)
    with pytest.raises(UserError, match="no weights"):
        make().fit(daily()).fit(daily(), warm_start=True)
    with pytest.raises(UserError, match="not fitted"):
        make("patch").fit(daily(), warm_start=True)
    other = make("patch", levels=[80]).fit(daily())
    other.levels = (80.0, 90.0)
    with pytest.raises(UserError, match="of another shape"):
        other.fit(daily(), warm_start=True)


@pytest.mark.parametrize("step_size", [None, 3])
def test_its_own_past_is_forecast_from_every_cut(step_size: int | None) -> None:
    frame = daily()
    forecaster = make(levels=[80]).fit(frame)
    got = forecaster.predict_insample(frame, step_size=step_size)
    assert list(got.columns) == ["unique_id", "ds", "cutoff", "y", "ridge", "ridge-lo-80", "ridge-hi-80"]
    step = step_size or 7
    for name, length in (("s0", 150), ("s1", 120)):
        own = got[got.unique_id == name]
        assert len(own) == 7 * ((length - 28 - 7) // step + 1)
        assert own["ds"].max() == frame[frame.unique_id == name]["ds"].max()
    cut = pd.Timestamp(got["cutoff"].iloc[-1])
    expected = forecaster.predict(df=frame[frame.ds <= cut])
    last = got[(got.cutoff == cut) & (got.unique_id == "s1")].reset_index(drop=True)
    expected = expected[expected.unique_id == "s1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(last[expected.columns], expected, rtol=1e-5)
    with pytest.raises(UserError, match="step_size is 0"):
        forecaster.predict_insample(frame, step_size=0)


def test_what_comes_after_a_cut_reaches_no_forecast_from_it() -> None:
    frame = daily((150, 150))
    forecaster = make("patch", **ROLES)
    cut = frame["ds"].max() - pd.Timedelta(days=14)
    changed = frame.assign(
        y=frame["y"].where(frame["ds"] <= cut, 1e3), rain=frame["rain"].where(frame["ds"] <= cut, -50.0)
    )
    first, other = (forecaster.cross_validation(one, n_windows=2) for one in (frame, changed))
    at_cut = first["cutoff"] == cut
    assert at_cut.sum() == 14
    pd.testing.assert_frame_equal(first[at_cut].drop(columns="y"), other[at_cut].drop(columns="y"))
    assert not np.allclose(first[~at_cut]["patch"], other[~at_cut]["patch"])


def test_anomalies_are_what_lies_outside_the_interval() -> None:
    frame = daily((200,))
    forecaster = make(levels=[80, 99]).fit(frame)
    spoilt = frame.copy()
    spoilt.loc[[194, 197], "y"] += [25, -25]  # in the last horizon, so that no forecast looks back on them
    got = forecaster.anomalies(spoilt)
    assert list(got.columns) == ["unique_id", "ds", "y", "ridge", "ridge-lo-99", "ridge-hi-99", "score", "anomaly"]
    found = got.set_index("ds")
    assert found.loc[spoilt.loc[194, "ds"], "score"] > 5
    assert found.loc[spoilt.loc[197, "ds"], "score"] < -5
    outside = (got["y"] > got["ridge-hi-99"]) | (got["y"] < got["ridge-lo-99"])
    assert (got["anomaly"] == outside).all()
    assert 2 <= got["anomaly"].sum() <= 12
    narrow = forecaster.anomalies(spoilt, level=80)
    assert narrow["anomaly"].sum() > got["anomaly"].sum()
    with pytest.raises(UserError, match="choose one of 80, 99"):
        forecaster.anomalies(spoilt, level=95)
    with pytest.raises(UserError, match="fit with levels"):
        make().fit(frame).anomalies(frame)


def test_what_was_not_observed_is_no_anomaly() -> None:
    frame = daily((200,))
    frame.loc[180, "y"] = np.nan
    got = make(levels=[90], missing="mask").fit(frame).anomalies(frame).set_index("ds")
    assert np.isnan(got.loc[frame.loc[180, "ds"], "score"])
    assert not got.loc[frame.loc[180, "ds"], "anomaly"]


@pytest.mark.parametrize("model", ["patch", "ridge", "seasonal_naive"])
def test_short_series_are_led_in(model: str, tmp_path: Path) -> None:
    frame = daily((150, 30, 20))
    with pytest.raises(DataError, match=r"'s1'.*at least 35 steps"):
        make(model).fit(frame)
    forecaster = make(model, short="pad", levels=[80], **(ROLES if model == "patch" else {})).fit(frame)
    futr = ahead(frame) if model == "patch" else None
    got = forecaster.predict(futr)
    assert got[model].notna().all()
    assert got.groupby("unique_id")["ds"].min()["s2"] == pd.Timestamp("2021-01-21")
    pd.testing.assert_frame_equal(forecaster.predict(futr, df=frame), got, rtol=1e-5)
    forecaster.save(tmp_path)
    loaded = Forecaster.load(tmp_path)
    assert loaded.short == "pad"
    pd.testing.assert_frame_equal(loaded.predict(futr, df=frame), got, rtol=1e-5)
    scores = forecaster.cross_validation(frame, n_windows=1)
    assert scores["unique_id"].value_counts().tolist() == [7, 7, 7]
    level = got.groupby("unique_id")[model].mean()
    assert level["s2"] > level["s0"] + 5
    with pytest.raises(DataError, match="at least 8 steps"):
        make(model, short="pad").fit(daily((150, 7)))
    with pytest.raises(UserError, match="choose error or pad"):
        make(short="drop")


def test_the_median_series_decides_how_far_back_to_look_where_short_ones_are_led_in() -> None:
    frame = daily((300, 300, 40))
    whole = make("seasonal_naive", lookback=None).fit(frame)
    padded = make("seasonal_naive", lookback=None, short="pad").fit(frame)
    assert whole._known().network.sizes.lookback == 7
    assert padded._known().network.sizes.lookback == 28


def test_it_goes_to_the_device_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = make("patch").fit(daily())
    forecaster.save(tmp_path)
    with pytest.raises(UserError, match="unknown accelerator 'quantum'"):
        Forecaster.load(tmp_path, accelerator="quantum")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="there is none here"):
            Forecaster.load(tmp_path, accelerator="gpu")
    # The meta device stands for another one: the network is moved, and so is each batch.
    monkeypatch.setattr("mamba_apps.forecasting.forecaster.device_for", lambda name: torch.device("meta"))
    moved = Forecaster.load(tmp_path, accelerator="auto")
    assert moved._known().device.type == "meta"
    assert devices.device_for("cpu").type == "cpu"


def test_steps_replayed_from_a_graph_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(GraphedTraining):
        """Takes whole steps on a CPU too, where they run without a graph."""

        steps = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            assert self._begin_whole(trainer, pl_module)

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            type(self).steps += 1

    monkeypatch.setattr("mamba_apps.training.trainer.GraphedTraining", Whole)
    frame = daily()
    expected = make("patch", levels=[80]).fit(frame).predict()
    assert Whole.steps == 0
    forecaster = make("patch", levels=[80], graph=True).fit(frame)
    assert Whole.steps == 10
    pd.testing.assert_frame_equal(forecaster.predict(), expected, rtol=1e-4)
    loaded = Forecaster.load(forecaster.save(tmp_path), accelerator="cpu", progress=False)
    loaded.fit(frame, warm_start=True)
    assert Whole.steps == 20


@pytest.mark.gpu
@pytest.mark.parametrize("levels", [[], [80]])
@pytest.mark.parametrize("model", names())
def test_every_model_learns_in_replayed_steps_on_a_gpu(model: str, levels: list[int]) -> None:
    frame = daily().drop(index=[40, 41, 90])
    kinds = spec(model).cls.covariates | spec(model).cls.through_effect
    roles = {kind: columns for kind, columns in ROLES.items() if kind in kinds}
    options = {"accelerator": "gpu", "missing": "mask", "levels": levels, "max_steps": 60, "lookback": 28, **roles}
    eager, replayed = (make(model, graph=graph, **options).fit(frame) for graph in (False, True))
    assert replayed.metrics["val/mae"] == pytest.approx(eager.metrics["val/mae"], rel=0.15)
    assert replayed.predict(ahead(frame))[model].notna().all()


@pytest.mark.gpu
def test_a_forecaster_of_the_cpu_forecasts_the_same_on_a_gpu_and_back(tmp_path: Path) -> None:
    frame = daily()
    forecaster = make("patch", levels=[80]).fit(frame)
    expected = forecaster.predict()
    forecaster.save(tmp_path)
    there = Forecaster.load(tmp_path, accelerator="gpu")
    pd.testing.assert_frame_equal(there.predict(), expected, rtol=1e-3, atol=1e-3)
    pd.testing.assert_frame_equal(there.stream("s0").forecast(), expected[expected.unique_id == "s0"], rtol=1e-3)
    there.fit(frame, warm_start=True).save(tmp_path / "gpu")
    back = Forecaster.load(tmp_path / "gpu", accelerator="cpu")
    pd.testing.assert_frame_equal(back.predict(), there.predict(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda card: card.update(format_version=99), "format_version 99"),
        (lambda card: card["preprocessing"].update(format_version=2), "a forecaster of format 2"),
        (lambda card: card["preprocessing"]["scaler"].update(format_version=7), "format_version 1 was expected"),
    ],
    ids=["saved-model", "forecaster", "scaler"],
)
def test_another_format_is_refused_by_its_version(change: Any, says: str, tmp_path: Path) -> None:
    make().fit(daily()).save(tmp_path)
    path = tmp_path / "model.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises((UserError, DataError), match=says) as caught:
        Forecaster.load(tmp_path)
    assert caught.value.remedy


def test_a_category_that_the_fit_did_not_see() -> None:
    frame = daily()
    forecaster = make(**ROLES).fit(frame)
    with pytest.raises(DataError, match=r"column 'kind'.*'huge'"):
        forecaster.predict(ahead(frame), df=frame.assign(kind="huge"))
    with pytest.raises(DataError, match="'s1', static column 'kind'"):
        make(**ROLES).fit(frame.assign(kind=frame["kind"].where(frame.index != 200, "small")))
