"""What `mamba-apps models` lists: each domain's models, their size at a stated shape, and what they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mamba_apps.errors import UserError
from mamba_recipes.names import nearest

_LOOKBACK, _HORIZON = 672, 24
_MIXER_WIDTH = 64
# What an audio model's classes and clips decide.
_SETTLED = ("img_size", "in_chans", "dynamic_img_size", "num_classes", "frames", "samples")


# Importing MONAI takes seconds; docs/medical.md has the sizes of its networks.
_MONAIS = ("segresnet", "swin_unetr")


def listing(wanted: str | None = None) -> list[dict[str, Any]]:
    """Return one entry per model: model, domain, parameters, at, takes, options, summary.

    Args:
        wanted: Only this domain, or only the model of this name; None for all.

    Raises:
        UserError: If there is no such domain or model.
    """
    if wanted in _DOMAINS:
        return _of(wanted)
    found = [entry for domain in _DOMAINS for entry in _of(domain)]
    chosen = [entry for entry in found if wanted in (None, entry["model"])]
    if not chosen:
        known = [*_DOMAINS, *(entry["model"] for entry in found)]
        raise UserError(f"there is no model or domain {wanted!r}", nearest(str(wanted), known))
    return chosen


def _of(domain: str) -> list[dict[str, Any]]:
    return [{**entry, "domain": domain} for entry in _DOMAINS[domain]()]


def _forecasting() -> list[dict[str, Any]]:
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
                "parameters": sum(p.numel() for p in model.parameters()),
                "at": f"lookback {_LOOKBACK}, horizon {_HORIZON}, no covariates",
                "takes": "; ".join(takes) or "the series alone",
                "options": known.options,
                "summary": known.summary,
            }
        )
    return found


def _mixers() -> list[dict[str, Any]]:
    from mamba_apps import mixers

    found = []
    for name in mixers.names():
        known = mixers.spec(name)
        mixer = mixers.create(name, _MIXER_WIDTH)
        routes = ", ".join(sorted(mixer.routes))
        found.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in mixer.parameters()),
                "at": f"{_MIXER_WIDTH} channels",
                "takes": f"{'causal; ' if mixer.causal else ''}routes: {routes}",
                "options": known.options,
                "summary": known.summary,
            }
        )
    return found


def _vision() -> list[dict[str, Any]]:
    import timm
    import torch

    import mamba_apps.vision

    found = []
    for family in mamba_apps.vision.__all__:
        for name in timm.list_models(module=family.lower()):
            create = timm.models.model_entrypoint(name)
            with torch.device("meta"):  # the largest has 3 GB of weights, none of which is needed
                model = create()
            parameters = inspect.signature(type(model)).parameters.values()
            size = timm.data.resolve_data_config(model=model)["input_size"][-1]
            found.append(
                {
                    "model": name,
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "at": "their own sizes and numbers of classes",
                    "takes": f"images of {size} pixels",
                    "options": {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD},
                    "summary": (inspect.getdoc(create) or "").partition("\n")[0],
                }
            )
    return found


def _audio() -> list[dict[str, Any]]:
    import torch

    from mamba_apps.audio import create_model, model_names
    from mamba_apps.audio.live import LiveMamba
    from mamba_apps.vision import Vim

    found = []
    for name in model_names():
        with torch.device("meta"):
            model = create_model(name)
        kinds = type(model.backbone), *((Vim,) if isinstance(model.backbone, LiveMamba) else ())
        parameters = [p for kind in reversed(kinds) for p in inspect.signature(kind).parameters.values()]
        options = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
        found.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "at": "527 classes, 10.24 s",
                "takes": f"sounds of {model.sample_rate} Hz",
                "options": {key: value for key, value in options.items() if key not in _SETTLED},
                "summary": (inspect.getdoc(type(model.backbone)) or "").partition("\n")[0],
            }
        )
    return found


def _medical() -> list[dict[str, Any]]:
    import torch

    from mamba_apps.medical import build_network, network_names
    from mamba_apps.medical.zoo import network_options
    from mamba_datasets.volumes import NetworkPlan

    wide, all_ways = ((1, 2, 2), (2, 2, 2))
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
        if name in _MONAIS:
            continue
        with torch.device("meta"):
            network = build_network(name, plan, 1, 14)
        found.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in network.parameters()),
                "at": "patches of 40 x 224 x 192, 14 classes",
                "takes": "slices or volumes, by a plan",
                "options": network_options(name),
                "summary": (inspect.getdoc(type(network)) or "").partition("\n")[0],
            }
        )
    return found


_DOMAINS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "forecasting": _forecasting,
    "vision": _vision,
    "audio": _audio,
    "medical": _medical,
    "mixers": _mixers,
}
