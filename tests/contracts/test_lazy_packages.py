"""Packages that import their public names when they are first used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = [
    "mamba_apps.audio.tagging",
    "mamba_apps.forecasting",
    "mamba_apps.forecasting.ltsf",
    "mamba_apps.imputation",
    "mamba_apps.medical",
    "mamba_apps.medical.segmentation",
    "mamba_apps.series_classification",
    "mamba_apps.training",
    "mamba_apps.vision.classification",
    "mamba_apps.vision.segmentation",
    "mamba_datasets.audio",
    "mamba_datasets.images",
    "mamba_datasets.volumes",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_found(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        found = getattr(package, public)
        assert getattr(found, "__name__", public) == public  # tables have none
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


def test_checking_data_waits_for_no_torch() -> None:
    checks = [name for name in PACKAGES if name.startswith("mamba_datasets")]
    found = f"import sys, {', '.join(checks)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout == "False\n"
