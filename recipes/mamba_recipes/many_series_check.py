"""How busy is the GPU while a forecaster learns 10,000 series of 500 steps?

    python -m mamba_recipes.many_series_check --accelerator gpu

A few hundred optimiser steps of one epoch, a line for each size of batches: windows a second, milliseconds a step, and
on a GPU those in which it ran kernels, as torch's profiler counts them over further steps.
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
    parser.add_argument("--batch-size", default="1024", help="windows a batch; several numbers with commas between")
    parser.add_argument("--batches", type=int, default=300, help="optimiser steps, the middle half of which is timed")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--graph", action="store_true", help="capture the network's passes once and replay them")
    parser.add_argument("--accelerator", default="auto")
    arguments = parser.parse_args(argv)
    if arguments.batches < 4:
        parser.error(f"--batches is {arguments.batches}: a middle half needs at least 4")
    from mamba_apps.training.chatter import quiet

    quiet()
    series_set = _series(arguments)
    for batch_size in arguments.batch_size.split(","):
        print(measure(arguments, series_set, int(batch_size)), flush=True)
    return 0


def measure(arguments: argparse.Namespace, series_set: Any, batch_size: int) -> str:
    """Return what was measured, in a line."""
    from mamba_apps.forecasting import ForecastTask, WindowData
    from mamba_apps.training import make_trainer

    data = WindowData(series_set, lookback=_LOOKBACK, horizon=_HORIZON, batch_size=batch_size)
    watch = _watch(arguments.batches)
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
        f"batches of {batch_size:,}",
        f"{batch_size / watch.seconds:,.0f} windows/s",
        f"{1e3 * watch.seconds:.2f} ms a step",
    ]
    if watch.profiler is not None:
        busy = min(1.0, watch.busy_seconds / watch.seconds)
        found.append(f"of which the GPU works {1e3 * watch.busy_seconds:.2f} ms ({100 * busy:.0f} %)")
    seconds = len(data.train) * watch.seconds / batch_size
    return " · ".join([*found, f"{len(data.train):,} windows an epoch, {seconds:.0f} s"])


def _series(arguments: argparse.Namespace) -> Any:
    import numpy as np
    import pandas as pd

    from mamba_datasets.series import read_series

    hours = pd.date_range("2024-01-01", periods=arguments.steps, freq="h")
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(arguments.steps) / 24)
    y = 10 + wave + rng.normal(0, 0.3, (arguments.series, arguments.steps))
    ids = np.repeat(np.arange(arguments.series), arguments.steps)
    frame = pd.DataFrame({"unique_id": ids, "ds": np.tile(hours, arguments.series), "y": y.ravel()})
    return read_series(frame, freq="h").with_calendar()


def _watch(batches: int) -> Any:
    """Return a callback that takes the time of the second and third quarter of all steps, and the GPU's in the last."""
    import torch
    from lightning.pytorch.callbacks import Callback

    begin, end = batches // 4, batches - batches // 4

    class Watch(Callback):
        seconds, busy_seconds = 0.0, 0.0
        profiler: Any = None

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            on_gpu = pl_module.device.type == "cuda"
            if trainer.global_step in (begin, end) and on_gpu:
                torch.cuda.synchronize()
            if trainer.global_step == begin:
                self.began = time.perf_counter()
            # The profiler slows the host down: what it looks at is not timed.
            if trainer.global_step == end:
                self.seconds = (time.perf_counter() - self.began) / (end - begin)
                if on_gpu:
                    self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                    self.profiler.start()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.profiler is not None:
                torch.cuda.synchronize()
                self.profiler.stop()
                kernels = [event.time_range for event in self.profiler.events() if "CUDA" in str(event.device_type)]
                self.busy_seconds = covered((span.start, span.end) for span in kernels) / 1e6 / (batches - end)

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
