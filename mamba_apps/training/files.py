"""Write a file whole or not at all: temporary file beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from mamba_apps.errors import UserError
from mamba_datasets.files import FULL_DISK

if TYPE_CHECKING:
    from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there an open file cannot be deleted, which serves the same end
    fcntl = None  # type: ignore[assignment]

_STALE_NAME = re.compile(r"^\..+\.part$")
_FORBIDDEN = {errno.EACCES, errno.EPERM}


def storage_error(action: str, path: Path, error: OSError) -> UserError:
    """Say in one line what the operating system refused, and the remedy.

    Args:
        action: What was being done, e.g. "save the checkpoint".
        path: The file or folder it was done to.
        error: The refusal.

    Returns:
        The error to raise.
    """
    reason = error.strerror or str(error)
    message = f"cannot {action} {path}: {reason}"
    if error.errno in FULL_DISK:
        return UserError(message, f"free space on the disk or the quota of {path.parent}, or choose another folder")
    if error.errno == errno.EROFS:
        return UserError(message, "choose another folder")
    if error.errno in _FORBIDDEN:
        return UserError(message, f"give yourself write permission on {path.parent} or choose another folder")
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return UserError(message, "a file stands where a folder is needed: remove it or choose another folder")
    return UserError(message, "check the disk and the path, or choose another folder")


def make_directory(path: Path, purpose: str) -> None:
    """Create a folder that can be written to.

    Args:
        path: The folder; its parents are created too.
        purpose: What it is for, e.g. "run folder", named in the error.

    Raises:
        UserError: It cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise storage_error(f"write to the {purpose}", path, error) from None


def check_directory(path: Path, purpose: str) -> None:
    """Refuse a folder that could not be created or written to, before the work that it is for; it is not left there.

    Args:
        path: As for `make_directory`.
        purpose: As for `make_directory`.

    Raises:
        UserError: It cannot be created or written to.
    """
    _remove_empty(_make_missing(path, purpose))


@contextlib.contextmanager
def folder_to_fill(path: Path, purpose: str) -> Iterator[None]:
    """Create a folder that can be written to; if the block fails before anything is in it, it is gone again.

    Args:
        path: The folder; its parents are created, and removed, too.
        purpose: As for `make_directory`.

    Raises:
        UserError: It cannot be created or written to.
    """
    made = _make_missing(path, purpose)
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _make_missing(path: Path, purpose: str) -> list[Path]:
    """Create a folder, and return it and those of its parents that were not there, the innermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_directory(path, purpose)
    return missing


def _remove_empty(folders: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):  # something was put into one, by us or by somebody else
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Yield an unused name in the folder of `target`, to be written and then renamed; what is left of it is removed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file whose content is on the disk when the block ends.

    It is locked while it is being written, so that `clean_stale` of another process leaves it alone.

    Raises:
        OSError: The disk is full, the folder is read-only, ...
    """
    with path.open("xb") as file:
        _lock(file)
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors into a new safetensors file that is on the disk when this returns.

    Raises:
        OSError: The disk is full, the folder is read-only, ...
        SafetensorError: Likewise.
    """
    from safetensors.torch import save_file

    with path.open("xb") as file:
        _lock(file)
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        save_file(tensors, path, metadata={"format": "pt"})
    # safetensors puts a file of its own there, which nobody else may read and which need not be on the disk yet
    with path.open("rb+") as file:
        _lock(file)
        os.chmod(path, mode)
        os.fsync(file.fileno())


def write_text(target: Path, text: str) -> None:
    """Write a small text file whole or not at all; `mamba_datasets.files.sync_folder` makes the new one last.

    Raises:
        OSError: The disk is full, the folder is read-only, ...; `target` is untouched.
    """
    with temporary_beside(target) as temporary:
        with writing(temporary) as file:
            file.write(text.encode())
        os.replace(temporary, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second, unused name; copies where the file system has no hard links.

    Raises:
        OSError: The disk is full, the folder is read-only, ...
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def clean_stale(directory: Path) -> list[Path]:
    """Remove the temporaries that a killed process left behind.

    Args:
        directory: The folder to clean, not its subfolders.

    Returns:
        The files removed.
    """
    removed = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if _STALE_NAME.match(path.name) and path.is_file() and not _in_use(path):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(file: IO[Any]) -> None:
    if fcntl is not None:
        # a file system without locks (some network mounts) only loses the protection against a neighbour's cleaning
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _in_use(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
