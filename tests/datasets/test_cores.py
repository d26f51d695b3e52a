"""How many cores a process may use."""

from __future__ import annotations

import os

import pytest

from mamba_datasets.cores import usable_cores


def test_cores_that_are_another_process_s_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    assert usable_cores() == 64
