"""Clips dealt out to folds, or held back: of each class alike, and what belongs together stays together."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from mamba_datasets.audio.clips import ClipSet
from mamba_datasets.errors import DataError
from mamba_datasets.survey import some

# Which clips are held back must not change with a run's seed: one set, one split.
_SEED = 0


def make_folds(clips: ClipSet, count: int = 5, *, seed: int = _SEED) -> ClipSet:
    """Return a set with folds, from 1 to `count`.

    Clips of one group, or of one file, come into one fold; each class is spread over the folds as evenly as they allow.

    Args:
        clips: The set; folds that it has are replaced.
        count: How many folds.
        seed: Another one gives other folds.

    Raises:
        DataError: There are fewer groups than folds, or a class is in one group only: the fold that tests it could not
            learn it.
    """
    if count < 2:
        raise DataError(clips.source, "folds", f"expected at least 2 folds, found {count}", "give more")
    units = _units(clips)
    if len(units) < count:
        found = f"{len(units)} files or groups are too few for {count} folds"
        raise DataError(clips.source, "folds", found, "give fewer folds")
    bins = _deal(clips, units, [1 / count] * count, seed, least=0)
    return clips.with_folds([number + 1 for number in bins])


def hold_back(clips: ClipSet, part: float, *, seed: int = _SEED) -> tuple[ClipSet, ClipSet]:
    """Divide a set in two, always in the same way.

    Clips of one group, or of one file, stay together. Of each class about that part is held back; of one that is in two
    groups or more, something is on either side.

    Args:
        clips: The set.
        part: How much is held back, in (0, 1).
        seed: Another one holds others back.

    Returns:
        The clips that are kept, and those that are held back.

    Raises:
        DataError: A class is in one group only, and cannot be on both sides, or nothing is left on one side.
    """
    if not 0 < part < 1:
        raise DataError(clips.source, "part", f"expected a part between 0 and 1, found {part}", "give one such as 0.1")
    units = _units(clips)
    bins = _deal(clips, units, [1 - part, part], seed, least=1)
    kept, held = ([index for index, number in enumerate(bins) if number == which] for which in (0, 1))
    if not kept or not held:
        found = f"{len(clips)} clips in {len(units)} files or groups leave nothing on one side"
        raise DataError(clips.source, "part", found, "add others, or name the splits")
    return clips.subset(kept), clips.subset(held)


def _units(clips: ClipSet) -> list[list[int]]:
    """Return the indices of the clips that belong together; refuse a class that is in one unit only."""
    together: dict[str, list[int]] = defaultdict(list)
    for index, place in enumerate(clips.places):
        together[place.group or place.path].append(index)
    units = list(together.values())
    counts = Counter(label for unit in units for label in {label for i in unit for label in clips.places[i].labels})
    lonely = [repr(clips.classes[label]) for label in sorted(counts) if counts[label] == 1]
    # in a multi-label set rare tags are usual, and a clip is of use without them
    if lonely and not clips.multilabel:
        shared = any(len(unit) > 1 for unit in units)
        what = "group" if any(place.group for place in clips.places) else "file" if shared else "clip"
        found = f"{len(lonely)} with one {what} only, which cannot be learned and tested: {some(lonely)}"
        raise DataError(clips.source, "classes", found, f"add another {what}, or leave the class out")
    return units


def _deal(
    clips: ClipSet, units: Sequence[Sequence[int]], shares: Sequence[float], seed: int, *, least: int
) -> list[int]:
    """Deal units out to bins by iterative stratification (Sechidis et al., 2011), the rarest label first.

    Args:
        clips: The set.
        units: The clips that belong together.
        shares: How much each bin shall have.
        seed: Of the order in which units are dealt.
        least: How many clips of a class a bin shall have, however small its share.

    Returns:
        The bin of each clip.
    """
    order = list(range(len(units)))
    random.Random(seed).shuffle(order)  # noqa: S311  (no secret)
    labels = [Counter(label for index in unit for label in clips.places[index].labels) for unit in units]
    total = Counter[int]()
    holders: dict[int, list[int]] = defaultdict(list)
    for unit in order:
        total += labels[unit]
        for label in labels[unit]:
            holders[label].append(unit)
    wanted = [
        {label: min(max(share * count, least), count - least) for label, count in total.items()} for share in shares
    ]
    room = [share * len(clips) for share in shares]
    bins: dict[int, int] = {}
    by_rarity = sorted(holders, key=lambda label: (len(holders[label]), label))
    unlabelled = -1
    for label in [*by_rarity, unlabelled]:
        waiting = [unit for unit in (order if label == unlabelled else holders[label]) if unit not in bins]
        for unit in waiting:
            want = room if label == unlabelled else [one[label] for one in wanted]
            best = max(range(len(shares)), key=lambda number: (want[number], room[number]))
            bins[unit] = best
            room[best] -= len(units[unit])
            for other, count in labels[unit].items():
                wanted[best][other] -= count
    number_of = {index: bins[unit] for unit, members in enumerate(units) for index in members}
    return [number_of[index] for index in range(len(clips))]
