"""A page on a trained model's test: its scores, class by class, what it confuses, and the hardest sounds as pictures.

Dimensions in names: N clips, K classes, S samples, T frames, F mel bands.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mamba_apps.audio.filterbank import FilterBank
from mamba_apps.audio.tagging.scores import one_hot, per_class
from mamba_datasets.audio import ClipSet

_HARDEST = 12
# A table of more classes cannot be read; the pairs that are confused most are then listed.
_MATRIX = 40
_PAIRS = 30
_PICTURE_SECONDS, _PICTURE_HEIGHT = 12.0, 96
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .55rem;text-align:right;border-bottom:1px solid #eee}
td:first-child,th:first-child{text-align:left}.matrix td{min-width:1.6rem;text-align:center;border:1px solid #fff}
.clips{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:21rem}
img{width:100%;height:6rem;image-rendering:auto}figcaption{font-size:.85rem;overflow-wrap:anywhere}
"""


def make_page(
    title: str, clips: ClipSet, probability_NK: Tensor, target_N: Tensor, scores: Mapping[str, float], *, binary: bool
) -> str:
    """Return the page as HTML that needs no other file.

    Args:
        title: What was tested, for the headline.
        clips: The test clips.
        probability_NK: The probabilities of each.
        target_N: Their classes (N,), or the numbers (N, K) of a multi-label set.
        scores: The scores by name.
        binary: Whether each class has a probability of its own.

    Raises:
        DataError: One of the hardest sounds can no longer be read.
    """
    classes = clips.classes
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(clips):,} sounds, {len(classes)} classes. "
        + ", ".join(f"{html.escape(name)} <b>{value:.4g}</b>" for name, value in scores.items())
        + "</p>",
    ]
    if target_N.dim() == 1:
        parts += ["<h2>What is taken for what</h2>", _confusions(probability_NK, target_N, classes)]
    parts += ["<h2>Scores a class</h2>", _class_table(probability_NK, target_N, classes)]
    parts += ["<h2>The hardest sounds</h2>", _hardest(clips, probability_NK, target_N, binary=binary)]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _confusions(probability_NK: Tensor, target_N: Tensor, classes: Sequence[str]) -> str:
    """Return the confusion matrix, a row a true class; of many classes, the pairs that are confused most."""
    count = len(classes)
    cell = target_N * count + probability_NK.argmax(dim=1)
    matrix = torch.bincount(cell, minlength=count * count).reshape(count, count).numpy()
    if count > _MATRIX:
        wrong = matrix - np.diag(np.diag(matrix))
        order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
        pairs = [divmod(int(place), count) for place in order if wrong.flat[place]]
        rows = [[classes[true], classes[taken], str(wrong[true, taken])] for true, taken in pairs]
        return _table(["it is", "taken for", "sounds"], rows)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    lines = ["<tr><th></th>" + "".join(f"<th>{html.escape(name)}</th>" for name in classes) + "</tr>"]
    for true, name in enumerate(classes):
        cells = []
        for taken in range(count):
            hue, shade = (145 if true == taken else 10), 97 - 52 * float(share[true, taken])
            text = matrix[true, taken] or ""
            cells.append(f'<td style="background:hsl({hue},65%,{shade:.0f}%)">{text}</td>')
        lines.append(f"<tr><th>{html.escape(name)}</th>{''.join(cells)}</tr>")
    note = "<p>A row a class that it is, a column what it was taken for.</p>"
    return f'{note}<table class="matrix">{"".join(lines)}</table>'


def _class_table(probability_NK: Tensor, target_N: Tensor, classes: Sequence[str]) -> str:
    """Return the scores of each class, the worst first."""
    found = per_class(probability_NK, target_N)
    names = [name for name in found if name != "clips"]
    order = np.argsort(np.nan_to_num(found[names[0]], nan=np.inf), kind="stable")
    rows = [
        [classes[number], f"{found['clips'][number]:.0f}", *(_number(found[name][number]) for name in names)]
        for number in order.tolist()
    ]
    return _table(["class", "sounds", *names], rows)


def _number(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.3f}"


def _hardest(clips: ClipSet, probability_NK: Tensor, target_N: Tensor, *, binary: bool) -> str:
    target_NK = one_hot(target_N, len(clips.classes))
    if binary:
        loss_NK = torch.nn.functional.binary_cross_entropy(probability_NK, target_NK, reduction="none")
        loss_N = loss_NK.sum(dim=1)
    else:
        loss_N = -(probability_NK.clamp(min=1e-12).log() * target_NK).sum(dim=1)
    figures = []
    for number in loss_N.argsort(descending=True)[:_HARDEST].tolist():
        clip = clips.read(number, seconds=_PICTURE_SECONDS)
        true = [name for name, on in zip(clips.classes, target_NK[number].tolist(), strict=True) if on > 0.5]
        top = probability_NK[number].topk(min(3, len(clips.classes)))
        heard = ", ".join(
            f"{clips.classes[place]} {value:.2f}"
            for place, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
        picture = _picture(clip.samples_S, clips.rate)
        caption = (
            f"<b>{html.escape(', '.join(true) or 'none')}</b>, heard as {html.escape(heard)}<br>"
            f"{html.escape(clip.path)}, {clip.start_s:.2f} to {clip.end_s:.2f} s"
        )
        figures.append(
            f'<figure><img alt="spectrogram" src="data:image/png;base64,{picture}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="clips">{"".join(figures)}</div>'


def _picture(wave_S: Tensor, rate: int) -> str:
    """Return a spectrogram as base64 of a PNG."""
    import matplotlib

    bank = FilterBank(rate, 64)
    if len(wave_S) < bank.size:
        wave_S = torch.nn.functional.pad(wave_S, (0, bank.size - len(wave_S)))
    log_TF = bank.log_mel(wave_S[None])[0]
    spread = (log_TF - log_TF.min()) / (log_TF.max() - log_TF.min()).clamp(min=1e-6)
    colours: NDArray[np.uint8] = matplotlib.colormaps["magma"](spread.mT.flip(0).numpy(), bytes=True)[..., :3]
    buffer = io.BytesIO()
    width = min(max(len(log_TF), 64), 600)
    Image.fromarray(colours).resize((width, _PICTURE_HEIGHT)).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
