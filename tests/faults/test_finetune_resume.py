"""A fine-tuning killed with SIGKILL and resumed ends as the unbroken one does, to the last bit."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

MODEL = "mambavision_nano_8"
STEPS = 24
# everything that draws numbers, keeps a state or changes over a run
SETTINGS = [
    f"--model.model={MODEL}",
    "--model.weights=saved",
    "--model.layer_decay=0.8",
    "--model.head_warmup=0.2",
    "--model.ema=0.9",
    "--model.mixup=0.8",
    "--model.cutmix=1.0",
    "--model.model_options={drop_path_rate: 0.1}",
    "--data.distort=0.5",
    "--data.hflip=0.5",
    "--data.erase=0.5",
    "--data.batch_size=96",
    "--trainer.max_epochs=null",
    f"--trainer.max_steps={STEPS}",
    "--trainer.save_every_steps=1",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.log_every_n_steps=1",
]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mamba_recipes.cli", "fit", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(*words: str) -> None:
    process = start(*words)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def steps_done(run: Path) -> int:
    path = run / "metrics.csv"
    if not path.is_file():
        return 0
    with path.open(encoding="utf-8") as file:
        return max((int(row["step"]) for row in csv.DictReader(file) if (row["step"] or "").isdigit()), default=0)


def kill_after(step: int, run: Path, *words: str) -> None:
    process = start(*words)
    deadline = time.monotonic() + 120
    while steps_done(run) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def assert_same(whole: object, resumed: object, place: str = "") -> None:
    """Compare two checkpoints' entries, tensors bit by bit."""
    if isinstance(whole, torch.Tensor):
        assert isinstance(resumed, torch.Tensor), place
        assert torch.equal(whole, resumed), place
    elif isinstance(whole, dict):
        assert isinstance(resumed, dict), place
        assert whole.keys() == resumed.keys(), place
        for key, value in whole.items():
            assert_same(value, resumed[key], f"{place}.{key}")
    elif isinstance(whole, list | tuple):
        assert isinstance(resumed, list | tuple), place
        assert len(whole) == len(resumed), place
        for index, value in enumerate(whole):
            assert_same(value, resumed[index], f"{place}[{index}]")
    else:
        assert whole == resumed, place


@pytest.mark.slow
def test_killed_fine_tuning_resumes_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finish("digits", "--out", "first", f"--model.model={MODEL}", "--trainer.max_epochs=1")
    os.rename("first/model", "saved")
    finish("digits", "--out", "whole", *SETTINGS)
    step = random.randint(4, STEPS - 5)  # noqa: S311
    kill_after(step, Path("broken"), "digits", "--out", "broken", *SETTINGS)
    assert not Path("broken/model").exists()
    finish("--resume", "broken")
    whole, broken = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "broken"))
    assert whole["global_step"] == broken["global_step"] == STEPS
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        assert_same(whole[key], broken[key], f"killed after step {step}: {key}")
    saved = [load_file(f"{run}/model/model.safetensors") for run in ("whole", "broken")]
    assert_same(*saved, f"killed after step {step}: model")  # type: ignore[misc]
    assert Path("whole/metrics.csv").read_text() == Path("broken/metrics.csv").read_text()
