"""The folder for what a test writes besides its scores: tables, pages, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mamba_apps.errors import UserError
from mamba_apps.training.files import check_directory

if TYPE_CHECKING:
    import lightning.pytorch as pl


def output_folder(trainer: pl.Trainer, setting: str, chosen: str | bool | None) -> Path | None:
    """Return the folder for what a test writes, or None where this process writes nothing.

    Args:
        trainer: Which tests; in a rehearsal, and in all processes but the first, nothing is written.
        setting: The task's setting that chooses, such as "scores".
        chosen: True for a folder of the setting's name in the trainer's, a folder, or None.

    Raises:
        UserError: It could not be written to.
    """
    rehearsed = trainer.fast_dev_run  # type: ignore[attr-defined]
    if not chosen or rehearsed or not trainer.is_global_zero:
        return None
    if isinstance(chosen, str):
        folder = Path(chosen)
    else:
        folder = Path(getattr(trainer, "test_dir", trainer.default_root_dir)) / setting
    try:
        check_directory(folder, f"folder of {setting}")
    except UserError as error:
        where = f"--model.{setting} DIR, or null for none"
        raise UserError(error.message, f"{error.remedy}: {where}") from None
    return folder
