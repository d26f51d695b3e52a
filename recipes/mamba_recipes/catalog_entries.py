"""The entries of `mamba-apps models`, a function a domain, each from that domain's registry.

An entry is: model, parameters (None where counting them would take seconds), at, takes, options, summary.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from mamba_recipes import recipe as recipes

Entry = dict[str, Any]

_LOOKBACK, _HORIZON, _VARIATES, _MARKS = 672, 24, 7, 4
_MIXER_WIDTH = 64
# What an audio model's classes and clips decide.
_SETTLED = ("img_size", "in_chans", "dynamic_img_size", "num_classes", "frames", "samples")
# Importing MONAI takes seconds, and it is an extra; docs/medical.md has the sizes of its networks.
_MONAI = ("segresnet", "swin_unetr")
_BACKBONE, _CLASSES = "vmamba_tiny_s1l8", 150
_TOKENS = 50280


def forecasting() -> list[Entry]:
    """Return the models of `mamba-apps forecast`."""
    from mamba_apps.forecasting import models

    found = []
    for name in models.names():
        known = models.spec(name)
        model = models.create(name, _LOOKBACK, _HORIZON)
        kinds = [kind for kind in ("past", "future", "static") if kind in known.cls.covariates]
        effect = [kind for kind in ("past", "future", "static") if kind in known.cls.through_effect]
        takes = [f"{', '.join(kinds)} covariates"] if kinds else []
        takes += [f"{', '.join(effect)} covariates as an added effect"] if effect else []
        found.append(
            {
                "model": name,
                "parameters": _count(model),
                "at": f"lookback {_LOOKBACK}, horizon {_HORIZON}, no covariates",
                "takes": "; ".join(takes) or "the series alone",
                "options": known.options,
                "summary": known.summary,
            }
        )
    return found


def mixing() -> list[Entry]:
    """Return the sequence mixers, which take each other's place in the models."""
    from mamba_apps import mixers

    found = []
    for name in mixers.names():
        known = mixers.spec(name)
        mixer = mixers.create(name, _MIXER_WIDTH)
        routes = ", ".join(sorted(mixer.routes))
        found.append(
            {
                "model": name,
                "parameters": _count(mixer),
                "at": f"{_MIXER_WIDTH} channels",
                "takes": f"{'causal; ' if mixer.causal else ''}routes: {routes}",
                "options": known.options,
                "summary": known.summary,
            }
        )
    return found


def vision() -> list[Entry]:
    """Return the backbones in timm's registry: ours, our small baselines, and timm's that a shipped recipe names."""
    import timm

    import mamba_apps.vision
    import mamba_apps.vision.classification.baselines

    families = [*(family.lower() for family in mamba_apps.vision.__all__), "baselines"]
    names = [name for family in families for name in timm.list_models(module=family)]
    theirs = sorted({name for name in _settings() if timm.is_model(name)} - set(names))
    return [*(_image_model(name) for name in names), *(_image_model(name, ", timm's") for name in theirs)]


def _image_model(name: str, whose: str = "") -> Entry:
    import timm
    import torch

    create = timm.models.model_entrypoint(name)
    with torch.device("meta"):  # the largest has 3 GB of weights, none of which is needed
        model = create()
    return {
        "model": name,
        "parameters": _count(model),
        "at": "their own sizes and numbers of classes",
        "takes": f"images of {timm.data.resolve_data_config(model=model)['input_size'][-1]} pixels{whose}",
        "options": _options(type(model)),
        "summary": _summary(create) or _summary(type(model)),
    }


def _settings() -> Iterable[str]:
    """Yield every value of a string that a candidate of a shipped recipe sets."""
    for path in recipes.shipped().values():
        compared = recipes.load(str(path)).compare
        for candidate in compared.candidates if compared else ():
            yield from (value for value in candidate.overrides.values() if isinstance(value, str))


