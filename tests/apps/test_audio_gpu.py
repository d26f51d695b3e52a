"""Sound on a GPU: the front end, training from memory, tagging and live sound give what they give on a CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from mamba_apps.audio import FilterBank, create_model
from mamba_apps.audio.tagging import AudioData, AudioTagger, AudioTask
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_apps.training import make_trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("rate", "mels"), [(16000, 128), (8000, 64)])
def test_the_front_end_is_the_cpu_s(rate: int, mels: int) -> None:
    bank = FilterBank(rate, mels, frames=1024)
    wave = 0.1 * torch.randn(4, 10 * rate, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([10 * rate, 9000, 5 * rate, 300])
    expected = bank(wave, lengths)
    with torch.autocast("cuda", torch.bfloat16):
        found = bank.cuda()(wave.cuda(), lengths.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", ["aum_nano_bibi", "wave_nano", "ast_nano"])
def test_it_trains(name: str, in_memory: bool, tmp_path: Path) -> None:
    data = AudioData("sounds", val=0.2, batch_size=8, seconds=0.4, in_memory=in_memory, workers=2)
    task = AudioTask(name, mixup=0.5, mask_frequency=8, mask_time=8, shift=3, gain=6.0, speed=0.1, ema=0.9)
    trainer = make_trainer(
        run_dir=tmp_path, max_steps=6, accelerator="gpu", precision="bf16-mixed", progress=False, monitor="val/accuracy"
    )
    trainer.fit(task, datamodule=data)
    (found,) = trainer.test(task, datamodule=data, verbose=False)
    assert 0 <= found["test/accuracy"] <= 100
    if in_memory:
        assert data._stores["train"].wave_T.device.type == "cuda"


def test_tags_and_live_sound_are_the_cpu_s() -> None:
    torch.manual_seed(0)
    network = create_model("aum_nano_causal", 3, seconds=None)
    labels, policy = ["a", "b", "c"], ClipPolicy(16000, 0.5)
    here = AudioTagger("aum_nano_causal", copy.deepcopy(network), policy, labels, device="cpu")
    there = AudioTagger("aum_nano_causal", network, policy, labels, device="cuda")
    wave = 0.1 * torch.randn(44100)
    ours, theirs = dict(here.tag(wave, 44100, top=3).classes), dict(there.tag(wave, 44100, top=3).classes)
    assert theirs == pytest.approx(ours, abs=1e-3)
    live, other = here.stream(44100), there.stream(44100)
    for piece in wave.split(4410):
        live.feed(piece)
        other.feed(piece)
    assert live.logits is not None
    assert other.logits is not None
    torch.testing.assert_close(other.logits, live.logits, rtol=0, atol=1e-3)
