"""How well are holes filled? Measured on the shipped hourly traffic and weather.

    python -m mamba_recipes.imputation_check --seeds 3

Interstate 94, October 2016 to September 2018: traffic, temperature and clouds of each hour. An imputer learns from all
but the last 12 weeks; in these a fifth of the values is hidden, as single hours, as days of each column, or as days of
all columns at once, and the mean absolute error is taken there, of the same values for everyone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("traffic_volume", "temp", "clouds_all")
GAPS: Mapping[str, Mapping[str, Any]] = {
    "hours": {"run": 1},
    "days": {"run": 24},
    "days of all": {"run": 24, "together": True},
}
# The wide attention has as many parameters as mamba1, the other as many channels and layers.
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "last": {"model": "last"},
    "linear": {"model": "linear"},
    "seasonal": {"model": "seasonal"},
    "mamba1": {"model": "mamba1"},
    "attention": {"model": "attention"},
    "wide attention": {"model": "attention", "model_options": {"d_model": 100, "mixer_options": {"heads": 5}}},
}
_HELD_OUT = 12 * 7 * 24


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table.

    Args:
        argv: The words of the command; None for the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m mamba_recipes.imputation_check", description=__doc__)
    parser.add_argument("--candidates", default=",".join(CANDIDATES), help="some of them, with commas (all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=600)
    parser.add_argument("--accelerator", default="cpu")
    arguments = parser.parse_args(argv)
    import pandas as pd

    from mamba_apps.imputation import FILLS
    from mamba_apps.training.chatter import quiet
    from mamba_datasets.samples import metro_traffic_path

    quiet()
    whole = pd.read_csv(metro_traffic_path())
    known, held_out = whole.iloc[:-_HELD_OUT], whole.iloc[-_HELD_OUT:]
    heads = [f"{column[:7]}, {gap}" for gap in GAPS for column in COLUMNS]
    print("  ".join(f"{head:>20}" for head in ("imputer", "seed", *heads, "parameters", "seconds")), flush=True)
    for name in arguments.candidates.split(","):
        for seed in range(1, 2 if name in FILLS else arguments.seeds + 1):
            start = time.perf_counter()
            options = CANDIDATES[name] if name in FILLS else {**CANDIDATES[name], "holidays": "US"}
            errors, parameters = measure(options, seed, known, held_out, arguments)
            cells = [*(f"{error:.3f}" for error in errors), f"{parameters:,}", f"{time.perf_counter() - start:.0f}"]
            print("  ".join(f"{cell:>20}" for cell in (name, str(seed), *cells)), flush=True)
    return 0


def measure(
    options: Mapping[str, Any], seed: int, known: Any, held_out: Any, arguments: argparse.Namespace
) -> tuple[list[float], int]:
    """Return the errors of an imputer by gap and column, and how many parameters it has."""
    from mamba_apps.imputation import Imputer

    imputer = Imputer(
        **options,
        columns=COLUMNS,
        freq="h",
        time_col="datetime",
        max_steps=arguments.max_steps,
        # Nobody stops early, so that each has the same budget.
        patience=1000,
        seed=seed,
        accelerator=arguments.accelerator,
        progress=False,
    ).fit(known)
    errors = [error for gap in GAPS.values() for error in imputer.score(held_out, **gap)["mae"]]
    return errors, imputer.parameters


if __name__ == "__main__":
    sys.exit(main())
