"""U-Mamba's checkpoints in the published code's layout: every key finds its place, or an error names it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.medical import ResidualUNet, adapt_umamba, build_network, load_umamba
from mamba_datasets.volumes import NetworkPlan

PLAN = NetworkPlan(
    (4, 8, 4), (4, 6, 8), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), (2, 1, 1), (1, 2)
)
over_names = pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc", "residual_unet"])


def build(name: str = "umamba_enc", seed: int = 0, **options: Any) -> ResidualUNet:
    torch.manual_seed(seed)
    network = build_network(name, PLAN, 1, 3, **options)
    assert isinstance(network, ResidualUNet)
    return network


def published(network: ResidualUNet, name: str = "umamba_enc") -> dict[str, Tensor]:
    """Return the weights under all the names that the published code's state dict has for them."""
    keys = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    if name == "umamba_bot":
        keys = {key.replace("encoder.mamba_layers.2.", "mamba_layer."): tensor for key, tensor in keys.items()}
    for key in [key for key in keys if ".conv1." in key or ".conv2." in key]:
        for part, number in ((".conv.", 0), (".norm.", 1)):
            if part in key:
                keys[key.replace(part, f".all_modules.{number}.")] = keys[key]
    return {**keys, **{f"decoder.{key}": tensor for key, tensor in keys.items() if key.startswith("encoder.")}}


@over_names
def test_every_alias_finds_its_place(name: str) -> None:
    theirs, ours = build(name), build(name, seed=1)
    keys = published(theirs, name)
    assert any(".all_modules.0." in key for key in keys)
    assert any(key.startswith("decoder.encoder.stem.") for key in keys)
    ours.load_state_dict(adapt_umamba(keys, ours))
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda keys: {"network_weights": keys, "current_epoch": 3},
        lambda keys: {"state_dict": {f"module.{key}": tensor for key, tensor in keys.items()}},
        lambda keys: {"model": {f"_orig_mod.module.{key}": tensor for key, tensor in keys.items()}},
        lambda keys: {f"network.{key}": tensor for key, tensor in keys.items()},
        # The names that a file keeps where each tensor is written once may be the aliases alone.
        lambda keys: {key: x for key, x in keys.items() if key.startswith("decoder.") or ".conv.weight" in key},
    ],
    ids=["nnunet", "ddp", "compiled", "task", "aliases"],
)
def test_containers_and_prefixes_are_taken_off(wrapped: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    theirs, ours = build(), build(seed=1)
    ours.load_state_dict(adapt_umamba(wrapped(published(theirs)), ours))
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gets_the_networks(dtype: torch.dtype) -> None:
    theirs, ours = build(), build(seed=1)
    adapted = adapt_umamba({key: tensor.to(dtype) for key, tensor in published(theirs).items()}, ours)
    for key, tensor in theirs.state_dict().items():
        assert adapted[key].dtype == torch.float32
        assert torch.equal(adapted[key], tensor.to(dtype).float())


def changed(key: str, tensor: Any) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda keys: {**keys, key: tensor}


def without(*gone: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda keys: {key: tensor for key, tensor in keys.items() if key not in gone}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            changed("decoder.encoder.stem.0.conv1.bias", torch.ones(4)),
            r"encoder.stem.0.conv1.bias and decoder.encoder.stem.0.conv1.bias are two names of one tensor",
        ),
        (changed("encoder.stem.1.conv1.all_modules.1.bias", torch.ones(4)), "are two names of one tensor, and differ"),
        (changed("encoder.stem.1.conv1.all_modules.1.bias", torch.zeros(3)), "are two names of one tensor, and differ"),
        (changed("encoder.mamba_layers.7.norm.weight", torch.ones(4)), "unexpected in the state dict: encoder.mamba_l"),
        (changed("mamba_layer.norm.scale", torch.ones(8)), "unexpected .*: encoder.mamba_layers.2.norm.scale"),
        (changed("decoder.seg_layers.0.bias", torch.zeros(5)), r"seg_layers.0.bias has shape \(5,\) .* \(3,\) in the"),
        (changed("decoder.seg_layers.0.bias", 3.5), "decoder.seg_layers.0.bias in the state dict is a float"),
        (
            without("decoder.seg_layers.0.bias"),
            "missing in the state dict: decoder.seg_layers.0.bias; give the",
        ),
    ],
    ids=["decoder", "list", "size", "stage", "name", "shape", "number", "missing"],
)
def test_what_does_not_fit_is_named(damage: Callable[[dict[str, Tensor]], dict[str, Any]], message: str) -> None:
    theirs = build()
    for parameter in theirs.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(UserError, match=message) as error:
        adapt_umamba(damage(published(theirs)), build(seed=1))
    assert error.value.remedy


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(UserError, match=r"residual U-Net: unexpected in the state dict: encoder.mamba_layers"):
        adapt_umamba(published(build()), build("residual_unet"))
    with pytest.raises(UserError, match=r"U-Mamba: missing in the state dict: encoder.mamba_layers"):
        adapt_umamba(published(build("residual_unet")), build())
    # The width of channel tokens is that of the patch.
    with pytest.raises(UserError, match=r"has shape .* in the state dict"):
        adapt_umamba(published(build()), build(channel_tokens=False))


def trainers_file(path: Path, network: ResidualUNet) -> Path:
    """Write what nnU-Net's trainer writes: weights among scores, which are numpy's numbers, and settings."""
    torch.save(
        {
            "network_weights": published(network),
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
            "grad_scaler_state": None,
            "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "epoch_end_timestamps": [1.5]},
            "_best_ema": np.float64(0.75),
            "current_epoch": 7,
            "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cuda")},
            "trainer_name": "nnUNetTrainerUMambaEnc",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        path,
    )
    return path


def test_the_trainers_file_is_read(tmp_path: Path) -> None:
    theirs, ours = build(), build(seed=1)
    load_umamba(trainers_file(tmp_path / "checkpoint_final.pth", theirs), ours)
    x = torch.randn(1, 1, *PLAN.patch_size)
    assert torch.equal(ours(x), theirs(x))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def test_files_that_cannot_be_read_safely_leave_the_network_as_it_was(tmp_path: Path) -> None:
    network = build()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(UserError, match="cannot be read"):
        load_umamba(path, network)
    whole = trainers_file(path, build(seed=1)).read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        pickle.dumps({"network_weights": Trap()}, protocol=2),
        b"weights\n" * 99,
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no checkpoint that can be read safely") as error:
            load_umamba(path, network)
        assert str(path) in str(error.value)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list, no state dict"):
        load_umamba(path, network)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
