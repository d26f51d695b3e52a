"""What was heard in one sound, and the error that names all sounds that cannot be heard.

Dimensions in names: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mamba_apps.audio.tagging.sounds import Hearing
from mamba_apps.errors import UserError
from mamba_datasets.errors import DataError


class BadSoundsError(UserError):
    """Sounds that cannot be heard.

    Args:
        problems: What is wrong with each of them.
    """

    def __init__(self, problems: Sequence[DataError]) -> None:
        self.problems = list(problems)
        first = problems[0]
        if len(problems) == 1:
            super().__init__(f"{first.path}: {first.where}: {first.expected}", first.remedy)
        else:
            super().__init__(
                f"{len(problems)} sounds cannot be heard, the first is {first.path}", "mend or remove them"
            )


@dataclass(frozen=True)
class Tags:
    """The likeliest classes of a sound, the likeliest first.

    Args:
        sound: Its path; empty for one in memory.
        seconds: How much of it was heard.
        labels: The classes' names.
        probabilities: Of these classes.
        notes: What was done to the sound (resampled, channels averaged, filled up), and whether it is silent.
    """

    sound: str
    seconds: float
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> list[tuple[str, float]]:
        """Each of these classes with its probability."""
        return list(zip(self.labels, self.probabilities, strict=True))

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """That class's probability."""
        return self.probabilities[0]


def likeliest(hearing: Hearing, probability_K: Tensor, labels: Sequence[str], top: int) -> Tags:
    """Return the tags of a sound that was heard."""
    found = probability_K.topk(min(top, len(labels)))
    names = tuple(labels[number] for number in found.indices.tolist())
    return Tags(hearing.name, hearing.seconds, names, tuple(found.values.tolist()), hearing.all_notes)
