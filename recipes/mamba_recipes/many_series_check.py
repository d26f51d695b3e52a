"""How busy is the GPU while a forecaster learns 10,000 series of 500 steps?

    python -m mamba_recipes.many_series_check --accelerator gpu

A few hundred optimiser steps of one epoch, in batches of 1,024 windows, as `Forecaster` makes them: windows a second,
and on a GPU the part of the time in which it ran kernels, as torch's profiler counts it over the second half.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

_LOOKBACK, _HORIZON = 168, 24


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a line.

    Args:
        argv: The words of the command; None for the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m mamba_recipes.many_series_check", description=__doc__)
    parser.add_argument("--model", default="patch", help="a forecasting model (patch)")
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=500, help="of each series")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=300, help="optimiser steps to measure")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--graph", action="store_true", help="capture the network's passes once and replay them")
    parser.add_argument("--accelerator", default="auto")
    arguments = parser.parse_args(argv)
    from mamba_apps.training.chatter import quiet

    quiet()
    print(measure(arguments))
    return 0


def measure(arguments: argparse.Namespace) -> str:
    """Return what was measured, in a line."""
    from mamba_apps.forecasting import ForecastTask
    from mamba_apps.training import make_trainer

    data = _data(arguments)
    watch = _watch(arguments.batches // 2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            run_dir=folder,
            max_steps=arguments.batches,
            accelerator=arguments.accelerator,
            precision=arguments.precision,
            graph=arguments.graph,
            gradient_clip_val=1.0,
            logger=False,
            progress=False,
            callbacks=[watch],
        )
        trainer.fit(ForecastTask(arguments.model, sizes=data.sizes), datamodule=data)
    found = [
        f"{arguments.model}, {arguments.series:,} series of {arguments.steps} steps",
        f"{watch.measured * arguments.batch_size / watch.seconds:,.0f} windows/s",
        f"{len(data.train):,} windows an epoch",
    ]
    if watch.busy_seconds is not None:
        found.append(f"GPU busy {100 * watch.busy_seconds / watch.seconds:.0f} % of {watch.seconds:.2f} s")
    return " · ".join(found)


def _data(arguments: argparse.Namespace) -> Any:
    import numpy as np
    import pandas as pd

    from mamba_apps.forecasting import WindowData
    from mamba_datasets.series import read_series

    hours = pd.date_range("2024-01-01", periods=arguments.steps, freq="h")
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(arguments.steps) / 24)
    y = 10 + wave + rng.normal(0, 0.3, (arguments.series, arguments.steps))
    ids = np.repeat(np.arange(arguments.series), arguments.steps)
    frame = pd.DataFrame({"unique_id": ids, "ds": np.tile(hours, arguments.series), "y": y.ravel()})
    series_set = read_series(frame, freq="h").with_calendar()
    return WindowData(series_set, lookback=_LOOKBACK, horizon=_HORIZON, batch_size=arguments.batch_size)


def _watch(skipped: int) -> Any:
    """Return a callback that takes the time of all steps after the first ``skipped``, and the GPU's part of it."""
    import torch
    from lightning.pytorch.callbacks import Callback

    class Watch(Callback):
        seconds, measured = 0.0, 0
        busy_seconds: float | None = None

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step != skipped:
                return
            self.on_gpu = pl_module.device.type == "cuda"
            if self.on_gpu:
                torch.cuda.synchronize()
                self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profiler.start()
            self.begin = time.perf_counter()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.on_gpu:
                torch.cuda.synchronize()
            self.seconds, self.measured = time.perf_counter() - self.begin, trainer.global_step - skipped
            if self.on_gpu:
                self.profiler.stop()
                kernels = [event.time_range for event in self.profiler.events() if "CUDA" in str(event.device_type)]
                self.busy_seconds = covered((span.start, span.end) for span in kernels) / 1e6

    return Watch()


def covered(spans: Any) -> float:
    """Return the length that spans cover together, each moment once."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


if __name__ == "__main__":
    sys.exit(main())
