"""Audio Mamba and its variants, AST and Mamba on waveforms: any length, other patches, live sound, other weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_apps.audio import (
    AST,
    AudioMamba,
    AudioModel,
    WaveMamba,
    adapt_audio_mamba,
    adapt_transformer,
    adapt_vision_mamba,
    create_model,
    model_names,
)
from mamba_apps.errors import UserError
from mamba_apps.mixers import Mamba1Mixer, VimMixer
from mamba_apps.vision import Vim
from mamba_apps.vision.vim_tokens import TokenLayout, resize_position_embedding

SMALL: dict[str, Any] = {"frames": 48, "mels": 32, "embed_dim": 16, "depth": 2, "num_classes": 5}
FOFO: dict[str, Any] = {"route": "forward", "class_token": "end"}
LIVE: dict[str, Any] = {**FOFO, "order": "time", "patch_size": (32, 4), "pos_embed": False}
PLACES = ["middle", "front", "end", "double", "none"]
NO_CLASS: dict[str, Any] = {"class_token": "none"}
NANO = [name for name in model_names() if "nano" in name]


def build(**options: Any) -> AudioMamba:
    torch.manual_seed(0)
    return AudioMamba(**{**SMALL, **options}).eval()


def spectrograms(frames: int = 48, mels: int = 32) -> Tensor:
    return torch.randn(2, frames, mels, generator=torch.Generator().manual_seed(1))


def waves(samples: int = 16000) -> Tensor:
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(2))


def gradient(model: AudioMamba, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(model(x.requires_grad_()).square().sum(), x)
    return found


def test_the_variants_are_options() -> None:
    assert type(build(**FOFO).layers[0].mixer) is Mamba1Mixer
    for form in ("v1", "v2"):
        mixer = build(bimamba_type=form).layers[0].mixer
        assert isinstance(mixer, VimMixer)
        assert mixer.bimamba_type == form
    assert build(mixer="attention", mixer_options={"heads": 2})(spectrograms()).shape == (2, 5)
    assert build(**NO_CLASS, route="cross")(spectrograms()).shape == (2, 5)


@pytest.mark.parametrize("place", PLACES)
def test_every_class_token_takes_any_length(place: str) -> None:
    model = build(class_token=place)
    for frames in (16, 48, 63, 400):
        assert model(spectrograms(frames)).isfinite().all()


def test_a_line_read_forwards_is_heard_by_a_token_at_its_end_alone() -> None:
    assert gradient(build(**FOFO), spectrograms()).abs().min() > 0
    assert not gradient(build(**{**FOFO, "class_token": "front"}), spectrograms()).any()


@pytest.mark.parametrize(("order", "patch"), [("frequency", (8, 4)), ("time", (4, 8))])
def test_the_order_is_what_the_line_follows_first(order: Any, patch: tuple[int, int]) -> None:
    model = build(order=order, patch_size=(8, 4))
    found = []
    model.layers[0].register_forward_hook(lambda block, inputs, outputs: found.append(inputs[0]))
    x = spectrograms()
    model(x)
    image = x[:, None] if order == "time" else x.mT[:, None]
    expected = model.patch_embed(image)
    assert model.patch_embed.patch_size == patch
    first = model.layout.patches(found[0] - model.pos_embed)[:, 1]
    torch.testing.assert_close(first, expected[..., 0, 1], rtol=1e-4, atol=1e-5)


def test_longer_clips_have_their_positions_interpolated_in_time() -> None:
    model = build(**NO_CLASS, bimamba_type="v1")
    longer = build(**NO_CLASS, bimamba_type="v1", frames=96)
    state = model.state_dict()
    state["pos_embed"] = resize_position_embedding(
        state["pos_embed"], TokenLayout("none"), (2, 3), (2, 6), "antialiased"
    )
    longer.load_state_dict(state)
    torch.testing.assert_close(model(spectrograms(96)), longer(spectrograms(96)))


def test_patches_of_another_size_see_the_same_at_another_resolution() -> None:
    model = build(patch_size=4)
    before = model(spectrograms())
    finer = torch.nn.functional.interpolate(spectrograms()[:, None], scale_factor=2, mode="bicubic", antialias=True)[
        :, 0
    ]
    model.set_input_size((64, 96), patch_size=8)
    model.mels = 64
    assert model.patch_embed.proj.kernel_size == model.patch_embed.stride == (8, 8)
    assert model.grid == (8, 12)
    torch.testing.assert_close(model(finer), before, rtol=0, atol=0.05)
    model.set_input_size(patch_size=8, stride=(4, 2))
    assert model.grid == (15, 45)
    assert model(finer).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 15, 32), "15 frames, fewer than a patch's 16"),
        ({}, (2, 48, 31), "shape \\(2, 48, 31\\)"),
        ({}, (48, 32), "shape \\(48, 32\\)"),
        ({"order": "bands"}, None, "order is 'bands'"),
        ({"class_token": "last"}, None, "class_token is 'last'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)(torch.zeros(shape or (1,)))


def heard(model: Any, x: Tensor, pieces: list[int], **options: Any) -> Tensor:
    state = model.init_state(2, **options)
    with torch.no_grad():
        for piece in x.split(pieces, dim=1):
            logits, state = model.step(piece, state)
    return logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": "none"},
        {"patch_size": (32, 8), "stride": (32, 3)},
        {"patch_size": (8, 4)},
        {"layer_scale": 0.5},
        {"mixer": "attention", "mixer_options": {"heads": 2}},
    ],
    ids=str,
)
def test_live_frames_equal_the_whole(options: dict[str, Any]) -> None:
    model = build(**{**LIVE, **options})
    x = spectrograms(61)
    for pieces in ([1] * 61, [3, 10, 0, 20, 28], [61]):
        torch.testing.assert_close(heard(model, x, pieces, max_length=500), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"class_token": "end"}, {"strides": (4,)}, {"strides": (3, 7)}], ids=str)
def test_live_samples_equal_the_whole(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = WaveMamba(num_classes=5, embed_dim=16, depth=2, causal=True, **options).eval()
    x = waves(400)
    for pieces in ([1] * 400, [7, 100, 0, 93, 200], [400]):
        torch.testing.assert_close(heard(model, x, pieces), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NANO if "causal" in name])
def test_live_sound_equals_the_whole_and_its_state_does_not_grow(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 7, seconds=None).eval()
    x = waves(16000 * 3)
    torch.testing.assert_close(heard(model, x, [1600] * 30), model(x), rtol=0, atol=1e-4)

    def size(samples: int) -> int:
        state = model.init_state(2)
        with torch.no_grad():
            for piece in x[:, :samples].split(1600, dim=1):
                _, state = model.step(piece, state)
        tensors = [state.waiting, *state.backbone.waiting, *(part for block in state.backbone.blocks for part in block)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    assert size(16000) == size(48000)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({**LIVE, "route": "bidirectional"}, "blocks look ahead"),
        ({**LIVE, "pos_embed": True}, "positions are those of a clip"),
        ({**LIVE, "class_token": "middle"}, "what it pools is not at hand"),
        ({**LIVE, "global_pool": "max"}, "what it pools is not at hand"),
        ({**LIVE, "order": "frequency"}, "band by band"),
        ({**LIVE, "stride": (32, 5)}, "gaps between its patches"),
    ],
)
def test_models_that_cannot_read_live_sound_say_why(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"cannot read live sound; .*{reason}"):
        build(**options).init_state(1)


def test_attention_over_spectrograms_cannot_read_live_sound() -> None:
    with pytest.raises(UserError, match="AST cannot read live sound"):
        create_model("ast_nano", 5).init_state(1)


@pytest.mark.parametrize("name", NANO)
def test_models_go_from_samples_to_logits_and_embeddings(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 7, seconds=0.5)
    logits = model(waves(9000), torch.tensor([9000, 5000]))
    assert logits.shape == (2, 7)
    assert model.embed(waves(9000)).shape == (2, 64)
    logits.square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    model.backbone.set_grad_checkpointing()
    assert not any(key.startswith("frontend") for key in model.state_dict())
    model.backbone.reset_classifier(3)
    assert model(waves(9000)).shape == (2, 3)
    undecayed = [key for key, _ in model.backbone.named_parameters() if key in model.backbone.no_weight_decay()]
    assert any("cls_token" in key or "A_log" in key for key in undecayed)
    assert not any("proj" in key for key in undecayed)
    assert create_model(name, 7, seconds=None)(waves(20000)).shape == (2, 7)


def test_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        models = {name: create_model(name).backbone for name in model_names()}
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert count["aum_base_fobi"] == 92_107_535
    assert count["aum_small_bibi"] == 25_539_215
    assert 86e6 < count["ast_base"] < 88e6
    assert all(count[f"aum_nano_{variant}"] < 1e6 for variant in ("fofo", "fobi", "bibi", "causal"))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("stride", [None, 10, (16, 8)])
def test_transformers_take_any_length(distilled: bool, stride: Any) -> None:
    torch.manual_seed(0)
    model = AST(48, 32, stride=stride, num_classes=5, distilled=distilled, embed_dim=16, depth=1, num_heads=2).eval()
    for frames in (16, 48, 101):
        assert model(spectrograms(frames)).shape == (2, 5)
    features = model.forward_features(spectrograms())
    steps = stride if isinstance(stride, tuple) else (stride or 16,) * 2
    assert features.shape[1] == 1 + distilled + (16 // steps[0] + 1) * (32 // steps[1] + 1)
    expected = features[:, : 1 + distilled].mean(1)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)
    with pytest.raises(UserError, match="shape \\(2, 15, 32\\)"):
        model(spectrograms(15))


def test_a_token_of_a_wave_sees_the_past_alone() -> None:
    torch.manual_seed(0)
    model = WaveMamba(num_classes=5, embed_dim=16, depth=1, strides=(2, 5), causal=True).eval()
    x = waves(100)
    changed = x.clone()
    changed[:, 50:] += 1.0
    found = [model.forward_features(sound) for sound in (x, changed)]
    torch.testing.assert_close(found[0][:, :5], found[1][:, :5])
    assert found[0].shape == (2, 10, 16)
    assert (found[0][:, 5] - found[1][:, 5]).abs().max() > 1e-3
    with pytest.raises(UserError, match="9 samples is shorter than a token's 10"):
        model(waves(9))
    with pytest.raises(UserError, match="shape \\(2, 1, 100\\)"):
        model(x[:, None])
    with pytest.raises(UserError, match="strides are \\(\\)"):
        WaveMamba(strides=())


def released(model: AudioMamba) -> dict[str, Tensor]:
    """Our weights as the reference stores them: the class tokens' positions in front."""
    state = {f"module.{key}": x for key, x in model.state_dict().items() if key != "pos_embed"}
    layout, positions = model.layout, model.state_dict()["pos_embed"]
    state["module.pos_embed.pos_embed"] = torch.cat([layout.class_tokens(positions), layout.patches(positions)], dim=1)
    return state


