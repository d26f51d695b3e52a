"""Checkpoints that are whole or absent: written atomically, checksummed, and read without running code.

Beside `NAME.ckpt` stands `NAME.ckpt.sha256` in the format of `sha256sum`. While a checkpoint is being replaced the
checksum file lists the new and the old content, so that whichever of the two a crash leaves behind is found to be good.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from mamba_apps.errors import UserError
from mamba_apps.training.files import (
    clean_stale,
    link_or_copy,
    sha256_of,
    storage_error,
    temporary_beside,
    write_text,
    writing,
)
from mamba_apps.training.guard import refuse_nan
from mamba_apps.training.plain import to_plain
from mamba_datasets.files import sync_folder

LAST_NAME = "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"
BEST_NAME = "best.ckpt"
LAST_GOOD_NAME = "last_good.ckpt"
_HASH_LENGTH = 64
_ZIP = b"PK\x03\x04"
_AGAIN = "resume from another checkpoint of that folder, copy the file again, or train again"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin that saves checkpoints atomically with a checksum and loads them with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Save a checkpoint; until it is whole on the disk the one it replaces stays as it was.

        Args:
            checkpoint: Tensors and plain values (see `to_plain`).
            path: A local file.
            storage_options: Not supported; must be None.

        Raises:
            UserError: The disk is full, the folder is read-only, or an entry could not be loaded safely again.
            NonFiniteLossError: A weight is NaN.
        """
        if storage_options is not None:
            raise UserError(
                "AtomicCheckpointIO was given storage_options", "leave them out: checkpoints are local files"
            )
        path = Path(path)
        refuse_nan(checkpoint.get("state_dict", {}), path)
        plain = to_plain(checkpoint)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_beside(path) as temporary:
                with writing(temporary) as file:
                    digest = _save(plain, file)
                _publish(temporary, path, [digest])
        except OSError as error:
            raise storage_error("save the checkpoint", path, error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint after checking its checksum; never runs code that it may contain.

        Args:
            path: A local file with its `.sha256` beside it.
            map_location: As in `torch.load`; None keeps tensors on the CPU.
            weights_only: Ignored: always True.

        Returns:
            The checkpoint.

        Raises:
            UserError: It is missing, truncated, changed, not a checkpoint, or wants to run code.
        """
        path = Path(path)
        verify(path)
        with path.open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                raise UserError(
                    f"{path} is not a readable checkpoint: it is not the archive that torch.save writes, "
                    "and a bare pickle is refused because it could run code",
                    _AGAIN,
                )
        try:
            checkpoint = torch.load(
                path, map_location="cpu" if map_location is None else map_location, weights_only=True
            )
        except pickle.UnpicklingError as error:
            raise _refusal(path, error) from None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is not a readable checkpoint ({_first_line(error)})", _AGAIN) from None
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise UserError(f"{path} holds no state_dict: it is not a training checkpoint", "point to a .ckpt of a run")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum; one that is missing is no error."""
        path = Path(path)
        path.unlink(missing_ok=True)
        checksum_path(path).unlink(missing_ok=True)


def checksum_path(path: Path) -> Path:
    """Return where the checksum of a checkpoint lies."""
    return path.with_name(path.name + ".sha256")


def verify(path: Path) -> None:
    """Check that a checkpoint is the file that was saved.

    Raises:
        UserError: It or its checksum is missing, or they disagree.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist", "check the path or start a new run")
    expected = _read_checksums(path)
    found = sha256_of(path)
    if found not in expected:
        raise UserError(
            f"checkpoint {path} is truncated or was changed: its SHA-256 is {found[:12]}…, "
            f"{checksum_path(path).name} expects {expected[0][:12]}…",
            _AGAIN,
        )


def is_good(path: Path) -> bool:
    """Whether a checkpoint exists and agrees with its checksum."""
    try:
        verify(path)
    except (UserError, OSError):
        return False
    return True


def keep_as(path: Path, name: str) -> Path:
    """Give a checkpoint a second name in its folder that stays when the first is replaced.

    Args:
        path: A good checkpoint.
        name: The second file name; what it was before is replaced.

    Returns:
        The second path.

    Raises:
        UserError: The disk is full or the folder is read-only.
    """
    target = path.with_name(name)
    try:
        with temporary_beside(target) as temporary:
            link_or_copy(path, temporary)
            _publish(temporary, target, _read_checksums(path))
    except OSError as error:
        raise storage_error("keep the checkpoint as", target, error) from error
    return target


def resume_path(run_dir: str | Path) -> Path | None:
    """Find the checkpoint to resume a run from: `last.ckpt`, or the newest good one when that is damaged.

    Temporaries left by a killed process are removed. A fallback is reported on stderr.

    Args:
        run_dir: The run's folder.

    Returns:
        A checkpoint that agrees with its checksum, or None when the folder holds none.

    Raises:
        UserError: There are checkpoints, but none is good.
    """
    run_dir = Path(run_dir)
    clean_stale(run_dir)
    last = run_dir / LAST_NAME
    if is_good(last):
        return last
    found = [path for path in run_dir.glob("*.ckpt") if path != last]
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if is_good(path):
            state = "is damaged" if last.is_file() else "is missing"
            print(f"{last} {state}: resuming from {path.name}, the newest good checkpoint", file=sys.stderr)
            return path
    if found or last.is_file():
        raise UserError(f"no checkpoint in {run_dir} agrees with its SHA-256", "start the run again in another folder")
    return None


class _HashingFile:
    """Hash what is written, and remember the refusal that torch's zip writer would blur into a RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is not None:
            return len(data)  # the zip writer closes its archive even after a failure
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            self.file.flush()


def _save(plain: Any, file: BinaryIO) -> str:
    """Write a checkpoint to an open file and return its SHA-256."""
    hashing = _HashingFile(file)
    try:
        torch.save(plain, cast("IO[bytes]", hashing))
    except Exception:
        if hashing.error is not None:
            raise hashing.error from None
        raise
    if hashing.error is not None:
        raise hashing.error
    return hashing.hash.hexdigest()


def _publish(temporary: Path, target: Path, digests: list[str]) -> None:
    """Rename a finished file over `target`, keeping the checksum file right at every moment between."""
    checksum = checksum_path(target)
    lines = [_line(digest, target) for digest in digests]
    try:
        old = _read_checksums(target) if target.is_file() else []
    except UserError:
        old = []  # what is replaced could not have been loaded anyway
    transition = lines + [_line(digest, target) for digest in old if digest not in digests]
    write_text(checksum, "".join(transition))
    os.replace(temporary, target)
    if len(transition) > len(lines):
        write_text(checksum, "".join(lines))
    sync_folder(target.parent)


def _line(digest: str, path: Path) -> str:
    return f"{digest}  {path.name}\n"


def _read_checksums(path: Path) -> list[str]:
    """Return the hashes that a checkpoint may have: one, or two when a crash interrupted its replacement."""
    checksum = checksum_path(path)
    if not checksum.is_file():
        raise UserError(
            f"checkpoint {path} has no {checksum.name} beside it to check it against",
            f"if you trust the file: cd {path.parent} && sha256sum {path.name} > {checksum.name}",
        )
    found = [
        line.split()[0] for line in checksum.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    if not found or any(len(digest) != _HASH_LENGTH for digest in found):
        raise UserError(f"{checksum} holds no SHA-256", _AGAIN)
    return found


def _refusal(path: Path, error: Exception) -> UserError:
    """Turn the safe unpickler's refusal into one line: what the file wanted to run, or that it is no pickle at all."""
    if "GLOBAL" in str(error) or "Unsupported" in str(error):
        return UserError(
            f"{path} wants to run code while it is loaded and is refused ({_first_line(error)})",
            "load only checkpoints that mamba-apps saved; share models as safetensors with save_model",
        )
    return UserError(f"{path} is not a readable checkpoint ({_first_line(error)})", _AGAIN)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if "GLOBAL" in line] or lines or [type(error).__name__]
    return useful[0].rstrip(".")
