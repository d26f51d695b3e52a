"""Which clips of a set are learned from, and which are held back for validation and test: always the same ones."""

from __future__ import annotations

import logging

from mamba_apps.errors import UserError
from mamba_datasets.audio import ClipSet, hold_back

_log = logging.getLogger(__name__)

Part = float | str | None


def divide(clips: ClipSet, val: Part, test: Part, fold: int | None) -> dict[str, ClipSet]:
    """Return the training clips and, where there are any, those of validation and test.

    Args:
        clips: The whole set.
        val: The validation part: the name of a split; or a number in (0, 1), that part of the training clips held back,
            of each class alike, clips of one recording together, where the set has no split "val" of its own; None for
            its own or none.
        test: The test part, likewise.
        fold: Instead of ``test``, the fold that is tested; the other folds are trained on.

    Raises:
        UserError: If a part is out of range, or leaves nothing to learn.
        DataError: If the set has no such split or fold, or a class has one clip only, which cannot be on both sides.
    """
    for name, part in (("val", val), ("test", test)):
        if isinstance(part, float) and not 0 < part < 1:
            raise UserError(f"{name} is {part}", "give a number in (0, 1), such as 0.1, or the name of a split")
    if isinstance(val, float) and isinstance(test, float) and val + test >= 1:
        raise UserError(f"val is {val}, test is {test}", "hold back parts that leave something to learn")
    if fold is not None and test is not None:
        raise UserError(f"test is {test}, and fold is {fold}", "give one of them")
    splits = set(clips.splits or ())
    found: dict[str, ClipSet] = {}
    for name, part in (("val", val), ("test", test)):
        if isinstance(part, str):
            found[name] = clips.in_split(part)
        elif name in splits and not (name == "test" and fold is not None):
            found[name] = clips.in_split(name)
            if part is not None:
                _log.warning("%s: the set's own part %r is used, and nothing is held back for it", clips.source, name)
    train = clips.in_split("train") if splits else clips
    if fold is not None:
        train, found["test"] = clips.outside_folds(fold), clips.in_folds(fold)
    for name, part in (("test", test), ("val", val)):
        if isinstance(part, float) and name not in found:
            # as a part of all, whatever was held back before it
            before = len(clips) / len(train) if name == "val" and isinstance(test, float) and not splits else 1.0
            train, found[name] = hold_back(train, part * before)
    return {"train": train, **found}
