"""The folder of a set: the files that its lists name, and nothing outside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mamba_datasets.audio.places import Place
from mamba_datasets.broken import read_broken
from mamba_datasets.report import Collector
from mamba_datasets.survey import some


class Root:
    """The folder of a set: finds the files that lists name, and refuses those that lie outside.

    Args:
        path: The folder.
        sink: Takes the findings.
        leave_out: A list of broken files, which are passed over.
    """

    def __init__(self, path: str | Path, sink: Collector, leave_out: str | Path | None = None) -> None:
        self.path, self.sink = str(path), sink
        self.left_out = frozenset(map(os.path.normpath, read_broken(leave_out, path)))
        self._real = os.path.join(os.path.realpath(path), "")
        self._real_folders: dict[str, str] = {}

    def find(self, name: str, place: str, source: str | Path) -> str | None:
        """Return the path of a file that a list names.

        Args:
            name: Its path from the folder on.
            place: Where it is named.
            source: The list.

        Returns:
            The path; None for one that is left out, and, where findings are kept, one that is not there or may not be.
        """
        path = os.path.normpath(os.path.join(self.path, name))
        if path in self.left_out:
            return None
        if not name:
            self.sink.add(place, "expected a path, found nothing", "fill the cell", source)
        elif os.path.isabs(name) or not self.holds(path):
            found = f"path {name!r} leaves the folder {self.path}"
            self.sink.add(place, found, "give a path within it, or another root", source)
        elif not os.path.isfile(path):
            found = f"there is no file {name!r} in {self.path}"
            self.sink.add(place, found, "mend the path, or remove the row", source)
        else:
            return path
        return None

    def holds(self, path: str) -> bool:
        """Tell whether a path lies in the folder, also after links were followed."""
        folder = os.path.dirname(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._real_folders[folder], os.path.basename(path))
        return (os.path.realpath(path) if os.path.islink(path) else real).startswith(self._real)


def say_absent(classes: Sequence[str], places: Sequence[Place], sink: Collector) -> None:
    """Note the classes that no clip has."""
    found = {label for place in places for label in place.labels}
    absent = [repr(name) for number, name in enumerate(classes) if number not in found]
    if absent:
        sink.note(f"{len(absent)} of {len(classes)} classes have no clip: {some(absent)}")
