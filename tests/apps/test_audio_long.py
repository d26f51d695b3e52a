"""Long and live: the cost of a piece does not grow, and hours fit into memory."""

from __future__ import annotations

import resource
import struct
import time
from pathlib import Path

import pytest
import torch

from mamba_apps.audio import create_model
from mamba_datasets.audio import AudioFile

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["aum_nano_causal", "wave_nano_causal"])
def test_the_ten_thousandth_piece_costs_what_the_first_did(name: str) -> None:
    model = create_model(name, 5, seconds=None, depth=2).eval()
    piece_BS = 0.1 * torch.randn(1, 1600)
    state = model.init_state(1)
    seconds = []
    with torch.no_grad():
        for _ in range(10_000):
            start = time.perf_counter()
            logits, state = model.step(piece_BS, state)
            seconds.append(time.perf_counter() - start)
    # The quickest of many is what the work takes; the others waited for the machine.
    first, last = min(seconds[:500]), min(seconds[-500:])
    assert last < 1.5 * first
    assert logits.isfinite().all()


def test_three_hours_are_heard_in_the_memory_of_a_piece(tmp_path: Path) -> None:
    rate, seconds = 16000, 3 * 3600
    size = 2 * rate * seconds
    fields = (b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size)
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(struct.pack("<4sI4s4sIHHIIHH4sI", *fields))
        file.truncate(44 + size)
    model = create_model("aum_nano_causal", 5, seconds=None, depth=1).eval()
    state, heard = model.init_state(1), 0
    with torch.no_grad(), AudioFile(path) as sound:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for wave_S in sound.blocks(30.0):
            logits, state = model.step(torch.from_numpy(wave_S)[None], state)
            heard += len(wave_S)
    assert heard == rate * seconds
    assert logits.isfinite().all()
    # The whole would be 700 MB of samples and 1.1 GB of frames (ru_maxrss is in KiB).
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
