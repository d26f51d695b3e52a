"""What runs in a candidate's own process: build, fit, measure, and hand back plain values."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from mamba_apps.errors import UserError
from mamba_datasets.errors import DataError
from mamba_recipes.compare.budget import Budget
from mamba_recipes.compare.candidate import Panel
from mamba_recipes.compare.plan import Job
from mamba_recipes.safety import is_allowed


@dataclass(frozen=True)
class Talk:
    """How a running job reports: the fraction of its budget spent, and once, where it runs and on which data."""

    progress: Callable[[float], None]
    setting: Callable[[dict[str, str]], None]


class DataRefused(Exception):
    """The data that all candidates share cannot be used: no other candidate would fare better."""


def run_in_process(
    job: Job,
    budget: Budget,
    measure: str,
    source: str,
    scratch: str,
    drawn: str,
    log_path: str,
    pipe: Connection,
    threads: int | None = None,
) -> None:
    """Run ``job`` and send ("progress", fraction) messages, then a last one over ``pipe``.

    The last one is ("done", result), ("failed", what), or ("refused", why) where the data is to blame. Whatever the
    libraries print goes to ``log_path``; the comparison's own output stays clean. Checkpoints lie in the folder
    ``scratch``, which the comparison removes however this process ends; what a test writes besides its scores stays in
    the folder ``drawn``. ``threads`` limits the threads of PyTorch where other candidates run beside this one.
    """
    if not _begin(scratch):
        return
    # Processes that load data start here as they do anywhere; this one would hand down its own, slower way.
    multiprocessing.set_start_method(None, force=True)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError), _output_to(log_path):
        try:
            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            talk = Talk(_throttled(pipe), lambda setting: pipe.send(("setting", setting)))
            pipe.send(("done", run(job, budget, measure, source, scratch, drawn, talk)))
        except (KeyboardInterrupt, BrokenPipeError):
            raise  # interrupted, or the comparison itself has gone: nobody is listening
        except DataRefused as error:
            pipe.send(("refused", str(error)))
        except BaseException as error:
            traceback.print_exc()
            text = _line(error)
            mendable = hasattr(error, "remedy")
            pipe.send(("failed", (text if mendable else f"{type(error).__name__}: {text}", mendable)))


def check_in_process(jobs: Sequence[Job], source: str, scratch: str, log_path: str, pipe: Connection) -> None:
    """Look at the settings of all ``jobs`` and send (message, remedy) of the first that is refused, or None.

    What all of them refuse is said once, without a candidate's name.
    """
    if not _begin(scratch):
        return
    refused: list[tuple[str, UserError]] = []
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError), _output_to(log_path):
        from mamba_recipes.build import check_settings

        for job in jobs:
            try:
                check_settings(job.config, source)
            except UserError as error:
                refused.append((job.model, error))
        said = None
        if refused:
            model, first = refused[0]
            of_all = len(refused) == len(jobs) and {str(error) for _, error in refused} == {str(first)}
            said = (first.message if of_all else f"{model}: {first.message}", first.remedy)
        pipe.send(said)


def _begin(scratch: str) -> bool:
    """Let Ctrl-C end this process, and tell whether the comparison was not interrupted while it came to be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that it was forked from ignores it
    return os.path.isdir(scratch)


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def run(job: Job, budget: Budget, measure: str, source: str, scratch: str, drawn: str, talk: Talk) -> dict[str, Any]:
    """Run ``job`` in this process and return its figures, metrics and panels."""
    from mamba_recipes.build import build
    from mamba_recipes.setting import data_words, device_words

    try:
        built = build(job.config, source)
    except DataError as error:  # as models are made for their data, readers come first
        raise DataRefused(_line(error)) from error
    accelerator = str(built.trainer_options.get("accelerator", "auto"))
    talk.setting({"data": data_words(built.data), "device": device_words(accelerator)})
    _touch(built.data)
    if measure == "speed":
        return _speed(job, budget, source, scratch, talk, built)
    candidate = _make(job, source, scratch, drawn, talk)
    rehearse = getattr(candidate, "rehearse", None)
    if callable(rehearse):
        rehearse(built.data, job.seed)
    with _peak() as peak:
        start = time.perf_counter()
        candidate.fit(built.data, budget, job.seed)
        elapsed = time.perf_counter() - start
        metrics = candidate.evaluate()
    seconds = getattr(candidate, "train_seconds", None) or elapsed
    seen = getattr(candidate, "samples_seen", None)
    stepping = getattr(candidate, "step_seconds", None) or seconds
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "parameters": int(getattr(candidate, "parameters", 0)),
        "train_seconds": seconds,
        "samples_per_second": seen / stepping if seen else None,
        "peak_memory_mib": peak["mib"],
        "panels": [Panel.of(panel) for panel in candidate.plots()],
    }


