"""The benchmark's windows, networks and training, on a small file of the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mamba_apps.errors import UserError
from mamba_apps.forecasting.ltsf import LtsfBaseline, LtsfData, LtsfTask
from mamba_apps.forecasting.ltsf.networks import NAMES, make_network
from mamba_apps.forecasting.ltsf.published import published
from mamba_apps.forecasting.ltsf.scores import WindowErrors
from mamba_apps.forecasting.ltsf.task import _mixed
from mamba_apps.training import make_trainer
from mamba_datasets.series.ltsf import SETS

SMALL: dict[str, dict[str, Any]] = {
    "smamba": {"d_model": 8, "d_state": 2},
    "timemachine": {"n1": 8, "n2": 4, "d_state": 2},
    "mambasimple": {"d_model": 8, "d_state": 2},
    "itransformer": {"d_model": 8, "heads": 2},
    "patchtst": {"d_model": 8, "heads": 2},
    "dlinear": {"moving_average": 5},
    "anchor": {"d_model": 8, "patch": 8},
    "patch": {"d_model": 8, "patch": 8},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with toy.csv: 500 hours of three noisy daily waves."""
    folder = tmp_path_factory.mktemp("ltsf")
    hour_T = np.arange(500)
    values_TC = np.sin(2 * np.pi * (hour_T[:, None] + [0, 6, 12]) / 24) * [1, 5, 0.1] + [0, 100, 3]
    values_TC += np.random.default_rng(0).normal(0, 0.1, (500, 3)) * [1, 5, 0.1]
    table = pd.DataFrame(values_TC, columns=["a", "b", "OT"])
    table.insert(0, "date", pd.date_range("2020-01-01", periods=500, freq="h").astype(str))
    table.to_csv(folder / "toy.csv", index=False)
    return folder


def data_of(root: Path, **options: Any) -> LtsfData:
    return LtsfData(str(root), "toy", **{"lookback": 24, "horizon": 12, **options})


def test_a_window_is_its_rows(root: Path) -> None:
    data = data_of(root)
    batch = data.gather(torch.tensor([0, 7]), torch.float64)
    scaled = data.series.scaled
    np.testing.assert_array_equal(batch["past"][1], scaled[7:31])
    np.testing.assert_array_equal(batch["future"][1], scaled[31:43])
    assert batch["marks"].shape == (2, 24, 4)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_no_window_is_left_out_and_none_twice(root: Path, part: str) -> None:
    data = data_of(root, batch_size=32, eval_batch_size=32)
    loader = getattr(data, f"{part}_dataloader")()
    assert sorted(torch.cat(list(loader)).tolist()) == list(data.starts(part))


def test_a_test_stride_leaves_windows_out(root: Path) -> None:
    assert list(data_of(root, test_stride=12).starts("test")) == list(data_of(root).starts("test"))[::12]


@pytest.mark.parametrize("option", ["lookback", "batch_size", "drop_last", "test_stride"])
def test_numbers_out_of_range_are_refused(root: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"{option} is 0"):
        data_of(root, **{option: 0})


def test_a_folder_must_be_given() -> None:
    with pytest.raises(UserError, match=r"--data\.root DIR"):
        LtsfTask("dlinear").prepare_for(LtsfData())


def test_errors_do_not_depend_on_the_order_of_batches() -> None:
    torch.manual_seed(0)
    forecast, future = torch.randn(10, 3, 2), torch.randn(10, 3, 2)
    errors = WindowErrors(drop_last=4)
    order = torch.randperm(10)
    for part in (*order.split(3), order[:2]):  # two windows come again, as with several processes
        errors.update(part + 50, forecast[part], future[part])
    found = errors.compute()
    error = (forecast - future).double()
    torch.testing.assert_close(found["mse"], error.square().mean())
    torch.testing.assert_close(found["mae_drop_last"], error[:8].abs().mean())


def test_the_closed_form_finds_the_wave(root: Path) -> None:
    scores = {}
    for name in ("closed_form", "repeat_last", "seasonal_naive"):
        candidate = LtsfBaseline(name, {"season": 24} if name == "seasonal_naive" else None)
        candidate.fit(data_of(root), None, 0)
        scores[name] = candidate.evaluate()["mse"]
        assert len(candidate.plots()) == 3
    assert scores["closed_form"] < scores["seasonal_naive"] < scores["repeat_last"]


