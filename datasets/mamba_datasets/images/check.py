"""The check of class folders of images, for the readers' registry."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mamba_datasets.images.matching import fits_pairs
from mamba_datasets.images.read import SUFFIXES
from mamba_datasets.images.survey import describe, describe_copies, in_threads, inspect_image
from mamba_datasets.images.tree import (
    SPLITS,
    ClassTree,
    folders_in,
    holds_images,
    image_files,
    loose_images,
    scan_classes,
)
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Collector, Finding, Report

_MANY_CLASSES = 20


def _fits(folder: Path) -> bool:
    return holds_images(folder) and not fits_pairs(folder)


@register_reader("images", SUFFIXES, _fits)
def check_images(path: Path | str, *, classes: Sequence[str] | None = None) -> Report:
    """Check a folder that has a folder a class, or splits that do, or images only; every image is decoded.

    Args:
        path: The folder, or a single image.
        classes: The classes, where they are fixed; None takes the sorted folders, those of the training split for all.

    Returns:
        The report: every broken file, what is wrong with the folders, and notes on classes, sizes, modes and copies.
    """
    sink = Collector(path, keep=True)
    trees: dict[str, ClassTree] = {}
    if not os.path.isdir(path):
        files = [str(path)]
    elif folders_in(path):
        trees = _scan(path, classes, sink)
        files = [file for tree in trees.values() for file in tree.paths]
    else:
        files = list(image_files(path, path, sink))
        sink.note("there are no class folders: images to classify, not to train on")
    if not files and not sink.findings:
        sink.add("folder", "holds no image", "fill it")
    facts = list(in_threads(inspect_image, files))
    sink.findings += [Finding.of(fact.error) for fact in facts if fact.error is not None]
    places = {
        file: (split, tree.classes[target])
        for split, tree in trees.items()
        for file, target in zip(tree.paths, tree.targets, strict=True)
    }
    notes = [_classes(split, tree) for split, tree in trees.items()]
    notes += describe(facts) + describe_copies(facts, lambda fact: places.get(fact.path, ("", "")))
    summary = "" if sink.findings else _summary(len(files), trees)
    return Report(str(path), "images", tuple(sink.findings), summary, (*sink.notes, *notes))


def _summary(count: int, trees: dict[str, ClassTree]) -> str:
    words = f"{count} image{'s' if count != 1 else ''}"
    if trees:
        words += f" of {len(next(iter(trees.values())).classes)} classes"
    if len(trees) > 1:
        words += f" in {', '.join(f'{split} ({len(tree.paths)})' for split, tree in trees.items())}"
    return words


def _scan(root: Path | str, classes: Sequence[str] | None, sink: Collector) -> dict[str, ClassTree]:
    """Find the images of each split, the training split's first."""
    folders = folders_in(root)
    if not folders or not SPLITS.issuperset(folders):
        return {"": scan_classes(root, root, sink, classes=classes)}
    trees = {}
    for path in loose_images(root):
        sink.add("class", "this image lies in no class", "move it to its class's folder", path)
    for split in sorted(folders, key=lambda name: (not name.startswith("train"), name)):
        trees[split] = scan_classes(os.path.join(root, split), root, sink, classes=classes)
        classes = classes or trees[split].classes
    return trees


def _classes(split: str, tree: ClassTree) -> str:
    counts = Counter(tree.targets)
    name = f"{split}: " if split else ""
    if len(tree.classes) > _MANY_CLASSES:
        low, high = min(counts.values(), default=0), max(counts.values(), default=0)
        return f"{name}{len(tree.classes)} classes of {low} to {high} images"
    return name + ", ".join(f"{label} ({counts[number]})" for number, label in enumerate(tree.classes))