@pytest.mark.parametrize("place", PLACES)
def test_released_weights_load_and_their_positions_are_resized(place: str) -> None:
    model = build(class_token=place)
    same = build(class_token=place, bimamba_type="v2")
    same.load_state_dict(adapt_audio_mamba({"model": released(model)}, same))
    torch.testing.assert_close(same(spectrograms()), model(spectrograms()))
    longer = build(class_token=place, frames=96)
    longer.load_state_dict(adapt_audio_mamba(released(model), longer))
    torch.testing.assert_close(longer(spectrograms(96)), model(spectrograms(96)))
    own = build(class_token=place)
    own.load_state_dict(adapt_audio_mamba(model.state_dict(), own))
    assert torch.equal(own.pos_embed, model.pos_embed)


def test_weights_of_another_model_are_refused() -> None:
    state = released(build())
    for options, message in (
        ({"bimamba_type": "v1"}, "unexpected in the state dict: .*conv1d_b"),
        ({"depth": 3}, "missing in the state dict: layers.2"),
        ({"num_classes": 6}, "head.bias has shape"),
        ({"order": "time"}, "the checkpoint reads band by band"),
        ({"mels": 80}, "no whole number for 5 bands"),
    ):
        with pytest.raises(UserError, match=message):
            adapt_audio_mamba(state, build(**options))


