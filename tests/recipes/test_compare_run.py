"""Comparisons end to end on toys: rows, failures, seeds, sweeps, speed, JSON, interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_candidates import TOY_RECIPE, write_recipe

from mamba_recipes.cli import main

ROW_KEYS = {"model", "seed", "mae", "mse", "parameters", "train_seconds", "samples_per_second", "peak_memory_mib"}


def run_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["compare", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def with_candidate(name: str, class_name: str, **init_args: object) -> str:
    entry = (
        f"    {name}: {{family: naive, class_path: toy_candidates.{class_name}, init_args: {json.dumps(init_args)}}}"
    )
    return TOY_RECIPE + entry + "\n"


def test_json_has_the_documented_form(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run_json(capsys, str(toy_recipe))
    assert set(document) == {"recipe", "budget", "environment", "rows"}
    assert document["recipe"] == "toy"
    assert document["budget"] == "2 epochs"
    assert {"python", "versions", "cpu", "cores", "device", "data", "command"} <= set(document["environment"])
    rows = document["rows"]
    assert [row["model"] for row in rows] == ["toy[mamba1]", "toy[attention]", "mean"]
    assert all(set(row) == ROW_KEYS for row in rows)
    assert all(row["seed"] == 1 for row in rows)
    assert [row["parameters"] for row in rows] == [2, 2, 1]
    learned = rows[0]
    assert learned["train_seconds"] > 0
    assert learned["samples_per_second"] > 0
    assert 0 < learned["peak_memory_mib"] < 500
    assert rows[2]["samples_per_second"] is None
    assert rows[0]["mae"] < rows[2]["mae"]
    assert Path("report.html").exists()


def test_table_goes_to_stdout_and_talk_to_stderr(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(toy_recipe), "--out", "sub/r.html"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:2] == ["model", "MAE"]
    assert "toy[mamba1]" in captured.out
    assert "toy line, 384 points" in captured.err
    assert captured.err.count("compare toy · 3 candidates · 2 epochs each · seed 1") == 1
    assert "Mamba wins" in captured.err
    assert captured.err.rstrip().splitlines()[-1] == (
        f"next:   mamba-apps compare {toy_recipe} --out sub/r.html --seeds 3"  # what was typed, and more seeds
    )
    for advertising in ("litlogger", "GPU available", "Trainer.fit", "LOCAL_RANK", "max_epochs="):
        assert advertising not in captured.out + captured.err
    assert Path("sub/r.html").exists()
    assert list(Path("sub").iterdir()) == [Path("sub/r.html")]


def test_the_same_seed_gives_the_same_numbers(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(toy_recipe), "--candidates", "toy[mamba1]"]
    first, again = (run_json(capsys, *words)["rows"][0]["mae"] for _ in range(2))
    other = run_json(capsys, *words, "--seed", "7")["rows"][0]["mae"]
    assert first == again != other


@pytest.mark.parametrize(
    ("class_name", "arguments", "code", "reason"),
    [
        ("FailingCandidate", {"mendable": True}, 2, "the toy cannot fit; buy another toy"),
        ("FailingCandidate", {}, 1, "ZeroDivisionError: toy division"),
        ("DyingCandidate", {}, 1, "its process was ended by SIGKILL"),
        ("MeanCandidate", {"ofset": 1}, 2, "unexpected keyword argument 'ofset'"),
        ("NoSuchCandidate", {}, 2, "is no class of ours"),
        ("Path", {}, 2, "is no class of ours"),
        ("ToyData", {}, 2, "has no fit"),
    ],
)
def test_a_failing_candidate_is_shown_and_the_others_run(
    class_name: str,
    arguments: dict[str, Any],
    code: int,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, with_candidate("broken", class_name, **arguments))
    words = [str(path), "--candidates", "broken,mean"]
    rows = run_json(capsys, *words, code=code)["rows"]
    assert reason in rows[0]["error"]
    assert rows[0]["mae"] is None
    assert rows[1]["mae"] > 0
    assert "error" not in rows[1]
    assert main(["compare", *words]) == code
    captured = capsys.readouterr()
    assert "broken  failed: " in captured.out
    assert "a line that a library printed" not in captured.out + captured.err
    assert "broken failed" in Path("report.html").read_text(encoding="utf-8")


def test_everything_failing_still_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, with_candidate("broken", "FailingCandidate"))
    assert main(["compare", str(path), "--candidates", "broken", "--log", "log.txt"]) == 1
    assert "every candidate failed" in capsys.readouterr().err
    assert "a line that a library printed" in Path("log.txt").read_text(encoding="utf-8")
    assert "every candidate failed" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--candidates", "toy[mamba1],toy[attention]", "--model.lr", "fast"], 'error: toy.yaml: ToyModule: "lr"'),
        (["--trainer.epochs", "3"], "error: toy.yaml: trainer has no setting 'epochs'"),
        (["--sweep", "model.lr=0.1,fast"], 'error: toy[model.lr=fast]: toy.yaml: ToyModule: "lr"'),
    ],
)
def test_wrong_settings_are_refused_in_one_line_before_anything_is_built(
    words: list[str], says: str, toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "toy.yaml", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert list(Path().iterdir()) == [Path("toy.yaml")]


def test_a_setting_that_a_model_refuses_fails_that_row_alone(
    toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_json(capsys, str(toy_recipe), "--sweep", "mixer=mamba1,mamba9", code=2)["rows"]
    assert rows[0]["mae"] > 0
    assert "unknown mixer 'mamba9'" in rows[1]["error"]


def test_several_devices_are_refused(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--candidates", "toy[mamba1]"]
    assert main(["compare", str(toy_recipe), *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "mamba-apps: error: a candidate of a comparison trains on one device; leave out trainer.devices"


def test_seeds_give_spreads_and_paired_differences(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(toy_recipe), "--seeds", "3", "--candidates", "toy[mamba1],toy[attention]"]) == 0
    captured = capsys.readouterr()
    assert "minus best Transformer" in captured.out
    assert "±" in captured.out
    assert "Over 3 seeds toy[mamba1] minus toy[attention] is" in captured.err
    assert "One seed was run" not in captured.err
    assert "Student" in Path("report.html").read_text(encoding="utf-8")


def test_a_sweep_varies_the_recipe_itself(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, str(toy_recipe), "--sweep", "mixer=mamba1,attention", "--sweep", "model.lr=0.1,0.01")[
        "rows"
    ]
    assert [row["model"] for row in rows] == [
        "toy[mixer=mamba1,model.lr=0.1]",
        "toy[mixer=mamba1,model.lr=0.01]",
        "toy[mixer=attention,model.lr=0.1]",
        "toy[mixer=attention,model.lr=0.01]",
    ]
    assert rows[0]["mae"] == rows[2]["mae"] != rows[1]["mae"]
    text = Path("report.html").read_text(encoding="utf-8")
    assert "Only the mixer swapped" in text


def test_candidates_that_run_together_score_the_same_and_are_not_timed(
    toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(toy_recipe), "--seeds", "2"]
    alone = run_json(capsys, *words)["rows"]
    together = run_json(capsys, *words, "--parallel", "3")["rows"]
    for one, other in zip(alone, together, strict=True):
        assert [one[key] for key in ("model", "seed", "mae")] == [other[key] for key in ("model", "seed", "mae")]
        assert other["train_seconds"] is other["samples_per_second"] is None
    assert "3 at a time" in Path("report.html").read_text(encoding="utf-8")


def test_data_that_is_refused_ends_the_comparison_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, TOY_RECIPE)
    assert main(["compare", str(path), "--data.broken", "true", "--seeds", "2"]) == 2
    captured = capsys.readouterr()
    assert "the toy line is bent; straighten it" in captured.err.splitlines()[-1]
    assert captured.err.count("bent") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == [path]


def test_speed_is_measured_for_training_and_inference(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(toy_recipe), "--measure", "speed", "--budget", "0.5s"]
    rows = run_json(capsys, *words, "--candidates", "toy[mamba1]")["rows"]
    assert rows[0]["train_samples_per_second"] > 0
    assert rows[0]["predict_samples_per_second"] > 0
    assert rows[0]["peak_memory_mib"] > 0
    assert rows[0]["predict_peak_memory_mib"] > 0
    words += ["--trainer.max_epochs", "null", "--trainer.max_steps", "5"]  # whatever the recipe's own budget is
    rows = run_json(capsys, *words)["rows"]
    assert [row["model"] for row in rows] == ["toy[mamba1]", "toy[attention]"]
    assert rows[0]["predict_samples_per_second"] > 0


def test_memory_is_what_the_candidate_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, with_candidate("hungry", "HungryCandidate", mib=200))
    rows = run_json(capsys, str(path), "--candidates", "hungry,mean")["rows"]
    extra = rows[0]["peak_memory_mib"] - rows[1]["peak_memory_mib"]
    assert 190 < extra < 215


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--candidates", "toy[mamba1],men"], "has no candidate 'men'; did you mean 'mean'"),
        (["--candidates", ","], "--candidates names none"),
        (["--sweep", "mixer"], "sweep 'mixer' is not understood"),
        (["--sweep", "mixr=a,b"], "has no short name 'mixr' to sweep; did you mean 'mixer'"),
        (["--sweep", "model.mixer=a,,b"], "is not understood"),
        (["--sweep", "mixer=mamba1", "--candidates", "mean"], "candidate 'mean' is not trained by Lightning"),
        (["--measure", "sped"], "unknown measure 'sped'; did you mean 'speed'"),
        (["--budget", "many"], "budget 'many' is not understood"),
        (["--parallel", "2", "--budget", "1s"], "--parallel makes candidates share the machine"),
        (["--parallel", "2", "--measure", "speed"], "--parallel makes candidates share the machine"),
        (["--measure", "speed", "--candidates", "toy[mamba1],mean"], "mean has no training steps to time"),
        (["--measure", "speed", "--budget", "5epochs"], "speed is measured for a time, not for 5 epochs"),
        (["--out", "."], "--out . is a folder"),
        (["--log", "."], "--log . is a folder"),
        (["--log", "/proc/none/log.txt"], "cannot write to the folder of --log /proc/none"),
        (["--out", "toy.yaml/report.html"], "toy.yaml"),
        (["--out", "/proc/none/report.html"], "cannot write to the folder of --out /proc/none"),
        (["--out", "new/report.pdf"], "--out new/report.pdf: it is written as HTML; let it end in .html"),
        (["--out", "./toy.yaml"], "--out toy.yaml would overwrite what is read"),
        (["--log", "report.html"], "--log report.html would overwrite what is read"),
        (["--modle.lr", "1"], "unknown setting 'modle.lr'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    words: list[str], says: str, toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(toy_recipe), *words]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(Path().iterdir()) == [Path("toy.yaml")]


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def start_slow_comparison(folder: Path) -> subprocess.Popen[str]:
    """Start a comparison that would take minutes, in a process group of its own."""
    path = write_recipe(folder, TOY_RECIPE.replace("lr: 5e-2", "lr: 5e-2, pause: 0.2"))
    # The toys are allowed without being imported here: the command's own process never needs torch.
    code = (
        "import sys; from mamba_recipes import safety; safety.ALLOWED_PREFIXES += ('toy_candidates',); "
        "from mamba_recipes.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "compare", str(path), "--budget", "1000steps"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process


def wait_for_a_candidate(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert "compare toy" in process.stderr.readline()
    time.sleep(1)


@pytest.mark.parametrize("trains", [True, False])
def test_an_interrupt_ends_with_130_and_leaves_nothing(
    trains: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(scratch))
    process = start_slow_comparison(tmp_path)
    if trains:
        wait_for_a_candidate(process)
    else:
        time.sleep(2)  # while libraries are imported
    os.killpg(process.pid, signal.SIGINT)  # what a terminal's Ctrl-C does: the whole group gets it
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "mamba-apps: interrupted\n"
    assert out == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "toy.yaml"]
    assert not list(scratch.glob("mamba-apps-*"))


def test_candidates_do_not_outlive_a_killed_comparison(tmp_path: Path) -> None:
    process = start_slow_comparison(tmp_path)
    wait_for_a_candidate(process)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == [tmp_path / "toy.yaml"]


def test_the_machinery_of_comparisons_knows_no_domain() -> None:
    import mamba_recipes.compare

    sources = list(Path(mamba_recipes.compare.__path__[0]).rglob("*.py"))
    assert len(sources) > 10
    for path in sources:
        found = re.findall(r"mamba_(?:apps|datasets)\.(\w+)", path.read_text(encoding="utf-8"))
        assert set(found) <= {"cores", "errors", "report", "training"}, path
