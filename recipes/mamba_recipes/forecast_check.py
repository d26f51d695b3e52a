"""How good are forecasters as they are, on series that nobody chose their settings for?

    python -m mamba_recipes.forecast_check

Each set is forecast from several cuts by a forecaster that is given the horizon alone and fitted once, before the first
cut. The score is the mean absolute scaled error: of each series, its mean absolute error divided by that of repeating
the last season within what was known before the first cut (the last value, where there is no season), averaged over
series. The last line is the geometric mean over sets of that score as a part of the seasonal naive forecast's.

Theta and exponential smoothing ("ets": the best by AICc of six forms) are fitted anew at every cut and for each series,
by statsmodels where that is installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mamba_recipes.forecast_sets import SETS, ForecastSet, load

if TYPE_CHECKING:
    import pandas as pd

_REFERENCE = "seasonal_naive"
CANDIDATES = ("anchor", "patch", "patchtst", "dlinear", "ridge", _REFERENCE, "repeat_last", "theta", "ets")
_CLASSICAL = ("theta", "ets")
# Longer series tell exponential smoothing nothing more, and take it minutes.
_ENOUGH = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table.

    Args:
        argv: The words of the command; None for the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m mamba_recipes.forecast_check", description=__doc__)
    parser.add_argument("--sets", default=",".join(SETS), help="some of them, with commas (all that are there)")
    parser.add_argument("--candidates", default=",".join(CANDIDATES), help="some of them, with commas (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="cpu")
    arguments = parser.parse_args(argv)
    from mamba_apps.training.chatter import quiet

    quiet()
    candidates = arguments.candidates.split(",")
    if importlib.util.find_spec("statsmodels") is None:
        candidates = [name for name in candidates if name not in _CLASSICAL]
    scores: dict[str, list[float]] = {name: [] for name in candidates}
    print("  ".join(f"{head:>14}" for head in ("set", *candidates)), flush=True)
    for name in arguments.sets.split(","):
        found = load(name)
        if found is None:
            print(f"{name}: its file or package is not there", file=sys.stderr)
            continue
        print(f"{name:>14}", end="", flush=True)
        for candidate in candidates:
            start = time.perf_counter()
            forecasts = _forecasts(found, candidate, arguments)
            scores[candidate].append(scaled_error(found, forecasts))
            print(f"  {scores[candidate][-1]:>7.3f} {time.perf_counter() - start:>5.0f}s", end="", flush=True)
        print(flush=True)
    if _REFERENCE in scores:
        means = [_relative(scores[candidate], scores[_REFERENCE]) for candidate in candidates]
        print("  ".join([f"{'all':>14}", *(f"{mean:>7.3f} {'':>6}" for mean in means)]).rstrip())
    return 0


def scaled_error(found: ForecastSet, forecasts: pd.DataFrame) -> float:
    """Return the mean absolute scaled error.

    Args:
        found: The set.
        forecasts: Its forecasts, in the column "forecast", with what was observed, as cross-validation returns them.
    """
    errors = []
    series = dict(tuple(found.frame.groupby("unique_id")["y"]))
    for name, part in forecasts.groupby("unique_id"):
        known = series[name].to_numpy()[: -found.horizon * found.cuts]
        naive = np.nanmean(np.abs(known[found.season :] - known[: -found.season]))
        errors.append(float(np.nanmean(np.abs(part["y"] - part["forecast"])) / naive))
    return statistics.fmean(errors)


def _relative(scores: Sequence[float], reference: Sequence[float]) -> float:
    return statistics.geometric_mean(a / b for a, b in zip(scores, reference, strict=True))


def _forecasts(found: ForecastSet, candidate: str, arguments: argparse.Namespace) -> pd.DataFrame:
    from mamba_apps import Forecaster

    if candidate in _CLASSICAL:
        return _classical(found, candidate)
    forecaster = Forecaster(
        candidate,
        horizon=found.horizon,
        seed=arguments.seed,
        accelerator=arguments.accelerator,
        progress=False,
        alias="forecast",
        **found.options,
    )
    return forecaster.cross_validation(found.frame, n_windows=found.cuts)


def _classical(found: ForecastSet, candidate: str) -> pd.DataFrame:
    import pandas as pd

    fit = {"theta": _theta, "ets": _ets}[candidate]
    parts = []
    with warnings.catch_warnings():
        # statsmodels says a good deal about forms that do not converge; the best of those that do is taken.
        warnings.simplefilter("ignore")
        for name, series in found.frame.groupby("unique_id"):
            y, filled = series["y"].to_numpy(), series["y"].interpolate().to_numpy()
            for left in range(found.cuts, 0, -1):
                cut = len(y) - left * found.horizon
                forecast = fit(filled[:cut][-_ENOUGH:], found.season, found.horizon)
                ahead = y[cut : cut + found.horizon]
                parts.append(pd.DataFrame({"unique_id": name, "y": ahead, "forecast": forecast}))
    return pd.concat(parts, ignore_index=True)


def _theta(past: np.ndarray, season: int, horizon: int) -> np.ndarray:
    model = importlib.import_module("statsmodels.tsa.forecasting.theta").ThetaModel
    seasonal = season > 1 and len(past) >= 2 * season
    found = model(past, period=season if seasonal else 1, deseasonalize=seasonal).fit()
    return np.asarray(found.forecast(horizon))


def _ets(past: np.ndarray, season: int, horizon: int) -> np.ndarray:
    smoothing = importlib.import_module("statsmodels.tsa.holtwinters").ExponentialSmoothing
    seasons: list[str | None] = [None]
    if season > 1 and len(past) > 2 * season:
        seasons += ["add", *(["mul"] if past.min() > 0 else [])]
    best: Any = None
    for trend in (None, "add"):
        for seasonal in seasons:
            form = {"trend": trend, "damped_trend": trend is not None, "seasonal": seasonal}
            found = smoothing(past, **form, seasonal_periods=season if seasonal else None).fit()
            if best is None or found.aicc < best.aicc:
                best = found
    return np.asarray(best.forecast(horizon))


if __name__ == "__main__":
    raise SystemExit(main())
