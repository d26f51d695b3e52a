"""Which files belong to a case: one, or one a channel by nnU-Net's names (CASE_0000, CASE_0001, …)."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_datasets.volumes import Plan
from mamba_datasets.volumes.read import SUFFIXES, ending_of

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def find_cases(source: Path, plan: Plan) -> dict[str, list[Path]]:
    """Return the files of each case, its channels in order.

    Args:
        source: An image, of several channels the first one's file; or a folder of such.
        plan: Says how many channels a case has.

    Raises:
        UserError: There is none, a channel is missing, or two files would be the same case.
        DataError: A single file has no known ending.
    """
    if source.is_dir():
        known = tuple(SUFFIXES)
        files = sorted(path for path in source.iterdir() if path.is_file() and path.name.lower().endswith(known))
        if not files:
            raise UserError(f"{source}: holds no volume", f"give files that end in {' '.join(SUFFIXES)}")
        return _by_case(files, plan.in_channels)
    name, channel = _split(source)
    if plan.in_channels == 1 or channel is None:
        return {name: [source]}
    siblings = [path for path in source.parent.iterdir() if _split(path)[0] == name and path.suffix == source.suffix]
    return _by_case(sorted(siblings), plan.in_channels)


def _by_case(files: list[Path], channels: int) -> dict[str, list[Path]]:
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in files:
        name, channel = _split(path)
        other = cases[name].setdefault(channel or 0, path)
        if other != path:
            raise UserError(f"{other} and {path} are both {name}", "rename one, or give them one by one")
    for name, found in cases.items():
        # one file may hold all channels, as a picture in colours does, which only reading it can tell
        if len(found) > 1 and sorted(found) != list(range(channels)):
            told = ", ".join(f"_{channel:04d}" for channel in sorted(found))
            raise UserError(
                f"{next(iter(found.values()))}: the model reads {channels} channel{'s' if channels > 1 else ''}, "
                f"{name} has {told}",
                f"give {name}_0000" + (f" to {name}_{channels - 1:04d}" if channels > 1 else " alone"),
            )
    return {name: [found[channel] for channel in sorted(found)] for name, found in cases.items()}


def _split(path: Path) -> tuple[str, int | None]:
    """Return a file's case and channel by its name."""
    stem = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    else:
        ending_of(path)  # names the known endings
    match = _CHANNEL.fullmatch(stem)
    return (match["case"], int(match["channel"])) if match else (stem, None)