def _touch(data: Any) -> None:
    """Read a batch of each part, so that loading the data is charged to no candidate.

    Raises:
        DataRefused: If a reader, or the data module, finds something that the person can mend.
    """
    try:
        data.prepare_data()
        for stage, part in (("fit", data.train_dataloader), ("test", data.test_dataloader)):
            data.setup(stage)
            for _ in part():
                break
    except Exception as error:
        if hasattr(error, "remedy"):
            raise DataRefused(_line(error)) from error
        raise


def _speed(job: Job, budget: Budget, source: str, scratch: str, talk: Talk, built: Any) -> dict[str, Any]:
    from mamba_recipes.compare.lightning_candidate import LightningCandidate

    candidate = LightningCandidate(job.config, source, scratch, talk.progress)
    candidate.rehearse(built.data, job.seed)
    with _peak() as train_peak:
        trained = candidate.train_speed(built.data, budget.amount, job.seed)
    with _peak() as predict_peak:
        predicted = candidate.predict_speed(built.data, budget.amount, job.seed)
    metrics = {
        "train_samples_per_second": trained,
        "predict_samples_per_second": predicted,
        "predict_peak_memory_mib": predict_peak["mib"],
    }
    return {
        "metrics": metrics,
        "parameters": candidate.parameters,
        "train_seconds": budget.amount,
        "samples_per_second": trained,
        "peak_memory_mib": train_peak["mib"],
        "panels": [],
    }


def _make(job: Job, source: str, scratch: str, drawn: str, talk: Talk) -> Any:
    if job.class_path is None:
        from mamba_recipes.compare.lightning_candidate import LightningCandidate

        return LightningCandidate(job.config, source, scratch, talk.progress, drawn)
    if not is_allowed(job.class_path):
        raise UserError(f"{source}: {job.class_path!r} is outside what a recipe may name", "see docs/command.md")
    module, _, name = job.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name, None)
    # An allowed module may have imported something else under this name.
    if not isinstance(kind, type) or not is_allowed(f"{kind.__module__}.{kind.__qualname__}"):
        raise UserError(
            f"{source}: {job.class_path!r} is no class of ours", "see docs/compare.md for what a candidate is"
        )
    missing = [method for method in ("fit", "evaluate", "plots") if not callable(getattr(kind, method, None))]
    if missing:
        raise UserError(f"{source}: {job.class_path!r} has no {missing[0]}", "a candidate has fit, evaluate and plots")
    try:
        return kind(**job.init_args)
    except TypeError as error:
        raise UserError(f"{source}: {job.class_path}: {error}", "correct its init_args") from error


@contextlib.contextmanager
def _peak() -> Iterator[dict[str, float]]:
    """Measure the most memory in use inside the block, in MiB.

    On a GPU that is in use: what tensors took there. Else: how far the peak of this process rose above what was
    resident at the block's beginning, when libraries are loaded, kernels compiled and the data read.
    """
    import torch

    from mamba_recipes.memory import forget_peak, peak_mib, release_free, resident_mib

    found: dict[str, float] = {}
    release_free()
    idle = resident_mib()
    forget_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield found
    used = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    found["mib"] = used if used else peak_mib() - idle


def _throttled(pipe: Connection) -> Callable[[float], None]:
    last = 0.0

    def send(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            pipe.send(("progress", fraction))

    return send


@contextlib.contextmanager
def _output_to(path: str) -> Iterator[None]:
    """Send this process's stdout and stderr, libraries' own writes included, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.close(target)
