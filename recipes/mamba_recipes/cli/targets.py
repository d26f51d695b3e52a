"""The files that a command is to write, refused before it works for minutes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_apps.training.files import make_directory


def check_target(option: str, path: Path, read: Iterable[Path] = ()) -> None:
    """Refuse a file that could not be written, or that is read; make its folder.

    Args:
        option: What names it, such as "--out".
        path: The file.
        read: What the command reads.

    Raises:
        UserError: It is refused.
    """
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder", "give a file")
    if path.resolve() in {one.resolve() for one in read}:
        raise UserError(f"{option} {path} would overwrite what is read", "give another name")
    make_directory(path.resolve().parent, f"folder of {option}")