def segmentation() -> list[Entry]:
    """Return the head for images that any backbone takes."""
    import torch

    from mamba_apps.vision.segmentation.network import Segmenter

    with torch.device("meta"):
        model = Segmenter(_BACKBONE, _CLASSES)
    return [
        {
            "model": "upernet",
            "parameters": _count(model),
            "at": f"{_CLASSES} classes, backbone {_BACKBONE}",
            "takes": "images; --model.backbone is any of vision, or another of timm's that gives features",
            "options": _options(Segmenter),
            "summary": _summary(Segmenter),
        }
    ]


def medical() -> list[Entry]:
    """Return the networks for volumes."""
    import torch

    from mamba_apps.medical.zoo import build_network, network_names, network_options
    from mamba_datasets.volumes import NetworkPlan

    wide, all_ways = (1, 2, 2), (2, 2, 2)
    plan = NetworkPlan(
        patch_size=(40, 224, 192),
        features=(32, 64, 128, 256, 320, 320),
        kernel_sizes=((1, 3, 3), *((3, 3, 3),) * 5),
        strides=((1, 1, 1), wide, *(all_ways,) * 3, wide),
        encoder_blocks=(2,) * 6,
        decoder_blocks=(2,) * 5,
    )
    found = []
    for name in network_names():
        entry: Entry = {
            "model": name,
            "parameters": None,
            "at": "patches of 40 x 224 x 192, 14 classes",
            "takes": "slices or volumes, by a plan",
            "options": network_options(name),
            "summary": "One of MONAI's networks, which has to be installed: pip install 'mamba-apps[medical]'.",
        }
        if name not in _MONAI:
            with torch.device("meta"):
                model = build_network(name, plan, 1, 14)
            entry |= {"parameters": _count(model), "summary": _summary(type(model))}
        found.append(entry)
    return found


def ltsf() -> list[Entry]:
    """Return the multivariate networks of the long-term benchmarks."""
    from mamba_apps.forecasting import models
    from mamba_apps.forecasting.ltsf import networks

    return [
        {
            "model": name,
            "parameters": _count(networks.make_network(name, _LOOKBACK, _HORIZON, _VARIATES, _MARKS, {})[0]),
            "at": f"lookback {_LOOKBACK}, horizon {_HORIZON}, {_VARIATES} variates",
            "takes": "all variates at once" if name in networks.NETWORKS else "each variate by itself",
            "options": _options(networks.NETWORKS[name]) if name in networks.NETWORKS else models.spec(name).options,
            "summary": models.spec(name).summary,
        }
        for name in networks.NAMES
    ]


def text() -> list[Entry]:
    """Return the language model."""
    import torch

    from mamba_apps.text import MambaLM, MambaLMConfig

    with torch.device("meta"):
        model = MambaLM(MambaLMConfig(vocab_size=_TOKENS))
    missing = dataclasses.MISSING
    options = {
        field.name: field.default if field.default_factory is missing else field.default_factory()
        for field in dataclasses.fields(MambaLMConfig)
    }
    return [
        {
            "model": "MambaLM",
            "parameters": _count(model),
            "at": f"{_TOKENS} tokens, the default width and depth",
            "takes": "tokens; any causal mixer; checkpoints of mamba-ssm and transformers",
            "options": {key: inspect.Parameter.empty if value is missing else value for key, value in options.items()},
            "summary": _summary(MambaLM),
        }
    ]


def audio() -> list[Entry]:
    """Return the models of sound."""
    import torch

    from mamba_apps.audio import create_model, model_names
    from mamba_apps.audio.live import LiveMamba
    from mamba_apps.vision import Vim

    found = []
    for name in model_names():
        with torch.device("meta"):
            model = create_model(name)
        kinds = type(model.backbone), *((Vim,) if isinstance(model.backbone, LiveMamba) else ())
        options = {key: value for kind in reversed(kinds) for key, value in _options(kind).items()}
        found.append(
            {
                "model": name,
                "parameters": _count(model),
                "at": "527 classes, 10.24 s",
                "takes": f"sounds of {model.sample_rate} Hz",
                "options": {key: value for key, value in options.items() if key not in _SETTLED},
                "summary": _summary(type(model.backbone)),
            }
        )
    return found


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _options(make: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
