"""`AudioTagger`: what is heard in sounds, by a model that training saved.

Dimensions in names: N sounds, B windows, S samples, K classes, D channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_apps.audio.model import AudioModel
from mamba_apps.audio.tagging.live import LiveTagger
from mamba_apps.audio.tagging.network import make_network, saved_weights
from mamba_apps.audio.tagging.pieces import cut_windows
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_apps.audio.tagging.sounds import Channel, Hearing, Sound, opened
from mamba_apps.audio.tagging.tags import BadSoundsError, Tags, likeliest
from mamba_apps.audio.tagging.timeline import Timeline, make_timeline
from mamba_apps.errors import UserError
from mamba_apps.trained import Trained
from mamba_apps.training import load_card, saved_folder
from mamba_datasets.audio.read import SOUND
from mamba_datasets.errors import DataError

# Seconds of sound that are heard at once: what keeps a GPU busy, and a CPU's memory small.
_BATCH_SECONDS = {"cuda": 640.0, "cpu": 80.0}
_MOST_WINDOWS = 64


@dataclass(frozen=True)
class _Window:
    """A window of one of several sounds."""

    number: int
    wave_S: Tensor
    length: int


class AudioTagger(metaclass=Trained):
    """A trained model of sound; `AudioTagger.load` makes one.

    Sounds are heard as in the scores of training: at the model's rate, in windows of its length. What was done to a
    sound, resampling above all, stands in its `notes`.

    Args:
        model: The model's name.
        network: The model.
        policy: What it hears of a sound.
        labels: The names of its classes.
        binary: Whether each class has a probability of its own; otherwise those of all sum to 1.
        channel: "mean" of the channels, or the number of one of them, from 0.
        metrics: Its scores.
        device: Where it runs; None takes a GPU where there is one.
    """

    def __init__(
        self,
        model: str,
        network: AudioModel,
        policy: ClipPolicy,
        labels: Sequence[str],
        *,
        binary: bool = False,
        channel: Channel = "mean",
        metrics: dict[str, float] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.model, self.policy, self.labels = model, policy, list(labels)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device).eval()
        self.binary, self.channel = binary, channel
        together = _BATCH_SECONDS.get(self.device.type, _BATCH_SECONDS["cpu"]) / policy.seconds
        self._batch = max(1, min(_MOST_WINDOWS, int(together)))
        self.metrics = dict(metrics or {})

    @classmethod
    def load(cls, directory: str | Path, *, device: str | torch.device | None = None) -> AudioTagger:
        """Load a model that the training of a recipe saved.

        Args:
            directory: The saved model's folder, or the folder of the run.
            device: Where it runs; None takes a GPU where there is one.

        Raises:
            UserError: There is none, it is damaged, or it does not classify sounds.
        """
        folder = saved_folder(directory)
        card = load_card(folder)
        if (card.task, card.domain) != ("classification", "audio"):
            raise UserError(
                f"{folder} holds a model for {card.task} of {card.domain}", "give a model of sound's folder"
            )
        weights = saved_weights(folder)
        settings = dict(card.preprocessing)
        try:
            binary, channel = bool(settings.pop("binary")), settings.pop("channel")
            policy = ClipPolicy(**settings)
            network = make_network(card.model, card.arguments)
            network.load_state_dict(weights)
        except (RuntimeError, TypeError, KeyError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder}: the card and the weights do not fit together ({text})", "save the model again"
            ) from None
        return cls(
            card.model,
            network,
            policy,
            card.labels or [],
            binary=binary,
            channel=channel,
            metrics=card.metrics,
            device=device,
        )

    def tag(self, sound: Sound, rate: int | None = None, *, top: int = 5) -> Tags:
        """Return the likeliest classes of a sound of any length; one of hours takes the memory of a few windows.

        Args:
            sound: A file, or samples (S,), (S, C) or (C, S), as floats in [-1, 1] or as integers.
            rate: The samples that make a second; for an array only.
            top: How many classes to return, at most all.

        Raises:
            DataError: The sound is broken, empty, shorter than 25 ms, not finite, or of an absurd rate.
            UserError: ``top`` is out of range, or the rate is missing, or given for a file.
        """
        _check_top(top)
        ((probability_K, hearing),) = self._mean([(sound, rate)], self._probabilities, [])
        return likeliest(hearing, probability_K, self.labels, top)

    def tag_files(self, files: str | Path | Sequence[str | Path], *, top: int = 5) -> list[Tags]:
        """Return the likeliest classes of each of several files.

        Args:
            files: A folder (all sounds in it and below, sorted), a file, or a sequence of files.
            top: How many classes of each to return, at most all.

        Raises:
            BadSoundsError: Files cannot be heard; it names all of them.
            UserError: There is no file, or ``top`` is out of range.
        """
        _check_top(top)
        found = self._mean_of_files(files, self._probabilities)
        return [likeliest(hearing, probability_K, self.labels, top) for probability_K, hearing in found]

    def embed(self, sound: Sound, rate: int | None = None) -> NDArray[np.float32]:
        """Return what the classifier sees of a sound (D,), the mean over its windows.

        Args:
            sound: As in `tag`.
            rate: As in `tag`.

        Raises:
            DataError: As in `tag`.
            UserError: The rate is missing, or given for a file.
        """
        ((embedding_D, _),) = self._mean([(sound, rate)], self.network.embed, [])
        return embedding_D.numpy()

    def embed_files(self, files: str | Path | Sequence[str | Path]) -> tuple[list[str], NDArray[np.float32]]:
        """Return the paths of several files, and what the classifier sees of them (N, D).

        Args:
            files: As in `tag_files`.

        Raises:
            BadSoundsError: Files cannot be heard; it names all of them.
            UserError: There is no file.
        """
        found = self._mean_of_files(files, self.network.embed)
        return [hearing.name for _, hearing in found], torch.stack([embedding_D for embedding_D, _ in found]).numpy()

    def timeline(self, sound: Sound, rate: int | None = None, *, every: float = 1.0) -> Timeline:
        """Return what is heard when in a sound of any length, in the memory of a few windows.

        Args:
            sound: As in `tag`.
            rate: As in `tag`.
            every: Seconds of a row. The model hears its own length around the row's middle, and several windows beside
                each other where rows are longer.

        Raises:
            DataError: As in `tag`.
            UserError: ``every`` is out of range, or the rate is missing, or given for a file.
        """
        with opened(sound, rate, self.policy.rate, self.channel) as hearing:
            return make_timeline(hearing, self.policy, self.labels, every, self._in_batches)

    def stream(self, rate: int, *, top: int = 5) -> LiveTagger:
        """Return what tags live sound piece by piece, at a cost that does not grow.

        Args:
            rate: Samples a second of the pieces.
            top: How many classes to return, at most all.

        Raises:
            UserError: The model cannot read live sound; the error says why.
            DataError: It is no rate of sound.
        """
        _check_top(top)
        return LiveTagger(self.network, self.labels, rate, binary=self.binary, channel=self.channel, top=top)

    def _mean_of_files(
        self, files: str | Path | Sequence[str | Path], work: Callable[[Tensor, Tensor], Tensor]
    ) -> list[tuple[Tensor, Hearing]]:
        problems: list[DataError] = []
        found = self._mean([(file, None) for file in listed(files)], work, problems)
        if problems:
            raise BadSoundsError(problems)
        return found

    def _mean(
        self,
        sounds: Sequence[tuple[Sound, int | None]],
        work: Callable[[Tensor, Tensor], Tensor],
        problems: list[DataError],
    ) -> list[tuple[Tensor, Hearing]]:
        """Return the mean of what ``work`` makes of each sound's windows; of many sounds, problems are gathered."""
        hearings: dict[int, Hearing] = {}
        windows = self._windows(sounds, hearings, problems)
        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        while batch := list(islice(windows, self._batch)):
            out_BX = self._run(work, [window.wave_S for window in batch], [window.length for window in batch])
            for window, out_X in zip(batch, out_BX, strict=True):
                sums[window.number] = sums.get(window.number, 0) + out_X
                counts[window.number] = counts.get(window.number, 0) + 1
        # a sound may break off behind its first windows
        return [(sums[number] / counts[number], hearing) for number, hearing in hearings.items()]

    def _windows(
        self,
        sounds: Sequence[tuple[Sound, int | None]],
        hearings: dict[int, Hearing],
        problems: list[DataError],
    ) -> Iterator[_Window]:
        for number, (sound, rate) in enumerate(sounds):
            try:
                with opened(sound, rate, self.policy.rate, self.channel) as hearing:
                    starts = self.policy.starts(hearing.samples)
                    for cut_S in cut_windows(hearing.pieces, starts, self.policy.samples):
                        yield _Window(number, *self.policy.window(cut_S, 0))
                    if hearing.samples < self.policy.samples:
                        filled = "followed by silence" if self.policy.short == "silence" else "repeated"
                        hearing.notes.append(f"{filled} up to the {self.policy.seconds:g} s that the model hears")
                    hearing.pieces = iter(())  # which hold on to the last of the sound
                    hearings[number] = hearing
            except DataError as error:
                if len(sounds) == 1:
                    raise
                problems.append(error)

    def _in_batches(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the probabilities (K,) of one window (S,) after the other."""
        rest = iter(windows)
        while batch := [self.policy.window(cut_S, 0) for cut_S in islice(rest, self._batch)]:
            yield from self._run(self._probabilities, *zip(*batch, strict=True))

    @torch.inference_mode()
    def _run(self, work: Callable[[Tensor, Tensor], Tensor], waves: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        return work(torch.stack(list(waves)).to(self.device), torch.tensor(lengths, device=self.device)).float().cpu()

    def _probabilities(self, wave_BS: Tensor, lengths_B: Tensor) -> Tensor:
        logits_BK = self.network(wave_BS, lengths_B).float()
        return logits_BK.sigmoid() if self.binary else logits_BK.softmax(dim=-1)


def listed(files: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """Return the files that are meant: all sounds of a folder and the folders below it, sorted, or those named.

    Raises:
        UserError: There is none.
    """
    if isinstance(files, str | Path):
        folder = Path(files)
        if not folder.is_dir():
            return [folder]
        found: list[str | Path] = [
            path for path in sorted(folder.rglob("*")) if SOUND.names(path.name) and path.is_file()
        ]
        if not found:
            raise UserError(f"{folder} holds no sounds", f"give a folder with {', '.join(SOUND.suffixes)} in it")
        return found
    if not files:
        raise UserError("there are no sounds", "give at least one")
    return list(files)


def _check_top(top: Any) -> None:
    if top < 1:
        raise UserError(f"top is {top}", "give at least 1")
