"""The saved-model format: `model.safetensors` and `model.json`, enough to use a model without anything of its training.

`model.json` carries the SHA-256 of the weights. While a model is being replaced it carries both the new and the old
card, so that the weights that a crash leaves behind are found to be whole and are read with the card that is theirs.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_apps.errors import UserError
from mamba_apps.training.files import (
    clean_stale,
    make_directory,
    sha256_of,
    storage_error,
    temporary_beside,
    write_tensors,
    write_text,
)
from mamba_datasets.files import sync_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"
# Where a run keeps its saved model.
MODEL_NAME = "model"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a saved model is and how its inputs and outputs are read.

    Args:
        task: What it does, e.g. "forecasting", "classification", "segmentation".
        domain: What it does it on, e.g. "series", "image", "volume", "audio".
        model: Name under which the domain's registry creates it.
        arguments: Arguments for that; plain JSON values.
        preprocessing: How raw input becomes the model's input (frequency, columns, scaling, size, mean, ...).
        labels: Names of the classes in order, or None.
        metrics: Scores of these weights by name.
        library_version: Version of mamba-apps that wrote it; filled in on saving.
        sha256: SHA-256 of the weights; filled in on saving.
        tied: Names of tensors that share another's memory, with that other's name; filled in on saving.
        format_version: Version of this format.
    """

    task: str
    domain: str
    model: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    labels: list[str] | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    library_version: str = ""
    sha256: str = ""
    tied: dict[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the card as the object that `model.json` holds."""
        fields = dataclasses.asdict(self)
        name, arguments = fields.pop("model"), fields.pop("arguments")
        return {
            "format_version": fields.pop("format_version"),
            "model": {"name": name, "arguments": arguments},
            **fields,
        }


def saved_folder(path: str | Path) -> Path:
    """Return the folder of a saved model: the one in a run's folder, or ``path`` itself."""
    path = Path(path)
    return path / MODEL_NAME if (path / MODEL_NAME).is_dir() else path


def save_model(directory: str | Path, module: nn.Module, card: ModelCard) -> Path:
    """Save a model's weights and card, replacing a model saved there before; other files in the folder stay.

    Args:
        directory: The folder; created where missing.
        module: The model; parameters and persistent buffers are saved, on the CPU, in their own dtype.
        card: What it is; `library_version`, `sha256` and `tied` are filled in here.

    Returns:
        The folder.

    Raises:
        UserError: The folder cannot be written, the disk is full, or the card or the state cannot be stored safely.
    """
    from safetensors import SafetensorError

    directory = Path(directory)
    tensors, tied = _separate(module.state_dict())
    make_directory(directory, "model folder")
    weights, card_path = directory / WEIGHTS_NAME, directory / CARD_NAME
    old = _old_card(directory)
    clean_stale(directory)
    try:
        with temporary_beside(weights) as temporary:
            write_tensors(temporary, tensors)
            card = dataclasses.replace(
                card,
                library_version=_library_version(),
                sha256=sha256_of(temporary),
                tied=tied,
                format_version=FORMAT_VERSION,
            )
            write_text(card_path, _dump(card, replaces=old))
            os.replace(temporary, weights)
        write_text(card_path, _dump(card))
        sync_folder(directory)
    except OSError as error:
        raise storage_error("save the model in", weights, error) from error
    except SafetensorError as error:
        raise UserError(
            f"cannot save the model in {weights}: {error}", "free space or choose another folder"
        ) from error
    return directory


def load_card(directory: str | Path) -> ModelCard:
    """Read what a saved model is, without loading its weights.

    Args:
        directory: The folder written by `save_model`.

    Returns:
        Its card.

    Raises:
        UserError: The folder holds no model, or its card is damaged or of a newer format.
    """
    directory = Path(directory)
    data = _read_card(directory)
    if "replaces" in data:
        return _card_for(directory, data, sha256_of(_existing(directory / WEIGHTS_NAME, directory)))
    return _parse(data, directory / CARD_NAME)


def load_weights(directory: str | Path) -> dict[str, Tensor]:
    """Load a saved model's weights after checking that they are the ones that were saved.

    Args:
        directory: The folder written by `save_model`.

    Returns:
        A state dict on the CPU, complete with tied tensors, for `module.load_state_dict`.

    Raises:
        UserError: The folder holds no model, or the weights are truncated or changed.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    path = _existing(directory / WEIGHTS_NAME, directory)
    card = _card_for(directory, _read_card(directory), sha256_of(path))
    tensors = load_file(path)
    for name, source in card.tied.items():
        tensors[name] = tensors[source]
    return tensors


def _card_for(directory: Path, data: dict[str, Any], found: str) -> ModelCard:
    """Return the card that belongs to the weights with this hash."""
    card = _parse(data, directory / CARD_NAME)
    candidates = [card]
    if "replaces" in data:
        candidates.append(_parse(data["replaces"], directory / CARD_NAME))
    for candidate in candidates:
        if candidate.sha256 == found:
            return candidate
    raise UserError(
        f"{directory / WEIGHTS_NAME} is truncated or was changed: its SHA-256 is {found[:12]}…, "
        f"{CARD_NAME} expects {card.sha256[:12]}…",
        "copy the folder again from where it was saved, or train the model again",
    )


def _read_card(directory: Path) -> dict[str, Any]:
    path = _existing(directory / CARD_NAME, directory)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error})", "copy the folder again from where it was saved"
        ) from None
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds a {type(data).__name__}, expected an object", "point to a folder saved by mamba-apps"
        )
    return data


def _existing(path: Path, directory: Path) -> Path:
    if path.is_file():
        return path
    from mamba_apps.training.checkpoint import LAST_NAME

    if (directory / LAST_NAME).is_file():
        run = shlex.quote(str(directory))
        raise UserError(
            f"the run in {directory} has not ended, and has no saved model yet",
            f"go on with it: mamba-apps fit --resume {run}; or mamba-apps test {run} --model {run}/{LAST_NAME}",
        )
    what = "has no " + path.name if directory.is_dir() else "is not a folder"
    raise UserError(
        f"no saved model in {directory}: it {what}", f"point to a folder that holds {WEIGHTS_NAME} and {CARD_NAME}"
    )


def _parse(data: dict[str, Any], path: Path) -> ModelCard:
    version = data.get("format_version")
    if not isinstance(version, int):
        raise UserError(f"{path} has no format_version", "point to a folder saved by mamba-apps")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version}, this mamba-apps reads up to {FORMAT_VERSION}",
            "update it: pip install --upgrade mamba-apps",
        )
    try:
        model = data["model"]
        known = {field.name for field in dataclasses.fields(ModelCard)} - {"model", "arguments"}
        return ModelCard(
            model=model["name"], arguments=model["arguments"], **{key: data[key] for key in known if key in data}
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks an entry ({error})", "copy the folder again from where it was saved") from None


def _old_card(directory: Path) -> dict[str, Any] | None:
    """Return the card of the model about to be replaced, if there is a whole one."""
    if not (directory / CARD_NAME).is_file() or not (directory / WEIGHTS_NAME).is_file():
        return None
    try:
        return _card_for(directory, _read_card(directory), sha256_of(directory / WEIGHTS_NAME)).to_json()
    except UserError:
        return None  # a damaged model is replaced without a way back


def _dump(card: ModelCard, replaces: dict[str, Any] | None = None) -> str:
    data = card.to_json()
    if replaces is not None:
        data["replaces"] = replaces
    try:
        return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the model card cannot be written as JSON ({error})",
            "use numbers (no NaN or infinity), strings, booleans, lists and dicts in arguments and metrics",
        ) from None


def _separate(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copy tensors to the CPU, each once, and list the names that are the same tensor as another."""
    import torch

    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"the model's state has an entry {name!r} of type {type(value).__name__}",
                "only tensors can be saved: keep it in the model's arguments instead of get_extra_state",
            )
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        # a fresh copy: views of one storage must not drag the whole storage along, nor be refused as shared
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors, tied


def _library_version() -> str:
    try:
        return importlib.metadata.version("mamba-apps")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
