"""What a check learns of many files: each decoded and hashed once, in threads, and then told in a few lines."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Protocol, TypeVar

from mamba_datasets.cores import usable_cores
from mamba_datasets.errors import DataError
from mamba_datasets.progress import followed
from mamba_datasets.report import Collector, Finding, Report
from mamba_datasets.tree import SPLITS, ClassTree, Medium, files_below, folders_in, loose_files, scan_classes

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHOWN = 5
_BLOCK = 512
_CHUNK = 16
_MANY_CLASSES = 20


class Fact(Protocol):
    """What is known of any file."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def digest(self) -> bytes:
        """A hash of its content."""

    @property
    def error(self) -> DataError | None:
        """What keeps it from being used."""


AFact = TypeVar("AFact", bound=Fact)


def check_classes(
    path: Path | str,
    kind: str,
    medium: Medium,
    inspect: Callable[[str], AFact],
    describe: Callable[[list[AFact]], list[str]],
    classes: Sequence[str] | None,
) -> Report:
    """Check a folder that has a folder a class, or splits that do, or files only; every file is decoded.

    Args:
        path: The folder, or a single file.
        kind: The kind of data, for the report.
        medium: What the files are.
        inspect: Decodes one.
        describe: Tells what they have in common.
        classes: The classes, where they are fixed; None takes the sorted folders, those of the training split for all.

    Returns:
        The report: every broken file, what is wrong with the folders, and notes on the files, classes and copies.
    """
    sink = Collector(path, keep=True)
    trees: dict[str, ClassTree] = {}
    if not os.path.isdir(path):
        files = [str(path)]
    elif folders_in(path):
        trees = _scan(medium, path, classes, sink)
        files = [file for tree in trees.values() for file in tree.paths]
    else:
        files = list(files_below(medium, path, path, sink))
        sink.note(f"there are no class folders: {medium.noun}s to classify, not to train on")
    if not files and not sink.findings:
        sink.add("folder", f"holds no {medium.noun}", "fill it")
    facts = list(in_threads(inspect, files))
    sink.findings += [Finding.of(fact.error) for fact in facts if fact.error is not None]
    places = {
        file: (split, tree.classes[target])
        for split, tree in trees.items()
        for file, target in zip(tree.paths, tree.targets, strict=True)
    }
    notes = [note for split, tree in trees.items() for note in _classes(medium, split, tree)]
    notes += describe(facts) + describe_copies(facts, lambda fact: places.get(fact.path, ("", "")))
    summary = "" if sink.findings else _summary(medium, len(files), trees)
    return Report(str(path), kind, tuple(sink.findings), summary, (*sink.notes, *notes))


def _summary(medium: Medium, count: int, trees: dict[str, ClassTree]) -> str:
    words = f"{count} {medium.noun}{'s' if count != 1 else ''}"
    if trees:
        words += f" of {len(next(iter(trees.values())).classes)} classes"
    if len(trees) > 1:
        words += f" in {', '.join(f'{split} ({len(tree.paths)})' for split, tree in trees.items())}"
    return words


def _scan(medium: Medium, root: Path | str, classes: Sequence[str] | None, sink: Collector) -> dict[str, ClassTree]:
    """Find the files of each split, the training split's first."""
    folders = folders_in(root)
    if not folders or not SPLITS.issuperset(folders):
        return {"": scan_classes(medium, root, root, sink, classes=classes)}
    trees = {}
    for path in loose_files(medium, root):
        sink.add("class", f"this {medium.noun} lies in no class", "move it to its class's folder", path)
    for split in sorted(folders, key=lambda name: (not name.startswith("train"), name)):
        trees[split] = scan_classes(medium, os.path.join(root, split), root, sink, classes=classes)
        classes = classes or trees[split].classes
    return trees


def _classes(medium: Medium, split: str, tree: ClassTree) -> list[str]:
    counts = Counter(tree.targets)
    name = f"{split}: " if split else ""
    by_class = {label: counts[number] for number, label in enumerate(tree.classes)}
    return [name + note for note in describe_counts(medium.noun, by_class)]


def describe_counts(noun: str, counts: Mapping[str, int]) -> list[str]:
    """Tell how many files each class has, and which have one only.

    Args:
        noun: What one of them is called.
        counts: Of each class.
    """
    if len(counts) > _MANY_CLASSES:
        low, high = min(counts.values()), max(counts.values())
        notes = [f"{len(counts)} classes of {low} to {high} {noun}s"]
    else:
        notes = [", ".join(f"{label} ({count})" for label, count in counts.items())]
    if lonely := [repr(label) for label, count in counts.items() if count == 1]:
        notes.append(f"{len(lonely)} with one {noun} only, to be learned or tested, not both: {some(lonely)}")
    return notes


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield what the work makes of each item, in order, and say on stderr how far that is."""

    def results() -> Iterator[Result]:
        with ThreadPool(min(32, usable_cores())) as pool:
            for start in range(0, len(items), _BLOCK):  # a block at a time: no more than that waits in memory
                yield from pool.map(work, items[start : start + _BLOCK], chunksize=_CHUNK)

    yield from followed(results(), "checking", len(items))


def describe_copies(facts: Iterable[AFact], group: Callable[[AFact], tuple[str, str]]) -> list[str]:
    """Tell which usable files have the same content.

    Args:
        facts: The files.
        group: The split and class of a file.

    Returns:
        A line each for copies in one class, in several classes and in several splits.
    """
    by_content: dict[bytes, list[AFact]] = defaultdict(list)
    for fact in facts:
        if fact.error is None:
            by_content[fact.digest].append(fact)
    copies: dict[str, list[str]] = defaultdict(list)
    for same in by_content.values():
        if len(same) == 1:
            continue
        splits, classes = ({group(fact)[part] for fact in same} for part in (0, 1))
        where = "several splits" if len(splits) > 1 else "several classes" if len(classes) > 1 else "one class twice"
        copies[where].append(" = ".join(fact.path for fact in same[:2]))
    return [
        f"{len(pairs)} {'content is' if len(pairs) == 1 else 'contents are'} in {where}: {some(pairs)}"
        for where, pairs in copies.items()
    ]


def some(words: list[str]) -> str:
    """Name the first few."""
    return ", ".join(words[:_SHOWN]) + (", …" if len(words) > _SHOWN else "")
