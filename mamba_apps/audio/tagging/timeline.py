"""What is heard when: the probabilities of all classes, row after row of a long sound, as a table and as a picture.

Dimensions in names: R rows, K classes, S samples, F mel bands, X columns of a picture.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_apps.audio.filterbank import FilterBank
from mamba_apps.audio.tagging.pieces import cut_windows
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_apps.audio.tagging.sounds import Hearing
from mamba_apps.errors import UserError
from mamba_apps.training.files import storage_error, temporary_beside, write_text

_MOST_ROWS = 1_000_000
_MELS, _COLUMNS = 64, 1200
_DRAWN_CLASSES = 10


@dataclass(frozen=True)
class Timeline:
    """What is heard when.

    Args:
        sound: The sound's path; empty for one in memory.
        seconds: Its length.
        start_R: Where each row begins, in seconds.
        end_R: Where it ends.
        labels: The names of the classes.
        probability_RK: Of each class, in each row.
        spectrogram_FX: Log mel energies of the whole sound, as many columns as a picture needs.
        notes: What was done to the sound.
    """

    sound: str
    seconds: float
    start_R: NDArray[np.float64]
    end_R: NDArray[np.float64]
    labels: tuple[str, ...]
    probability_RK: NDArray[np.float32]
    spectrogram_FX: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.start_R)

    @property
    def top(self) -> list[tuple[str, float]]:
        """The likeliest class of each row, with its probability."""
        best_R = self.probability_RK.argmax(axis=1)
        return [
            (self.labels[number], float(row_K[number]))
            for number, row_K in zip(best_R, self.probability_RK, strict=True)
        ]

    def to_csv(self, path: str | Path) -> None:
        """Write a row for each row: start_s, end_s, the likeliest class and its probability, then those of all classes.

        Raises:
            UserError: The file cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["start_s", "end_s", "top", "top_probability", *self.labels])
        for start, end, (name, best), row_K in zip(
            self.start_R, self.end_R, self.top, self.probability_RK, strict=True
        ):
            numbers = [f"{value:.4f}" for value in (best, *row_K)]
            writer.writerow([f"{start:.3f}", f"{end:.3f}", name, *numbers])
        try:
            write_text(Path(path), text.getvalue())
        except OSError as error:
            raise storage_error("write the timeline", Path(path), error) from error

    def plot(self, path: str | Path) -> None:
        """Draw the spectrogram, and below it the classes that are likeliest somewhere, over time, as a PNG.

        Raises:
            UserError: The file cannot be written.
        """
        from matplotlib.figure import Figure

        shown = np.argsort(-self.probability_RK.max(axis=0), kind="stable")[:_DRAWN_CLASSES]
        figure = Figure(figsize=(12, 3.2 + 0.28 * len(shown)), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 0.4 + 0.28 * len(shown)])
        unit, scale = ("s", 1.0) if self.seconds < 180 else ("min", 60.0) if self.seconds < 7200 else ("h", 3600.0)
        end = self.seconds / scale
        upper.imshow(self.spectrogram_FX, origin="lower", aspect="auto", extent=(0, end, 0, 1), cmap="magma")
        upper.set_yticks([])
        upper.set_ylabel("mel bands")
        name = Path(self.sound).name.encode(errors="backslashreplace").decode()  # it may hold bytes that are no text
        upper.set_title(name or "sound", parse_math=False)
        edges_R = np.append(self.start_R, self.end_R[-1:]) / scale
        rows = np.arange(len(shown) + 1)
        mesh = lower.pcolormesh(edges_R, rows, self.probability_RK[:, shown].T, vmin=0, vmax=1, cmap="viridis")
        lower.set_yticks(rows[:-1] + 0.5, [self.labels[number] for number in shown], parse_math=False)
        lower.invert_yaxis()
        lower.set_xlim(0, end)
        lower.set_xlabel(f"time, {unit}")
        figure.colorbar(mesh, ax=lower, label="probability")
        path = Path(path)
        try:
            with temporary_beside(path) as temporary:
                figure.savefig(temporary, format="png", dpi=110)
                os.replace(temporary, path)
        except OSError as error:
            raise storage_error("write the picture", path, error) from error


def make_timeline(
    hearing: Hearing,
    policy: ClipPolicy,
    labels: Sequence[str],
    every: float,
    probabilities: Callable[[Iterable[Tensor]], Iterator[Tensor]],
) -> Timeline:
    """Hear a sound once, in the memory of a few windows.

    Args:
        hearing: The sound, open.
        policy: The model's rate and the length of its windows.
        labels: The names of the classes.
        every: Seconds of a row.
        probabilities: Makes the probabilities (K,) of one window (S,) after the other.

    Raises:
        DataError: The sound is broken.
        UserError: ``every`` is out of range.
    """
    if not (every > 0 and math.isfinite(every)) or hearing.seconds / every > _MOST_ROWS:
        raise UserError(f"every is {every:g} s", f"give seconds above 0, and no more than {_MOST_ROWS:,} rows in all")
    every = min(every, hearing.seconds)  # one row is the sound, however long it may be
    count = max(1, math.ceil(hearing.seconds / every - 1e-6))
    start_R = every * np.arange(count, dtype=np.float64)
    end_R = np.minimum(start_R + every, hearing.seconds)
    # Rows that are longer than a window have several, beside each other.
    beside = max(1, math.ceil(every / policy.seconds - 1e-6))
    middle = (np.arange(count * beside) + 0.5) * every / beside * policy.rate
    first = np.clip(np.round(middle - policy.samples / 2), 0, max(hearing.samples - policy.samples, 0)).astype(np.int64)
    sketch = _Sketch(policy.rate, hearing.samples)
    windows = cut_windows(sketch.watched(hearing.pieces), first.tolist(), policy.samples)
    found = torch.stack(list(probabilities(windows)))
    for piece_S in hearing.pieces:  # after the last window's end
        sketch.add(piece_S)
    return Timeline(
        hearing.name,
        hearing.seconds,
        start_R,
        end_R,
        tuple(labels),
        found.unflatten(0, (count, beside)).mean(dim=1).numpy(),
        sketch.picture(),
        hearing.all_notes,
    )


class _Sketch:
    """A spectrogram of so many columns as a picture has, of a sound that comes in pieces."""

    def __init__(self, rate: int, samples: int) -> None:
        self._bank = FilterBank(rate, _MELS)
        self._waiting = self._bank.init_state(1)
        self._frames = max(1, (samples - self._bank.size) // self._bank.hop + 1)
        columns = min(self._frames, _COLUMNS)
        self._sum_XF, self._count_X, self._at = torch.zeros(columns, _MELS), torch.zeros(columns), 0

    def watched(self, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the pieces, after drawing each."""
        for piece_S in pieces:
            self.add(piece_S)
            yield piece_S

    def add(self, piece_S: Tensor) -> None:
        """Draw a piece."""
        frame_TF, self._waiting = self._bank.step(piece_S[None], self._waiting)
        frame_TF = frame_TF[0]
        at_T = torch.arange(self._at, self._at + len(frame_TF)) * len(self._count_X) // self._frames
        at_T = at_T.clamp(max=len(self._count_X) - 1)
        self._sum_XF.index_add_(0, at_T, frame_TF)
        self._count_X.index_add_(0, at_T, torch.ones(len(frame_TF)))
        self._at += len(frame_TF)

    def picture(self) -> NDArray[np.float32]:
        """Return the bands (F, X)."""
        return (self._sum_XF / self._count_X.clamp(min=1)[:, None]).mT.numpy()
