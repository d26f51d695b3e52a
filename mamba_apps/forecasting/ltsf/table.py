"""A whole table of the benchmark: every model, set, horizon and seed, many small trainings at a time on one GPU.

    python -m mamba_apps.forecasting.ltsf.table --root DIR --names ETTh1 --models smamba,itransformer --out table.json

One such training leaves a GPU idle most of the time. Here a step of each is a captured graph on a stream of its own,
and as many as asked for run side by side. Otherwise it is the recipe's: its networks, options, rates and batches; every
validation window chooses the epoch, every test window is scored. Only an epoch's last, incomplete batch is left out.

Rows are written as they come, and those that the file already has are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamba_apps.forecasting.ltsf.baselines import BASELINES, LtsfBaseline
from mamba_apps.forecasting.ltsf.data import LtsfData
from mamba_apps.forecasting.ltsf.scores import WindowErrors
from mamba_apps.forecasting.ltsf.task import LtsfTask
from mamba_datasets.series.ltsf import LtsfSeries
from mamba_kernels.gpu import uncollected

_LONG = {"timemachine": {"batch_size": 512, "epochs": 100}}
_EVAL = 512
_TURN = 20
_KEYS = ("model", "name", "horizon", "seed")
_DONE = object()

Row = dict[str, Any]


class Step:
    """A function without arguments that is captured as a CUDA graph when it is first called, and replayed after.

    Args:
        function: What to do.
        reset: Undoes what the calls before the capture did.
        capture: Whether to; otherwise it is simply called. What it reads and writes must have been made on the stream
            on which it is first called, and that must not be the default one.
    """

    def __init__(self, function: Callable[[], None], reset: Callable[[], None], capture: bool) -> None:
        self._function, self._reset = function, reset
        self._graph = torch.cuda.CUDAGraph() if capture else None
        self._captured = False

    def __call__(self) -> None:
        """Do it once, on the current stream."""
        if self._graph is None:
            self._function()
            return
        if not self._captured:
            for _ in range(3):
                self._function()
            stream = torch.cuda.current_stream()
            stream.synchronize()
            with uncollected(), torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._function()
            self._captured = True
            self._reset()
        self._graph.replay()


class Training:
    """One training of one network, a piece at a time.

    Args:
        data: The data; its batch size is the training's.
        row: What names it: model, name, horizon, seed.
        epochs: How many.
        overrides: Arguments of `LtsfTask`.
        device: Where it runs.
        model: The network's name; None for the row's.
        steps: At most so many steps an epoch; None for all.
        eager: Whether to capture no graph.
    """

    def __init__(
        self,
        data: LtsfData,
        row: Row,
        epochs: int,
        overrides: dict[str, Any],
        device: torch.device,
        *,
        model: str | None = None,
        steps: int | None = None,
        eager: bool = False,
    ) -> None:
        torch.manual_seed(row["seed"])
        self.data, self.row, self.epochs, self.device = data, row, epochs, device
        self.task = LtsfTask(model or row["model"], **overrides)
        self.task.prepare_for(data)
        self.task.to(device)
        self.task.prepare(data)
        self.learned = [parameter for parameter in self.task.parameters() if parameter.requires_grad]
        # A graph reads its rate from memory.
        self.rate = torch.tensor(self.task.lr or 0.0, device=device)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.learned, lr=self.rate, capturable=on_gpu, foreach=on_gpu)
        self.train_W, self.val_W = (torch.tensor(data.starts(part), device=device) for part in ("train", "val"))
        self.batches = min(len(self.train_W) // data.batch_size, steps or sys.maxsize)
        self.order_W = self.train_W.clone()
        self.place = torch.zeros((), dtype=torch.int64, device=device)
        # Squared and absolute error of the validation windows.
        self.total_2, self.best_2 = (
            torch.full((2,), value, dtype=torch.float64, device=device) for value in (0, torch.inf)
        )
        self.kept = [tensor.clone() for tensor in self._state()]
        self.first = [tensor.clone() for tensor in self._state()]
        capture = on_gpu and not eager
        self.train_step = Step(self._train, self._start_over, capture)
        self.val_step = Step(self._validate, self._to_first, capture)

    def run(self) -> Iterator[None]:
        """Train; what is done between two turns of the iterator is little."""
        for _ in range(self.epochs):
            self.task.train()
            self.order_W.copy_(self.train_W[torch.randperm(len(self.train_W), device=self.device)])
            self.place.zero_()
            for number in range(self.batches):
                self.train_step()
                if number % _TURN == _TURN - 1:
                    yield
            self.rate.mul_(self.task.decay or 1.0)
            self._score()
            yield

    def result(self) -> Row:
        """Return the row with the test part's scores, of the epoch that was best in validation."""
        for tensor, kept in zip(self._state(), self.kept, strict=True):
            tensor.data.copy_(kept)
        self.task.eval()
        errors = WindowErrors(self.data.drop_last)
        with torch.no_grad():
            for start_B in torch.tensor(self.data.starts("test"), device=self.device).split(_EVAL):
                batch = self.data.gather(start_B)
                errors.update(start_B, self.task(batch), batch["future"])
        scores = {name: float(value) for name, value in errors.compute().items()}
        parameters = sum(parameter.numel() for parameter in self.task.parameters())
        val_mse, val_mae = self.best_2.tolist()
        return {**self.row, **scores, "val_mse": val_mse, "val_mae": val_mae, "parameters": parameters}

    def _state(self) -> list[Tensor]:
        return [*self.task.parameters(), *self.task.buffers()]

    def _train(self) -> None:
        size = self.data.batch_size
        start_B = self.order_W[self.place * size + torch.arange(size, device=self.device)]
        loss = self.task.loss_of(self.data.gather(start_B))
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        self.place += 1

    @torch.no_grad()
    def _validate(self) -> None:
        number_B = self.place * _EVAL + torch.arange(_EVAL, device=self.device)
        batch = self.data.gather(self.val_W[number_B.clamp(max=len(self.val_W) - 1)])
        error_BHC = (self.task(batch) - batch["future"]).double()
        each_B2 = torch.stack([error_BHC.square().mean((1, 2)), error_BHC.abs().mean((1, 2))], dim=1)
        self.total_2 += each_B2.where((number_B < len(self.val_W))[:, None], 0.0).sum(0)
        self.place += 1

    @torch.no_grad()
    def _start_over(self) -> None:
        for tensor, first in zip(self._state(), self.first, strict=True):
            tensor.copy_(first)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.place.zero_()

    def _to_first(self) -> None:
        self.place.zero_()
        self.total_2.zero_()

    @torch.no_grad()
    def _score(self) -> None:
        """Keep the weights if they are the best in validation so far; nothing waits for the answer."""
        self.task.eval()
        self.task.calibrate(self.data)
        self._to_first()
        for _ in range(-(-len(self.val_W) // _EVAL)):
            self.val_step()
        errors_2 = self.total_2 / len(self.val_W)
        better = errors_2[0] < self.best_2[0]
        self.best_2.copy_(torch.where(better, errors_2, self.best_2))
        for kept, tensor in zip(self.kept, self._state(), strict=True):
            kept.copy_(torch.where(better, tensor, kept))


def main(argv: list[str] | None = None) -> int:
    """Make the table that the arguments describe, and write its rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m mamba_apps.forecasting.ltsf.table", description=__doc__)
    parser.add_argument("--root", required=True, help="the folder of the benchmarks' files")
    for name, default in (("names", "ETTh1"), ("models", "closed_form,repeat_last"), ("horizons", "96,192,336,720")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--overrides", type=json.loads, default={}, help="arguments of LtsfTask, as JSON")
    parser.add_argument("--kind", help="the network behind the one name in --models, which then only labels its rows")
    parser.add_argument("--epochs", type=int, help="instead of 10, or 100 for TimeMachine")
    parser.add_argument("--steps", type=int, help="at most so many steps an epoch")
    parser.add_argument("--drop-last", type=int, default=512)
    parser.add_argument("--at-once", type=int, default=12, help="so many trainings side by side")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start none after so many seconds")
    parser.add_argument("--eager", action="store_true", help="capture no graphs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    rows: list[Row] = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else []
    done = {tuple(row[key] for key in _KEYS) for row in rows}
    waiting = [row for row in _wanted(arguments) if tuple(row[key] for key in _KEYS) not in done]
    device, start = torch.device(arguments.device), time.perf_counter()
    all_series: dict[str, LtsfSeries] = {}
    running: list[tuple[Training, Iterator[None], Any]] = []
    while waiting or running:
        while waiting and len(running) < arguments.at_once and time.perf_counter() - start < arguments.seconds:
            row = waiting.pop(0)
            long = _LONG.get(arguments.kind or row["model"], {})
            data = LtsfData(
                arguments.root,
                row["name"],
                horizon=row["horizon"],
                batch_size=long.get("batch_size", 32),
                drop_last=arguments.drop_last,
            )
            data.series = all_series.setdefault(row["name"], all_series.get(row["name"]) or data.series)
            if row["model"] in BASELINES:
                _add(rows, _baseline(row, data), arguments.out)
                continue
            epochs = arguments.epochs or long.get("epochs", 10)
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            with torch.cuda.stream(stream):
                training = Training(
                    data,
                    row,
                    epochs,
                    arguments.overrides,
                    device,
                    model=arguments.kind,
                    steps=arguments.steps,
                    eager=arguments.eager,
                )
            running.append((training, training.run(), stream))
        if waiting and not running:
            print(f"{len(waiting)} rows are left for another time", file=sys.stderr)
            return 0
        for entry in list(running):
            training, turns, stream = entry
            with torch.cuda.stream(stream):
                if next(turns, _DONE) is _DONE:
                    running.remove(entry)
                    _add(rows, training.result(), arguments.out)
    return 0


def _wanted(arguments: argparse.Namespace) -> list[Row]:
    names, models, horizons, seeds = (
        getattr(arguments, key).split(",") for key in ("names", "models", "horizons", "seeds")
    )
    return [
        {"model": model, "name": name, "horizon": int(horizon), "seed": int(seed)}
        for model, name, horizon, seed in product(models, names, horizons, seeds)
        if model not in BASELINES or seed == seeds[0]
    ]


def _baseline(row: Row, data: LtsfData) -> Row:
    candidate = LtsfBaseline(row["model"], None)
    candidate.fit(data, None, 0)
    return {**row, **candidate.evaluate(), "parameters": candidate.parameters}


def _add(rows: list[Row], row: Row, path: Path) -> None:
    """Add a row and write all of them: at every moment the file is whole."""
    rows.append(row)
    print(json.dumps(row), flush=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(rows, indent=1), "utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
