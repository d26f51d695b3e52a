"""What the operators' tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # operator_outcomes beside this file is a module of no package


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What an operator leaves unwritten shows: PyTorch fills empty tensors with NaN in its deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _seed() -> Iterator[None]:
    """Fix random numbers; in the interpreter what a kernel leaves unwritten is NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)
