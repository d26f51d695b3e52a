"""Write a file whole or not at all: a temporary file beside it, on the disk before it takes the name."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mamba_datasets.errors import DataError

_PARTLY = re.compile(r"\d+ requested and \d+ written")
FULL_DISK = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_whole(path: str | Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write a file; until it is whole on the disk, what was there before stays.

    Args:
        path: The file.
        write: Writes its content to the open file that it is given.
        durable: Wait until it would survive a power cut; not worth it for what is easily made again.

    Raises:
        DataError: The disk is full, the folder is missing or read-only; nothing half-written is left.
    """
    target = Path(path)
    # the ending stays, as some writers go by it
    temporary = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
    try:
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            sync_folder(target.parent)
    except OSError as error:
        raise storage_error(target, error) from None


def sync_folder(folder: Path) -> None:
    """Make the renames done in a folder survive a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError) -> DataError:
    """Say in one line what the operating system refused, and the remedy."""
    remedy = "check the folder and its permissions, or choose another"
    # NumPy says how much it could write, and not why it was not all
    if error.errno in FULL_DISK or (error.errno is None and _PARTLY.search(str(error))):
        remedy = "free space on the disk or in your quota, or choose another folder"
    return DataError(path, "file", f"cannot be written: {error.strerror or error}", remedy)
