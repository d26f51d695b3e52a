"""Importing the package is cheap, and its public names come when they are used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mamba_apps
from mamba_apps.errors import UserError

HEAVY = ("torch", "lightning", "pandas", "numpy", "timm", "matplotlib")


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, mamba_apps, mamba_apps.errors; dir(mamba_apps); mamba_apps.__version__; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_forecaster_is_resolved_when_used() -> None:
    from mamba_apps import Forecaster
    from mamba_apps.forecasting import Forecaster as direct

    assert Forecaster is direct


def test_public_names_are_listed() -> None:
    assert {"Forecaster", "__version__"} <= set(dir(mamba_apps))


@pytest.mark.parametrize("name", ["AudioTagger", "ImageClassifier", "ImageSegmenter", "Segmenter"])
def test_what_training_saved_says_how_it_is_made(name: str) -> None:
    kind = getattr(mamba_apps, name)
    assert f"`{name}.load` makes one" in (kind.__doc__ or "").splitlines()[0]
    with pytest.raises(UserError, match=rf"{name} is a trained model; load it: {name}.load\('runs/x'\)"):
        kind("runs/x")
    with pytest.raises(UserError, match=rf"{name}.load\(folder\)"):
        kind()


def test_parts_are_imported_when_they_are_named() -> None:
    code = (
        "import sys, mamba_apps; assert not set(mamba_apps._PARTS) - set(dir(mamba_apps)); "
        "assert 'mamba_apps.vision' not in sys.modules; mamba_apps.vision; import timm; "
        "assert timm.list_models('vim_*'); [getattr(mamba_apps, name).__name__ for name in mamba_apps._PARTS]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Foercaster'"):
        _ = mamba_apps.Foercaster


def test_version_is_the_distribution_s() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert mamba_apps.__version__ == project["project"]["version"]
