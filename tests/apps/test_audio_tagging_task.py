"""Training models of sound: data in parts, losses, augmentation, weights to start from, scores, the page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import soundfile
import timm
import torch
from torch import Tensor

from mamba_apps.audio import AudioMamba, create_model
from mamba_apps.audio.tagging import AudioData, AudioTagger, AudioTask
from mamba_apps.audio.tagging.augment import SoundAugment
from mamba_apps.audio.tagging.loading import BalancedDraw, CutClips
from mamba_apps.audio.tagging.network import make_network
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_apps.audio.tagging.scores import ClipScores, clip_loss, d_prime, per_class
from mamba_apps.errors import UserError
from mamba_apps.training import load_weights, make_trainer, save_model, seed_everything
from mamba_datasets.audio import ClipSet, Place
from mamba_datasets.errors import DataError
from mamba_datasets.samples.sounds import make_sound

OPTIONS = {"mels": 32, "patch_size": [32, 4], "depth": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return tones and noise in a folder a class, ten of each."""
    root = tmp_path_factory.mktemp("sounds")
    for name in ("noise", "tone"):
        (root / name).mkdir()
        for number in range(10):
            soundfile.write(root / name / f"{number}.wav", make_sound(name, number), 16000)
    return root


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    """Return a multi-label table of them, with a class that no training sound has."""
    rows = ["path,label,split"]
    for number in range(10):
        split = "train" if number < 7 else "test"
        rows.append(f"noise/{number}.wav,noise;loud,{split}")
        rows.append(f"tone/{number}.wav,tone,{split}")
    rows[-1] = rows[-1].replace("tone,test", "tone;rare,test")
    path = folder / "labels.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def data_of(folder: Path, **changes: Any) -> AudioData:
    settings = {"val": 0.2, "test": 0.2, "seconds": 0.3, "batch_size": 4, "statistics": (-7.0, 4.0), **changes}
    return AudioData(str(folder), **settings)


def task_of(name: str = "aum_nano_bibi", **changes: Any) -> AudioTask:
    return AudioTask(name, model_options=dict(OPTIONS) if not name.startswith("wave") else {"depth": 2}, **changes)


def run(task: AudioTask, data: AudioData, folder: Path, **options: Any) -> dict[str, float]:
    limits = {"max_steps": 2, **options}
    trainer = make_trainer(run_dir=folder, accelerator="cpu", progress=False, **limits)
    trainer.fit(task, datamodule=data)
    (found,) = trainer.test(task, datamodule=data, verbose=False)
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("name", ["aum_nano_fobi", "aum_nano_causal", "wave_nano", "ast_nano"])
def test_every_kind_of_model_trains_and_is_heard_again(name: str, folder: Path, tmp_path: Path) -> None:
    data = data_of(folder)
    everything = {
        "mixup": 0.5,
        "mask_frequency": 4,
        "mask_time": 4,
        "shift": 3,
        "gain": 6.0,
        "speed": 0.1,
        "layer_decay": 0.8,
        "ema": 0.9,
    }
    task = task_of(name, **everything)
    found = run(task, data, tmp_path / "run", monitor="val/accuracy", mode="max")
    assert set(found) == {"test/loss", "test/accuracy"}
    save_model(tmp_path / "model", task, task.model_card(data, found))
    tagger = AudioTagger.load(tmp_path / "model", device="cpu")
    assert tagger.labels == ["noise", "tone"]
    paths = [place.path for place in data.parts["test"].places]
    right = [tags.label == Path(tags.sound).parent.name for tags in tagger.tag_files(paths)]
    assert 100 * sum(right) / len(right) == pytest.approx(found["test/accuracy"])


