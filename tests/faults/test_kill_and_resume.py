"""A run killed with SIGKILL and resumed ends as the unbroken run does, to the last bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("training_run.py")
STEPS = 40


def start(run_dir: Path, *arguments: str, own_group: bool = False) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(run_dir), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=own_group,
    )


def finish(run_dir: Path, *arguments: str) -> dict[str, Any]:
    process = start(run_dir, *arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


def run_until(run_dir: Path, step: int, *arguments: str) -> None:
    """Run, and kill the process when it has printed that it is in this step."""
    process = start(run_dir, *arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def test_killed_run_resumes_to_the_same_loss_and_weights(tmp_path: Path) -> None:
    step = random.randint(5, 35)  # noqa: S311
    whole = finish(tmp_path / "whole")
    run_until(tmp_path / "killed", step)
    resumed = finish(tmp_path / "killed", "--resume")
    assert whole["steps"] == STEPS
    assert resumed == whole, f"killed in step {step}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--save-every", "1"),
        ("--save-every", "3"),
        ("--loader", "plain"),
        ("--loader", "plain-workers", "--save-every", "2"),
        ("--loader", "resumable-workers"),
        ("--options", '{"max_epochs": 4}', "--save-every", "5"),
        ("--options", '{"accumulate_grad_batches": 3}'),
    ],
    ids=" ".join,
)
def test_killed_again_and_again(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    whole = finish(tmp_path / "whole", *arguments)
    steps = sorted(random.sample(range(5, 36), 3))
    run_until(tmp_path / "killed", steps[0], *arguments)
    for step in steps[1:]:
        run_until(tmp_path / "killed", step, "--resume", *arguments)
    assert finish(tmp_path / "killed", "--resume", *arguments) == whole, f"killed in steps {steps}"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_killed_and_resumed(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_KERNELS_BACKEND", "reference")  # without which shards are refused on CPUs
    options = json.dumps({"devices": 2, "strategy": strategy, "max_steps": 20})
    arguments = ("--options", options, "--save-every", "2")
    whole = finish(tmp_path / "whole", *arguments)
    process = start(tmp_path / "killed", *arguments, own_group=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= 9:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert finish(tmp_path / "killed", "--resume", *arguments) == whole
