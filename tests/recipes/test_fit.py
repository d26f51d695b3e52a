"""Training from the command: run folders, saved models, resume, interrupts, and weights that cannot be used."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy_candidates import TOY_RECIPE, write_recipe

from mamba_recipes.cli import main

_TWO_BUDGETS = ("--trainer.max_epochs", "1", "--trainer.max_steps", "5")


@pytest.fixture
def trained(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["fit", str(toy_recipe), "--out", "run", "--json"]) == 0
    capsys.readouterr()
    return Path("run")


def test_fit_saves_a_model_and_says_what_to_type_next(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(toy_recipe), "--out", "run", "--trainer.max_epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("toy · ToyModule · 2 parameters · CPU (")
    assert lines[0].endswith("toy line, 384 points")
    assert lines[-3].startswith("best val_mae 0.")
    assert lines[-2:] == ["saved: run/model", "next:  mamba-apps test run"]
    assert len(lines) == 4
    assert {"recipe.yaml", "last.ckpt", "best.ckpt", "model"} <= {path.name for path in Path("run").iterdir()}
    card = json.loads(Path("run/model/model.json").read_text(encoding="utf-8"))
    assert card["domain"] == "toys"
    assert card["metrics"]["val_mae"] > 0


def test_the_default_folder_is_named_after_the_recipe_and_time(toy_recipe: Path) -> None:
    assert main(["fit", str(toy_recipe), "--trainer.max_epochs", "1"]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("toy-2")


def test_the_same_seed_gives_the_same_weights(toy_recipe: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert main(["fit", str(toy_recipe), "--out", name, "--seed", seed]) == 0
    first, same, other = (load_file(f"{name}/model/model.safetensors") for name in "abc")
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_test_validate_and_predict_use_the_saved_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "run"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[0] == "test_mae"
    assert main(["validate", "run", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    card = json.loads((trained / "model/model.json").read_text(encoding="utf-8"))
    assert metrics["val_mae"] == pytest.approx(card["metrics"]["val_mae"], rel=1e-6)
    assert main(["predict", "run", "--out", "p.safetensors"]) == 0
    assert capsys.readouterr().out == "p.safetensors: prediction 64 x 1\n"
    assert load_file("p.safetensors")["prediction"].shape == (64, 1)
    for source in ("run", "run/model", "run/best.ckpt"):
        assert main(["test", "toy.yaml", "--model", source]) == 0
        assert capsys.readouterr().out == out


def test_a_run_repeats_from_its_own_recipe(trained: Path) -> None:
    assert main(["fit", "run/recipe.yaml", "--out", "again"]) == 0
    first, again = (load_file(f"{name}/model/model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_resume_goes_on_where_the_run_stopped(toy_recipe: Path) -> None:
    assert main(["fit", str(toy_recipe), "--out", "whole", "--trainer.max_epochs", "4"]) == 0
    assert main(["fit", str(toy_recipe), "--out", "parts", "--trainer.max_epochs", "2"]) == 0
    assert main(["fit", "--resume", "parts", "--trainer.max_epochs", "4"]) == 0
    whole, parts = (torch.load(f"{name}/last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 32
    assert all(torch.equal(whole["state_dict"][key], parts["state_dict"][key]) for key in whole["state_dict"])


def test_show_config_prints_the_recipe_with_settings(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(toy_recipe), "--model.lr", "0.5", "--seed", "9", "--show-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["lr"] == 0.5
    assert config["seed_everything"] == 9
    assert list(Path().iterdir()) == [Path("toy.yaml")]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut, empty, remove])
@pytest.mark.parametrize("name", ["model/model.safetensors", "best.ckpt"])
def test_damaged_weights_are_refused(
    name: str, damage: object, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(trained / name)  # type: ignore[operator]
    source = trained / name if name.endswith(".ckpt") else trained
    assert main(["test", "toy.yaml", "--model", str(source)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert name.rpartition("/")[2] in captured.err


def test_a_damaged_card_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "model/model.json").write_text("{not json", encoding="utf-8")
    assert main(["test", "run"]) == 2
    assert "model.json is not valid JSON" in capsys.readouterr().err


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("code-ran",)


@pytest.mark.parametrize("with_checksum", [True, False])
def test_a_pickle_that_wants_to_run_code_does_not(
    with_checksum: bool, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained / "evil.ckpt"
    if with_checksum:
        torch.save({"state_dict": _RunsCode()}, path)
        import hashlib

        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name("evil.ckpt.sha256").write_text(f"{digest}  evil.ckpt\n", encoding="utf-8")
    else:
        path.write_bytes(pickle.dumps(_RunsCode()))
    assert main(["test", "toy.yaml", "--model", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "evil.ckpt" in err
    assert not Path("code-ran").exists()


def test_weights_of_another_model_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "toy.yaml", "--model", "run", "--model.width", "8"]) == 2
    err = capsys.readouterr().err
    assert "run: the weights do not fit the recipe's model: " in err
    assert "name the recipe they were trained by" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fit", "toy.yaml", "--out", "run"], "run already holds a run; continue it with --resume run"),
        (["fit", "toy.yaml", "--resume", "run"], "fit needs a recipe or --resume DIR"),
        (["fit", "toy.yaml", "--out", "toy.yaml/x"], "toy.yaml"),
        (["fit", "toy.yaml", *_TWO_BUDGETS], "exactly one budget, found max_epochs and max_steps"),
        (["fit", "toy.yaml", "--seed", "-1"], "seed is -1"),
        (["test", "toy.yaml"], "recipe 'toy' has no trained weights of its own"),
        (["test", "."], "holds no run"),
        (["predict", "run", "--out", "run"], "run is a folder; give a file"),
        (["predict", "run", "--out", "toy.yaml/x.safetensors"], "cannot write to the folder of --out"),
        (["predict", "toy.yaml", "--model", "run/last.ckpt", "--out", "run/last.ckpt"], "would overwrite what is read"),
        (["predict", "run", "--out", "run/model/model.safetensors"], "would overwrite what is read"),
        (["predict", "run", "--out", "run/best.ckpt"], "would overwrite what is read"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], says: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("mamba-apps: error: ") or "\nmamba-apps: error: " in err


def test_a_loss_that_explodes_stops_with_one_line(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(toy_recipe), "--out", "run", "--model.lr", "1e38", "--model.width", "4"]) == 2
    err = capsys.readouterr().err
    assert "not finite" in err or "is nan" in err or "is inf" in err
    assert not Path("run/model").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trainer.monitor", "val_loss", "--trainer.mode", "min"], "'val_loss' was not logged (logged: val_mae)"),
        (["--trainer.monitor", "val_loss"], "which values of it are better; add --trainer.mode min"),
    ],
)
def test_a_metric_that_cannot_be_monitored_is_refused_before_training(
    words: list[str], says: str, toy_recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr("toy_candidates.ToyModule.training_step", trained)
    assert main(["fit", str(toy_recipe), "--out", "run", *words]) == 2
    assert says in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_rehearsed_validation_changes_no_number(toy_recipe: Path) -> None:
    assert main(["fit", str(toy_recipe), "--out", "a"]) == 0
    assert main(["fit", str(toy_recipe), "--out", "b", "--trainer.monitor", "val_mae"]) == 0
    assert Path("a/metrics.csv").read_text() == Path("b/metrics.csv").read_text()
    first, same = (load_file(f"{name}/model/model.safetensors") for name in "ab")
    assert all(torch.equal(first[key], same[key]) for key in first)


def test_a_training_that_kept_nothing_leaves_nothing(toy_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["fit", str(toy_recipe), "--out", "new/run", "--trainer.max_epochs", "1"]
    assert main([*command, "--trainer.precision", "nosuch"]) == 2
    assert not Path("new/run").exists()

    def interrupted(*args: object, **kwargs: object) -> None:
        assert Path("new/run/recipe.yaml").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mamba_apps.training.trainer.RunTrainer.fit", interrupted)
        assert main(command) == 130
    assert not Path("new/run").exists()
    assert main(command) == 0


def test_a_resumed_run_keeps_the_name_of_its_recipe(trained: Path) -> None:
    before = (trained / "recipe.yaml").read_text(encoding="utf-8")
    assert main(["fit", "--resume", str(trained)]) == 0
    assert (trained / "recipe.yaml").read_text(encoding="utf-8") == before
    assert "# Recipe 'toy' as this run was trained." in before


def test_the_next_command_is_one_that_a_shell_understands(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(toy_recipe), "--out", "my run", "--trainer.max_epochs", "1"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "next:  mamba-apps test 'my run'"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("fit finetune", "there are no images yet; name their folder: --data.root DIR"),
        ("compare cifar10", "there are no images yet; name their folder: --data.root DIR"),
        ("fit segmentation", "there are no images yet; name the folder of images and masks: --data.root DIR"),
        ("fit sound_finetune", "there are no sounds yet; name their folder: --data.root DIR"),
        ("compare fsdd", "there are no sounds yet; name their folder: --data.root DIR"),
        ("fit umamba_enc_3d", "there are no volumes yet; name their folder: --data.root DIR"),
        ("fit umamba_bot_2d", "there are no volumes yet; name their folder: --data.root DIR"),
    ],
)
def test_a_recipe_without_its_data_says_so(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_can_be_resumed(
    sent: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, TOY_RECIPE.replace("lr: 5e-2", "lr: 5e-2, pause: 0.05"))
    program = "import sys, toy_candidates; from mamba_recipes.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "fit", str(path), "--out", "run", "--trainer.max_epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not Path("run/last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert main(["fit", "--resume", "run"]) == 2
    assert "another process trains in run; wait until it has ended" in capsys.readouterr().err
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "continue with: mamba-apps fit --resume run" in err.splitlines()[-2:]
    assert (err.splitlines()[-1] == "mamba-apps: interrupted") == (sent == signal.SIGINT)
    assert not Path("run/model").exists()
    leftovers = [
        p.name for p in Path("run").iterdir() if p.name.startswith(".") or p.name.endswith((".part", ".partial"))
    ]
    assert leftovers == []
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["fit", "--resume", "run", "--trainer.max_epochs", "2", "--model.pause", "0"]) == 0


_COMPILED = "fsdp --model.compile true --model.model deit_nano_patch2_8"


@pytest.mark.parametrize(
    "strategy", ["fsdp", *(pytest.param(words, marks=pytest.mark.slow) for words in ("ddp", _COMPILED))]
)
def test_two_processes_train_one_run(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBA_KERNELS_BACKEND", "reference")  # without which shards are refused on CPUs
    words = f"fit digits --trainer.accelerator cpu --trainer.devices 2 --trainer.strategy {strategy}"
    command = [sys.executable, "-m", "mamba_recipes.cli", *words.split()]
    command += ["--trainer.max_steps", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model" / "model.safetensors").is_file()
    assert done.stderr.count("saved: ") == 1
    best = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(load_file(run / "model" / "model.safetensors"), dict(best))


def test_a_process_that_does_not_know_the_run_asks_for_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("MAMBA_APPS_RUN", raising=False)
    assert main(["fit", "digits"]) == 2
    assert "give --out" in capsys.readouterr().err