@pytest.mark.parametrize("seconds", [0.3, 0.1])
def test_sounds_from_the_disk_are_cut_as_those_in_memory(seconds: float, folder: Path) -> None:
    memory, disk = (data_of(folder, in_memory=in_memory, workers=0, seconds=seconds) for in_memory in (True, False))
    for kept, read in zip(memory.test_dataloader(), disk.test_dataloader(), strict=True):
        for ours, theirs in zip(memory.on_after_batch_transfer(kept, 0), read, strict=True):
            assert torch.equal(ours, theirs)
    assert len(disk.on_after_batch_transfer(next(iter(disk.train_dataloader())), 0).wave_BS) == 4


def test_more_sounds_than_memory_may_take_are_refused(folder: Path) -> None:
    data = data_of(folder, memory_gib=1e-5)
    with pytest.raises(UserError, match=r"of its \d+ sounds fill the 1e-05 GiB .*--data.in_memory false"):
        data.train_dataloader()


def test_a_multi_label_table_is_ranked_and_a_class_without_a_sound_is_said(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = AudioData(
        str(table), options={"multilabel": True}, seconds=0.3, batch_size=4, statistics="audioset", balanced=True
    )
    assert data.multilabel
    task = task_of()
    with caplog.at_level(logging.WARNING, logger="mamba_apps"):
        found = run(task, data, tmp_path / "run")
    assert set(found) == {"test/loss", "test/map", "test/mauc", "test/d_prime", "test/scored_classes"}
    assert found["test/scored_classes"] == 4
    card = task.model_card(data, found)
    assert card.preprocessing["binary"] is True
    assert "no clip here" in "".join(caplog.messages) or found["test/scored_classes"] == len(data.classes)
    with pytest.raises(UserError, match="loss is cross_entropy, but sounds have several classes"):
        task_of(loss="cross_entropy").prepare_for(data)


def test_scores_of_single_classes() -> None:
    scores = ClipScores(list("abcdef"), multilabel=False)
    probability = torch.eye(6)[[0, 1, 2, 3]] + torch.linspace(0.06, 0.01, 6)
    scores.update(probability[:2], torch.tensor([0, 2]))
    scores.update(probability[2:], torch.tensor([2, 3]))
    assert {name: float(value) for name, value in scores.compute().items()} == {"accuracy": 75.0, "top5": 100.0}
    found = per_class(probability, torch.tensor([0, 2, 2, 3]))
    assert found["recall"].tolist()[:4:2] == [1.0, 0.5]
    assert found["clips"].tolist() == [1, 0, 2, 1, 0, 0]


def test_scores_of_several_classes_leave_out_what_cannot_be_ranked(caplog: pytest.LogCaptureFixture) -> None:
    scores = ClipScores(["a", "b", "never", "always"], multilabel=True)
    probability = torch.tensor([[0.9, 0.2, 0.5, 0.5], [0.8, 0.7, 0.1, 0.5], [0.3, 0.6, 0.2, 0.1]])
    target = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1]])
    scores.update(probability, target)
    with caplog.at_level(logging.WARNING):
        found = {name: float(value) for name, value in scores.compute().items()}
        scores.compute()
    # a: places 1 and 3 of its ranking, precision (1 + 2/3) / 2, one of two pairs in order; b: perfect
    assert found["map"] == pytest.approx(100 * (5 / 6 + 1) / 2, abs=1e-3)
    assert found["mauc"] == pytest.approx((0.5 + 1) / 2)
    assert found["d_prime"] == pytest.approx(0.9539, abs=1e-3)
    assert found["scored_classes"] == 2
    assert len(caplog.records) == 1
    assert "2 of 4 classes have no clip here, or all of them" in caplog.text
    single = per_class(probability, target)
    assert single["average precision"][:2].tolist() == pytest.approx([5 / 6, 1.0])
    assert all(value != value for value in single["average precision"][2:])


def test_d_prime_of_a_perfect_ranking_is_finite() -> None:
    assert torch.isfinite(d_prime(torch.tensor(1.0)))
    assert float(d_prime(torch.tensor(0.5))) == pytest.approx(0, abs=1e-6)


