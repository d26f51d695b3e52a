"""The benchmark's protocol, to the digits of an independent run: windows, scales, baselines, dropped batches.

The files are looked for in the folder that MAMBA_APPS_DATA names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamba_apps.forecasting.ltsf import LtsfBaseline, LtsfData
from mamba_apps.forecasting.ltsf.scores import mean_errors
from mamba_datasets.series.ltsf import SETS

PROTOCOL = json.loads((Path(__file__).parents[1] / "parity" / "data" / "protocol_ltsf.json").read_text("utf-8"))
CASES = [(name, int(horizon)) for name, found in PROTOCOL.items() for horizon in found["horizons"]]


def data_of(name: str, horizon: int) -> LtsfData:
    root = os.environ.get("MAMBA_APPS_DATA", "")
    file = SETS[name].file
    if not root or not (Path(root) / file).is_file():
        pytest.skip(f"{file} is not in the folder that MAMBA_APPS_DATA names")
    return LtsfData(root, name, lookback=PROTOCOL[name]["lookback"], horizon=horizon)


def near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(PROTOCOL))
def test_borders_and_scale(name: str) -> None:
    data, expected = data_of(name, 96), PROTOCOL[name]
    assert data.series.values.shape == (expected["rows"], expected["channels"])
    firsts = [data.starts(part)[0] for part in ("train", "val", "test")]
    assert firsts == expected["border1"]
    assert [end for _, end in data.series.borders] == expected["border2"]
    near(data.series.mean, expected["scaler_mean"])
    near(data.series.std, expected["scaler_std_population"])


@pytest.mark.parametrize(("name", "horizon"), CASES)
def test_windows_baselines_and_dropped_batches(name: str, horizon: int) -> None:
    data, expected = data_of(name, horizon), PROTOCOL[name]["horizons"][str(horizon)]
    assert {part: len(data.starts(part)) for part in expected["windows"]} == expected["windows"]
    each = {}
    for baseline in ("repeat_last", "closed_form"):
        candidate = LtsfBaseline(baseline)
        candidate.fit(data, budget=None, seed=0)
        each[baseline] = candidate.errors().windows()
        found = mean_errors(each[baseline], None)
        entry = expected["repeat_last" if baseline == "repeat_last" else "closed_form_linear_centered"]
        near([found["mse"], found["mae"]], [entry["mse"], entry["mae"]])
    for batch_size, entry in expected["drop_last"].items():
        assert len(each["closed_form"]) // int(batch_size) * int(batch_size) == entry["kept"]
        for baseline, key in (("repeat_last", "repeat"), ("closed_form", "closed_form")):
            found = mean_errors(each[baseline], int(batch_size))
            near([found["mse_drop_last"], found["mae_drop_last"]], [entry[f"{key}_mse"], entry[f"{key}_mae"]])
    if "seasonal_naive_24" in expected:
        candidate = LtsfBaseline("seasonal_naive")
        candidate.fit(data, budget=None, seed=0)
        entry = expected["seasonal_naive_24"]
        near(list(candidate.evaluate().values()), [entry["mse"], entry["mae"]])
