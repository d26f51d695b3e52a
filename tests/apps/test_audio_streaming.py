"""Live sound against the whole, over minutes, with logits as large as trained models' are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mamba_apps.audio import AudioModel, create_model
from mamba_kernels.graph_steps import ReplayedStep

RATE = 16000


def network(name: str, **options: object) -> AudioModel:
    """Return a model whose logits lie some ten apart."""
    torch.manual_seed(0)
    model = create_model(name, 7, seconds=None, **options).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.backbone.get_classifier().weight.mul_(100)  # type: ignore[operator, union-attr]
    return model


def sound(seconds: float) -> Tensor:
    """Return something that changes all the time: a sweep, bursts and silence."""
    time_S = torch.arange(round(seconds * RATE)) / RATE
    sweep_S = torch.sin(2 * math.pi * (200 + 20 * time_S) * time_S) * (torch.sin(0.7 * time_S) > 0)
    noise_S = torch.randn(len(time_S), generator=torch.Generator().manual_seed(0)) * (torch.sin(1.9 * time_S) > 0.5)
    return (0.4 * sweep_S + 0.1 * noise_S)[None]


def live(model: AudioModel, wave_BS: Tensor, piece: int) -> list[Tensor]:
    """Return the logits after each piece."""
    state, logits = model.init_state(len(wave_BS)), []
    with torch.no_grad():
        for piece_BS in wave_BS.split(piece, dim=1):
            logits_BC, state = model.step(piece_BS, state)
            logits.append(logits_BC)
    return logits


@pytest.mark.parametrize("name", ["aum_nano_causal", "wave_nano_causal"])
def test_pieces_of_100_ms_equal_the_sound_so_far_at_every_time(name: str) -> None:
    model, wave_BS = network(name), sound(4.0)
    found = live(model, wave_BS, RATE // 10)
    assert len(found) == 40
    for count in (1, 2, 7, 23, 40):
        with torch.no_grad():
            expected = model(wave_BS[:, : count * RATE // 10])
        torch.testing.assert_close(found[count - 1], expected, rtol=0, atol=1e-4)
    spread = max(float(logits.max() - logits.min()) for logits in found)
    assert spread > 5  # else a difference of 1e-4 would be none


GPU = torch.cuda.is_available()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu])])
@pytest.mark.parametrize("name", ["aum_nano_causal", "wave_nano_causal"])
def test_pieces_of_whole_tokens_can_be_replayed(name: str, device: str) -> None:
    if device == "cuda" and not GPU:
        pytest.skip("needs a GPU")
    model, piece = network(name).to(device), 2 * 16 * 160
    pieces = sound(4.0).to(device).split(piece, dim=1)[:6]
    expected = live(model, torch.cat(pieces, dim=1), piece)
    with torch.no_grad():
        # The first pieces fill what waits in the stem.
        _, state = model.step(pieces[0], model.init_state(1))
        _, state = model.step(pieces[1], state)
        count = torch.tensor(state.backbone.tokens, device=device)
        counted = state._replace(backbone=state.backbone._replace(tokens=count))
        torch.testing.assert_close(model.step(pieces[2], counted)[0], expected[2])
    replayed = ReplayedStep(model.step, [pieces[2]], state)
    for at in range(2, 6):
        torch.testing.assert_close(replayed(pieces[at]), expected[at], rtol=0, atol=1e-4)
    shapes = [[tuple(x.shape) for x in pytree.tree_leaves(s) if isinstance(x, Tensor)] for s in (state, replayed.state)]
    assert shapes[0] == shapes[1][: len(shapes[0])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seconds"), [("aum_nano_causal", 600), ("wave_nano_causal", 600), ("aum_tiny_causal", 20)]
)
def test_pieces_of_100_ms_equal_the_whole_after_minutes(name: str, seconds: int) -> None:
    model, wave_BS = network(name), sound(seconds)
    with torch.no_grad():
        expected = model(wave_BS)
    torch.testing.assert_close(live(model, wave_BS, RATE // 10)[-1], expected, rtol=0, atol=1e-4)
