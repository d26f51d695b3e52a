"""`recipes`, `models` and `check`: what there is, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm

from mamba_apps.audio import model_names
from mamba_apps.forecasting import models
from mamba_apps.forecasting.ltsf.networks import NAMES
from mamba_apps.medical import network_names
from mamba_apps.mixers import names as mixer_names
from mamba_recipes import recipe as recipes
from mamba_recipes.cli import main

GOOD = "unique_id,ds,y\n" + "".join(f"a,2024-01-01 {hour:02d}:00:00,{hour}.5\n" for hour in range(24))


def test_recipes_lists_every_shipped_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", *recipes.shipped()]
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == list(recipes.shipped())
    assert all(entry["paper"] and entry["expected"] and entry["command"] for entry in found)


def test_one_recipe_is_printed_as_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    name, path = next(iter(recipes.shipped().items()))
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out.strip() == path.read_text(encoding="utf-8").strip()


def test_models_lists_every_registered_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    domains: dict[str, list[str]] = {}
    for entry in found:
        domains.setdefault(entry["domain"], []).append(entry["model"])
    images = [
        name for module in ("mambavision", "vim", "vmamba", "baselines") for name in timm.list_models(module=module)
    ]
    theirs = ["convnext_tiny", "deit_small_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
    assert domains == {
        "forecasting": models.names(),
        "ltsf": list(NAMES),
        "vision": [*images, *theirs],
        "segmentation": ["upernet"],
        "medical": network_names(),
        "audio": model_names(),
        "text": ["MambaLM"],
        "mixers": mixer_names(),
    }
    assert {entry["model"] for entry in found if not entry["parameters"]} == {"segresnet", "swin_unetr"}
    assert all(entry["takes"] and entry["summary"] and entry["at"] for entry in found)


def test_a_domain_is_listed_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "medical"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["model", *network_names()]
    assert "parameters of medical at" in captured.err


def test_one_model_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "patch"]) == 0
    out = capsys.readouterr().out
    assert "d_model" in out
    assert "mixer " in out
    assert main(["models", "vim_tiny_patch16_224"]) == 0
    out = capsys.readouterr().out
    assert "7,148,008" in out
    assert "embed_dim" in out
    assert main(["models", "aum_tiny_bibi"]) == 0
    out = capsys.readouterr().out
    assert "7,019,087" in out
    assert "class_token" in out


def test_an_unknown_model_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pathc"]) == 2
    assert "there is no model or domain 'pathc'; did you mean 'patch'" in capsys.readouterr().err
    assert main(["models", "nosuch"]) == 2
    assert capsys.readouterr().err.count("'smamba'") == 1  # which two domains have


def test_check_says_that_a_good_file_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text(GOOD, encoding="utf-8")
    assert main(["check", "good.csv", "--set", "freq=h"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("good.csv: 1 series of 24 steps")
    assert captured.err == ""
    assert main(["check", "good.csv", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["findings"]) == ("series", [])


def test_check_reads_dates_as_forecast_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("german.csv").write_text(GOOD.replace("2024-01-01", "31.01.2024"), encoding="utf-8")
    assert main(["check", "german.csv"]) == 0
    out = capsys.readouterr().out
    assert "note: 'ds' read as day month year" in out
    assert "2024-01-31 00:00:00 to 2024-01-31 23:00:00" in out
    assert main(["check", "german.csv", "--set", "time_format=%d/%m/%Y"]) == 2  # what is said holds
    assert "it must fit time_format='%d/%m/%Y'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("05:00:00,5.5", "04:00:00,5.5"), "04:00:00"),
        (GOOD.replace("a,2024-01-01 05:00:00,5.5\n", ""), "add the rows, or pass --set missing=mask or seasonal"),
        (GOOD.replace(",7.5", ",seven"), "seven"),
        (
            GOOD.replace("2024-01-01", "New Year 2024"),
            "write ISO 8601 (2020-01-31 13:00), or pass --set time_format=%d/%m/%Y",
        ),
        (GOOD.replace(",7.5", ",inf"), "07:00:00"),
        ("city,size\nBonn,3\nUlm,4\n", "a column of dates was expected"),
        ("", "bad.csv"),
        ("unique_id,ds,y\n", "bad.csv"),
    ],
)
def test_check_names_what_is_wrong_and_ends_with_2(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text(text, encoding="utf-8")
    assert main(["check", "bad.csv", "--set", "freq=h"]) == 2
    captured = capsys.readouterr()
    assert says in captured.out
    assert captured.err.startswith("mamba-apps: bad.csv: ")
    assert "found" in captured.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--as", "serie"], "did you mean 'series'"),
        (["--set", "freq"], "--set 'freq' is not understood"),
        (["--set", "frequency=h"], "--set frequency: its reader has no such option"),
    ],
)
def test_check_refuses_wrong_options(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text(GOOD, encoding="utf-8")
    assert main(["check", "good.csv", *words]) == 2
    assert says in capsys.readouterr().err
