"""What the page on image data shows, runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mamba_recipes.cli.check import main

PAGE = (Path(__file__).parents[2] / "docs" / "image_data.md").read_text(encoding="utf-8")


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["train/cat/a", "train/cat/b", "train/dog/a", "val/cat/a", "val/dog/a"]):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(f"photos/{name}.png")
    Path("photos/train/cat/c.png").write_bytes(b"")
    for folder in ("images", "masks"):
        Path("cells", folder).mkdir(parents=True)
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(f"cells/{folder}/a.png")

    commands = re.findall(r"^mamba-apps check (.*?) *#", PAGE, re.MULTILINE)
    assert [main(command.split()) for command in commands] == [2, 2, 0]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    exec(blocks[0], names)  # noqa: S102
    assert len(names["train"]) == 3
    assert names["mask"].tolist() == np.eye(9).tolist()
    pytest.importorskip("litdata", reason="streaming needs litdata: pip install 'mamba-apps[scale]'")
    with pytest.raises(ValueError, match="is empty"):
        exec(blocks[1], names)  # noqa: S102
    Path("photos/train/cat/c.png").unlink()
    exec(blocks[1], names)  # noqa: S102
    assert len(names["loader"].dataset) == 3