def test_a_baseline_that_cannot_be_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'closed_form'"):
        LtsfBaseline("closed_from")
    with pytest.raises(UserError, match="has no option 'rigde'"):
        LtsfBaseline("closed_form", {"rigde": 1})
    with pytest.raises(UserError, match="the season is not known"):
        LtsfBaseline("seasonal_naive").fit(data_of(root), None, 0)
    with pytest.raises(UserError, match="25 steps, the lookback 24"):
        LtsfBaseline("seasonal_naive", {"season": 25}).fit(data_of(root), None, 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_trains_and_is_scored(name: str, root: Path, tmp_path: Path) -> None:
    data = data_of(root, batch_size=64, drop_last=32)
    task = LtsfTask(name, model_options=SMALL[name])
    options = {"max_epochs": 2, "accelerator": "cpu", "monitor": "val/mse", "progress": False}
    trainer = make_trainer(run_dir=tmp_path, **options)
    trainer.fit(task, datamodule=data)
    (found,) = trainer.test(task, datamodule=data, verbose=False)
    assert set(found) == {"test/mse", "test/mae", "test/mse_drop_last", "test/mae_drop_last"}
    assert found["test/mse"] < 3
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    known = published(name, "toy", 12)
    assert rate == pytest.approx(known.lr * known.decay**2)
    assert len(task.plots(data)) == 3


def test_marks_reach_the_networks_that_have_a_place_for_them(root: Path) -> None:
    data = data_of(root)
    batch = data.gather(torch.tensor([3]))
    for name in NAMES:
        task = LtsfTask(name, model_options=SMALL[name])
        task.prepare_for(data)
        task.eval()
        moved = not torch.equal(task(batch), task({**batch, "marks": batch["marks"] + 1}))
        assert moved == task.takes_marks == (name in ("smamba", "itransformer", "mambasimple"))
        without = LtsfTask(name, model_options=SMALL[name], marks=False)
        without.prepare_for(data)
        assert not without.takes_marks


def test_published_configurations() -> None:
    near, far = published("smamba", "ETTh1", 96), published("smamba", "ETTh1", 720)
    assert near.options == far.options == {"d_model": 256, "d_state": 2}
    assert (near.lr, far.lr) == (7e-5, 5e-5)
    assert [published("itransformer", "ETTh1", horizon).options["d_model"] for horizon in (24, 192, 193, 999)] == [
        256, 256, 512, 512,
    ]  # fmt: skip
    assert published("timemachine", "traffic", 96).options["independent"] is False
    assert published("patchtst", "ETTh1", 96).options == {}


@pytest.mark.parametrize("model", ["smamba", "itransformer", "timemachine"])
def test_published_options_are_options_of_the_network(model: str) -> None:
    for name in SETS:
        for horizon in (96, 192, 336, 720):
            options = published(model, name, horizon).options
            with torch.device("meta"):
                make_network(model, 96, horizon, 7, 4, options)


def test_windows_are_mixed_as_whole_series(root: Path) -> None:
    data = data_of(root)
    batch = data.gather(torch.arange(8))
    torch.manual_seed(0)
    # A linear map from past to future is one of mixed windows too, as each is mixed at one weight throughout.
    weight_LH = torch.randn(24, 12)
    linear = {**batch, "future": (batch["past"].transpose(1, 2) @ weight_LH).transpose(1, 2)}
    mixed = _mixed(linear, 0.5)
    torch.testing.assert_close(mixed["future"], (mixed["past"].transpose(1, 2) @ weight_LH).transpose(1, 2))
    assert mixed["past"].shape == batch["past"].shape
    assert not torch.allclose(mixed["past"], batch["past"])
    with pytest.raises(UserError, match="cannot be mixed"):
        LtsfTask("dlinear", mix=0.5).prepare_for(data)


def test_unknown_models_and_options_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'smamba'"):
        LtsfTask("s_mamba")
    with pytest.raises(UserError, match=r"has no option 'd_modle'; did you mean 'd_model'"):
        LtsfTask("smamba", model_options={"d_modle": 8}).prepare_for(data_of(root))
    for option, value in (("lr", 0.0), ("loss", "mape"), ("mix", -1.0)):
        with pytest.raises(UserError, match=option):
            LtsfTask("smamba", **{option: value})
