"""Run a plan: each candidate in a process of its own, nothing shared but the imports."""

from __future__ import annotations

import multiprocessing
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from mamba_apps.errors import UserError
from mamba_datasets.cores import usable_cores
from mamba_recipes import environment
from mamba_recipes.compare.plan import Job, Plan
from mamba_recipes.compare.result import Comparison, Row
from mamba_recipes.compare.worker import check_in_process, run_in_process

# Imported once by the server that the candidates' processes are forked from; it never runs a kernel itself.
_PRELOAD = ["torch", "lightning.pytorch", "mamba_recipes.build", "mamba_recipes.compare.lightning_candidate"]


class Listener(Protocol):
    """Follows a run, for a progress bar; a candidate is known by its place in the plan, from 0."""

    def started(self, job: Job, place: int) -> None:
        """A candidate begins."""

    def opened(self, setting: Mapping[str, str]) -> None:
        """The first candidate knows where it runs ("device") and on what ("data")."""

    def progressed(self, place: int, fraction: float) -> None:
        """A candidate has spent this fraction of its budget."""

    def ended(self, place: int, row: Row) -> None:
        """A candidate ended or failed."""


def run_plan(
    plan: Plan, command: str, listener: Listener, drawn: Path, log_path: Path | None = None, parallel: int = 1
) -> Comparison:
    """Run every job of ``plan``; a job that fails becomes a failed row.

    Args:
        plan: What to run.
        command: The command that repeats it, for the report.
        listener: Told about progress.
        drawn: The folder that gets one of each row, where its test writes tables or pictures.
        log_path: Where everything that the candidates' libraries print goes; None for a temporary file.
        parallel: So many candidates run at a time. With more than one, how long each took says nothing of it,
            and the rows leave it out.

    Raises:
        UserError: If a candidate's settings are refused, before anything is built, or the data, which none could do
            without.
    """
    start = time.perf_counter()
    context = _context(plan)
    waiting = list(enumerate(plan.jobs))[::-1]
    running: list[_Run] = []
    rows: dict[int, Row] = {}
    setting: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mamba-apps-") as folder:
        log = log_path or Path(folder) / "log.txt"
        _check(context, plan, folder, log)
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    place, job = waiting.pop()
                    listener.started(job, place)
                    running.append(
                        _Run(context, plan, place, job, Path(folder), drawn / _folder_name(job), log, parallel)
                    )
                wait([source for run in running for source in run.sources()])
                for run in list(running):
                    run.listen(listener, setting)
                    if run.row is not None:
                        running.remove(run)
                        row = run.row if parallel == 1 else _untimed(run.row)
                        rows[run.place] = row
                        listener.ended(run.place, row)
        finally:
            for run in running:
                run.end()
    about = environment.describe(devices=False)
    about["command"] = command
    ordered = [rows[place] for place in range(len(plan.jobs))]
    return Comparison(plan, ordered, about, setting, command, time.perf_counter() - start, parallel)


def _context(plan: Plan) -> Any:
    """Return the way processes start here: forked from a clean server where the system can, else fresh ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    named = [job.class_path or str((job.config.get("model") or {}).get("class_path", "")) for job in plan.jobs]
    named += [str((job.config.get("data") or {}).get("class_path", "")) for job in plan.jobs]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in named if "." in name)
    context.set_forkserver_preload([*_PRELOAD, *modules])
    if threading.current_thread() is threading.main_thread():
        # A terminal's Ctrl-C reaches the server too, which while it imports would print where it was; this process
        # ends it.
        from multiprocessing.forkserver import ensure_running

        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


def _check(context: Any, plan: Plan, scratch: str, log: Path) -> None:
    """Refuse settings that a candidate would refuse when its turn comes."""
    receiver, sender = context.Pipe(duplex=False)
    jobs = [job for job in plan.jobs if job.seed == plan.seeds[0]]
    process = context.Process(target=check_in_process, args=(jobs, str(plan.recipe.path), scratch, str(log), sender))
    process.start()
    sender.close()
    try:
        refused = receiver.recv()
    except EOFError:  # it failed, and so will the candidates, which say how
        refused = None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if refused is not None:
        raise UserError(*refused)


class _Run:
    """One candidate's process and what it says; ``row`` is None until it has ended."""

    def __init__(
        self, context: Any, plan: Plan, place: int, job: Job, scratch: Path, drawn: Path, log: Path, parallel: int
    ) -> None:
        self.place = place
        self.row: Row | None = None
        self._job = job
        self._receiver, sender = context.Pipe(duplex=False)
        threads = max(1, usable_cores() // parallel) if parallel > 1 else None
        folders = (str(plan.recipe.path), str(scratch), str(drawn.absolute()), str(log))
        arguments = (job, plan.budget, plan.measure, *folders, sender, threads)
        # Not a daemon, which could not start processes to load data; whatever happens, `end` ends it.
        self._process = context.Process(target=run_in_process, args=arguments)
        self._process.start()
        sender.close()

    def sources(self) -> tuple[Connection, int]:
        """Return what to wait for: a message, or the process's end."""
        return self._receiver, self._process.sentinel

    def listen(self, listener: Listener, setting: dict[str, str]) -> None:
        """Hand on what the process has said so far, and set ``row`` where that was its last word."""
        while self._receiver.poll():
            try:
                kind, content = self._receiver.recv()
            except EOFError:
                return self._died()
            if kind == "progress":
                listener.progressed(self.place, content)
            elif kind == "setting":
                if not setting:
                    setting.update(content)
                    listener.opened(setting)
            elif kind == "refused":
                message, _, remedy = content.rpartition("; ")
                raise UserError(message, remedy)
            else:
                return self._ended(kind, content)
        if not self._process.is_alive() and not self._receiver.poll():
            self._died()
        return None

    def _died(self) -> None:
        self._process.join(timeout=5)
        self._ended("failed", (_death(self._process.exitcode), False))

    def _ended(self, kind: str, content: Any) -> None:
        self._process.join(timeout=10)  # it has said its last word; a library's own threads may take a moment to end
        self.end()
        job = self._job
        found = {"error": content[0], "mendable": content[1]} if kind == "failed" else content
        self.row = Row(
            model=job.model, family=job.family, twin=job.twin, seed=job.seed, overrides=job.overrides, **found
        )

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._receiver.close()


def _folder_name(job: Job) -> str:
    name = re.sub(r"[^\w.=]+", "-", job.model).strip("-")
    return f"{name}-seed{job.seed}"


def _untimed(row: Row) -> Row:
    return replace(row, train_seconds=None, samples_per_second=None)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" and sys.platform.startswith("linux") else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code} before it was done"
