"""The toys of these tests are importable here and in the processes that the command starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

_TOYS = str(Path(__file__).resolve().parent / "toys")
sys.path.insert(0, _TOYS)
# Absolute, because tests change the working folder before they start processes.
_given = [str(Path(part).resolve()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
os.environ["PYTHONPATH"] = os.pathsep.join([_TOYS, *_given])


@pytest.fixture
def toy_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small recipe in an otherwise empty working folder."""
    import toy_candidates

    monkeypatch.chdir(tmp_path)
    return toy_candidates.write_recipe(tmp_path)
