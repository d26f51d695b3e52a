"""The list of a folder's broken files: written by a check, read by data sets that leave these files out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mamba_datasets.errors import DataError
from mamba_datasets.files import write_whole
from mamba_datasets.report import Report


def write_broken(report: Report, path: str | Path) -> int:
    """Write the files below the checked folder that have findings, each with its reasons, as JSON.

    Args:
        report: The report of a folder's check.
        path: The list to write.

    Returns:
        The number of files in it.

    Raises:
        DataError: A single file was checked: nothing of it can be left out; or the list cannot be written, or
            would overwrite a file that is no such list.
    """
    if not os.path.isdir(report.path):
        raise DataError(report.path, "list of broken files", "expected a folder, found a file", "check its folder")
    broken: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.path != report.path and not os.path.isdir(finding.path):
            name = os.path.relpath(finding.path, report.path)
            broken.setdefault(name, []).append(f"{finding.where}: {finding.expected}")
    refuse_other(path)
    content = {"kind": report.kind, "checked": os.path.abspath(report.path), "broken": broken}
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return len(broken)


def refuse_other(path: str | Path) -> None:
    """Raise a `DataError` if a file stands where a list is to be written that is no earlier one."""
    if os.path.exists(path):
        try:
            _content(path)
        except DataError as error:
            raise DataError(path, error.where, "another file stands there", "give another name") from None


def read_broken(path: str | Path | None, root: str | Path) -> frozenset[str]:
    """Return the paths that a list of broken files names.

    Args:
        path: The list; None names no file.
        root: The folder that the list was written for, wherever it lies now.

    Returns:
        The paths, each beginning with `root`.

    Raises:
        DataError: It is no such list, or none of its files lies in this folder.
    """
    if path is None:
        return frozenset()
    content = _content(path)
    names = [os.path.join(root, name) for name in content["broken"]]
    if names and not any(map(os.path.lexists, names)):
        found = f"none of its {len(names)} files lies in {root}; it was written for {content.get('checked')}"
        raise DataError(path, "list of broken files", found, "check this folder, and use the list of that check")
    return frozenset(names)


def _content(path: str | Path) -> dict[str, Any]:
    remedy = "write it with: mamba-apps check FOLDER --write-broken FILE"
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        found = all(isinstance(name, str) for name in content["broken"])
    except OSError as error:
        raise DataError(path, "list of broken files", f"cannot be read: {error.strerror}", remedy) from None
    except (ValueError, TypeError, KeyError):
        found = False
    if not found:
        raise DataError(path, "list of broken files", "is no list that a check wrote", remedy)
    return content
