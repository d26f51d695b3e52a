"""Shared by the fault tests: the small training run, and what reads its checkpoints."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


class StopHereError(Exception):
    """Raised inside a training step, as any bug would be."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out fsync, which matters to a power cut only and is slow on a busy disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """Return the module of the small training run."""
    spec = importlib.util.spec_from_file_location("training_run", Path(__file__).with_name("training_run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(runs: ModuleType, no_fsync: None) -> Callable[..., dict[str, Any]]:
    """Return a function that trains in a folder and describes the end of the run."""

    def run(run_dir: Path, *, at: dict[int, Callable[[], None]] | None = None, **options: Any) -> dict[str, Any]:
        trainer, task, train_loader, val_loader = runs.build(run_dir, **options)
        if at is not None:
            task.report = lambda step: at.pop(step, lambda: None)()
        trainer.fit(task, train_loader, val_loader)
        return runs.fingerprint(task, trainer)

    return run


@pytest.fixture
def fail() -> Callable[[], None]:
    """Return a function that raises `StopHereError`."""

    def raise_it() -> None:
        raise StopHereError

    return raise_it


@pytest.fixture
def stop_error() -> type[Exception]:
    """Return the error that `fail` raises."""
    return StopHereError
