"""Published forecasters from and to the state dicts of their reference code: every key must find its place.

The reference names are those of S-D-Mamba (S-Mamba), TimeMachine, the iTransformer repository, and the
Time-Series-Library (MambaSimple, PatchTST, DLinear).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.dlinear import DLinear
from mamba_apps.forecasting.models.inverted import ITransformer, SMamba
from mamba_apps.forecasting.models.mambasimple import MambaSimple
from mamba_apps.forecasting.models.patchtst import PatchTST
from mamba_apps.forecasting.models.timemachine import TimeMachine
from mamba_apps.state_dicts import fitted, refuse_keys

_REMEDY = "give the reference's whole state dict and the arguments that belong to it"
_PARTS = ("query", "key", "value")
_ENCODER_LAYER = (
    (r"encoder\.attn_layers\.(\d+)\.attention\.out_projection\.", r"layers.\1.mixer.out_proj."),
    (r"encoder\.attn_layers\.(\d+)\.conv1\.", r"layers.\1.ff_in."),
    (r"encoder\.attn_layers\.(\d+)\.conv2\.", r"layers.\1.ff_out."),
    (r"encoder\.attn_layers\.(\d+)\.norm([12])\.", r"layers.\1.norm\2."),
)
_INVERTED = (*_ENCODER_LAYER, (r"encoder\.norm\.", "norm."), (r"enc_embedding\.value_embedding\.", "embedding."))
_INVERTED_ARGUMENTS = {
    "seq_len": "lookback",
    "pred_len": "horizon",
    "d_model": "d_model",
    "d_ff": "d_ff",
    "e_layers": "layers",
    "dropout": "dropout",
    "activation": "activation",
    "use_norm": "use_norm",
}


@dataclass(frozen=True)
class _Family:
    """How a family's reference names become ours.

    Args:
        cls: Our class.
        rules: Beginnings of its keys, as patterns, and of ours.
        arguments: Its constructor's arguments and ours; None for one that changes nothing we compute.
        fixed: Arguments of which our class computes these values alone.
        dead: Parts of names of modules that the reference creates and never uses, or that are no weights.
        options: Further options of our class.
    """

    cls: Callable[..., nn.Module]
    rules: tuple[tuple[str, str], ...]
    arguments: Mapping[str, str | None]
    fixed: Mapping[str, tuple[Any, ...]]
    dead: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


_FAMILIES = {
    "smamba": _Family(
        SMamba,
        (
            (r"encoder\.attn_layers\.(\d+)\.attention\.", r"layers.\1.mixer.sets.0."),
            (r"encoder\.attn_layers\.(\d+)\.attention_r\.", r"layers.\1.mixer.sets.1."),
            *_INVERTED[1:],
        ),
        {**_INVERTED_ARGUMENTS, "d_state": "d_state"},
        {},
        dead=(".man.", ".man2.", ".a."),
    ),
    "itransformer": _Family(ITransformer, _INVERTED, {**_INVERTED_ARGUMENTS, "n_heads": "heads", "factor": None}, {}),
    "patchtst": _Family(
        PatchTST,
        (*_ENCODER_LAYER, (r"encoder\.norm\.1\.", "norm."), (r"patch_embedding\.value_embedding\.", "embedding."),
         (r"head\.linear\.", "head."), (r"projection\.", "head.")),
        {**{k: v for k, v in _INVERTED_ARGUMENTS.items() if k != "use_norm"}, "n_heads": "heads", "factor": None,
         "patch_len": "patch", "stride": "stride", "enc_in": "channels", "num_class": "classes"},
        {"task_name": ("long_term_forecast", "classification")},
        dead=(".position_embedding.",),
    ),
    "dlinear": _Family(
        DLinear,
        ((r"Linear_Seasonal\.(?=\d)", "seasonal."), (r"Linear_Trend\.(?=\d)", "trend."),
         (r"Linear_Seasonal\.", "seasonal.0."), (r"Linear_Trend\.", "trend.0.")),
        {"seq_len": "lookback", "pred_len": "horizon", "enc_in": "channels", "moving_avg": "moving_average",
         "individual": "individual"},
        {"task_name": ("long_term_forecast",)},
    ),
    "timemachine": _Family(
        TimeMachine,
        ((r"lin1\.", "embed1."), (r"lin2\.", "embed2."), (r"lin3\.", "widen."), (r"lin4\.", "head."),
         (r"mamba3\.", "along1."), (r"mamba4\.", "across1."), (r"mamba2\.", "along2."), (r"mamba1\.", "across2."),
         (r"revin_layer\.affine_", "affine.")),
        {"seq_len": "lookback", "pred_len": "horizon", "enc_in": "channels", "n1": "n1", "n2": "n2",
         "dropout": "dropout", "revin": "affine", "ch_ind": "independent", "residual": "residual",
         "d_state": "d_state", "dconv": "d_conv", "e_fact": "expand"},
        {},
    ),
    "mambasimple": _Family(
        MambaSimple,
        ((r"layers\.(\d+)\.mixer\.", r"mixers.\1."), (r"layers\.(\d+)\.norm\.", r"norms.\1."),
         (r"out_layer\.", "head."), (r"embedding\.value_embedding\.tokenConv\.", "embedding."),
         (r"embedding\.temporal_embedding\.embed\.", "mark_embedding.")),
        {"seq_len": "lookback", "pred_len": "horizon", "enc_in": "channels", "c_out": None, "d_model": "d_model",
         "d_ff": "d_state", "expand": "expand", "d_conv": "d_conv", "e_layers": "layers", "dropout": "dropout"},
        {"task_name": ("long_term_forecast",), "embed": ("timeF",), "freq": ("h",)},
        dead=(".position_embedding.",),
        options={"marks": 4},
    ),
}  # fmt: skip


def from_reference(family: str, arguments: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build a published forecaster from its reference code's arguments and weights.

    Args:
        family: "smamba", "itransformer", "patchtst", "dlinear", "timemachine" or "mambasimple".
        arguments: The reference's own, such as seq_len, pred_len, d_model, e_layers.
        state_dict: Its state dict, or the parameters and buffers of it.

    Returns:
        Our module, in training mode as PyTorch builds it; it takes x_enc (B, L, C), and the inverted forecasters and
        MambaSimple take x_mark_enc (B, L, M) too.

    Raises:
        UserError: If an argument is not supported, or a key is missing, unexpected or of the wrong shape.
    """
    known = _family(family)
    options = dict(known.options)
    for name, value in arguments.items():
        if name in known.fixed:
            if value not in known.fixed[name]:
                remedy = " or ".join(f"{name}={choice!r}" for choice in known.fixed[name])
                raise UserError(f"{family}: {name}={value!r} is not supported", f"use {remedy}")
        elif name not in known.arguments:
            raise UserError(f"{family}: unsupported argument {name}={value!r}", f"use {', '.join(known.arguments)}")
        elif (ours := known.arguments[name]) is not None:
            options[ours] = value
    module = known.cls(**options)
    module.load_state_dict(fitted(family, our_names(family, state_dict), module.state_dict(), _REMEDY))
    return module