def test_the_loss_of_clips() -> None:
    probability, target = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([0, 1])
    assert float(clip_loss(probability, target, binary=False)) == pytest.approx(
        -(0.5 * torch.tensor([0.5, 0.1]).log().sum())
    )
    hot = torch.nn.functional.one_hot(target).float()
    expected = torch.nn.functional.binary_cross_entropy(probability, hot)
    assert float(clip_loss(probability, target, binary=True)) == pytest.approx(float(expected))


def test_balanced_draws_take_each_class_as_often() -> None:
    places = [Place(str(n), (0,)) for n in range(9)] + [Place("x", (1,))]
    draw = BalancedDraw(ClipSet(places, ["often", "once"], rate=8000))
    torch.manual_seed(0)
    drawn = [draw(0) for _ in range(2000)]
    assert 0.45 < sum(number == 9 for number in drawn) / 2000 < 0.55
    assert set(drawn) == set(range(10))


def test_augmentation_keeps_what_it_should() -> None:
    torch.manual_seed(0)
    wave, lengths = torch.randn(8, 1000), torch.full((8,), 800)
    wave[:, 800:] = 0
    target = torch.eye(8)
    mixed, _, soft = SoundAugment(mixup=1.0).waves(wave, lengths, target)
    assert torch.allclose(soft.sum(dim=1), torch.ones(8))
    assert ((soft > 0).sum(dim=1) <= 2).all()
    for row in range(8):
        torch.testing.assert_close(mixed[row], soft[row] @ wave, atol=1e-5, rtol=1e-5)
    louder, _, same = SoundAugment(gain=6.0).waves(wave, lengths, target)
    ratio = (louder[:, :800] / wave[:, :800]).log10().mul(20)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-3)
    assert 1 < ratio.abs().max() <= 6.001
    assert same is target
    faster, shorter, _ = SoundAugment(speed=0.2).waves(wave, lengths, target)
    assert faster.shape == wave.shape
    for row, length in enumerate(shorter.tolist()):
        assert 800 / 1.2 - 2 <= length <= 1000
        assert not faster[row, min(length + 1, 1000) :].any()
    x = torch.arange(8 * 20 * 16.0).reshape(8, 20, 16) + 1
    moved = SoundAugment(shift=5).spectrograms(x, 0.0)
    assert all(any(torch.equal(moved[row], x[row].roll(step, 0)) for step in range(-5, 6)) for row in range(8))
    masked = SoundAugment(mask_frequency=6, mask_time=5).spectrograms(x, -1.0)
    assert ((masked == x) | (masked == -1)).all()
    assert (masked == -1).any()


def test_random_clips_from_the_disk_lie_within_their_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "ramp.wav", torch.linspace(0, 0.9, 8000).numpy(), 8000, subtype="FLOAT")
    clips = ClipSet([Place(str(tmp_path / "ramp.wav"), (0,))], ["a", "b"], rate=8000)
    cut = CutClips(clips, ClipPolicy(8000, 0.25), random=True)
    starts = {round(float(cut[0].wave_BS[0, 0]), 3) for _ in range(12)}
    assert len(starts) > 6
    assert cut[0].wave_BS.shape == (1, 2000)


