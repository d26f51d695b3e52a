"""Run a plan: each candidate in a process of its own, one after another, nothing shared but the imports."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from mamba_recipes import environment
from mamba_recipes.compare.plan import Job, Plan
from mamba_recipes.compare.result import Comparison, Row
from mamba_recipes.compare.worker import run_in_process

# Imported once by the server that the candidates' processes are forked from; it never runs a kernel itself.
_PRELOAD = ["torch", "lightning.pytorch", "mamba_recipes.build", "mamba_recipes.compare.lightning_candidate"]


class Listener(Protocol):
    """Follows a run, for a progress bar."""

    def started(self, job: Job, place: int, total: int) -> None:
        """Candidate number ``place`` (from 0) of ``total`` begins."""

    def opened(self, setting: Mapping[str, str]) -> None:
        """The first candidate knows where it runs ("device") and on what ("data")."""

    def progressed(self, fraction: float) -> None:
        """The candidate has spent this fraction of its budget."""

    def ended(self, row: Row) -> None:
        """The candidate ended or failed."""


def run_plan(plan: Plan, command: str, listener: Listener, log_path: Path | None = None) -> Comparison:
    """Run every job of ``plan`` in order; a job that fails becomes a failed row.

    Args:
        plan: What to run.
        command: The command that repeats it, for the report.
        listener: Told about progress.
        log_path: Where everything that the candidates' libraries print goes; None for a temporary file.
    """
    start = time.perf_counter()
    context = _context(plan)
    rows = []
    setting: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mamba-apps-") as folder:
        log = log_path or Path(folder) / "log.txt"
        for place, job in enumerate(plan.jobs):
            listener.started(job, place, len(plan.jobs))
            row = _run_job(context, plan, job, log, listener, setting)
            rows.append(row)
            listener.ended(row)
    about = environment.describe(devices=False)
    about["command"] = command
    return Comparison(plan, rows, about, setting, command, time.perf_counter() - start)


def _context(plan: Plan) -> Any:
    """Return the way processes start here: forked from a clean server where the system can, else fresh ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    named = [job.class_path or str((job.config.get("model") or {}).get("class_path", "")) for job in plan.jobs]
    named += [str((job.config.get("data") or {}).get("class_path", "")) for job in plan.jobs]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in named if "." in name)
    context.set_forkserver_preload([*_PRELOAD, *modules])
    return context


def _run_job(context: Any, plan: Plan, job: Job, log: Path, listener: Listener, setting: dict[str, str]) -> Row:
    receiver, sender = context.Pipe(duplex=False)
    arguments = (job, plan.budget, plan.measure, str(plan.recipe.path), str(log), sender)
    # Not a daemon, which could not start processes to load data; whatever happens here, it is ended below.
    process = context.Process(target=run_in_process, args=arguments)
    process.start()
    sender.close()
    try:
        kind, content = _follow(receiver, process, listener, setting)
        process.join(timeout=10)  # it has said its last word; a library's own threads may take a moment to end
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        receiver.close()
    common: dict[str, Any] = {
        "model": job.model,
        "family": job.family,
        "twin": job.twin,
        "seed": job.seed,
        "overrides": job.overrides,
    }
    if kind == "failed":
        return Row(**common, error=content[0], mendable=content[1])
    return Row(**common, **content)


def _follow(receiver: Connection, process: Any, listener: Listener, setting: dict[str, str]) -> tuple[str, Any]:
    """Read messages until the job is done, has failed, or its process has died."""
    while True:
        if receiver in wait([receiver, process.sentinel]):
            try:
                kind, content = receiver.recv()
            except EOFError:
                break
            if kind == "progress":
                listener.progressed(content)
            elif kind == "setting":
                if not setting:
                    setting.update(content)
                    listener.opened(setting)
            else:
                return kind, content
        elif not receiver.poll():
            break
    process.join(timeout=5)
    return "failed", (_death(process.exitcode), False)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" and sys.platform.startswith("linux") else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code} before it was done"
