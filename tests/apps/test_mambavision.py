"""What MambaVision does beyond what every image model must: its windows, its mixer's quirks, its weights' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import Attention
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import MambaVisionMixer, create
from mamba_apps.vision import MambaVision
from mamba_apps.vision.mambavision_checkpoint import adapt_checkpoint
from mamba_apps.vision.mambavision_parts import WindowBlock, WindowLevel, attention

TINY: dict[str, Any] = {"dim": 8, "stem_dim": 4, "num_classes": 5, "conv_depths": (1,), "depths": (3,), "windows": (4,),
                        "heads": (2,)}  # fmt: skip


def plain(mixer: MambaVisionMixer, x_LD: Tensor) -> Tensor:
    """One sequence through the mixer, step by step, as the facts about it say."""
    width = mixer.conv1d_x.kernel_size[0]
    u_EL, z_EL = F.pad(mixer.in_proj(x_LD), (0, 0, (width - 1) // 2, width // 2)).mT.chunk(2)
    u_LE = F.silu(F.conv1d(u_EL, mixer.conv1d_x.weight, groups=len(u_EL))).mT
    z_LE = F.silu(F.conv1d(z_EL, mixer.conv1d_z.weight, groups=len(z_EL))).mT
    rank, states = mixer.dt_proj.in_features, mixer.A_log.shape[1]
    dt_LR, B_LN, C_LN = mixer.x_proj(u_LE).split((rank, states, states), -1)
    dt_LE = F.softplus(mixer.dt_proj(dt_LR) + mixer.dt_proj.bias)  # the bias, for the second time
    A_EN, h_EN, ys = -mixer.A_log.exp(), torch.zeros_like(mixer.A_log), []
    for u_E, dt_E, B_N, C_N in zip(u_LE, dt_LE, B_LN, C_LN, strict=True):
        h_EN = (dt_E[:, None] * A_EN).exp() * h_EN + (dt_E * u_E)[:, None] * B_N
        ys.append(h_EN @ C_N + mixer.D * u_E)
    return mixer.out_proj(torch.cat([torch.stack(ys), z_LE], -1))


@pytest.mark.parametrize("d_conv", [2, 3, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_mixer_is_the_published_recurrence(d_conv: int, length: int) -> None:
    torch.manual_seed(0)
    mixer = MambaVisionMixer(12, d_state=3, d_conv=d_conv).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x_BLD = torch.randn(2, length, 12, dtype=torch.float64)
    expected = torch.stack([plain(mixer, x_LD) for x_LD in x_BLD])
    torch.testing.assert_close(mixer(x_BLD), expected, rtol=1e-9, atol=1e-10)


def test_step_sizes_start_as_published() -> None:
    torch.manual_seed(0)
    model = MambaVision(**TINY)
    for mixer in (MambaVisionMixer(256), *(m for m in model.modules() if isinstance(m, MambaVisionMixer))):
        assert torch.equal(mixer.dt_proj.bias, torch.zeros_like(mixer.dt_proj.bias))
        assert mixer.dt_proj.weight.abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 9}, r"expand \* d_model is 9; give an even number"),
        ({"d_model": 8, "expand": 0.1}, r"expand \* d_model is 0"),
        ({"d_model": 8, "d_conv": 1}, "d_conv is 1; give a whole number of at least 2"),
        ({"d_model": 8, "d_state": 0}, "d_state is 0; give a whole number of at least 1"),
        ({"d_model": 8, "dt_rank": 0}, "dt_rank is 0"),
    ],
)
def test_the_mixer_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create("mambavision", **options)


@pytest.mark.parametrize(("depth", "mixers"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (8, 4), (11, 6)])
def test_attention_stands_in_the_last_half_rounded_down(depth: int, mixers: int) -> None:
    model = MambaVision(**{**TINY, "depths": (depth,)})
    kinds = [type(block.mixer) for block in model.levels[1].blocks]
    assert kinds == [MambaVisionMixer] * mixers + [Attention] * (depth - mixers)


class _Sum(nn.Module):
    def forward(self, x_NLD: Tensor) -> Tensor:
        """Every token becomes its window's sum, times one more than its place: order and padding show."""
        return x_NLD.sum(1, keepdim=True) * torch.arange(1, x_NLD.shape[1] + 1)[:, None]


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 4), (5, 7), (3, 2), (1, 9)])
def test_windows_are_whole_and_read_row_by_row(height: int, width: int) -> None:
    side = 4
    level = WindowLevel(nn.Identity(), [_Sum()], side)
    x_BCHW = torch.randn(2, 3, height, width)
    padded = F.pad(x_BCHW, (0, -width % side, 0, -height % side))
    expected = torch.empty_like(padded)
    for top in range(0, padded.shape[2], side):
        for left in range(0, padded.shape[3], side):
            window = padded[:, :, top : top + side, left : left + side]
            places = torch.arange(1, side * side + 1).view(side, side)
            expected[:, :, top : top + side, left : left + side] = window.sum((2, 3), keepdim=True) * places
    torch.testing.assert_close(level(x_BCHW), expected[:, :, :height, :width])


