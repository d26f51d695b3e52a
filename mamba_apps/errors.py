"""The error a person can mend: one line that names what is wrong and the remedy."""

from __future__ import annotations

from mamba_datasets.errors import DataError


class UserError(ValueError):
    """The user's input, option or file cannot be used.

    Args:
        message: What is wrong: the file or option, the place in it, and what was expected.
        remedy: What the person can do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


def no_data(things: str, remedy: str) -> DataError:
    """Return the refusal of a recipe whose data nobody has named, such as its "images"."""
    return DataError("data.root", "folder", f"there are no {things} yet", remedy)
