"""Training a classifier: what learns at which rate, targets, averages, weights to start from, what is refused."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file, save_file
from timm.optim import Lamb
from torch import nn
from torch.optim import AdamW

from mamba_apps.errors import UserError
from mamba_apps.training import load_card, make_trainer, save_model
from mamba_apps.training.ema import follow
from mamba_apps.training.muon import Muon
from mamba_apps.training.optimiser import backbone_rate, head_of, make_optimiser
from mamba_apps.training.schedule import rate_factor
from mamba_apps.vision.classification import ClassificationTask, SmallImageData
from mamba_apps.vision.weights import create_model

MODEL = "deit_nano_patch2_8"
OPTIONS: dict[str, Any] = {"depth": 2, "embed_dim": 16}


def digits(**options: Any) -> SmallImageData:
    settings = {"val": 0.1, "test": 0.6, "train": None, "size": 8, "batch_size": 64, "shift": 1, "hflip": 0.0}
    return SmallImageData("digits", **{**settings, **options})


def task(**options: Any) -> ClassificationTask:
    return ClassificationTask(MODEL, model_options=OPTIONS, **options)


def fit(folder: Path, module: ClassificationTask, data: SmallImageData, steps: int = 4, **options: Any) -> Any:
    options = {"monitor": "val/top1", "mode": "max", "accelerator": "cpu", "progress": False, **options}
    trainer = make_trainer(run_dir=folder, max_steps=steps, val_check_interval=2, **options)
    trainer.fit(module, datamodule=data)
    return trainer


def save(folder: Path, module: ClassificationTask, data: SmallImageData) -> Path:
    return save_model(folder, module, module.model_card(data, {"val/top1": 50.0}))


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_scores_in_per_cent_and_a_curve(tmp_path: Path) -> None:
    module, data = task(label_smoothing=0.1, mixup=0.8, cutmix=1.0), digits()
    trainer = fit(tmp_path, module, data)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    assert set(found) == {"test/loss", "test/top1", "test/top5"}
    assert 0 < found["test/top1"] <= found["test/top5"] <= 100
    (panel,) = module.plots(data)
    assert list(panel.x) == [2, 4]
    assert list(panel.lines) == [MODEL]
    predicted = trainer.predict(module, datamodule=data)[0]
    torch.testing.assert_close(predicted["probability"].sum(dim=-1), torch.ones(512))


def test_mixed_targets_are_timm_s() -> None:
    module = task(classes=10, size=8, mixup=0.8, label_smoothing=0.1)
    assert module._mix is not None
    _, targets_BK = module._mix(torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 4]))
    assert targets_BK.shape == (4, 10)
    torch.testing.assert_close(targets_BK.sum(dim=-1), torch.ones(4))
    module.log = lambda *args, **options: None  # type: ignore[method-assign, assignment]
    odd = module.training_step((torch.rand(5, 3, 8, 8), torch.arange(5)), 0)
    assert torch.isfinite(odd)


@pytest.mark.parametrize("name", [MODEL, "vim_nano_patch2_8", "vmamba_nano_8", "mambavision_nano_8"])
def test_layers_learn_at_their_rates(name: str) -> None:
    network = create_model(name, {"num_classes": 10})
    head = head_of(network)
    optimiser, are_head = make_optimiser(network, lr=1.0, weight_decay=0.1, layer_decay=0.5, betas=(0.9, 0.999))
    groups = optimiser.param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    own = {id(parameter) for parameter in head.parameters()}
    spared = network.no_weight_decay() if hasattr(network, "no_weight_decay") else set()
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    for group, is_head in zip(groups, are_head, strict=True):
        assert all((id(parameter) in own) == is_head for parameter in group["params"])
        assert group["lr"] == 1.0 if is_head else group["lr"] <= 1.0
        for parameter in group["params"]:
            decays = parameter.dim() > 1 and names[id(parameter)] not in spared
            assert group["weight_decay"] == (0.1 if decays else 0.0), names[id(parameter)]
    rates = sorted({group["lr"] for group in groups})
    assert len(rates) > 2
    assert all(low * 2 == pytest.approx(high) for low, high in itertools.pairwise(rates))


def test_layers_of_one_rate_are_one_group() -> None:
    network = create_model("vmamba_nano_8", {"num_classes": 10})
    optimiser, are_head = make_optimiser(network, lr=1e-3, weight_decay=0.1, layer_decay=1.0, betas=(0.9, 0.999))
    settings = [
        (group["weight_decay"], is_head) for group, is_head in zip(optimiser.param_groups, are_head, strict=True)
    ]
    assert sorted(settings) == [(0.0, False), (0.0, True), (0.1, False), (0.1, True)]


@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [
        ("cpu", "32-true"),
        ("cpu", "bf16-mixed"),
        pytest.param("gpu", "bf16-mixed", marks=pytest.mark.gpu),
        pytest.param("gpu", "16-mixed", marks=pytest.mark.gpu),
    ],
)
def test_gradients_are_clipped_before_a_fused_step(
    accelerator: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    class Look(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
            norms.extend([float(torch.nn.utils.get_total_norm(gradients))] if gradients else [])

    if accelerator == "cpu":  # where a step is not fused by itself
        monkeypatch.setattr("torch.optim.AdamW", lambda groups, **options: AdamW(groups, **{**options, "fused": True}))
    options = {"accelerator": accelerator, "precision": precision, "gradient_clip_val": 0.01}
    trainer = fit(tmp_path, task(), digits(), callbacks=[Look()], **options)
    assert all(group["fused"] for group in trainer.optimizers[0].param_groups)
    assert norms
    assert max(norms) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_gpu_trains_in_graphs(optimiser: str, tmp_path: Path) -> None:
    module = ClassificationTask("vmamba_nano_8", lr=3e-3, ema=0.9, optimiser=optimiser)
    options = {"accelerator": "gpu", "precision": "bf16-mixed", "graph": True, "gradient_clip_val": 1.0}
    trainer = fit(tmp_path, module, digits(), steps=100, **options)
    assert trainer.callback_metrics["val/top1"] > 50


class Stop(Callback):
    """Breaks a run off after two steps."""

    def on_train_batch_end(self, trainer: Trainer, *unused: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("stopped")


@pytest.mark.parametrize(("name", "kind"), [("lamb", Lamb), ("muon", Muon)])
def test_another_optimiser_learns_and_resumes_exactly(name: str, kind: type, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimiser": name, "lr": 0.01, "warmup": 0.0}
    fresh, whole = task(**options), task(**options)
    trainer = fit(tmp_path / "whole", whole, digits())
    assert isinstance(trainer.optimizers[0], kind)
    assert {group["weight_decay"] for group in trainer.optimizers[0].param_groups} == {0.0, 0.05}
    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="stopped"):
        fit(broken, fresh, digits(), save_every_steps=1, callbacks=[Stop()])
    resumed = task(**options)
    fit(broken, resumed, digits(), resume=True)
    begun = weights_of(fresh)
    for name, value in weights_of(whole).items():
        assert torch.equal(value, weights_of(resumed)[name]), name
    assert any(not torch.equal(value, begun[name]) for name, value in weights_of(resumed).items())


def test_the_backbone_waits_for_the_head() -> None:
    rate = backbone_rate(warmup=0.1, head_warmup=0.3)
    assert rate(0.0) == rate(0.29) == 0.0
    assert rate(0.35) == pytest.approx(0.5 * rate_factor(0.35, 0.1))
    assert rate(0.4) == rate_factor(0.4, 0.1)
    assert backbone_rate(0.1, 0.0)(0.05) == rate_factor(0.05, 0.1)


def test_head_warmup_moves_the_head_alone(tmp_path: Path) -> None:
    data = digits()
    saved = save(tmp_path / "saved", task(classes=10, size=8), data)
    module = task(head_warmup=0.75, weights=str(saved))
    module.prepare_for(data)
    before = weights_of(module.network)
    fit(tmp_path / "run", module, data, steps=3)
    moved = {name for name, value in module.network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_linear_probe_leaves_the_backbone_alone(tmp_path: Path) -> None:
    data = digits()
    saved = save(tmp_path / "saved", ClassificationTask("mambavision_nano_8", classes=10, size=8), data)
    module = ClassificationTask("mambavision_nano_8", weights=str(saved), linear_probe=True, lr=0.01)
    module.prepare_for(data)
    before = weights_of(module.network)
    fit(tmp_path / "run", module, data)
    changed = [name for name, value in module.network.state_dict().items() if not torch.equal(value, before[name])]
    assert sorted(changed) == ["head.bias", "head.weight"]
    assert not module.network.training


def test_the_average_is_what_is_tested_and_saved(tmp_path: Path) -> None:
    module, data = task(ema=0.9, lr=0.05), digits()
    trainer = fit(tmp_path, module, data, steps=6)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert set(best["state_dict"]) == set(best["current_model_state"])
    assert any(not torch.equal(best["state_dict"][k], v) for k, v in best["current_model_state"].items())
    (found,) = trainer.test(module, datamodule=data, ckpt_path=tmp_path / "best.ckpt", verbose=False, weights_only=True)
    assert all(torch.equal(value, best["state_dict"][name]) for name, value in module.state_dict().items())
    assert found["test/top1"] > 0


def test_the_average_follows_every_step_and_short_runs_average_over_less(tmp_path: Path) -> None:
    module = task(ema=0.5, lr=0.05)
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            seen.append(weights_of(pl_module))

    fit(tmp_path, module, digits(), steps=12, callbacks=[Watch()])
    expected = seen[0]
    for count, weights in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in weights.items()}
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(dict(saved["state_dict"]), expected)
    assert saved["averaging_state"]["n_averaged"] == 12


def test_averages_of_whole_numbers_are_the_latest() -> None:
    kept = [torch.zeros(2), torch.tensor(3)]
    follow(kept, [torch.ones(2), torch.tensor(8)], 0.75)
    assert [value.tolist() for value in kept] == [[0.25, 0.25], 8]


def test_saved_weights_start_another_task(tmp_path: Path) -> None:
    first = task(classes=10, size=8)
    saved = save(tmp_path / "saved", first, digits())
    again = task(classes=10, size=8, weights=str(saved))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    # other classes and a higher resolution: a new head, resized positions, the rest as it was
    other = task(classes=3, size=16, weights=str(saved))
    assert other.network(torch.randn(1, 3, 16, 16)).shape == (1, 3)
    assert other.network.pos_embed.shape[1] == 65
    name = "blocks.1.attn.qkv.weight"
    assert torch.equal(other.network.state_dict()[name], first.network.state_dict()[name])


def test_a_file_of_weights(tmp_path: Path) -> None:
    network = create_model(MODEL, {**OPTIONS, "num_classes": 10})
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = task(classes=10, size=8, weights=str(tmp_path / "w.safetensors"))
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in loaded.network.state_dict().items())
    with pytest.raises(UserError, match="the weights do not fit"):
        ClassificationTask(MODEL, classes=10, size=8, weights=str(tmp_path / "w.safetensors"))


def test_the_card_is_plain_and_complete(tmp_path: Path) -> None:
    module, data = task(), digits()
    module.prepare_for(data)
    card = load_card(save(tmp_path / "saved", module, data))
    assert (card.task, card.domain, card.model) == ("classification", "image", MODEL)
    assert card.arguments == {**OPTIONS, "img_size": 8, "num_classes": 10}
    assert card.labels == [str(digit) for digit in range(10)]
    assert card.preprocessing["size"] == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "vim_tinny_patch16_224"}, "did you mean 'vim_tiny_patch16_224'"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"optimiser": "lambda"}, "optimiser is 'lambda'; choose one of adamw, lamb"),
        ({"warmup": 1.0}, "warmup"),
        ({"head_warmup": -0.1}, "head_warmup"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mixup": -1.0}, "mixup"),
        ({"mix_prob": 1.5}, "mix_prob"),
        ({"mix_until": -0.5}, "mix_until"),
        ({"ema": 1.0}, "average is 1.0"),
        ({"classes": 1}, "there is 1 class"),
        ({"classes": 2, "model_options": {"depht": 2}}, "depht"),
        ({"classes": 2, "weights": "nowhere"}, "weights 'nowhere'"),
    ],
)
def test_wrong_settings(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ClassificationTask(**{"model": MODEL, "size": 8, **options})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"windows": [0]}, "windows (0,)"),
        ({"drop_path_rate": 2}, "drop_path_rate is 2"),
        ({"global_pool": "cubic"}, "'mambavision_nano_8': Invalid pool type: cubic; correct model_options"),
        ({"route": "zigzag"}, "unknown route 'zigzag'"),
    ],
)
def test_wrong_options_of_a_model_are_said_to_be_so(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        create_model("mambavision_nano_8", options)
    assert hasattr(caught.value, "remedy")


class Stranger:
    """What no file of weights may hold."""


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.pth", b"text", "cannot be read as weights"),
        ("w.safetensors", b"text", "cannot be read as weights (SafetensorError)"),
        ("w.pth", [torch.zeros(1)], "holds a list"),
        ("w.pth", {"model": Stranger()}, "cannot be read as weights (UnpicklingError)"),
    ],
)
def test_files_that_hold_no_weights_are_refused(name: str, content: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=re.escape(says)):
        create_model("vmamba_nano_8", {}, str(path))


@pytest.mark.parametrize("error", [URLError("no network"), LocalEntryNotFoundError("no network")])
def test_a_download_that_fails_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("timm.models._builder.load_pretrained", fetch)
    with pytest.raises(UserError, match=r"'released' of 'vmamba_micro_32' cannot be had .*no network.*weights FILE"):
        create_model("vmamba_micro_32", {}, "released")


@pytest.mark.parametrize("options", [{"linear_probe": True}, {"head_warmup": 0.1}])
def test_random_weights_are_not_fine_tuned(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights to start from"):
        fit(tmp_path, task(**options), digits())


def test_data_with_other_classes_is_refused() -> None:
    with pytest.raises(UserError, match="made for 3 classes, the data has 10"):
        task(classes=3, size=8).prepare_for(digits())


def test_two_classes_have_no_top5(tmp_path: Path) -> None:
    assert list(task(classes=2, size=8).scores) == ["top1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own import
def test_compiled_training_is_training(tmp_path: Path) -> None:
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = task(compile=compile)
        trainer = fit(tmp_path / str(compile), module, digits(), steps=2)
        losses.append(float(trainer.callback_metrics["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_end_of_the_budget_is_not_mixed(tmp_path: Path) -> None:
    module = task(mixup=0.8, mix_until=0.5)
    mixed: list[int] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            mix = pl_module._mix
            pl_module._mix = lambda x, labels: (mixed.append(trainer.global_step), mix(x, labels))[1]

    fit(tmp_path, module, digits(), steps=6, callbacks=[Watch()])
    assert mixed == [0, 1, 2]


def test_a_batch_of_one_is_not_mixed() -> None:
    module = task(classes=10, size=8, mixup=0.8)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for count in (1, 3):
        assert module.training_step((torch.randn(count, 3, 8, 8), torch.zeros(count, dtype=torch.long)), 0).isfinite()
