"""Does the weather help to forecast traffic, and do the intervals hold? Measured on the shipped hourly counts.

    python -m mamba_recipes.weather_check --seeds 3

Interstate 94, October 2016 to September 2018: the last 12 weeks are held out, 24 hours are forecast from every midnight
of them, by a forecaster that learned once from all before (the last 12 weeks of that decide when to stop, and give
conformal intervals). Three candidates: no weather; the weather up to the present; and the weather of the coming day as
well, which stands for a perfect weather forecast. The difference that weather makes is paired by week, with Student's
interval over the 12 weeks, of errors averaged over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

WEATHER = ("temp", "rain_1h", "snow_1h", "clouds_all")
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "no weather": {},
    "past weather": {"past": WEATHER},
    "weather known ahead": {"future": WEATHER},
}
LEVELS = (80, 95)
_WEEKS = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table and the differences.

    Args:
        argv: The words of the command; None for the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m mamba_recipes.weather_check", description=__doc__)
    parser.add_argument("--model", default="patch", help="a forecasting model (patch)")
    parser.add_argument("--intervals", default="quantile", choices=["quantile", "conformal"])
    parser.add_argument("--candidates", default=",".join(CANDIDATES), help="some of them, with commas (all)")
    parser.add_argument("--calibration", type=int, default=0, help="steps that correct each forecast's intervals (0)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=600)
    parser.add_argument("--weeks", type=int, default=_WEEKS)
    parser.add_argument("--accelerator", default="cpu")
    arguments = parser.parse_args(argv)
    from mamba_apps.training.chatter import quiet

    quiet()
    chosen = {name: CANDIDATES[name] for name in arguments.candidates.split(",")}
    weekly: dict[str, list[pd.Series]] = {name: [] for name in chosen}
    heads = [f"{part} {level} %" for level in LEVELS for part in ("within", "width")]
    print("  ".join(f"{head:>19}" for head in ("candidate", "seed", "MAE", *heads, "seconds")), flush=True)
    for seed in range(1, arguments.seeds + 1):
        for name, roles in chosen.items():
            start = time.perf_counter()
            scores, by_week = measure(arguments, seed, roles)
            weekly[name].append(by_week)
            cells = [f"{scores['mae']:.1f}"]
            for level in LEVELS:
                cells += [f"{100 * scores[f'cover-{level}']:.1f}", f"{scores[f'width-{level}']:.0f}"]
            row = (name, str(seed), *cells, f"{time.perf_counter() - start:.0f}")
            print("  ".join(f"{cell:>19}" for cell in row), flush=True)
    for line in differences(weekly):
        print(line)
    return 0


def measure(arguments: argparse.Namespace, seed: int, roles: Mapping[str, Any]) -> tuple[Any, pd.Series]:
    """Return the scores of one candidate with one seed on the held-out weeks, and its error in each week."""
    from mamba_apps.forecasting import Forecaster, forecast_scores
    from mamba_datasets.samples import metro_traffic_path

    forecaster = Forecaster(
        arguments.model,
        horizon=24,
        lookback=672,
        freq="h",
        time_col="datetime",
        target_col="traffic_volume",
        missing="mask",
        season=168,
        holidays="US",
        levels=LEVELS,
        intervals=arguments.intervals,
        calibration=arguments.calibration,
        val_steps=2016,
        max_steps=arguments.max_steps,
        # Nobody stops early, so that each candidate has the same budget.
        patience=1000,
        seed=seed,
        accelerator=arguments.accelerator,
        progress=False,
        model_options={"norm": "none", "closed_form": False} if arguments.model == "patch" else {},
        **roles,
    )
    days = 7 * arguments.weeks
    found = forecaster.cross_validation(metro_traffic_path(), n_windows=days, step_size=24)
    score: dict[str, Any] = {"target_col": "traffic_volume"}
    week = (found["cutoff"] - found["cutoff"].min()).dt.days // 7
    total = forecast_scores(found, arguments.model, levels=LEVELS, **score).iloc[0]
    return total, forecast_scores(found, arguments.model, by=week, **score)["mae"]


def differences(weekly: Mapping[str, Sequence[pd.Series]]) -> list[str]:
    """Return in a sentence each what the weather changed."""
    from mamba_recipes.compare.stats import paired

    reference, *others = weekly
    means = {
        name: {week: statistics.fmean(run[week] for run in runs) for week in range(len(runs[0]))}
        for name, runs in weekly.items()
    }
    lines = []
    for name in others:
        found = paired(means[name], means[reference])
        if found is not None:
            lines.append(
                f"{name} minus {reference}: {found.mean:+.1f} vehicles an hour, 95 % interval {found.low:+.1f} to "
                f"{found.high:+.1f} over {found.count} weeks"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