@pytest.mark.parametrize("order", ["frequency", "time"])
@pytest.mark.parametrize("place", ["middle", "end"])
def test_vision_mambas_weights_start_an_audio_mamba(order: Any, place: str) -> None:
    torch.manual_seed(1)
    image_model = Vim(img_size=32, patch_size=16, embed_dim=16, depth=2, num_classes=3).eval()
    model = build(order=order, class_token=place, frames=32)
    head = model.head.weight.clone()
    model.load_state_dict(adapt_vision_mamba({"model": image_model.state_dict()}, model))
    assert torch.equal(model.head.weight, head)
    # A grey image is a spectrogram of as many bands and frames; the colours' mean sees a third of their sum.
    x = spectrograms(32)
    grey = x.mT[:, None].expand(-1, 3, -1, -1)
    expected = image_model.patch_embed(grey / 3)
    found = model.patch_embed(model._image(x))
    torch.testing.assert_close(found if order == "frequency" else found.mT, expected, rtol=1e-4, atol=1e-5)
    positions, theirs = (m.layout.patches(m.pos_embed).unflatten(1, (2, 2)) for m in (model, image_model))
    assert torch.equal(positions if order == "frequency" else positions.transpose(1, 2), theirs)
    assert torch.equal(
        model.layout.class_tokens(model.pos_embed), image_model.layout.class_tokens(image_model.pos_embed)
    )
    if place == "middle" and order == "frequency":
        with torch.no_grad():
            image_model.patch_embed.proj.weight /= 3
        torch.testing.assert_close(model.forward_features(x), image_model.forward_features(grey), rtol=1e-4, atol=1e-5)


