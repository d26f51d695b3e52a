"""The check of sounds, for the readers' registry: folders, tables and the layouts of published sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mamba_datasets.audio.layouts.known import guess_layout, scan_layout
from mamba_datasets.audio.places import Scan, clip_end_s
from mamba_datasets.audio.read import SOUND, SUFFIXES
from mamba_datasets.audio.rows import TABLES
from mamba_datasets.audio.survey import Facts, describe, inspect_sound
from mamba_datasets.errors import DataError
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Collector, Finding, Report
from mamba_datasets.survey import check_classes, describe_copies, describe_counts, in_threads
from mamba_datasets.tree import holds


@register_reader("audio", SUFFIXES, lambda folder: holds(SOUND, folder))
def check_audio(
    path: Path | str, *, classes: Sequence[str] | None = None, layout: str | None = None, **options: Any
) -> Report:
    """Check labelled sounds, or sounds only; every one is decoded.

    Args:
        path: A folder, a table (a CSV file), or a single sound.
        classes: The classes, where they are fixed; None takes those that are found, the training split's for all.
        layout: "folder" for a folder a class, in splits or not, "table", "speech_commands", "esc50", "fsdd" or
            "audioset"; None guesses it.
        options: The layout's own, such as `multilabel`; `table`, a table's name in the folder.

    Returns:
        The report: every broken file and row, what is wrong with the folders, and notes on classes, splits, lengths,
        rates, channels, silence, clipping and copies.
    """
    if layout is None and "table" not in options:
        single = not os.path.isdir(path) and not str(path).lower().endswith(TABLES)
        layout = "folder" if single else guess_layout(path)
    if layout == "folder":
        if options:
            raise DataError(path, "options", f"a folder takes no {next(iter(options))!r}", "name the layout")
        return check_classes(path, "audio", SOUND, inspect_sound, describe, classes)
    if classes is not None:
        options["classes"] = classes
    sink = Collector(path, keep=True)
    try:
        scan = scan_layout(path, sink, layout, **options)
    except DataError as error:
        return Report(str(path), "audio", (*sink.findings, Finding.of(error)), notes=tuple(sink.notes))
    files = {place.path: place for place in scan.places}
    facts = {fact.path: fact for fact in in_threads(inspect_sound, list(files))}
    sink.findings += [Finding.of(fact.error) for fact in facts.values() if fact.error is not None]
    sink.findings += _misplaced(scan, facts)
    notes = [*_counts(scan), *describe(list(facts.values()))]
    notes += describe_copies(facts.values(), lambda fact: (files[fact.path].split or "", str(files[fact.path].labels)))
    summary = "" if sink.findings else _summary(scan, len(files))
    return Report(str(path), "audio", tuple(sink.findings), summary, (*sink.notes, *notes))


def _misplaced(scan: Scan, facts: dict[str, Facts]) -> list[Finding]:
    """Return the clips whose times lie outside their file."""
    findings = []
    for place in scan.places:
        if facts[place.path].error is None:
            try:
                clip_end_s(place, facts[place.path].seconds)
            except DataError as error:
                findings.append(Finding.of(error))
    return findings


def _counts(scan: Scan) -> list[str]:
    """Tell how many clips the classes, splits and folds have."""
    counts = Counter(label for place in scan.places for label in place.labels)
    notes = describe_counts("clip", {name: counts[number] for number, name in enumerate(scan.classes)})
    if bare := sum(not place.labels for place in scan.places):
        notes.append(f"{bare} clips without a label")
    for what in ("split", "fold"):
        found = Counter(getattr(place, what) for place in scan.places)
        if set(found) != {None}:
            notes.append(f"{what}s: {', '.join(f'{name} ({count})' for name, count in sorted(found.items(), key=str))}")
    return notes


def _summary(scan: Scan, files: int) -> str:
    clips = len(scan.places)
    where = "" if clips == files else f" in {files} file{'s' if files != 1 else ''}"
    kind = "labels" if scan.multilabel else "classes"
    return f"{clips} clip{'s' if clips != 1 else ''}{where} of {len(scan.classes)} {kind}"
