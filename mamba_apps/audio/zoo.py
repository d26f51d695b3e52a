"""The audio models by name.

``aum_<size>_<variant>`` is Audio Mamba, fofo, fobi or bibi as published; ``aum_<size>_causal`` reads live sound;
``ast_<size>`` is the Transformer; ``wave_<size>`` and ``wave_<size>_causal`` take the waveform itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mamba_apps.audio.ast import AST
from mamba_apps.audio.audio_mamba import AudioMamba
from mamba_apps.audio.filterbank import STATISTICS, FilterBank
from mamba_apps.audio.model import AudioModel, RawSound
from mamba_apps.audio.wave_mamba import WaveMamba
from mamba_apps.errors import UserError
from mamba_datasets.report import nearest

_FRAMES_PER_SECOND = 100
# Width and depth: those of Vision Mamba, and two small ones to train from scratch on little data.
_SIZES = {"nano": (64, 4), "micro": (128, 8), "tiny": (192, 24), "small": (384, 24), "base": (768, 24)}
_VARIANTS: dict[str, dict[str, Any]] = {
    "fofo": {"route": "forward", "class_token": "end"},
    "fobi": {"bimamba_type": "v1"},
    "bibi": {},
}


def _causal(mels: int = 128, **options: Any) -> AudioMamba:
    """Build an Audio Mamba with one token for 40 ms of all bands, so that the line of tokens is time alone."""
    live = {"route": "forward", "class_token": "end", "order": "time", "patch_size": (mels, 4), "pos_embed": False}
    return AudioMamba(mels=mels, **{**live, **options})


def _entries() -> dict[str, Callable[..., Any]]:
    entries: dict[str, Callable[..., Any]] = {}
    for size, (width, depth) in _SIZES.items():
        for variant, options in _VARIANTS.items():
            entries[f"aum_{size}_{variant}"] = partial(AudioMamba, embed_dim=width, depth=depth, **options)
        entries[f"aum_{size}_causal"] = partial(_causal, embed_dim=width, depth=depth)
        for variant, causal in (("", False), ("_causal", True)):
            entries[f"wave_{size}{variant}"] = partial(WaveMamba, embed_dim=width, depth=depth, causal=causal)
        # As many layers as ViT's of that width, each of attention and an MLP.
        entries[f"ast_{size}"] = partial(AST, embed_dim=width, depth=max(depth // 2, 4), num_heads=max(width // 64, 2))
    return entries


_MODELS = _entries()


def model_names() -> list[str]:
    """Return the names of the audio models in alphabetical order."""
    return sorted(_MODELS)


def create_model(
    name: str,
    num_classes: int = 527,
    *,
    sample_rate: int = 16000,
    seconds: float | None = 10.24,
    mels: int = 128,
    mean: float = STATISTICS["audioset"][0],
    std: float = STATISTICS["audioset"][1],
    **options: Any,
) -> AudioModel:
    """Build a model with its front end, with fresh weights.

    Args:
        name: One of ``model_names()``.
        num_classes: Classes; 0 for no classifier.
        sample_rate: Samples a second of the sounds.
        seconds: What clips are padded or cropped to; None to take each as long as it is, as live sound needs. Learned
            positions are made for this length, or for 10.24 s.
        mels: Mel bands, for the models that see a spectrogram.
        mean: Mean of its logarithms over the training data; ``STATISTICS`` has published ones.
        std: Their standard deviation.
        options: The backbone's, such as ``patch_size``, ``stride``, ``class_token``, ``mixer`` and ``route``.

    Raises:
        UserError: If the name or an option is unknown or out of range.
    """
    if name not in _MODELS:
        raise UserError(f"unknown audio model {name!r}", nearest(name, model_names()))
    build = partial(_MODELS[name], num_classes=num_classes)
    frames = None if seconds is None else round(seconds * _FRAMES_PER_SECOND)
    try:
        if name.startswith("wave_"):
            samples = None if seconds is None else round(seconds * sample_rate)
            return AudioModel(RawSound(sample_rate, samples), build(samples=samples or sample_rate, **options))
        return AudioModel(
            FilterBank(sample_rate, mels, frames, mean, std), build(frames=frames or 1024, mels=mels, **options)
        )
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise UserError(f"{name}: {error}", "see the options of its class") from None