def test_weights_of_vision_mamba_and_of_runs_start_a_model(folder: Path, tmp_path: Path) -> None:
    arguments = {"num_classes": 5, "seconds": 1.28, "depth": 2, "patch_size": 16}
    image = timm.create_model("vim_tiny_patch16_224", depth=2, num_classes=7)
    torch.save({"model": image.state_dict()}, tmp_path / "vim.pth")
    network = make_network("aum_tiny_bibi", arguments, str(tmp_path / "vim.pth"))
    own, theirs = network.backbone.state_dict(), image.state_dict()
    assert torch.equal(own["layers.1.mixer.in_proj.weight"], theirs["layers.1.mixer.in_proj.weight"])
    assert own["head.weight"].shape[0] == 5
    released = create_model("aum_tiny_bibi", **{**arguments, "num_classes": 9, "seconds": 2.56}).backbone
    torch.save(released.state_dict(), tmp_path / "aum.pth")
    network = make_network("aum_tiny_bibi", arguments, str(tmp_path / "aum.pth"))
    assert torch.equal(network.backbone.state_dict()["norm_f.weight"], released.state_dict()["norm_f.weight"])
    assert isinstance(network.backbone, AudioMamba)

    data = data_of(folder, val=None, test=0.2)
    task = task_of()
    run(task, data, tmp_path / "first")
    save_model(tmp_path / "first" / "model", task, task.model_card(data, {}))
    saved = load_weights(tmp_path / "first" / "model")
    probe = task_of(weights=str(tmp_path / "first"), linear_probe=True, lr=0.1)
    run(probe, data, tmp_path / "probe")
    changed = {name for name, value in probe.state_dict().items() if not torch.equal(value, saved[name])}
    assert changed == {"network.backbone.head.weight", "network.backbone.head.bias"}
    with pytest.raises(UserError, match=r"train what the run has: --model.model aum_nano_.* --model.model_opt"):
        make_network("aum_micro_fofo", {"num_classes": 2, "seconds": 1.0}, str(tmp_path / "first"))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("none.pth", "there is no such file or folder"),
        ("text.pth", r"text.pth: cannot be read as weights \(\w+\); give a .safetensors"),
        ("objects.pth", r"objects.pth: cannot be read as weights \(\w+\); give a .safetensors"),
        ("vim_tiny_patch16_224", r"'released' of 'vim_tiny_patch16_224' cannot be had .*no network.*weights FILE"),
        ("list.pth", "holds a list, expected a state dict"),
        ("other.pth", "unexpected in the state dict|missing in the state dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    weights: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(1, 1), tmp_path / "objects.pth")
    (tmp_path / "text.pth").write_text("hello", encoding="utf-8")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=says):
        make_network("aum_nano_bibi", {"num_classes": 2, "seconds": 1.0}, weights)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "aum_nano"}, "there is no audio model 'aum_nano'; did you mean"),
        ({"lr": 0}, "lr is 0"),
        ({"layer_decay": 2}, "layer_decay is 2"),
        ({"head_warmup": 1}, "head_warmup is 1"),
        ({"mixup": 2}, "mixup is 2"),
        ({"mixup_alpha": 0}, "mixup_alpha is 0"),
        ({"mask_time": -1}, "mask_time is -1"),
        ({"speed": 1}, "speed is 1"),
        ({"ema": 1.0}, "the decay of the weights' average"),
        ({"weight_decay": -1}, "weight_decay is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        AudioTask(**{"model": "aum_nano_bibi", **settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"statistics": "esc"}, "statistics is 'esc'"),
        ({"val": 1.5}, "val is 1.5"),
        ({"val": 0.5, "test": 0.6}, "hold back parts that leave something"),
        ({"fold": 1, "test": 0.2}, "give one of them"),
        ({"fold": 1, "test": None}, "fold 1"),
        ({"fold": "seed", "test": None}, "in no folds"),
        ({"val": "later"}, "split 'later'"),
        ({"layout": "foldr"}, "there is no layout 'foldr'"),
        ({"options": {"tabel": "x"}}, "takes no 'tabel'"),
    ],
)
def test_data_settings_that_mean_nothing_are_refused(settings: dict[str, Any], says: str, folder: Path) -> None:
    with pytest.raises((UserError, DataError), match=says):
        _ = data_of(folder, **settings).parts


def test_a_head_that_warms_up_needs_weights_and_data_a_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights to start from"):
        run(task_of(linear_probe=True), data_of(folder), tmp_path)
    with pytest.raises(DataError, match="name their folder"):
        _ = AudioData().classes