def test_padding_takes_part() -> None:
    torch.manual_seed(0)
    level = WindowLevel(nn.Identity(), [WindowBlock(6, MambaVisionMixer(6))], 4)
    nn.init.ones_(level.blocks[0].norm1.bias)  # so that a zero is not one any more when the mixer sees it
    x_BCHW = torch.randn(1, 6, 4, 4)
    cut = x_BCHW.clone()
    cut[..., -1] = 0
    torch.testing.assert_close(level(x_BCHW[..., :3]), level(cut)[..., :3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": (2, 2)}, "give one of each for every level of windows"),
        ({"global_pool": ""}, "give num_classes=0, or a pooling"),
        ({"heads": (3,)}, "cannot split 16 channels into 3 heads"),
        ({"mixer": "mamba11"}, "unknown mixer 'mamba11'; did you mean 'mamba1'"),
        ({"mixer_options": {"d_stat": 3}}, "no option 'd_stat'; did you mean 'd_state'"),
        ({"mixer": "attention", "route": "cross"}, "AttentionMixer does not accept the route 'cross'"),
    ],
)
def test_models_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MambaVision(**{**TINY, **changed})


def test_options_reach_the_mixers() -> None:
    model = MambaVision(**TINY, mixer_options={"d_state": 5}, backend="reference")
    assert model.levels[1].blocks[0].mixer.A_log.shape[1] == 5
    assert model.levels[1].blocks[0].mixer.backend == "reference"


def test_small_scales_are_not_rounded_away_under_autocast() -> None:
    torch.manual_seed(0)
    # What the mixer adds is some 1e-5 of its input: lost in 16 bits, kept in 32.
    block = WindowBlock(16, attention(16, 2), layer_scale=1e-3)
    torch.nn.init.zeros_(block.ls2.gamma)  # type: ignore[union-attr, arg-type]
    x_NLD = torch.rand(2, 4, 16).add(1.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y_NLD = block(x_NLD)
    assert ((y_NLD - x_NLD.float()) != 0).any()


@pytest.mark.parametrize("pool", ["max", "avgmax", "catavgmax"])
def test_pooling_is_timms(pool: str) -> None:
    model = MambaVision(**TINY, global_pool=pool)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert model.head_hidden_size == model.get_classifier().in_features


def published(model: MambaVision) -> dict[str, Tensor]:
    """A model's tensors under the names that its releases use."""
    found = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts[0] = "patch_embed.conv_down"
        elif parts[2:3] == ["downsample"]:
            parts = ["levels", str(int(parts[1]) - 1), "downsample", "reduction", "0", "weight"]
        elif parts[-1] == "gamma":
            parts[-2:] = [f"gamma_{parts[-2][-1]}"]
        found[".".join(parts)] = tensor
    return found


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.encoder."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_released_checkpoints_load_however_they_are_wrapped(prefix: str, container: str | None) -> None:
    model = MambaVision(**TINY, layer_scale=1e-5)
    theirs: dict[str, Any] = {prefix + name: tensor for name, tensor in published(model).items()}
    found = adapt_checkpoint(theirs if container is None else {container: theirs, "epoch": 309}, model)
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for name, key in zip(expected, published(model), strict=True):
        assert found[name] is theirs[prefix + key]


def test_the_copies_on_the_hub_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("mambavision_nano_8")
    tensors = {f"model.{name}": tensor for name, tensor in published(model).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / filename))
    overlay = {"hf_hub_id": "nvidia/MambaVision-T-1K"}
    loaded = timm.create_model("mambavision_nano_8", pretrained=True, pretrained_cfg_overlay=overlay)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_checkpoint_of_another_size_is_refused_by_key() -> None:
    small, large = MambaVision(**TINY), MambaVision(**{**TINY, "depths": (4,)})
    with pytest.raises(
        UserError, match=r"MambaVision: missing in the state dict: levels.1.blocks.3.mixer.proj.bias, .* and 7 more"
    ):
        adapt_checkpoint(published(small), large)
    with pytest.raises(UserError, match=r"MambaVision: \w+ in the state dict: levels.1.blocks"):
        adapt_checkpoint(published(large), small)
