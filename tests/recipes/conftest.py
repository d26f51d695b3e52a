"""The toys of these tests are importable here and in the processes that the command starts."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
from pathlib import Path

import pytest

_TOYS = str(Path(__file__).resolve().parent / "toys")
sys.path.insert(0, _TOYS)
# Absolute, because tests change the working folder before they start processes.
_given = [str(Path(part).resolve()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
os.environ["PYTHONPATH"] = os.pathsep.join([_TOYS, *_given])


@pytest.fixture(scope="session", autouse=True)
def _toys_in_candidates_processes() -> None:
    """Start the server that candidates are forked from with the toys, which allow themselves when they are imported.

    A comparison names its modules to the server only where it starts it, and another test may have done so before.
    """
    from mamba_recipes.compare import runner

    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server._stop()
    multiprocessing.get_context("forkserver").set_forkserver_preload([*runner._PRELOAD, "toy_candidates"])
    multiprocessing.forkserver.ensure_running()


@pytest.fixture
def toy_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small recipe in an otherwise empty working folder."""
    import toy_candidates

    monkeypatch.chdir(tmp_path)
    return toy_candidates.write_recipe(tmp_path)
