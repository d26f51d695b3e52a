"""The check of images and masks, for the readers' registry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.images.masks import MaskRules, read_mask
from mamba_datasets.images.matching import check_sizes, find_pairs, fits_pairs, splits_of
from mamba_datasets.images.survey import Facts, describe, inspect_image
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Collector, Finding, Report
from mamba_datasets.survey import describe_copies, in_threads

_MANY = 32


@dataclass(frozen=True)
class _PairFacts:
    image: Facts
    mask_values: tuple[int, ...] = ()
    mask_error: DataError | None = None


@register_reader("image-pairs", fits_folder=fits_pairs)
def check_pairs(
    path: Path | str,
    *,
    images: str = "images",
    masks: str | None = None,
    num_classes: int | None = None,
    ignore_index: int = 255,
    foreground: bool = False,
    reduce_zero_label: bool = False,
) -> Report:
    """Check a folder of images and masks; every pair is decoded.

    Args:
        path: The folder, laid out as `ImagePairs` says.
        images: The images' folder within the root.
        masks: The masks' folder within the root; None takes the one of masks, labels, annotations that exists.
        num_classes: Mask values are 0 to this, exclusive; None does not check them.
        ignore_index: The value of pixels that belong to no class.
        foreground: Take every value above 0 as class 1.
        reduce_zero_label: Take 0 as `ignore_index` and count classes from 1.

    Returns:
        The report: every broken file or pair, and notes on values, sizes, modes and copies.
    """
    sink = Collector(path, keep=True)
    rules = MaskRules(num_classes, ignore_index, foreground, reduce_zero_label)
    pairs: dict[str, list[tuple[str, str]]] = {}
    for split in splits_of(path, images):
        try:
            pairs[split or ""] = find_pairs(path, sink, split=split, images=images, masks=masks)
        except DataError as error:
            sink.findings.append(Finding.of(error))
    found = [pair for of_split in pairs.values() for pair in of_split]
    facts = list(in_threads(partial(_inspect, rules=rules), found))
    errors = (error for fact in facts for error in (fact.image.error, fact.mask_error))
    sink.findings += [Finding.of(error) for error in errors if error is not None]

    split_of = {image: split for split, of_split in pairs.items() for image, _ in of_split}
    image_facts = [fact.image for fact in facts]
    notes = describe(image_facts) + describe_copies(image_facts, lambda fact: (split_of[fact.path], ""))
    notes += _values({value for fact in facts for value in fact.mask_values})
    summary = f"{len(found)} pairs"
    if len(pairs) > 1:
        summary += f" in {', '.join(f'{split} ({len(of_split)})' for split, of_split in pairs.items())}"
    return Report(str(path), "image-pairs", tuple(sink.findings), "" if sink.findings else summary, tuple(notes))


def _inspect(pair: tuple[str, str], rules: MaskRules) -> _PairFacts:
    """Decode a pair as training would."""
    image = inspect_image(pair[0])
    try:
        mask_HW = read_mask(pair[1], rules)
        if image.error is None:
            check_sizes(pair[0], image.size, pair[1], mask_HW)
    except DataError as error:
        return _PairFacts(image, mask_error=error)
    return _PairFacts(image, tuple(np.unique(mask_HW).tolist()))


def _values(values: set[int]) -> list[str]:
    if not values:
        return []
    if len(values) > _MANY:
        return [f"mask values: {len(values)} from {min(values)} to {max(values)}"]
    return [f"mask values: {', '.join(map(str, sorted(values)))}"]
