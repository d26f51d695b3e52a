"""What every image model registered here must hold, as timm's own models do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg, group_parameters, save_for_hf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mamba_apps.vision  # noqa: F401  registers the models
import mamba_kernels
from mamba_apps.errors import UserError

FAMILIES = ("vim", "vmamba", "mambavision")
NAMES = [name for family in FAMILIES for name in timm.list_models(module=family)]
SMALL = [name for name in NAMES if get_pretrained_cfg(name).input_size[-1] <= 32]
NANO = [name for name in SMALL if get_pretrained_cfg(name).input_size[-1] == 8]
TINY = ("vim_tiny_patch16_224", "vmamba_tiny_s1l8", "mambavision_tiny")
# In millions, as published with the weights; the variants of a size that the tables leave out have its count.
PUBLISHED = {
    "vim_tiny_patch16_224": 7.148008,
    "vim_small_patch16_224": 25.796584,
    "vim_base_patch16_224": 97.598440,
    "vmamba_tiny_s1l8": 30.249064,
    "vmamba_tiny_s2l5": 30.705832,
    "vmamba_small_s2l15": 50.147752,
    "vmamba_base_s2l15": 88.557800,
    "mambavision_tiny": 31.794248,
    "mambavision_tiny2": 35.104008,
    "mambavision_small": 50.140584,
    "mambavision_base": 97.685288,
    "mambavision_base_21k": 97.685288,
    "mambavision_large": 227.961048,
    "mambavision_large_21k": 227.961048,
    "mambavision_large2": 241.554824,
    "mambavision_large2_512_21k": 241.554824,
    "mambavision_large3_256_21k": 739.570472,
    "mambavision_large3_512_21k": 739.570472,
}


def over(names: Iterable[str], quick: Iterable[str]) -> pytest.MarkDecorator:
    """Run over the models called ``names``, all but the quick ones marked as slow."""
    cases = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", cases)


over_nano = over(NANO, NANO)
over_small = over(SMALL, NANO)
over_all = over(NAMES, (*NANO, *TINY))


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def stirred(name: str, **options: Any) -> nn.Module:
    """Return a model in evaluation mode whose zeros, ones and statistics are random numbers, as after training."""
    model = build(name, **options).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.rand(tensor.shape, generator=random) * 0.2)
    return model


@lru_cache
def on_meta(name: str, **options: Any) -> nn.Module:
    """Return a model without values, shared by the tests that look at its structure alone."""
    with torch.device("meta"):
        return timm.create_model(name, **options)


def images(name: str, batch: int = 2, channels: int = 3) -> Tensor:
    size = get_pretrained_cfg(name).input_size[1:]
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(2))


def test_every_family_is_registered_with_a_model_for_8_and_one_for_32_pixels() -> None:
    for family in FAMILIES:
        sizes = {get_pretrained_cfg(name).input_size[-1] for name in timm.list_models(module=family)}
        assert {8, 32} < sizes


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_that_timm_adapts_are_where_the_configuration_says(name: str) -> None:
    model = on_meta(name)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == model.in_chans == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_classifier().weight.shape == (model.num_classes, model.head_hidden_size)
    released = cfg["input_size"][-1] > 32
    assert released == bool(cfg.get("hf_hub_id") or cfg.get("url"))
    assert model.num_classes == (1000 if released else 10)
    assert cfg.get("license") or not released


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == round(PUBLISHED[name] * 1e6)


@pytest.mark.parametrize("name", SMALL)
def test_small_models_are_small(name: str) -> None:
    count = sum(parameter.numel() for parameter in on_meta(name).parameters())
    assert count < 5e5 if name in NANO else 5e6 <= count <= 8e6


@over_all
def test_shapes_are_those_declared(name: str) -> None:
    model, maps = deepcopy(on_meta(name)), deepcopy(on_meta(name, features_only=True))
    x = images(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model.to_empty(device="cpu")(x).shape == (2, model.num_classes)
        found = maps.to_empty(device="cpu")(x)
    info = maps.feature_info
    assert len(found) == len(info.channels()) >= 2
    for feature, channels, reduction in zip(found, info.channels(), info.reduction(), strict=True):
        sides = [-(-side // reduction) for side in x.shape[2:]]
        if "stride8" in name:  # patches of 16 pixels overlap: the last one begins 8 before the edge
            sides = [side - 1 for side in sides]
        assert feature.shape == (2, channels, *sides)


@over_small
def test_everything_learns_and_one_image_does_not_reach_another(name: str) -> None:
    model = stirred(name)
    x = images(name).requires_grad_()
    logits = model(x)
    assert logits.isfinite().all()
    torch.testing.assert_close(model(x[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    logits.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@over_nano
def test_training_runs_in_bfloat16_too(name: str) -> None:
    model = build(name, drop_rate=0.1, drop_path_rate=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images(name))
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters())


@over_nano
def test_intermediates_agree_with_features_and_the_forward_pass(name: str) -> None:
    model, x = stirred(name), images(name)
    count = len(model.feature_info)
    last, maps = model.forward_intermediates(x)
    assert len(maps) == count
    torch.testing.assert_close(last, model.forward_features(x))
    torch.testing.assert_close(model.forward_head(last), model(x))
    for feature, info in zip(maps, model.feature_info, strict=True):
        assert feature.shape[1] == info["num_chs"]
    for indices, expected in ((1, maps[-1:]), ([0], maps[:1]), ([-1, 0], [maps[0], maps[-1]])):
        found = model.forward_intermediates(x, indices=indices, intermediates_only=True, stop_early=True)
        torch.testing.assert_close(found, expected)
    wrapped = build(name, features_only=True, out_indices=(0, count - 1)).eval()
    wrapped.model.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(wrapped(x), [maps[0], maps[-1]])
    assert wrapped.feature_info.channels() == [model.feature_info[i]["num_chs"] for i in (0, count - 1)]
    with pytest.raises(UserError):
        model.forward_intermediates(x, output_fmt="CHWN")


@over_nano
def test_pruned_features_are_those_of_the_whole(name: str) -> None:
    model, x = stirred(name), images(name)
    first = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert model.prune_intermediate_layers([0], prune_norm=True) == [0]
    torch.testing.assert_close(model.forward_intermediates(x, indices=[0], intermediates_only=True), first)
    assert sum(parameter.numel() for parameter in model.parameters()) < before


@over_nano
def test_the_classifier_is_replaced(name: str) -> None:
    model, x = stirred(name), images(name)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model.num_classes == model.get_classifier().out_features == 7
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    assert build(name, num_classes=0)(x).shape == pooled.shape
    assert build(name, num_classes=0, global_pool="")(x).shape == features.shape


@over_nano
@pytest.mark.parametrize(("height", "width"), [(8, 16), (12, 8)])
def test_images_need_not_be_square(name: str, height: int, width: int) -> None:
    fixed = get_pretrained_cfg(name).fixed_input_size
    options = {"img_size": (height, width)} if fixed else {}
    x = torch.randn(2, 3, height, width)
    assert build(name, **options).eval()(x).shape == (2, 10)
    maps = build(name, features_only=True, **options).eval()
    for feature, reduction in zip(maps(x), maps.feature_info.reduction(), strict=True):
        assert feature.shape[2:] == (height // reduction, width // reduction)


@over_nano
def test_images_may_have_other_channels(name: str) -> None:
    assert build(name, in_chans=1)(images(name, channels=1)).shape == (2, 10)


@over_nano
def test_checkpointing_changes_nothing_but_memory(name: str) -> None:
    x = images(name)
    found = []
    for enable in (False, True):
        model = build(name).train()
        model.set_grad_checkpointing(enable)
        logits = model(x)
        logits.square().sum().backward()
        found.append((logits, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0])


@over_nano
def test_export_gives_the_same_numbers_for_any_batch(name: str) -> None:
    model = stirred(name)
    batch = {0: torch.export.Dim("batch", min=1)}
    exported = torch.export.export(model, (images(name, 3),), dynamic_shapes=(batch,)).module()
    for x in (images(name, 1), images(name, 5)):
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@over(NANO, ())
def test_exporters_that_know_pytorchs_operators_alone_are_served(name: str) -> None:
    model, x = stirred(name), images(name, 3)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    plain = program.run_decompositions(mamba_kernels.decompositions())
    assert not any("mamba_kernels" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(x[:2]), model(x[:2]))


# Operators of one image: a convolution, a scan and a norm for each block, one norm more for each MLP and at the ends.
OPERATORS = {
    "vim_nano_patch2_8": {"add_norm": 5, "causal_conv1d_bidirectional": 4, "selective_scan_route": 4},
    "vmamba_nano_8": {"add_norm": 16, "depthwise_conv": 4, "selective_scan_route": 4},
    "mambavision_nano_8": {"add_norm": 8, "causal_conv1d": 2, "selective_scan": 2},
}
# What would read or write a grid once more than the operators do.
COPIES = ("clone", "contiguous", "flip", "gather", "index", "index_select", "layer_norm", "silu")


@over_nano
def test_blocks_run_on_the_operators_alone(name: str) -> None:
    exported = torch.export.export(build(name).eval(), (images(name),))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    found = Counter(op.split(".")[1] for op in called if op.startswith("mamba_kernels."))
    assert found == OPERATORS[name]
    copies = Counter(op.split(".")[1] for op in called if op.split(".")[1:2] and op.split(".")[1] in COPIES)
    # VMamba lays the image itself channels last.
    assert copies == ({"contiguous": 1} if name == "vmamba_nano_8" else {})


@over(NANO, ())
@pytest.mark.parametrize("training", [False, True])
def test_models_compile_whole(name: str, training: bool) -> None:
    x = images(name)
    found = []
    for compiled in (False, True):
        model = stirred(name, drop_path_rate=0.0).train(training)
        torch._dynamo.reset()
        logits = torch.compile(model, fullgraph=True, backend="aot_eager")(x) if compiled else model(x)
        logits.square().sum().backward()
        found.append((logits, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@over_all
@pytest.mark.parametrize("coarse", [False, True])
def test_layer_groups_hold_every_parameter_once_and_in_order(name: str, coarse: bool) -> None:
    model = on_meta(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [parameter for group in groups.values() for parameter in group]
    assert sorted(names) == sorted(parameter for parameter, _ in model.named_parameters())
    level = {parameter: i for i, group in groups.items() for parameter in group}
    first, head = model.pretrained_cfg["first_conv"], model.pretrained_cfg["classifier"]
    assert level[f"{first}.weight"] == 0
    assert [i for i, group in groups.items() if f"{head}.weight" in group] == [max(groups)]
    depth = len(groups)
    assert depth >= 4
    # What comes later in the model is never in an earlier group.
    order = [level[parameter] for parameter, _ in model.named_parameters() if not parameter.startswith(("cls", "pos"))]
    assert order == sorted(order)
    if not coarse:
        assert all(parameter.startswith(head) for parameter in groups[max(groups)])
        decayed = param_groups_layer_decay(model, 0.05, layer_decay=0.5)
        scales = {id(parameter): group["lr_scale"] for group in decayed for parameter in group["params"]}
        assert len(scales) == len(names)
        assert scales[id(model.get_parameter(f"{first}.weight"))] == 0.5 ** (depth - 1)
        assert scales[id(model.get_parameter(f"{head}.weight"))] == 1.0


@over_all
def test_parameters_without_weight_decay_exist(name: str) -> None:
    model = on_meta(name)
    exempt = model.no_weight_decay()
    parameters = dict(model.named_parameters())
    assert exempt
    assert exempt <= set(parameters)
    undecayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=exempt)[0]
    assert undecayed["weight_decay"] == 0.0
    assert {id(parameters[parameter]) for parameter in exempt} <= {id(p) for p in undecayed["params"]}


def checkpoints(folder: Path, tensors: dict[str, Tensor]) -> Iterator[Path]:
    """Yield files of the same weights, as releases wrap them."""
    save_file(tensors, folder / "model.safetensors")
    yield folder / "model.safetensors"
    for container in ("state_dict", "model"):
        torch.save({container: {f"module.{key}": x for key, x in tensors.items()}, "epoch": 3}, folder / "weights.pth")
        yield folder / "weights.pth"


@over_nano
def test_pretrained_weights_come_from_a_local_file(name: str, tmp_path: Path) -> None:
    tensors = stirred(name).state_dict()
    for path in checkpoints(tmp_path, tensors):
        loaded = build(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
        assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in tensors.items())
    features = build(name, pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(path)})
    for key, tensor in features.model.state_dict().items():
        assert torch.equal(tensor, tensors[key])


@over_nano
def test_pretrained_weights_take_other_classes_and_channels(name: str, tmp_path: Path) -> None:
    tensors = stirred(name).state_dict()
    save_file(tensors, tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors")}
    tuned = build(name, pretrained=True, num_classes=3, in_chans=1, pretrained_cfg_overlay=overlay)
    first, head = tuned.pretrained_cfg["first_conv"], tuned.pretrained_cfg["classifier"]
    assert tuned.get_classifier().weight.shape[0] == 3
    for key, tensor in tuned.state_dict().items():
        if key == f"{first}.weight":
            torch.testing.assert_close(tensor, tensors[key].sum(1, keepdim=True))
        elif not key.startswith(f"{head}."):
            assert torch.equal(tensor, tensors[key]), key


@over_nano
@pytest.mark.parametrize("options", [{}, {"num_classes": 3}], ids=["same", "finetuned"])
def test_keys_that_do_not_fit_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    tensors = build(name).state_dict()
    first = get_pretrained_cfg(name).first_conv
    key = next(key for key, tensor in tensors.items() if not key.startswith(first) and tensor.dim() == 2)

    def load(state_dict: dict[str, Tensor]) -> None:
        build(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state_dict}, **options)

    load(tensors)
    with pytest.raises(UserError, match=rf"{name}: missing in the state dict: {key}; give"):
        load({k: tensor for k, tensor in tensors.items() if k != key})
    with pytest.raises(UserError, match=rf"{name}: unexpected in the state dict: extra.weight; give"):
        load({**tensors, "extra.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=rf"{name}: {key} has shape \(1, 2\) in the state dict"):
        load({**tensors, key: torch.zeros(1, 2)})


@pytest.mark.parametrize("name", SMALL)
def test_models_without_released_weights_say_so(name: str) -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        build(name, pretrained=True)


@over_nano
def test_saving_for_the_hub_and_loading_gives_the_same_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stirred(name, num_classes=4, in_chans=1)
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    x = images(name, channels=1)
    again = build(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / filename))
    downloaded = build("hf-hub:someone/model", pretrained=True).eval()
    torch.testing.assert_close(downloaded(x), model(x), rtol=0, atol=0)
    other = build(f"local-dir:{tmp_path}", pretrained=True, num_classes=6).eval()
    assert other(x).shape == (2, 6)
    torch.testing.assert_close(other.forward_features(x), model.forward_features(x), rtol=0, atol=0)
