"""The GPU kernels of decoding against the reference: on a GPU, or interpreted in a process of its own.

See `test_triton.py`: ``TRITON_INTERPRET=1 pytest tests/kernels/test_triton_updates.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_kernels import causal_conv1d_update, selective_state_update
from mamba_kernels.errors import KernelInputError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (INTERPRETED or GPU), reason="no GPU, and TRITON_INTERPRET is not set")
MARKS = [here, pytest.mark.gpu] if GPU else [here]
DTYPES = [torch.float32, torch.bfloat16] if GPU else [torch.float32]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.skipif(INTERPRETED or GPU, reason="the kernels run in this very process")
def test_the_interpreted_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def draw(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def check_close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    error = float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-6))
    assert error < TOLERANCE[dtype]


STEPS: dict[str, dict[str, Any]] = {
    "channels": {"channels": (20,)},
    "groups": {"channels": (20,), "groups": (5,), "states": 17},
    "one_of_all": {"channels": (1,), "states": 1, "batch": 1},
    "heads": {"channels": (4, 20), "groups": (2,), "states": 32},
    "bare": {"channels": (3, 70), "absent": ("D", "z", "dt_bias"), "states": 3, "softplus": False},
    "large_state": {"channels": (2, 3), "states": 256},
    "pool": {"channels": (20,), "rows": [4, -1, 0]},
    "low_rank": {"channels": (70,), "rank": 5},
    "log": {"channels": (20,), "log": True},
    "log_heads": {"channels": (4, 20), "groups": (2,), "states": 32, "log": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", STEPS)
class TestStateUpdate:
    pytestmark = MARKS

    def test_output_and_next_states(self, case: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        options = STEPS[case]
        channels, states, batch = options["channels"], options.get("states", 16), options.get("batch", 3)
        rows = None if "rows" not in options else torch.tensor(options["rows"], dtype=torch.int32, device=DEVICE)
        step = {
            "x": draw(dtype, batch, *channels),
            "dt": draw(dtype, *channels, batch).movedim(-1, 0),
            "A": -draw(torch.float32, *channels, states).exp(),
            "B": draw(dtype, batch, *options.get("groups", ()), states),
            "C": draw(dtype, batch, *options.get("groups", ()), states),
            "D": draw(torch.float32, *channels),
            "z": draw(dtype, batch, *channels),
            "dt_bias": draw(torch.float32, *channels),
        }
        if "rank" in options:
            step["dt"], step["dt_weight"] = draw(dtype, batch, 2 * options["rank"])[:, ::2], draw(dtype, *channels, 5)
        if options.get("log"):
            step["A"] = (-step["A"]).log()
        if not options.get("softplus", True):
            step["dt"] = step["dt"].abs()  # steps back in time overflow
        step |= dict.fromkeys(options.get("absent", ()))
        state = draw(torch.float32, 6 if rows is not None else batch, *channels, states)
        more = {"dt_softplus": options.get("softplus", True), "state_batch_indices": rows}
        more["A_is_log"] = options.get("log", False)
        expected, got = state.double(), state.clone()
        exact = {name: None if x is None else x.double() for name, x in step.items()}
        wanted = selective_state_update(expected, **exact, **more, backend="reference")
        check_close(selective_state_update(got, **step, **more, backend="triton"), wanted, dtype)
        check_close(got, expected, torch.float32)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "one": {},
    "several": {"new": 3, "bias": False, "silu": False},
    "more_than_remembered": {"new": 9, "columns": 4},
    "long_memory": {"columns": 11, "new": 2},
    "one_tap": {"width": 1, "columns": 2},
    "no_memory": {"width": 1, "columns": 0},
    "ring": {"columns": 5, "seen": [0, 3, 12], "new": 2},
    "ring_overtaken": {"columns": 4, "seen": [1, 2, 9], "new": 7},
    "pool": {"rows": [5, -1, 2], "new": 2},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVOLUTIONS)
class TestConvUpdate:
    pytestmark = MARKS

    def test_output_and_next_states(self, case: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        options = CONVOLUTIONS[case]
        channels, width, columns = 150, options.get("width", 4), options.get("columns", 3)
        new = options.get("new")
        x = draw(dtype, 3, channels) if new is None else draw(dtype, 3, new, channels).mT
        weight = draw(torch.float32, channels, width)
        bias = draw(torch.float32, channels) if options.get("bias", True) else None
        state = draw(torch.float32, 6 if "rows" in options else 3, channels, columns)
        seen, rows = (
            None if key not in options else torch.tensor(options[key], dtype=torch.int32, device=DEVICE)
            for key in ("seen", "rows")
        )
        more = ("silu" if options.get("silu", True) else None, seen, rows)
        expected, got = state.double(), state.clone()
        exact = (x.double(), expected, weight.double(), None if bias is None else bias.double())
        wanted = causal_conv1d_update(*exact, *more, backend="reference")
        result = causal_conv1d_update(x, got, weight, bias, *more, backend="triton")
        assert result.stride() == x.stride()
        check_close(result, wanted, dtype)
        if columns:
            check_close(got, expected, torch.float32)


class TestRefusals:
    pytestmark = MARKS

    def test_a_row_outside_the_pool(self) -> None:
        x, A = torch.zeros(2, 4, device=DEVICE), torch.zeros(4, 2, device=DEVICE)
        rows = torch.tensor([0, 7], dtype=torch.int32, device=DEVICE)
        with pytest.raises(KernelInputError, match="below the pool's 2 states"):
            selective_state_update(
                torch.zeros(2, 4, 2, device=DEVICE), x, x, A, A[:2], A[:2], state_batch_indices=rows, backend="triton"
            )
        with pytest.raises(KernelInputError, match="below the 2 rows"):
            causal_conv1d_update(
                x, torch.zeros(2, 4, 3, device=DEVICE), torch.zeros(4, 4, device=DEVICE), conv_state_indices=rows,
                backend="triton",
            )  # fmt: skip

    def test_float64(self) -> None:
        x = torch.zeros(2, 4, dtype=torch.float64, device=DEVICE)
        with pytest.raises(KernelInputError, match="float64"):
            causal_conv1d_update(x, x[:, :, None].repeat(1, 1, 3), x.repeat(2, 1), backend="triton")
