"""A page on how a test went: what was scored, each label's means, each case, and pictures of three of them."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mamba_apps.medical.segmentation.scores import LabelScore, mean_scores
from mamba_apps.training.files import make_directory, storage_error, write_text
from mamba_apps.vision.segmentation.overlay import overlay, palette

NOTE = (
    "This is research software, no medical device. It is not cleared for diagnosis or treatment; "
    "a qualified person must check every mask before anything depends on it."
)
_KINDS = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95, mm"}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    ".note{border-left:4px solid #c33;padding:.3rem 1rem}"
    ".more{max-height:30rem;overflow:auto}"
)


def write_csv(path: Path, scores: Mapping[str, Mapping[str, LabelScore]]) -> None:
    """Write a row a case and label: Dice, NSD, HD95 and both sizes in voxels; empty where a label is in neither mask.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "label", "dice", "nsd", "hd95_mm", "true_voxels", "found_voxels"])
    for case, labels in scores.items():
        for label, score in labels.items():
            values = ["" if np.isnan(value) else f"{value:.6g}" for value in (score.dice, score.nsd, score.hd95)]
            table.writerow([case, label, *values, score.true_voxels, score.found_voxels])
    _write(path, text.getvalue())


def ranked_cases(scores: Mapping[str, Mapping[str, LabelScore]]) -> dict[str, str]:
    """Return the names of the best, the median and the worst case by the mean Dice over the labels they have."""
    means = {}
    for case, labels in scores.items():
        values = np.array([score.dice for score in labels.values()])
        if not np.isnan(values).all():
            means[case] = float(np.nanmean(values))
    order = sorted(means, key=lambda case: -means[case])
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]} if order else {}


def case_picture(
    title: str,
    image_zyx: np.ndarray,
    truth_zyx: np.ndarray,
    found_zyx: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
) -> bytes:
    """Return a PNG of a case: image, truth and mask side by side, in three layers through its labels.

    Args:
        title: Words above it.
        image_zyx: One channel.
        truth_zyx: The true mask.
        found_zyx: The mask.
        labels: The values of the labels.
        spacing: Of the voxels along z, y and x.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    layers = _layers((truth_zyx > 0) | (found_zyx > 0))
    low, high = np.percentile(image_zyx, (0.5, 99.5))
    aspect = spacing[1] / spacing[2]
    height = 3 * len(layers) * aspect * image_zyx.shape[1] / image_zyx.shape[2]
    figure = Figure(figsize=(9, 0.8 + height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    classes = max(labels.values()) + 1
    for row, layer in zip(figure.subplots(len(layers), 3, squeeze=False), layers, strict=True):
        grey = np.clip(255 * (image_zyx[layer] - low) / max(float(high - low), 1e-6), 0, 255).astype(np.uint8)
        picture = np.repeat(grey[..., None], 3, axis=-1)
        masks = (np.zeros_like(truth_zyx[layer]), truth_zyx[layer], found_zyx[layer])
        for axis, mask, words in zip(row, masks, (f"layer {layer}", "truth", "mask"), strict=True):
            axis.imshow(overlay(picture, mask.astype(np.uint8), classes), aspect=aspect)
            axis.set_title(words, fontsize=9)
            axis.set_axis_off()
    shown = [Patch(color=palette(classes)[value] / 255, label=name) for name, value in labels.items() if value]
    figure.legend(handles=shown[:12], loc="outside lower center", ncols=min(len(shown), 6), frameon=False, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    return stream.getvalue()


def write_page(
    path: Path,
    title: str,
    facts: Sequence[str],
    scores: Mapping[str, Mapping[str, LabelScore]],
    pictures: Mapping[str, bytes],
) -> None:
    """Write the page, one file with its pictures inside.

    Args:
        path: The HTML file.
        title: Its heading.
        facts: Lines on the model, the data and the metrics.
        scores: For each case its labels' scores.
        pictures: Captions and PNGs.

    Raises:
        UserError: The file cannot be written.
    """
    means = mean_scores(list(scores.values()))
    labels = list(next(iter(scores.values()), {}))
    rows = [("label", *_KINDS.values())]
    for label in ["mean", *labels]:
        suffix = "" if label == "mean" else f"_{label}"
        rows.append((label, *(_number(means.get(kind + suffix)) for kind in _KINDS)))
    cases = [("case", *(f"{label}: {_KINDS[kind]}" for label in labels for kind in _KINDS))]
    for case, found in scores.items():
        cases.append((case, *(_number(getattr(found[label], kind)) for label in labels for kind in _KINDS)))
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="note">{NOTE}</p>']
    parts += ["<ul>", *(f"<li>{html.escape(fact)}</li>" for fact in facts), "</ul>", _table(rows)]
    for caption, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts.append(f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></figure>')
    parts += ["<h2>Every case</h2>", f'<div class="more">{_table(cases)}</div>']
    body = "\n".join(parts)
    _write(
        path,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n{body}\n</html>\n",
    )


def _layers(labelled_zyx: np.ndarray) -> list[int]:
    """Return the layers at a quarter, a half and three quarters of what is labelled, or the middle one."""
    hit = np.flatnonzero(labelled_zyx.any(axis=(1, 2)))
    if not len(hit):
        return [len(labelled_zyx) // 2]
    return sorted({int(hit[int(part * (len(hit) - 1))]) for part in (0.25, 0.5, 0.75)})


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _write(path: Path, text: str) -> None:
    make_directory(path.parent, "folder of scores")
    try:
        write_text(path, text)
    except OSError as error:
        raise storage_error("write", path, error) from error