def our_names(family: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of reference names (weights, or gradients of weights) under ours; dead modules are left out.

    Raises:
        UserError: If a key has no place in the family.
    """
    known = _family(family)
    found = {
        _renamed(name, known.rules): tensor[..., 0] if re.search(r"\.conv[12]\.weight$", name) and tensor.dim() == 3
        and ".attention" not in name else tensor
        for name, tensor in tensors.items()
        if not any(dead in name for dead in known.dead)
    }  # fmt: skip
    parts = re.compile(r"encoder\.attn_layers\.(\d+)\.attention\.(query|key|value)_projection\.(weight|bias)")
    split: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name in list(found):
        if match := parts.fullmatch(name):
            split.setdefault((match[1], match[3]), {})[match[2]] = found.pop(name)
    for (layer, kind), group in split.items():
        missing = {f"layer {layer}'s {part}_projection" for part in _PARTS if part not in group}
        refuse_keys(family, "missing", missing, _REMEDY)
        found[f"layers.{layer}.mixer.qkv_proj.{kind}"] = torch.cat([group[part] for part in _PARTS])
    return found


def _family(name: str) -> _Family:
    if name not in _FAMILIES:
        raise UserError(f"no published forecaster {name!r} has an adapter", f"choose one of {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, ours in rules:
        new, count = re.subn(rf"^{pattern}", ours, name)
        if count:
            return new
    return name