def test_each_seed_tests_a_fold_of_its_own(folder: Path, tmp_path: Path) -> None:
    rows = ["path,label,fold"]
    rows += [f"{folder}/{name}/{n}.wav,{name},{1 + n % 3}" for n in range(10) for name in ("noise", "tone")]
    (folder / "folds.csv").write_text("\n".join(row.replace(f"{folder}/", "") for row in rows) + "\n", encoding="utf-8")
    found = []
    for seed in (1, 2, 3, 4):
        torch.manual_seed(seed)
        parts = AudioData(str(folder / "folds.csv"), fold="seed").parts
        assert len(parts["train"]) + len(parts["test"]) == 20
        found.append(set(parts["test"].folds or ()))
    assert found == [{1}, {2}, {3}, {1}]


def test_statistics_are_those_of_the_training_sounds(folder: Path) -> None:
    data = data_of(folder, statistics=None)
    mean, std = data.statistics(32)
    network = create_model("aum_nano_bibi", 2, seconds=None, mels=32, mean=0.0, std=0.5, depth=1)
    logs: list[Tensor] = []
    for index in range(len(data.parts["train"])):
        wave = data.parts["train"].read(index, seconds=0.3).samples_S
        logs.append(network.frontend(wave[None]).flatten())
    everything = torch.cat(logs)
    assert mean == pytest.approx(float(everything.mean()), abs=1e-3)
    assert std == pytest.approx(float(everything.std(correction=0)), abs=1e-3)


def test_the_page_shows_what_is_confused_and_the_hardest_sounds(folder: Path, table: Path) -> None:
    data = data_of(folder, test=0.3)
    task = task_of()
    task.prepare_for(data)
    count = len(data.parts["test"])
    probability = torch.softmax(torch.randn(count, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    predictions = [{"probability": probability, "class": data.parts["test"].labels}]
    page = task.page(data, predictions, {"test/accuracy": 50.0})
    assert page.count("<img") == count
    assert 'class="matrix"' in page
    assert "<b>noise</b>, heard as" in page
    several = AudioData(str(table), options={"multilabel": True}, seconds=0.3, statistics=(-7.0, 4.0))
    task = task_of()
    task.prepare_for(several)
    clips = several.parts["test"]
    predictions = [{"probability": torch.rand(len(clips), len(several.classes)), "class": clips.labels}]
    page = task.page(several, predictions, {})
    assert "average precision" in page
    assert 'class="matrix"' not in page


def test_lengths_are_measured_where_none_is_given(folder: Path) -> None:
    data = data_of(folder, seconds=None)
    lengths = sorted(data.parts["train"].seconds(index) for index in range(len(data.parts["train"])))
    assert lengths[-2] <= data.policy.seconds <= lengths[-1] + 0.1
    assert data.describe().endswith(f"2 classes, {data.policy.seconds:g} s at 16000 Hz")


def test_parts_of_its_own_are_a_set_s_test(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for name in ("noise", "tone"):
            (tmp_path / part / name).mkdir()
            for number in range(4):
                soundfile.write(tmp_path / part / name / f"{number}.wav", make_sound(name, number), 16000)
    with caplog.at_level(logging.WARNING):
        parts = data_of(tmp_path, val=0.25, test=0.25).parts
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "val": 2, "test": 8}
    assert "own part 'test' is used" in caplog.text
    parts = data_of(folder, val=0.2, test=0.5).parts
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "val": 4, "test": 10}


class _Interrupt(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(folder: Path, tmp_path: Path) -> None:
    found = []
    for name, callbacks in (("whole", []), ("broken", [_Interrupt()])):
        seed_everything(1)
        everything = {"mixup": 0.5, "mask_frequency": 4, "mask_time": 4, "shift": 3, "gain": 6.0, "speed": 0.1}
        task = task_of(ema=0.9, **everything)
        limits = {"max_steps": 6, "accelerator": "cpu", "progress": False, "seed": 1}
        trainer = make_trainer(run_dir=tmp_path / name, callbacks=callbacks, **limits)
        if callbacks:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(task, datamodule=data_of(folder))
            torch.manual_seed(7)
            task = task_of(ema=0.9, **everything)
            trainer = make_trainer(run_dir=tmp_path / name, resume=True, **limits)
        trainer.fit(task, datamodule=data_of(folder))
        found.append(task.state_dict())
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key
