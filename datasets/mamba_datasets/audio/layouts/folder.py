"""A folder a class, or a folder a split that has these."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mamba_datasets.audio.places import Place, Scan, split_name
from mamba_datasets.audio.read import SOUND
from mamba_datasets.broken import read_broken
from mamba_datasets.report import Collector
from mamba_datasets.tree import SPLITS, folders_in, scan_classes, within


def scan_folder(
    root: str | Path,
    sink: Collector,
    *,
    classes: Sequence[str] | None = None,
    leave_out: str | Path | None = None,
) -> Scan:
    """Find the classes and files of a folder.

    Args:
        root: The folder.
        sink: Takes what is wrong.
        classes: The classes, where they are fixed.
        leave_out: The list of broken files.
    """
    left_out = read_broken(leave_out, root)
    folders = folders_in(root)
    split_up = bool(folders) and SPLITS.issuperset(folders)
    names = sorted(folders, key=lambda name: (split_name(name) != "train", name)) if split_up else [""]
    scan = Scan([])
    for name in names:
        folder = within(os.path.join(root, name), root) if name else root
        tree = scan_classes(SOUND, folder, root, sink, classes=classes, left_out=left_out)
        classes = scan.classes = tree.classes
        split = split_name(name) if name else None
        scan.places += [
            Place(path, (target,), split=split) for path, target in zip(tree.paths, tree.targets, strict=True)
        ]
    return scan
