"""Live sound whose pieces' step is captured once and replayed: the same tags, whatever lengths come."""

from __future__ import annotations

import pytest
import torch

from mamba_apps.audio import create_model
from mamba_apps.audio.tagging import live as module
from mamba_apps.audio.tagging.live import LiveTagger
from mamba_kernels.graph_steps import ReplayedStep

RATE, PIECE = 16000, 2 * 16 * 160  # samples a second, and of a piece of whole tokens
GPU = torch.cuda.is_available()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu])])
@pytest.mark.parametrize("name", ["aum_nano_causal", "wave_nano_causal"])
def test_pieces_of_one_length_are_replayed_and_others_are_not(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not GPU:
        pytest.skip("needs a GPU")
    made: list[int] = []

    class Counted(ReplayedStep):
        def __init__(self, step, inputs, state) -> None:  # type: ignore[no-untyped-def]
            made.append(inputs[0].shape[1])
            super().__init__(step, inputs, state)

    monkeypatch.setattr(module, "ReplayedStep", Counted)
    if device == "cpu":  # There the step simply runs.
        monkeypatch.setattr(module, "replays_safely", lambda network, device: True)
    torch.manual_seed(0)
    network = create_model(name, 3, seconds=None, depth=2).eval().to(device)
    wave_S = torch.rand(8 * PIECE + 777) - 0.5
    pieces = [*wave_S[: 5 * PIECE].split(PIECE), wave_S[5 * PIECE : 5 * PIECE + 777]]
    pieces += wave_S[5 * PIECE + 777 :].split(PIECE)
    tagger = LiveTagger(network, ["a", "b", "c"], RATE)
    heard = 0
    for piece_S in pieces:
        tagger.feed(piece_S)
        heard += len(piece_S)
        with torch.inference_mode():
            expected_K = network(wave_S[None, :heard].to(device))[0].cpu()
        assert tagger.logits is not None
        torch.testing.assert_close(tagger.logits, expected_K, rtol=0, atol=1e-4)
    assert made == [PIECE, PIECE]
    tagger.reset()
    assert tagger.logits is None
