"""What lies in a folder of images or sounds: files in a fixed order, splits, classes; what is amiss is a finding."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mamba_datasets.errors import DataError, check_path
from mamba_datasets.report import Collector, nearest

LEAVE_OUT = "leave it out (mamba-apps check --write-broken)"
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
# What operating systems leave behind, besides names that begin with a dot.
_LITTER = frozenset({"thumbs.db", "desktop.ini"})
_GLANCE = 100


@dataclass(frozen=True)
class Medium:
    """What a folder is expected to hold.

    Args:
        noun: What one of them is called: "image", "sound".
        suffixes: The endings of their names, in small letters.
    """

    noun: str
    suffixes: tuple[str, ...]

    def names(self, name: str) -> bool:
        """Tell whether a file's ending, in any case, is one of these."""
        return name.lower().endswith(self.suffixes)


@dataclass
class ClassTree:
    """The files of a folder that has a folder a class.

    Args:
        classes: The names; a class is its index.
        paths: The files, class by class, sorted.
        targets: The class of each file.
    """

    classes: list[str]
    paths: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


def holds(medium: Medium, folder: str | Path) -> bool:
    """Tell at a glance whether there are such files somewhere below a folder."""
    return any(any(map(medium.names, files)) for _, _, files in islice(os.walk(folder), _GLANCE))


def folders_in(folder: str | Path) -> list[str]:
    """Return the sorted names of the folders directly in a folder."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def loose_files(medium: Medium, folder: str | Path) -> list[str]:
    """Return the sorted paths of such files directly in a folder."""
    return [entry.path for entry in _entries(folder) if medium.names(entry.name) and not entry.is_dir()]


def split_folder(root: str | Path, split: str) -> str:
    """Return the folder of a split, or raise a `DataError` that names the splits there are."""
    if split not in folders_in(root):
        raise DataError(root, f"split {split!r}", "there is no such folder", nearest(split, folders_in(root)))
    return within(os.path.join(root, split), root)


def within(folder: str, root: str | Path) -> str:
    """Return a folder, unless it is a link that leaves the data set: then raise a `DataError`."""
    if os.path.islink(folder) and not _lies_in(os.path.realpath(folder), root):
        found = f"is a link that leaves the data set, to {os.path.realpath(folder)}"
        raise DataError(folder, "link", found, "put the folder itself there (cp -rl costs no space)")
    return folder


def files_below(
    medium: Medium, folder: str | Path, root: str | Path, sink: Collector, left_out: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield such files in a folder and the folders below it, sorted.

    Args:
        medium: What they are.
        folder: The folder.
        root: The folder of the whole data set, which links must not leave.
        sink: Takes links that lead out of it and files of other names.
        left_out: Paths to pass over.

    Yields:
        The paths, each beginning with `folder`.
    """
    for entry in _entries(folder):
        if entry.path in left_out or _leads_astray(medium, entry, root, sink):
            continue
        if entry.is_dir():
            yield from files_below(medium, entry.path, root, sink, left_out)
        elif medium.names(entry.name):
            yield entry.path
        else:
            expected = f"expected {_a(medium)}'s ending ({' '.join(medium.suffixes)})"
            sink.add("name", expected, f"rename it, or {LEAVE_OUT}", entry.path)


def scan_classes(
    medium: Medium,
    folder: str | Path,
    root: str | Path,
    sink: Collector,
    *,
    classes: Sequence[str] | None = None,
    left_out: frozenset[str] = frozenset(),
) -> ClassTree:
    """Find the classes of a folder and their files.

    Args:
        medium: What the files are.
        folder: Holds a folder a class.
        root: The folder of the whole data set, which links must not leave.
        sink: Takes what is wrong.
        classes: The classes in the order of their indices, where that is fixed; None takes the sorted folders.
        left_out: Paths to pass over.

    Returns:
        The classes and files.
    """
    found, loose = [], []
    for entry in _entries(folder):
        if entry.path in left_out or _leads_astray(medium, entry, root, sink):
            continue
        if entry.is_dir():
            found.append(entry.name)
        elif medium.names(entry.name):
            loose.append(entry.path)
        else:
            sink.note(f"{entry.path} is no {medium.noun} and was passed over")
    for path in loose if found else ():
        sink.add("class", f"this {medium.noun} lies in no class", "move it to its class's folder", path)
    _check_classes(medium, folder, found, classes, sink)
    tree = ClassTree(found if classes is None else list(classes))
    index = {name: number for number, name in enumerate(tree.classes)}
    for name in found:
        if name not in index:
            continue
        before = len(tree.paths)
        tree.paths += files_below(medium, os.path.join(folder, name), root, sink, left_out)
        if len(tree.paths) == before:
            place = os.path.join(folder, name)
            sink.add("class", f"holds no {medium.noun}", "fill this class or remove its folder", place)
        tree.targets += [index[name]] * (len(tree.paths) - before)
    return tree


def _check_classes(
    medium: Medium, folder: str | Path, found: list[str], classes: Sequence[str] | None, sink: Collector
) -> None:
    path = str(folder)
    if found and SPLITS.issuperset(found):
        sink.add("classes", f"its folders are splits ({', '.join(found)})", "name one: split=...", path)
    elif not found:
        remedy = f"sort the {medium.noun}s into class folders"
        sink.add("classes", "expected a folder a class, found none", remedy, path)
    elif classes is None:
        if len(found) == 1:
            sink.add("classes", f"found one class only, {found[0]!r}", "give at least two class folders", path)
        by_case: dict[str, str] = {}
        for name in found:
            other = by_case.setdefault(name.casefold(), name)
            if other != name:
                sink.add("classes", f"{other!r} and {name!r} differ in case only", "merge or rename one", path)
    else:
        if len(set(classes)) < len(classes):
            sink.add("classes", "the given classes repeat a name", "give each class once", path)
        for name in sorted(set(classes) - set(found)):
            sink.add("classes", f"class {name!r} has no folder", "add it, or leave it out of classes", path)
        for name in sorted(set(found) - set(classes)):
            sink.add("classes", f"folder {name!r} is none of the given classes", nearest(name, classes), path)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, sorted by name, without hidden files and an operating system's litter."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _LITTER]
    except OSError as error:
        raise DataError(folder, "folder", f"cannot be read: {error.strerror}", check_path(folder)) from None
    return sorted(kept, key=lambda entry: entry.name)


def _leads_astray(medium: Medium, entry: os.DirEntry[str], root: str | Path, sink: Collector) -> bool:
    """Report a link that leaves the data set, loops or ends nowhere."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    if not os.path.exists(target):
        found = "is a link to nothing"
    elif not _lies_in(target, root):
        found = f"is a link that leaves the data set, to {target}"
    elif os.path.isdir(target):
        found = f"is a link to a folder, which may count {medium.noun}s twice"
    else:
        return False
    sink.add("link", found, f"put the file itself there (cp -rl costs no space), or {LEAVE_OUT}", entry.path)
    return True


def _a(medium: Medium) -> str:
    return f"an {medium.noun}" if medium.noun[0] in "aeiou" else f"a {medium.noun}"


def _lies_in(target: str, root: str | Path) -> bool:
    return target.startswith(os.path.join(os.path.realpath(root), ""))
