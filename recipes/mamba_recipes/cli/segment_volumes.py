"""`mamba-apps segment` on volumes: a mask each on the image's own grid, written whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mamba_apps.errors import UserError
from mamba_apps.training.files import folder_to_fill, storage_error, temporary_beside
from mamba_datasets.errors import DataError
from mamba_recipes.cli.errors import DONE, one_line
from mamba_recipes.cli.targets import folder_of_masks

if TYPE_CHECKING:
    from mamba_apps.medical.segmentation import Segmenter

_NAMED = 8


@dataclass(frozen=True)
class _Job:
    """A case and what is written for it."""

    name: str
    images: list[Path]
    mask: Path
    probabilities: Path | None


def run(arguments: Namespace, folders: list[Path]) -> int:
    """Segment a volume or a folder of them with the models in ``folders``; in a folder, broken ones are passed over."""
    if arguments.overlay:
        raise UserError("--overlay is for images", "open the mask beside the volume in a viewer")

    from mamba_apps.medical.segmentation import Segmenter
    from mamba_apps.medical.segmentation.page import NOTE
    from mamba_recipes.setting import device_words

    segmenter = Segmenter.load(folders, mirror=False if arguments.no_mirror else None)
    jobs = _jobs(arguments, segmenter)
    models = " + ".join(map(str, arguments.model))
    words = [f"segment {arguments.input.name}", f"{segmenter.name} from {models}", device_words()]
    print(f"{' · '.join(words)}\n{NOTE}", file=sys.stderr, flush=True)
    with folder_to_fill(jobs[0].mask.resolve().parent, "folder of masks"):
        return _segment(segmenter, jobs, models, as_json=arguments.json)


def _segment(segmenter: Segmenter, jobs: list[_Job], models: str, *, as_json: bool) -> int:
    from mamba_datasets.volumes.read import check_mask_path

    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    with _progress(len(jobs)) as (show, say):
        for number, job in enumerate(jobs):
            try:
                volume = segmenter.read(job.images)
                check_mask_path(job.mask, volume)
                mask, probabilities = _predict(segmenter, volume, job, partial(_show, show, number))
            except DataError as error:
                if len(jobs) == 1:
                    raise
                broken.append(job.name)
                say(f"mamba-apps: passed over {one_line(error)}", sys.stderr)
                continue
            rows.append(_write(segmenter, volume, job, mask, probabilities))
            if not as_json:
                found = ", ".join(f"{label} {size:.4g} ml" for label, size in rows[-1]["millilitres"].items() if size)
                say(f"{job.mask}  {found or 'nothing found'}", sys.stdout)
    if as_json:
        document = {"model": models, "labels": segmenter.labels, "masks": rows, "broken": broken}
        print(json.dumps(document, indent=1, ensure_ascii=False))
    if broken:
        named = ", ".join(broken[:_NAMED]) + (", …" if len(broken) > _NAMED else "")
        raise UserError(
            f"{len(broken)} of {len(jobs)} cases were passed over ({named})", "mend what the lines above name"
        )
    return DONE


def _jobs(arguments: Namespace, segmenter: Segmenter) -> list[_Job]:
    from mamba_apps.medical.segmentation.inputs import find_cases
    from mamba_datasets.volumes.read import ending_of

    source: Path = arguments.input
    cases = find_cases(source, segmenter.plan)
    if source.is_dir():
        out = folder_of_masks(source, arguments.out)
        masks = [out / f"{name}{ending_of(images[0])}" for name, images in cases.items()]
    else:
        name, images = next(iter(cases.items()))
        masks = [arguments.out or Path(f"{name}_mask{ending_of(images[0])}")]
        if masks[0].is_dir():
            raise UserError(f"--out {masks[0]} is a folder", f"name a file, such as {masks[0] / name}_mask.nii.gz")
        ending_of(masks[0])
    taken = {image.resolve() for images in cases.values() for image in images}
    jobs = []
    for (name, images), mask in zip(cases.items(), masks, strict=True):
        if mask.resolve() in taken:
            raise UserError(f"{mask} would overwrite an image", "choose another --out")
        probabilities = mask.with_name(f"{name}_probabilities.npy") if arguments.probabilities else None
        jobs.append(_Job(name, images, mask, probabilities))
    return jobs


def _show(show: Callable[[float], None], before: int, done: int, of: int) -> None:
    show(before + done / of)


def _predict(
    segmenter: Segmenter, volume: Any, job: _Job, on_window: Callable[[int, int], None]
) -> tuple[np.ndarray, np.ndarray | None]:
    if job.probabilities is None:
        return segmenter.predict(volume, on_window=on_window), None
    return segmenter.predict_with_probabilities(volume, on_window=on_window)


def _write(
    segmenter: Segmenter, volume: Any, job: _Job, mask: np.ndarray, probabilities: np.ndarray | None
) -> dict[str, Any]:
    """Write a case's mask and, where they were asked for, its probabilities, and return its row."""
    from mamba_datasets.volumes import write_mask

    write_mask(job.mask, mask, volume)
    voxel = float(np.prod(volume.spacing)) / 1000
    counts = np.bincount(mask.ravel(), minlength=len(segmenter.labels))
    sizes = {label: float(counts[value] * voxel) for label, value in segmenter.labels.items() if value}
    row: dict[str, Any] = {"image": [str(path) for path in job.images], "mask": str(job.mask), "millilitres": sizes}
    if job.probabilities is not None and probabilities is not None:
        try:
            with temporary_beside(job.probabilities) as temporary:
                with temporary.open("xb") as file:
                    np.save(file, probabilities.astype(np.float16), allow_pickle=False)
                os.replace(temporary, job.probabilities)
        except OSError as error:
            raise storage_error("write", job.probabilities, error) from error
        row["probabilities"] = str(job.probabilities)
    return row


@contextmanager
def _progress(cases: int) -> Iterator[tuple[Callable[[float], None], Callable[[str, Any], None]]]:
    """Yield what moves a bar on stderr, where that is a terminal, and what prints a line above it."""
    if not sys.stderr.isatty():
        yield (lambda done: None), (lambda line, stream: print(line, file=stream, flush=True))
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("segmenting"), BarColumn(20), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    # stdout stays as it is, since data that is piped must not turn up on stderr
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("segmenting", total=cases)

        def say(line: str, stream: Any) -> None:
            if stream is sys.stdout and not stream.isatty():
                print(line, flush=True)
            else:
                bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield (lambda done: bar.update(task, completed=done)), say
