"""Training a forecaster: the parts of the data, the schedule, the same run twice, and one that was interrupted."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from mamba_apps.errors import UserError
from mamba_apps.forecasting import ForecastTask, SeriesData, WindowData
from mamba_apps.forecasting.models import Sizes, names
from mamba_apps.forecasting.task import _spread
from mamba_apps.training import make_trainer
from mamba_apps.training.adamw import parameter_groups
from mamba_apps.training.schedule import rate_factor
from mamba_datasets.errors import DataError
from mamba_datasets.series import SeriesSet, WindowDataset, read_series

SMALL: dict[str, dict[str, Any]] = {
    "anchor": {"patch": 12, "d_model": 16, "layers": 1, "decoder": 4},
    "patch": {"patch": 12, "d_model": 16, "layers": 1, "decoder": 4},
    "smamba": {"d_model": 16, "d_state": 2, "layers": 1},
    "itransformer": {"d_model": 16, "heads": 2, "layers": 1},
    "patchtst": {"d_model": 16, "heads": 2, "layers": 1},
    "dlinear": {},
    "timemachine": {"n1": 16, "n2": 8, "d_state": 2},
    "mambasimple": {"d_model": 16, "d_state": 2, "layers": 1},
}


def waves(steps: int = 300, lengths: tuple[int, ...] = (0,), missing: int = 0) -> SeriesSet:
    rng = np.random.default_rng(0)
    frames = []
    for number, shorter in enumerate(lengths):
        step = np.arange(steps - shorter)
        y = 100 * (number + 1) + 10 * np.sin(2 * np.pi * step / 12) + rng.normal(0, 0.5, len(step))
        y[rng.choice(np.arange(12, len(step)), missing, replace=False)] = np.nan
        ds = pd.date_range("2021-01-01", periods=len(step), freq="2h")
        frames.append(pd.DataFrame({"unique_id": f"s{number}", "ds": ds, "y": y}))
    return read_series(pd.concat(frames), freq="2h", missing="mask" if missing else "error").with_calendar()


def data_of(series_set: SeriesSet, **options: Any) -> WindowData:
    defaults = {"lookback": 36, "horizon": 12, "val_steps": 40, "test_steps": 40, "batch_size": 16}
    return WindowData(series_set, **{**defaults, **options})


def train(folder: Path, data: WindowData, steps: int = 12, *, model: str = "patch", **options: Any) -> ForecastTask:
    callbacks = options.pop("callbacks", None)
    resume = options.pop("resume", False)
    seed, accelerator = options.pop("seed", 0), options.pop("accelerator", "cpu")
    trainer = make_trainer(
        run_dir=folder, max_steps=steps, monitor="val/mae", seed=seed, accelerator=accelerator, progress=False,
        check_val_every_n_epoch=None, val_check_interval=10, callbacks=callbacks, resume=resume,
    )  # fmt: skip
    torch.manual_seed(seed)
    task = ForecastTask(model, **{"model_options": SMALL[model], **options})
    task.prepare_for(data)
    trainer.fit(task, datamodule=data)
    return task


def weights(task: ForecastTask) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in task.state_dict().items()}


def test_each_series_is_parted_at_its_own_end() -> None:
    series_set = waves(lengths=(0, 60))
    data = data_of(series_set)
    lengths = series_set.lengths
    for part, first, last in ((data.train, 36, 80), (data.val, 80, 40), (data.test, 40, 0)):
        batch = part.batch(range(len(part)))
        for number in range(2):
            mine = batch["series"] == number
            ends = set()
            for index in np.flatnonzero(mine.numpy()):
                stamps = part.horizon_index(int(index))
                place = series_set.indexes[number].get_indexer(stamps)
                ends.update(place.tolist())
                one = series_set.series[number]
                got = data.scaler.inverse_y(batch["future_y"][index : index + 1], [number])[0, :, 0]
                np.testing.assert_allclose(got, one.y[place], rtol=1e-4)
            low = first if part is data.train else lengths[number] - first
            assert (min(ends), max(ends)) == (low, lengths[number] - last - 1)


def test_scales_come_from_the_training_part_alone() -> None:
    series_set = waves()
    changed = waves()
    changed.y[-80:] += 1000
    np.testing.assert_array_equal(data_of(series_set).scaler.y_mean, data_of(changed).scaler.y_mean)


def test_a_series_too_short_for_training_is_named_or_left_out() -> None:
    series_set = waves(lengths=(0, 200))
    with pytest.raises(DataError, match="s1"):
        _ = data_of(series_set).train
    data = data_of(series_set, short="skip")
    assert data.train.skipped == ["s1"]
    assert set(data.val.batch(range(len(data.val)))["series"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    "options", [{"lookback": 0}, {"horizon": 0}, {"val_steps": 5}, {"batch_size": 0}, {"lookback": 2.5}]
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        data_of(waves(), **options)


def test_the_shipped_sample_is_known_by_name() -> None:
    data = SeriesData(
        "metro_traffic", lookback=672, horizon=24, freq="h", time_col="datetime", target_col="traffic_volume",
        missing="mask", season=168, holidays="US", val_steps=2016, test_steps=2016,
    )  # fmt: skip
    assert data.sizes == Sizes(672, 24, n_future=10)
    assert (len(data.val), len(data.test)) == (2016 - 23, 2016 - 23)
    assert str(data.test.horizon_index(0)[0]) == "2018-07-09 00:00:00"
    assert data.describe() == "metro_traffic.csv: 1 series, 17,520 steps of 'h'"
    with pytest.raises(UserError, match="calendar"):
        SeriesData("metro_traffic", lookback=672, horizon=24, calendar=False, holidays="US")


@pytest.mark.parametrize(
    ("model", "quantiles"), [*((name, None) for name in names()), ("patch", [0.1, 0.5, 0.9]), ("dlinear", [0.2, 0.5])]
)
def test_training_learns(model: str, quantiles: Any, tmp_path: Path) -> None:
    data = data_of(waves(missing=30))
    task = train(tmp_path / "short", data, 1, model=model, quantiles=quantiles, lr=1e-4)
    before = task.trainer.callback_metrics["val/mae"].item()
    task = train(tmp_path / "long", data, 40, model=model, quantiles=quantiles, lr=1e-2)
    after = task.trainer.callback_metrics["val/mae"].item()
    # The anchored forecaster begins with a closed form, which on waves leaves little to learn.
    assert after < (1.0 if model == "anchor" else 0.7) * before
    found = task.trainer.test(task, datamodule=data, verbose=False)[0]
    assert set(found) == {"test/mae", "test/rmse"}
    assert 0 < found["test/mae"] <= found["test/rmse"]


def test_the_model_is_prepared_with_the_host_s_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU, where new tensors are made while Lightning has the model made; tensors of "meta" cannot be read.
    monkeypatch.setattr(SingleDeviceStrategy, "tensor_init_context", lambda *_, **__: torch.device("meta"))
    task = train(tmp_path, data_of(waves()), 2, model="anchor")
    assert task.network.solved


def test_windows_that_a_closed_form_is_solved_from_come_in_order_of_time() -> None:
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {"unique_id": f"s{n}", "ds": pd.date_range(end="2021-06-30", periods=steps), "y": rng.random(steps)}
        )
        for n, steps in enumerate((60, 40, 50))
    ]
    windows = WindowDataset(read_series(pd.concat(frames), freq="D"), 10, 5)
    batches = list(_spread(windows, 1000, in_time=True))
    series, origin = (torch.cat([batch[name] for batch in batches]).numpy() for name in ("series", "origin"))
    ends = windows.series_set.lengths[series] - origin
    assert (np.diff(ends) <= 0).all()
    assert len(set(zip(series, origin, strict=True))) == len(windows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", names())
def test_training_on_a_gpu(model: str, tmp_path: Path) -> None:
    data = data_of(waves(missing=30))
    task = train(tmp_path, data, 12, model=model, accelerator="gpu")
    assert 0 < task.trainer.test(task, datamodule=data, verbose=False)[0]["test/mae"] < 100


@pytest.mark.parametrize("model", names())
@pytest.mark.parametrize("loss", ["mae", "huber"])
def test_half_precision_trains(model: str, loss: str, tmp_path: Path) -> None:
    data = data_of(waves())
    trainer = make_trainer(
        run_dir=tmp_path, max_steps=3, accelerator="cpu", progress=False, logger=False, precision="bf16-mixed"
    )
    task = ForecastTask(model, model_options=SMALL[model], loss=loss)
    trainer.fit(task, datamodule=data)
    assert trainer.callback_metrics["train/loss"].dtype == torch.float32
    assert all(parameter.isfinite().all() for parameter in task.parameters())


def test_scores_are_in_the_unit_of_the_data(tmp_path: Path) -> None:
    data = data_of(waves(missing=30))
    task = train(tmp_path, data, 2)
    score = task.trainer.validate(task, datamodule=data, verbose=False)[0]["val/mae"]
    batch = data.val.batch(range(len(data.val)))
    with torch.no_grad():
        forecast = data.scaler.inverse_y(task.eval()(batch), batch["series"])
    error = (forecast - data.scaler.inverse_y(batch["future_y"], batch["series"])).abs()
    assert math.isclose(score, error[batch["future_observed"]].mean().item(), rel_tol=1e-5)


def test_one_seed_gives_one_result(tmp_path: Path) -> None:
    data = data_of(waves())
    first, same = (weights(train(tmp_path / name, data, seed=3)) for name in ("a", "b"))
    other = weights(train(tmp_path / "c", data, seed=4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


class Interrupt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [3, 7, 17])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(step: int, tmp_path: Path) -> None:
    data = data_of(waves(200))
    options = {"model": "smamba", "model_options": {**SMALL["smamba"], "dropout": 0.3}}
    whole = train(tmp_path / "whole", data, 20, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", data, 20, callbacks=[Interrupt(step)], **options)
    resumed = train(tmp_path / "broken", data_of(waves(200)), 20, resume=True, **options)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert torch.equal(resumed.trainer.callback_metrics["val/mae"], whole.trainer.callback_metrics["val/mae"])


def test_predictions_say_which_window_they_are_of(tmp_path: Path) -> None:
    data = data_of(waves())
    task = train(tmp_path, data, 2)
    found = task.trainer.predict(task, datamodule=data)
    assert sum(len(part["forecast"]) for part in found) == len(data.test)
    assert found[0]["forecast"].shape[1:] == (12, 1)
    assert found[0]["forecast"].mean() > 50


def test_pictures_show_intervals_of_quantiles(tmp_path: Path) -> None:
    data = data_of(waves())
    task = train(tmp_path, data, 2, quantiles=[0.1, 0.5, 0.9])
    panels = task.plots(data)
    assert len(panels) == 3 or len(panels) == 1
    label = "patch[mamba1]"
    assert list(panels[0].lines) == ["observed", label]
    low, high = (np.array(edge)[-12:] for edge in panels[0].bands[label])
    point = np.array(panels[0].lines[label])[-12:]
    assert (low <= point).all()
    assert (point <= high).all()


def test_the_rate_rises_and_falls_over_the_budget(tmp_path: Path) -> None:
    assert rate_factor(0.0, 0.1) == pytest.approx(1e-3)
    assert rate_factor(0.1, 0.1) == 1.0
    assert rate_factor(1.0, 0.1) == pytest.approx(1e-3)
    assert rate_factor(0.0, 0.0) == 1.0
    rates = [rate_factor(step / 100, 0.1) for step in range(101)]
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("budget", [{"max_steps": 20}, {"max_epochs": 2}, {"max_seconds": 1.5}])
def test_every_kind_of_budget_ends_with_a_small_rate(budget: dict[str, Any], tmp_path: Path) -> None:
    rates = Rates()
    data = data_of(waves())
    trainer = make_trainer(run_dir=tmp_path, accelerator="cpu", progress=False, callbacks=[rates], **budget)
    trainer.fit(ForecastTask("dlinear", lr=1.0), datamodule=data)
    assert max(rates.rates) > 0.8
    assert rates.rates[0] < 0.1
    assert rates.rates[-1] < 0.1


def test_vectors_and_decay_rates_of_the_scan_do_not_decay() -> None:
    task = ForecastTask("smamba", sizes=Sizes(24, 6, n_future=2))
    decayed, others = parameter_groups(task.network, 0.1)
    named = {id(p): name for name, p in task.network.named_parameters()}
    spared = {named[id(p)] for p in others["params"]}
    assert others["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.1
    assert {name for name in named.values() if name.endswith(("A_log", ".D", "bias"))} <= spared
    assert not {name for name in spared if name.endswith("proj.weight")}
    assert len(decayed["params"]) + len(others["params"]) == len(named)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "pacth"}, "patch"),
        ({"lr": 0.0}, "learning rate"),
        ({"lr": math.nan}, "learning rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"loss": "l1"}, "mae"),
        ({"model_options": {"quantiles": [0.5]}}, "quantiles"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ForecastTask(**options)


def test_a_model_made_for_other_data_is_refused() -> None:
    task = ForecastTask("dlinear", sizes=Sizes(36, 6))
    with pytest.raises(UserError, match="made for"):
        task.prepare_for(data_of(waves()))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mamba1", "attention"])
def test_the_patch_forecaster_beats_the_weekly_naive_on_real_traffic(mixer: str, tmp_path: Path) -> None:
    data = SeriesData(
        "metro_traffic", lookback=672, horizon=24, freq="h", time_col="datetime", target_col="traffic_volume",
        missing="mask", season=168, holidays="US", val_steps=2016, test_steps=2016,
    )  # fmt: skip
    trainer = make_trainer(
        run_dir=tmp_path, max_steps=400, accelerator="cpu", progress=False, monitor="val/mae", gradient_clip_val=1.0
    )
    task = ForecastTask("patch", model_options={"mixer": mixer, "norm": "none"})
    task.prepare_for(data)
    trainer.fit(task, datamodule=data)
    score = trainer.test(task, datamodule=data, verbose=False)[0]["test/mae"]
    assert score < 0.75 * 235.64
