"""U-Mamba, whole and its layer alone, against the published code's numbers and its checkpoints' keys."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from parity_cards import Card, UnsupportedCardError
from parity_compare import Comparison
from parity_families import family
from parity_models import check_run, tolerance
from torch import Tensor, nn

from mamba_apps.medical import MambaLayer, UMamba, adapt_umamba, build_network, parts
from mamba_apps.medical.parts import activate
from mamba_apps.mixers import Mamba1Mixer
from mamba_datasets.volumes import NetworkPlan

_PLAN = (
    "n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder",
    "input_size", "input_channels", "num_classes", "deep_supervision",
)  # fmt: skip
_ROUNDING, _MOST_KINKS = 2e-6, 4
_ALIKE, _ALIKE_BACKWARD = 0.98, 0.7
# Those of which we have one value alone.
_FIXED: dict[str, Any] = {
    "conv_op": "nn.Conv2d/3d", "norm_op": "nn.InstanceNorm2d/3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None, "nonlin": "nn.LeakyReLU (slope 0.01)", "conv_bias": True,
}  # fmt: skip


@family("umamba_mambalayer")
def check_layer(card: Card) -> None:
    layer = MambaLayer(Mamba1Mixer(card.options("constructor", "dim")["dim"])).eval()
    layer.load_state_dict(card.group("param."), strict=True)
    comparison = Comparison(card)
    check_run(card, comparison, layer, layer.get_parameter)
    comparison.finish()


@family("umamba_*")
def check_network(card: Card) -> None:
    # Where a leaky ReLU's input is zero but for rounding, which may fall on either side, the gradient jumps. The
    # reference's numbers are those of one choice of sides.
    kinks = _Kinks()
    with patch.object(parts, "activate", kinks):
        for choice in range(2**_MOST_KINKS):
            kinks.start(choice)
            try:
                return _check_network(card)
            except AssertionError:
                if choice + 1 >= 2 ** min(kinks.count, _MOST_KINKS):
                    raise


class _Kinks:
    """The activation, with every input that is zero but for rounding on the side that the bits of a number choose."""

    def start(self, choice: int) -> None:
        self.choice, self.count = choice, 0

    def __call__(self, x: Tensor) -> Tensor:
        near = (x.detach().abs() < _ROUNDING).nonzero()
        y = activate(x.clone() if len(near) else x)
        for index in map(tuple, near.tolist()):
            if self.choice >> self.count & 1:
                swapped = torch.zeros_like(x, dtype=torch.bool)
                swapped[index] = True
                y = torch.where(swapped, torch.where(x > 0, parts.SLOPE * x, x), y)
            self.count += 1
        return y


class _Comparison(Comparison):
    """Under autocast, results by their direction: norms over small maps make much of 16-bit rounding here."""

    def near(self, name: str, got: Tensor | None, *, atol: float, rtol: float = 0.0) -> None:
        if self._card.autocast is None:
            return super().near(name, got, atol=atol, rtol=rtol)
        if self._shapes_agree(name, got):
            assert got is not None
            ours, theirs = got.detach().double().flatten(), self._expected[name].double().flatten()
            alike = float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))
            if not alike >= (_ALIKE_BACKWARD if name.startswith("grad") else _ALIKE):
                self._problems.append(f"{name}: the cosine with what is expected is {alike:.3f}")


def _check_network(card: Card) -> None:
    network = _built(card, card.options("constructor", *_PLAN, *_FIXED)).eval()
    network.load_state_dict(adapt_umamba(card.group("param."), network))
    comparison = _Comparison(card)
    for name, module in _taps(network).items():
        if name in card.expected:
            module.register_forward_hook(partial(_near, card, comparison, name))
    x = card.group("input.")["x"].requires_grad_()
    logits = network(x)
    outputs = {f"output.{i}": y for i, y in enumerate(logits)} if isinstance(logits, list) else {"output": logits}
    for name, y in outputs.items():
        comparison.near(name, y, **tolerance(card))
    if "loss" in card.tensors:
        terms = [(y * card.tensors[f"lossw.{name}"]).sum() / y.numel() ** 0.5 for name, y in outputs.items()]
        loss = torch.stack(terms).sum()
        comparison.near("loss", loss.reshape(1), **tolerance(card))
        loss.backward()
        comparison.near("grad.input.x", x.grad, **tolerance(card, "grad_"))
        for name in (name for name in card.expected if name.startswith("grad.param.")):
            parameter = network.get_parameter(_our_name(name.removeprefix("grad.param."), network))
            comparison.near(name, parameter.grad, **tolerance(card, "grad_"))
    comparison.finish()


@family("keys_umamba_*")
def check_released_keys(card: Card) -> None:
    meta = card.entries["_meta"]
    network = _built(card, {**meta["plan"], **meta["common"]})
    assert sum(parameter.numel() for parameter in network.parameters()) == meta["n_params"]
    random = torch.Generator().manual_seed(0)
    # One tensor under all its names, as in the file.
    values: dict[str, Tensor] = {}
    released = {
        key: values.setdefault(_our_name(key, network), torch.randn(shape, generator=random).to(getattr(torch, dtype)))
        for key, (shape, dtype) in card.entries["keys"].items()
    }
    network.load_state_dict(adapt_umamba({"network_weights": released}, network))
    loaded = network.state_dict()
    assert loaded.keys() == values.keys()
    for key, tensor in values.items():
        assert torch.equal(loaded[key], tensor), key


def _built(card: Card, theirs: dict[str, Any]) -> UMamba:
    for name, value in _FIXED.items():
        if theirs[name] != value:
            raise UnsupportedCardError(f"{card.name}: unsupported option {name}, but for {value!r}")
    name = next((name for name in ("umamba_bot", "umamba_enc") if name in card.name), None)
    if name is None or theirs["n_stages"] != len(theirs["features_per_stage"]):
        raise UnsupportedCardError(f"{card.name}: no network of this project")
    plan = NetworkPlan(
        patch_size=tuple(theirs["input_size"]),
        features=tuple(theirs["features_per_stage"]),
        kernel_sizes=tuple(map(tuple, theirs["kernel_sizes"])),
        strides=tuple(map(tuple, theirs["strides"])),
        encoder_blocks=tuple(theirs["n_conv_per_stage"]),
        # Theirs begin at the bottleneck, the plan's at full resolution.
        decoder_blocks=tuple(reversed(theirs["n_conv_per_stage_decoder"])),
    )
    options = {"deep_supervision": theirs["deep_supervision"]}
    network = build_network(name, plan, theirs["input_channels"], theirs["num_classes"], **options)
    assert isinstance(network, UMamba)
    return network


def _taps(network: UMamba) -> dict[str, nn.Module]:
    encoder = network.encoder
    taps: dict[str, nn.Module] = {"feat.stem": encoder.stem}
    for s, stage in enumerate(encoder.stages):
        taps[f"feat.enc_stage{s}"] = stage
    for s, stage in enumerate(network.decoder.stages):
        taps[f"feat.dec_stage{s}"] = stage
    for s, stage in enumerate(encoder.stages):
        # Where there is no layer theirs is the identity.
        taps[f"feat.mamba_layer{s}"] = encoder.mamba_layers[str(s)] if str(s) in encoder.mamba_layers else stage
    return {**taps, "feat.mamba_layer": taps[f"feat.mamba_layer{network.plan.stages - 1}"]}


def _our_name(name: str, network: UMamba) -> str:
    name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
    name = name.replace(".all_modules.0.", ".conv.").replace(".all_modules.1.", ".norm.")
    return name.replace("mamba_layer.", f"encoder.mamba_layers.{network.plan.stages - 1}.")


def _near(card: Card, comparison: Comparison, name: str, module: nn.Module, inputs: Any, x: Tensor) -> None:
    comparison.near(name, x, **tolerance(card))
