"""`mamba-apps doctor`: what it looks at, and what it says when something is missing or wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mamba_kernels
from mamba_recipes.cli import main
from mamba_recipes.doctor import EXTRAS


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    names = {extra: tuple(re.split(r"[<>=]", need)[0] for need in needs) for extra, needs in extras.items()}
    assert names.pop("dev")
    assert names == EXTRAS


def test_a_machine_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    states = {finding["subject"]: finding["state"] for finding in findings}
    assert states["torch"] == states["cpu"] == states["selective scan"] == states["traffic sample"] == "ok"
    assert ("gpu" if not torch.cuda.is_available() else "gpu 0") in states


def test_an_extra_that_is_not_installed_is_a_note_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    missing = {"monai", "scipy"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    assert main(["doctor"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "[medical]" in line.split("pip")[0]]
    assert line.split() == "note [medical] without monai, scipy: pip install 'mamba-apps[medical]'".split()


def test_a_kernel_that_is_wrong_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = mamba_kernels.selective_scan

    def wrong(*tensors: Any, backend: str, **options: Any) -> Tensor:
        y = scan(*tensors, backend=backend, **options)
        assert isinstance(y, Tensor)
        return y if backend == "reference" else y * 1.001

    monkeypatch.setattr(mamba_kernels, "selective_scan", wrong)
    assert main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "CPU kernel" in line]
    assert re.match(r"problem\s+selective scan\s+CPU kernel \d\.\de-03 off the reference; please report this", line)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_kernels_are_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "GPU kernels within" in capsys.readouterr().out