def test_vision_mambas_weights_are_resized_to_other_patches_and_grids() -> None:
    image_model = Vim(img_size=(48, 32), patch_size=8, embed_dim=16, depth=2, num_classes=3)
    model = build(frames=96, patch_size=(16, 8))
    with pytest.raises(UserError, match="24 patches, which are no square; name its grid"):
        adapt_vision_mamba(image_model.state_dict(), model)
    model.load_state_dict(adapt_vision_mamba(image_model.state_dict(), model, grid=(6, 4)))
    positions = image_model.layout.patches(image_model.pos_embed).unflatten(1, (6, 4)).movedim(-1, 1)
    expected = torch.nn.functional.interpolate(positions, (2, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.layout.patches(model.pos_embed), expected.flatten(2).mT)
    with pytest.raises(UserError, match="missing in the state dict"):
        adapt_vision_mamba(image_model.state_dict(), build(depth=3), grid=(6, 4))
    without = build(pos_embed=False)
    assert "pos_embed" not in adapt_vision_mamba(image_model.state_dict(), without)


def test_published_transformers_load_without_their_image_classifiers() -> None:
    options: dict[str, Any] = {"num_classes": 5, "distilled": True, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model, longer = (AST(frames, 32, stride=10, **options).eval() for frames in (48, 96))
    theirs = {f"module.{key}": x for key, x in model.state_dict().items()}
    theirs |= {
        f"module.v.{head}.{kind}": torch.zeros(3) for head in ("head", "head_dist") for kind in ("weight", "bias")
    }
    same = AST(48, 32, stride=10, **options).eval()
    same.load_state_dict(adapt_transformer(theirs, same))
    torch.testing.assert_close(same(spectrograms()), model(spectrograms()))
    longer.load_state_dict(adapt_transformer(theirs, longer))
    assert longer.v.pos_embed.shape == (1, 2 + 2 * 9, 16)
    assert torch.equal(longer.v.pos_embed[:, :2], model.v.pos_embed[:, :2])
    with pytest.raises(UserError, match=r"AST: missing in the state dict: v\.blocks\.1"):
        adapt_transformer(theirs, AST(48, 32, stride=10, **{**options, "depth": 2}))
    with pytest.raises(UserError, match="10 positions, no whole number for 7 bands"):
        adapt_transformer(theirs, AST(48, 80, stride=10, **options))


def test_names_and_options_that_are_not_known_are_refused() -> None:
    with pytest.raises(UserError, match="unknown audio model 'aum_tiny_bib'; did you mean 'aum_tiny_bibi'"):
        create_model("aum_tiny_bib")
    for name in ("aum_nano_bibi", "ast_nano", "wave_nano"):
        with pytest.raises(UserError, match=f"{name}: .*unexpected keyword argument 'depht'"):
            create_model(name, depht=3)


@pytest.mark.slow
def test_the_backbone_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    model: AudioModel = create_model("aum_nano_fobi", 5, seconds=0.5, depth=1)
    compiled = torch.compile(model.backbone, fullgraph=True, backend="aot_eager")
    x = model.frontend(waves(8000))
    torch.testing.assert_close(compiled(x), model.backbone(x))


def test_waves_in_silence_have_gradients_of_a_size() -> None:
    torch.manual_seed(0)
    model = create_model("wave_nano", 5, seconds=0.5, depth=2)
    wave_BS = torch.zeros(2, 8000)
    wave_BS[:, :2000] = 0.05 * torch.randn(2, 2000)
    tokens_BLD = model.backbone.patch_embed(wave_BS[:, None, None]).flatten(2).mT  # type: ignore[operator]
    heard_BLD = tokens_BLD[:, :10]
    # What differs from moment to moment is as large as what does not.
    assert heard_BLD.std(dim=1).mean() > 0.5 * heard_BLD.std()
    model(wave_BS).logsumexp(dim=1).sum().backward()
    assert max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None) < 100
