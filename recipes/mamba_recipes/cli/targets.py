"""The files that a command is to write, refused before it works for minutes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_apps.training.files import make_directory

PAGE = (".html", ".htm")


def check_target(option: str, path: Path, read: Iterable[Path] = (), endings: Sequence[str] = ()) -> None:
    """Refuse a file that could not be written, or that is read; make its folder.

    Args:
        option: What names it, such as "--out".
        path: The file.
        read: What the command reads.
        endings: Those that the file may have; none for any.

    Raises:
        UserError: It is refused.
    """
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder", "give a file")
    if path.resolve() in {one.resolve() for one in read}:
        raise UserError(f"{option} {path} would overwrite what is read", "give another name")
    if endings and path.suffix.lower() not in endings:
        raise UserError(f"{option} {path}: it is written as {endings[0][1:].upper()}", f"let it end in {endings[0]}")
    make_directory(path.resolve().parent, f"folder of {option}")


def folder_of_masks(source: Path, out: Path | None) -> Path:
    """Return the folder for the masks of a folder: ``out``, or one in the working folder.

    Raises:
        UserError: It is the folder itself, where they would be taken for images later.
    """
    folder = out or Path(f"{source.resolve().name}_masks")
    if folder.resolve() == source.resolve():
        raise UserError(f"--out {folder} is the folder that is read, where masks would pass for images", "name another")
    return folder
