"""The main job, `mamba-apps compare` without arguments: its protocol, its rows, its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mamba_recipes import recipe as recipes
from mamba_recipes.build import build
from mamba_recipes.cli import main
from mamba_recipes.compare.plan import make_plan

WEEK = 168
NAIVE_MAE = 235.6  # of the weekly seasonal naive over the test part; any change of it is a change of the protocol
ROWS = [
    "patch[mamba1]",
    "patch[attention]",
    "smamba",
    "itransformer",
    "patchtst",
    "dlinear",
    "ridge",
    "last value",
    "weekly seasonal naive",
    "mean of last four weeks",
]


def test_the_protocol_is_the_documented_one() -> None:
    recipe = recipes.load("traffic")
    plan = make_plan(recipe)
    assert [job.model for job in plan.jobs] == ROWS
    data = build(recipe.config, recipe.path).data
    assert (data.horizon, data.val_steps, data.test_steps) == (24, 12 * WEEK, 12 * WEEK)
    assert data.lookback >= 672
    assert len(data.test) == 12 * WEEK - 23  # every hourly origin whose day ends within the test part
    assert {"hour_sin", "dayofweek_sin", "holiday"} <= set(data.series_set.future_names)
    assert int((~data.series_set.observed).sum()) == 104
    learned = [build(job.config, recipe.path) for job in plan.jobs if job.class_path is None]
    assert len(learned) == 6
    for built in learned:  # each takes the calendar, one way or the other
        model = built.model.network
        assert "future" in model.covariates | model.through_effect
        assert built.trainer_options["monitor"] == "val/mae"


def test_twins_differ_in_their_mixer_alone() -> None:
    jobs = {job.model: job for job in make_plan(recipes.load("traffic")).jobs}
    ours, theirs = jobs["patch[mamba1]"], jobs["patch[attention]"]
    assert ours.twin == theirs.model
    assert ours.config["model"]["init_args"]["model_options"].pop("mixer") == "mamba1"
    assert theirs.config["model"]["init_args"]["model_options"].pop("mixer") == "attention"
    assert ours.config == theirs.config


def test_a_tiny_budget_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--budget", "2steps", "--trainer.val_check_interval", "2", "--json"]
    chosen = "patch[mamba1],patch[attention],weekly seasonal naive"
    assert main(["compare", *words, "--candidates", chosen]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == chosen.split(",")
    assert rows["weekly seasonal naive"]["mae"] == pytest.approx(NAIVE_MAE, abs=0.05)
    for name in chosen.split(",")[:2]:
        assert rows[name]["mae"] > 0
        assert rows[name]["parameters"] > 100_000
        assert rows[name]["samples_per_second"] > 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert text.count("<h3>forecast from ") == 3
    assert text.count("data-series='patch[mamba1]'") == 1 + 3
    assert "metro_traffic.csv" in text


@pytest.mark.slow
def test_the_main_job_meets_its_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--json"]) == 0
    mae = {row["model"]: row["mae"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(mae) == ROWS
    best = min(mae["patch[mamba1]"], mae["smamba"])
    assert best <= 0.75 * mae["weekly seasonal naive"]
    assert mae["patch[mamba1]"] <= 1.03 * mae["patch[attention]"]
