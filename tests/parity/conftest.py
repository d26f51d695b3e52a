"""Options of the parity tests, and one test for every card that they select."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # the families beside this file are modules of no package

from parity_cards import find_cards  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption("--parity-dir", default=None, metavar="DIR", help="folder of cards (default: tests/parity/data)")
    group.addoption(
        "--cases",
        action="append",
        default=None,
        metavar="GLOB",
        help="names of cards to check (default '*'); repeatable",
    )

    group.addoption("--device", default=None, metavar="DEVICE", help="cpu (default), or cuda: float32, then autocast")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "card" not in metafunc.fixturenames:
        return
    # Where the whole suite is collected this file is read after the command line was, so the options may be absent.
    folder = metafunc.config.getoption("parity_dir", default=None) or _HERE / "data"
    patterns = metafunc.config.getoption("cases", default=None) or ["*"]
    try:
        cards = find_cards(Path(folder), patterns)
    except FileNotFoundError as error:
        raise pytest.UsageError(str(error)) from error
    device = metafunc.config.getoption("device", default=None) or "cpu"
    precisions = (None,) if device == "cpu" else (None, torch.bfloat16)
    runs = [replace(card, device=device, autocast=dtype) for card in cards for dtype in precisions]
    missing = device.startswith("cuda") and not torch.cuda.is_available()
    here = pytest.mark.skipif(missing, reason=f"--device {device}: PyTorch finds no GPU here")
    metafunc.parametrize(
        "card",
        [pytest.param(card, id=card.name + ("-autocast" if card.autocast else ""), marks=here) for card in runs],
    )
