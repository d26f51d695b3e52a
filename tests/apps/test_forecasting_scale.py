"""Many series and long ones: how much memory a fit and a forecast take, and what a cross-validation costs."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mamba_apps import Forecaster
from mamba_datasets.series import SeriesSet, read_series

GIB = 2**30
MANY = """
ids = np.repeat(np.arange(100_000), 60)
frame = pd.DataFrame({"unique_id": ids, "ds": np.tile(pd.date_range("2021-01-01", periods=60, freq="D"), 100_000)})
frame["y"] = np.random.default_rng(0).normal(10, 1, len(frame))
options = {"horizon": 7, "freq": "D", "lookback": 28}
rows = 700_000
"""
LONG = """
steps = 10_000_000
frame = pd.DataFrame({"ds": pd.date_range("2005-01-01", periods=steps, freq="min")})
frame["y"] = np.random.default_rng(0).normal(10, 1, steps)
options = {"horizon": 60, "freq": "min", "lookback": 240}
rows = 60
"""
RUN = """
import resource, sys
import numpy as np, pandas as pd
from mamba_apps import Forecaster
{data}
model, extra = {model!r}, {extra!r}
forecaster = Forecaster(model, levels=[80], accelerator="cpu", progress=False, **options, **extra).fit(frame)
forecast = forecaster.predict()
assert len(forecast) == rows and forecast[model].notna().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is counted in KiB on Linux alone")
@pytest.mark.parametrize("data", [MANY, LONG], ids=["100,000 series of 60 steps", "10,000,000 rows"])
@pytest.mark.parametrize(("model", "extra"), [("dlinear", {"max_steps": 20}), ("seasonal_naive", {})])
def test_peak_memory_stays_below_four_gib(data: str, model: str, extra: dict[str, Any]) -> None:
    code = RUN.format(data=data, model=model, extra=extra)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 4 * GIB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 >= int(done.stdout)


FILL = """
import resource
import numpy as np, pandas as pd
from mamba_apps import Imputer
{data}
frame = frame.assign(z=frame["y"] + 1)
frame.loc[np.random.default_rng(1).random(len(frame)) < 0.1, "y"] = np.nan
options = {{"freq": options["freq"], "window": 24, "max_steps": 4, "model_options": {{"d_model": 8, "layers": 1}}}}
imputer = Imputer("mamba1", accelerator="cpu", progress=False, **options).fit(frame)
assert imputer.impute(frame.tail(600_000) if len(frame) > 6_000_000 else frame)["y"].notna().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is counted in KiB on Linux alone")
@pytest.mark.parametrize("data", [MANY, LONG], ids=["100,000 series of 60 steps", "10,000,000 rows"])
def test_an_imputer_stays_below_four_gib(data: str) -> None:
    code = FILL.format(data=data)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 4 * GIB


@pytest.mark.slow
def test_cross_validation_costs_at_most_half_more_than_predicting_from_each_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuts, horizon = 8, 24
    hours = pd.date_range("2024-01-01", periods=1200, freq="h")
    rng = np.random.default_rng(0)
    frame = pd.concat(
        [pd.DataFrame({"unique_id": f"s{i}", "ds": hours, "y": rng.normal(10, 1, len(hours))}) for i in range(100)],
        ignore_index=True,
    )
    forecaster = Forecaster(
        "patch", horizon=horizon, freq="h", lookback=168, max_steps=10, accelerator="cpu", progress=False
    )
    series_set: SeriesSet = read_series(frame, freq="h").with_calendar()
    fitted = forecaster._fit(series_set.without_last(cuts * horizon))
    forecaster._fitted = fitted
    monkeypatch.setattr(forecaster, "_fit", lambda given: fitted)
    monkeypatch.setattr("mamba_apps.forecasting.forecaster.read_with_calendar", lambda *a, **o: series_set)
    monkeypatch.setattr(type(fitted.reading), "read", lambda self, given: given)

    def lap(call: Any) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    parts = [series_set.without_last(horizon * left) for left in range(1, cuts + 1)]
    ratios = []
    for _ in range(5):
        together = lap(lambda: forecaster.cross_validation(frame, n_windows=cuts))
        apart = lap(lambda: [forecaster.predict(df=part) for part in parts])
        ratios.append(together / apart)
    assert min(ratios) < 1.5, ratios
