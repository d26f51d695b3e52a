"""The switch between implementations, and the threads the CPU kernels run on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from operator_outcomes import draw

from mamba_kernels import backend, selective_scan
from mamba_kernels.errors import BackendError
from mamba_kernels.threads import run_tasks, run_workers

CPU, CUDA, META, MPS = (torch.device(name) for name in ("cpu", "cuda", "meta", "mps"))


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the switch as it is in a process without settings."""
    monkeypatch.setattr(backend, "_from_environment", "auto")
    monkeypatch.setattr(backend, "_interpreted", False)


@pytest.mark.parametrize(
    ("device", "requested", "has_triton", "chosen"),
    [
        (CPU, None, True, "cpu"),
        (CPU, "auto", False, "cpu"),
        (META, None, True, "cpu"),
        (CUDA, None, True, "triton"),
        (CPU, "reference", False, "reference"),
        (CUDA, "reference", False, "reference"),
        (CPU, "cpu", True, "cpu"),
    ],
)
def test_the_device_chooses_unless_the_caller_does(
    device: torch.device, requested: str | None, has_triton: bool, chosen: str
) -> None:
    assert backend.choose("op", device, requested, has_triton=has_triton) == chosen


@pytest.mark.parametrize(
    ("device", "requested", "has_triton", "message"),
    [
        (CPU, "gpu", True, "unknown backend 'gpu'"),
        (CUDA, None, False, "no GPU kernel for cuda tensors"),
        (CUDA, "triton", False, "no GPU kernel for cuda tensors"),
        (MPS, None, True, "no GPU kernel for mps tensors"),
        (CUDA, "cpu", True, "backend 'cpu' was asked for tensors on cuda"),
        (CPU, "triton", True, "backend 'triton' was asked for tensors on the CPU"),
    ],
)
def test_what_cannot_run_is_refused(
    device: torch.device, requested: str | None, has_triton: bool, message: str
) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        backend.choose("op", device, requested, has_triton=has_triton)
    assert caught.value.remedy


def test_interpreted_kernels_stand_in_for_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_interpreted", True)
    assert backend.choose("op", CPU, None, has_triton=True) == "triton"
    assert backend.choose("op", CPU, None, has_triton=False) == "cpu"
    assert backend.choose("op", CPU, "reference", has_triton=True) == "reference"


def test_a_module_that_is_missing_is_triton_or_our_own_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(backend.importlib, "import_module", fail)
    monkeypatch.setattr(backend, "_imported", {})
    missing = "triton.language"
    with pytest.raises(BackendError, match="Triton, which is not installed") as caught:
        backend.kernels("mamba_kernels.selective_scan", CUDA)
    assert caught.value.remedy
    missing = "mamba_kernels.selective_scan.triton"
    with pytest.raises(ModuleNotFoundError, match="selective_scan"):
        backend.kernels("mamba_kernels.selective_scan", CUDA)


def _in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_environment_forces_the_reference() -> None:
    code = """
import torch, mamba_kernels
from mamba_kernels.selective_scan import registered
registered.cpu.forward = None
u = torch.ones(1, 2, 3)
A = -torch.ones(2, 4)
B = torch.ones(1, 4, 3)
print(mamba_kernels.selective_scan(u, u, A, B, B).sum().item())
"""
    assert float(_in_a_process(code, MAMBA_KERNELS_BACKEND="reference")) > 0


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_from_environment", "triton")
    u, A, B = draw(1, 2, 3), -draw(2, 4).exp(), draw(1, 4, 3)
    with pytest.raises(BackendError, match="asked for tensors on the CPU"):
        selective_scan(u, u, A, B, B)
    assert selective_scan(u, u, A, B, B, backend="cpu").shape == u.shape


CACHE = """
import json, os, sys, warnings
warnings.simplefilter("error")
import torch, mamba_kernels
from mamba_kernels.selective_scan.cpu_forward import scan_forward
u = torch.ones(1, 2, 3)
mamba_kernels.selective_scan(u, u, -torch.ones(2, 4), torch.ones(1, 4, 3), torch.ones(1, 4, 3))
print(json.dumps({"hits": sum(scan_forward.stats.cache_hits.values()), "path": scan_forward.stats.cache_path}))
"""


@pytest.mark.slow
def test_compiled_kernels_are_cached_where_something_can_be_written(tmp_path: os.PathLike[str]) -> None:
    first, second = (json.loads(_in_a_process(CACHE, NUMBA_CACHE_DIR=str(tmp_path))) for _ in range(2))
    assert (first["hits"], second["hits"]) == (0, 1)
    assert first["path"].startswith(str(tmp_path))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
@pytest.mark.usefixtures("threads")
def test_every_task_runs_once(count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    done: list[int] = []
    run_tasks(done.append, count)
    assert sorted(done) == list(range(count))


@pytest.mark.usefixtures("threads")
def test_workers_run_on_as_many_threads_as_pytorch_has() -> None:
    torch.set_num_threads(3)
    meeting = threading.Barrier(3, timeout=60)
    run_workers(meeting.wait, 10)
    seen: list[int] = []
    run_workers(lambda: seen.append(threading.get_ident()), 1)
    assert seen == [threading.get_ident()]


@pytest.mark.usefixtures("threads")
def test_a_workers_error_reaches_the_caller() -> None:
    torch.set_num_threads(3)

    def fail(task: int) -> None:
        raise ValueError(f"task {task}")

    with pytest.raises(ValueError, match="task"):
        run_tasks(fail, 8)
