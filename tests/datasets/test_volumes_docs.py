"""What the page on volume data shows, runs."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mamba_datasets.volumes import write_synthetic
from mamba_recipes.cli.check import main

PAGE = (Path(__file__).parents[2] / "docs" / "volume_data.md").read_text(encoding="utf-8")


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_synthetic("Dataset007_Toy", 6, (16, 16, 16))
    Path("Dataset007_Toy/imagesTr/case_tr_003_0000.nii.gz").write_bytes(b"")
    commands = re.findall(r"^mamba-apps check (.*?) *#", PAGE, re.MULTILINE)
    assert [main(command.split()) for command in commands] == [2, 2]
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)  # noqa: S102
    assert names["prepared"].names == [f"case_tr_{number:03d}" for number in (0, 1, 2, 4, 5)]
    assert names["image"].shape == (1, *names["plan"].network.patch_size)
    mask = nibabel.load("mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == names["volume"].shape[::-1]
