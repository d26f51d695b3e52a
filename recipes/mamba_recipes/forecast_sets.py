"""Series that forecasters are compared on: small real ones that packages ship, files that are there, made ones.

Each set is said once, with what to forecast, and no forecaster is told more about it than its data.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ForecastSet:
    """Series and what to forecast of them.

    Args:
        frame: The series in the long format.
        season: The season in steps, 1 for none; it scales errors and is known to Theta and exponential smoothing.
        horizon: Steps to forecast.
        cuts: How many forecasts are scored, a horizon apart, the last of them at the end of the series.
        options: What the forecaster has to be told of the data.
    """

    frame: pd.DataFrame
    season: int
    horizon: int
    cuts: int
    options: Mapping[str, Any] = field(default_factory=dict)


def load(name: str) -> ForecastSet | None:
    """Return a set by its name in `SETS`, or None where its file or package is not there."""
    try:
        return SETS[name]()
    except (FileNotFoundError, ModuleNotFoundError):
        return None


def _airline() -> ForecastSet:
    return ForecastSet(_shipped("load_airline"), 12, 12, 4)


def _scripts() -> ForecastSet:
    return ForecastSet(_shipped("load_PBS_dataset"), 12, 12, 4)


def _shampoo() -> ForecastSet:
    return ForecastSet(_shipped("load_shampoo_sales"), 12, 6, 2)


def _lynx() -> ForecastSet:
    return ForecastSet(_shipped("load_lynx"), 1, 6, 4)


def _us_change() -> ForecastSet:
    y, others = _sktime("load_uschange")
    columns = {y.name: y, **{name: others[name] for name in others}}
    return ForecastSet(_long(columns, start="1970", freq="QS"), 4, 4, 6)


def _solar() -> ForecastSet:
    y = _sktime("load_solar")
    return ForecastSet(_long({"solar": y}, start=y.index[0].tz_localize(None), freq="30min"), 48, 24, 4)


def _traffic() -> ForecastSet:
    import pandas as pd

    from mamba_datasets.samples import metro_traffic_path

    found = pd.read_csv(metro_traffic_path(), usecols=["datetime", "traffic_volume"])
    frame = pd.DataFrame({"unique_id": "I-94", "ds": pd.to_datetime(found["datetime"]), "y": found["traffic_volume"]})
    return ForecastSet(frame, 24, 24, 28, {"missing": "mask"})


def _etth1() -> ForecastSet:
    return ForecastSet(_wide("ETTh1.csv", "h"), 24, 48, 20)


def _exchange() -> ForecastSet:
    # Its days are numbered on, without regard to weekends.
    return ForecastSet(_wide("exchange_rate.csv", "D"), 1, 30, 20)


def _trend_season() -> ForecastSet:
    month, noise = np.arange(120), np.random.default_rng(1)
    columns = {
        f"s{i}": 50 + (i + 1) * month / 6 + 10 * np.sin(2 * np.pi * (month + i) / 12) + noise.normal(0, 2, 120)
        for i in range(5)
    }
    return ForecastSet(_long(columns, start="2010", freq="MS"), 12, 12, 3)


def _growing_season() -> ForecastSet:
    month, noise = np.arange(120), np.random.default_rng(2)
    columns = {
        f"s{i}": np.exp(3 + 0.012 * month + 0.3 * np.sin(2 * np.pi * (month + i) / 12) + noise.normal(0, 0.05, 120))
        for i in range(5)
    }
    return ForecastSet(_long(columns, start="2010", freq="MS"), 12, 12, 3)


def _intermittent() -> ForecastSet:
    noise = np.random.default_rng(3)
    columns = {f"s{i}": noise.binomial(1, 0.2, 730) * (1 + noise.poisson(2, 730)) for i in range(10)}
    return ForecastSet(_long(columns, start="2021", freq="D"), 7, 14, 4)


def _walk() -> ForecastSet:
    noise = np.random.default_rng(4)
    columns = {f"s{i}": noise.normal(0, 1, 730).cumsum() for i in range(5)}
    return ForecastSet(_long(columns, start="2021", freq="D"), 1, 14, 8)


def _level_shift() -> ForecastSet:
    day, noise = np.arange(730), np.random.default_rng(5)
    columns = {
        f"s{i}": 5 * np.sin(2 * np.pi * day / 7)
        + noise.normal(0, 1, 730)
        + np.where(day > noise.integers(300, 700), noise.normal(0, 15), 0)
        for i in range(10)
    }
    return ForecastSet(_long(columns, start="2021", freq="D"), 7, 14, 4)


def _many_short() -> ForecastSet:
    import pandas as pd

    noise, frames = np.random.default_rng(6), []
    for i in range(100):
        length, start = int(noise.integers(40, 120)), pd.Period("2015-01") + int(noise.integers(0, 60))
        month = np.arange(length)
        wave = 0.3 * np.cos(2 * np.pi * (month + start.month) / 12)
        y = np.exp(noise.normal(3, 1)) * (1 + 0.004 * noise.normal() * month + wave + 0.1 * noise.normal(size=length))
        frames.append(_long({f"s{i:03d}": y}, start=start.to_timestamp(), freq="MS"))
    return ForecastSet(pd.concat(frames, ignore_index=True), 12, 6, 2)


SETS: Mapping[str, Callable[[], ForecastSet]] = {
    "airline": _airline,
    "scripts": _scripts,
    "shampoo": _shampoo,
    "lynx": _lynx,
    "us-change": _us_change,
    "solar": _solar,
    "traffic": _traffic,
    "ETTh1": _etth1,
    "exchange": _exchange,
    "trend-season": _trend_season,
    "growing-season": _growing_season,
    "intermittent": _intermittent,
    "random-walk": _walk,
    "level-shift": _level_shift,
    "many-short": _many_short,
}
"""Sets by name: six of sktime's, the shipped traffic, two files of the folder MAMBA_APPS_DATA, and six made ones."""


def _sktime(loader: str) -> Any:
    with warnings.catch_warnings():
        # What its dependencies have to say on the way in is not about the data.
        warnings.simplefilter("ignore")
        from sktime import datasets

        return getattr(datasets, loader)()


def _shipped(loader: str) -> pd.DataFrame:
    y = _sktime(loader)
    return _long({str(y.name): y}, start=y.index[0].to_timestamp(), freq={"M": "MS", "Y": "YS"}[y.index.freqstr[0]])


def _wide(name: str, freq: str) -> pd.DataFrame:
    import pandas as pd

    found = pd.read_csv(Path(os.environ.get("MAMBA_APPS_DATA", ""), name))
    return _long({column: found[column] for column in found.columns[1:]}, start=found["date"].iloc[0], freq=freq)


def _long(columns: Mapping[str, Iterable[float]], *, start: Any, freq: str) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for name, values in columns.items():
        y = np.asarray(values, dtype=np.float64)
        frames.append(pd.DataFrame({"unique_id": name, "ds": pd.date_range(start, periods=len(y), freq=freq), "y": y}))
    return pd.concat(frames, ignore_index=True)
