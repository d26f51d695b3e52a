"""SIGTERM, which schedulers and containers send, ends any command at once, with nothing left of its temporary files."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_recipes.cli import main

_WAITING = """
import sys, tempfile, time, types
from mamba_recipes.cli import front

def waiting(argv):
    with tempfile.TemporaryDirectory(prefix="mamba-apps-"):
        print("ready", flush=True)
        time.sleep(60)

sys.modules["waiting"] = types.SimpleNamespace(main=waiting)
front.COMMANDS["check"] = ("waiting", "")
sys.exit(front.main(sys.argv[1:]))
"""
_TESTING = """
import sys, time
import toy_candidates
from mamba_recipes.cli import main

def test_step(self, batch, index):
    print("ready", flush=True)
    time.sleep(60)

toy_candidates.ToyModule.test_step = test_step
sys.exit(main(sys.argv[1:]))
"""


def terminated(program: str, *words: str) -> tuple[int, str]:
    """Run the program until it is ready, send it SIGTERM, and return its exit code and last line of stderr."""
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    return process.returncode, err.splitlines()[-1]


def test_a_command_removes_what_it_made_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert terminated(_WAITING, "check", "x") == (143, "mamba-apps: terminated")
    assert list(tmp_path.iterdir()) == []


def test_a_test_does_not_go_on_to_its_end(toy_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["fit", str(toy_recipe), "--out", "run", "--trainer.max_epochs", "1"]) == 0
    Path("scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(Path("scratch").resolve()))
    assert terminated(_TESTING, "test", "run") == (143, "mamba-apps: terminated")
    assert list(Path("scratch").iterdir()) == []


def test_the_handler_is_gone_after_the_command() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_processes_that_wait_for_each_other_are_ended_by_the_system(
    toy_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait where no handler runs."""
    handlers: list[object] = []

    def fit(*_: object, **__: object) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr("mamba_apps.training.trainer.RunTrainer.fit", fit)
    for processes in (1, 2):
        monkeypatch.setattr("mamba_apps.training.trainer.RunTrainer.world_size", processes)
        assert main(["fit", str(toy_recipe), "--out", "run"]) == 130
    assert handlers[0] is not signal.SIG_DFL
    assert handlers[1] is signal.SIG_DFL
