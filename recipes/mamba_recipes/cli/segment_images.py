"""`mamba-apps segment` on images: all are read before a mask is written, and each is written whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mamba_apps.errors import UserError
from mamba_apps.training.files import folder_to_fill, storage_error, temporary_beside
from mamba_datasets.images import read_image
from mamba_datasets.images.read import IMAGE
from mamba_recipes.cli.errors import DONE
from mamba_recipes.cli.targets import folder_of_masks

if TYPE_CHECKING:
    from mamba_apps.vision.segmentation import ImageSegmenter


@dataclass(frozen=True)
class _Job:
    """A picture and what is written for it."""

    image: Path
    mask: Path
    overlay: Path | None


def run(arguments: Namespace, folders: list[Path]) -> int:
    """Segment a picture or a folder of them with the model saved in the one of ``folders``."""
    for given, option in ((arguments.probabilities, "--probabilities"), (arguments.no_mirror, "--no-mirror")):
        if given:
            raise UserError(f"{option} is for volumes", "leave it out for images")
    if len(folders) > 1:
        raise UserError(f"{len(folders)} models are given", "images are segmented by one")
    jobs = _jobs(arguments)
    for job in jobs:
        read_image(job.image)

    from mamba_apps.vision.segmentation import ImageSegmenter
    from mamba_recipes.setting import device_words

    segmenter = ImageSegmenter.load(folders[0])
    words = [f"segment {arguments.input.name}", f"{segmenter.network.backbone.name} from {arguments.model[0]}"]
    print(" · ".join([*words, device_words()]), file=sys.stderr, flush=True)
    with folder_to_fill(jobs[0].mask.resolve().parent, "folder of masks"):
        rows = _segment(segmenter, jobs, as_json=arguments.json)
    if arguments.json:
        document = {"model": str(arguments.model[0]), "labels": segmenter.labels, "masks": rows}
        print(json.dumps(document, indent=1, ensure_ascii=False))
    return DONE


def _segment(segmenter: ImageSegmenter, jobs: list[_Job], *, as_json: bool) -> list[dict[str, Any]]:
    """Write the masks, and return a row for each."""
    from mamba_apps.vision.segmentation.overlay import mask_image, overlay

    classes, rows = len(segmenter.labels), list[dict[str, Any]]()
    for job in jobs:
        picture = read_image(job.image)
        mask = segmenter.predict(picture)
        _write(mask_image(mask, classes), job.mask)
        if job.overlay is not None:
            _write(Image.fromarray(overlay(np.asarray(picture), mask, classes)), job.overlay)
        counts = np.bincount(mask.ravel(), minlength=classes)
        shares = {label: float(count / mask.size) for label, count in zip(segmenter.labels, counts, strict=True)}
        rows.append({"image": str(job.image), "mask": str(job.mask), "shares": shares})
        if job.overlay is not None:
            rows[-1]["overlay"] = str(job.overlay)
        if not as_json:
            found = ", ".join(f"{label} {share:.1%}" for label, share in shares.items() if share)
            print(f"{job.mask}  {found}", flush=True)
    return rows


def _jobs(arguments: Namespace) -> list[_Job]:
    source: Path = arguments.input
    if source.is_dir():
        images = sorted(path for path in source.iterdir() if path.is_file() and IMAGE.names(path.name))
        if not images:
            raise UserError(f"{source}: holds no image", "give an image or a folder of images")
        out = folder_of_masks(source, arguments.out)
        masks = [out / f"{image.stem}.png" for image in images]
    else:
        images = [source]
        masks = [arguments.out or Path(f"{source.stem}_mask.png")]
        if masks[0].suffix.lower() != ".png":
            raise UserError(f"--out {masks[0]}: a mask is written as PNG", "give a name that ends in .png")
        if masks[0].is_dir():
            raise UserError(f"--out {masks[0]} is a folder", "give a file")
    overlays = [mask.with_name(f"{mask.stem}_overlay.png") if arguments.overlay else None for mask in masks]
    jobs = [_Job(*paths) for paths in zip(images, masks, overlays, strict=True)]
    taken = {image.resolve(): image for image in images}
    for job in jobs:
        for target in filter(None, (job.mask, job.overlay)):
            other = taken.setdefault(target.resolve(), job.image)
            if other != job.image or target.resolve() == job.image.resolve():
                raise UserError(f"{target} would overwrite what belongs to {other}", "choose another --out, or rename")
    return jobs


def _write(image: Image.Image, path: Path) -> None:
    try:
        with temporary_beside(path) as temporary:
            image.save(temporary, format="PNG")
            os.replace(temporary, path)
    except OSError as error:
        raise storage_error("write", path, error) from error
