"""Audio Mamba, AST and their front end against the references' numbers, and the released checkpoints' keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from parity_cards import Card, UnsupportedCardError
from parity_compare import Comparison
from parity_families import family
from torch import Tensor, nn

from mamba_apps.audio import AST, AudioMamba, FilterBank, adapt_audio_mamba, adapt_transformer

_VARIANTS: dict[str, dict[str, Any]] = {
    "Fo-Fo": {"route": "forward"},
    "Fo-Bi": {"bimamba_type": "v1"},
    "Bi-Bi": {"bimamba_type": "v2"},
}
_WIDTHS = {"tiny": 192, "small": 384, "base": 768}
_PLACES = ("if_cls_token", "use_middle_cls_token", "use_end_cls_token", "use_double_cls_token", "final_pool_type")
# What the reference's filter banks are made with, which ours always are.
_FRONT_END = {
    "num_mel_bins": 128,
    "window_type": "hanning",
    "frame_length_ms": 25,
    "frame_shift_ms": 10,
    "htk_compat": True,
    "use_energy": False,
    "dither": 0.0,
    "dc_removed": "whole-clip mean first, then kaldi per-frame remove_dc_offset",
    "preemphasis": 0.97,
}


@family("aum_*")
def check_audio_mamba(card: Card) -> None:
    args = card.options(
        "args", "spectrogram_size", "patch_size", "strides", "depth", "embed_dim", "num_classes", *_PLACES
    )
    if args.get("final_pool_type", "mean") != "mean":
        raise UnsupportedCardError(f"{card.name}: unsupported option final_pool_type={args['final_pool_type']!r}")
    mels, frames = args["spectrogram_size"]
    model = AudioMamba(
        frames=frames,
        mels=mels,
        patch_size=tuple(args["patch_size"]),
        stride=tuple(args["strides"]),
        class_token=_class_token(args),
        **{name: args[name] for name in ("depth", "embed_dim", "num_classes")},
        **_VARIANTS[card.entries["variant"]],
    ).eval()
    renamed = partial(adapt_audio_mamba, model=model)
    model.load_state_dict(renamed(card.group("param.")))
    comparison = Comparison(card)
    near = partial(comparison.near, **card.entries["tolerance"]["fp32_forward"])
    for i, block in enumerate(model.layers):
        block.register_forward_hook(partial(_near_block, near, f"inter.layer{i}"))
    model.patch_embed.register_forward_hook(lambda *call: near("inter.patch_embed", call[-1].flatten(2).mT))
    _check_run(card, comparison, model, renamed)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(card.tensors["input.x"]), pre_logits=True)
    near("inter.features", pooled)
    comparison.finish()


@family("ast_*")
def check_transformer(card: Card) -> None:
    args = card.options("args", "label_dim", "fstride", "tstride", "input_fdim", "input_tdim")
    size = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    if card.entries["backbone"] != "deit_tiny_patch16_224 with depth=2, embed_dim=48, num_heads=3":
        raise UnsupportedCardError(f"{card.name}: unsupported backbone {card.entries['backbone']!r}")
    model = AST(
        frames=args["input_tdim"],
        mels=args["input_fdim"],
        stride=(args["fstride"], args["tstride"]),
        num_classes=args["label_dim"],
        **size,
    ).eval()
    renamed = partial(adapt_transformer, model=model)
    model.load_state_dict(renamed(card.group("param.")))
    comparison = Comparison(card)
    _check_run(card, comparison, model, renamed)
    comparison.finish()


@family("fbank_*")
def check_front_end(card: Card) -> None:
    for name, value in card.options("settings", *_FRONT_END).items():
        if value != _FRONT_END[name]:
            raise UnsupportedCardError(f"{card.name}: unsupported option {name}={value!r}")
    entries = card.entries
    front = FilterBank(
        entries["sample_rate"], frames=entries["target_length"], mean=entries["mean"], std=entries["std"]
    )
    wave_BS = card.tensors["input.waveform"]
    tolerance = {name: entries["tolerance"][name] for name in ("atol", "rtol")}
    comparison = Comparison(card)
    raw_TF = front.log_mel(wave_BS)[0]
    # The card keeps as many frames as the model takes.
    comparison.near("output.fbank_raw", raw_TF[: entries["frames"]], **tolerance)
    comparison.near("output.fbank_norm_padded", front(wave_BS)[0], **tolerance)
    comparison.finish()


@family("keys_aum_*")
def check_released_keys(card: Card) -> None:
    entries = card.entries
    random = torch.Generator().manual_seed(0)
    released = {name: torch.randn(shape, generator=random) for name, shape in entries["keys"].items()}
    assert len(released) == entries["n_keys"]
    with torch.device("meta"):
        model = AudioMamba(
            frames=entries["audio_length"],
            num_classes=entries["num_classes"],
            embed_dim=_WIDTHS[entries["size"]],
            **_VARIANTS[entries["variant"]],
        )
    assert list(model.grid) == entries["patch_grid"]
    assert sum(parameter.numel() for parameter in model.parameters()) == entries["n_params"]
    adapted = adapt_audio_mamba({f"module.{name}": x for name, x in released.items()}, model)
    model.load_state_dict(adapted, assign=True)
    positions = released.pop("pos_embed.pos_embed")
    ours = model.state_dict()
    middle = positions.shape[1] // 2
    assert torch.equal(ours["pos_embed"][:, middle], positions[:, 0])
    assert torch.equal(model.layout.patches(ours["pos_embed"]), positions[:, 1:])
    for name, x in released.items():
        assert torch.equal(ours[name], x), name


def _class_token(args: dict[str, Any]) -> str:
    if not args.get("if_cls_token", True):
        return "none"
    if args.get("use_double_cls_token"):
        return "double"
    if args.get("use_end_cls_token"):
        return "end"
    return "middle" if args.get("use_middle_cls_token", True) else "front"


def _check_run(
    card: Card,
    comparison: Comparison,
    model: nn.Module,
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    """Compare the logits and, where the card has a cotangent, every gradient."""
    tolerance = card.entries["tolerance"]
    x_BTF = card.group("input.")["x"].requires_grad_()
    y_BC = model(x_BTF)
    comparison.near("output.y", y_BC, **tolerance["fp32_forward"])
    if "cotangent.y" in card.tensors:
        y_BC.backward(card.tensors["cotangent.y"])
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        comparison.near_all("grad.", gradients, renamed, **tolerance["fp32_grad"])
        comparison.near("grad_input.x", x_BTF.grad, **tolerance["fp32_grad"])


def _near_block(
    near: Callable[[str, Tensor], None], name: str, block: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]
) -> None:
    for part, output in zip(("hidden", "residual"), outputs, strict=True):
        near(f"{name}.{part}", output)
