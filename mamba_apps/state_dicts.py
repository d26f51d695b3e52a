"""Loading weights strictly: every key finds its place, or an error names it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from mamba_apps.errors import UserError


def fitted(
    owner: str,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    remedy: str,
    exempt: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return ``found`` after making sure that its keys and shapes are the expected ones.

    Batch norm counts its batches; where a checkpoint of parameters and statistics alone leaves the count out, it stays.

    Args:
        owner: Whose weights they are, for the error.
        found: The state dict, under the names of the model that will load it.
        expected: That model's own.
        remedy: What helps where they differ.
        exempt: Keys that may be missing or differ.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape.
    """
    counts = {key: tensor for key, tensor in expected.items() if key.endswith("num_batches_tracked")}
    whole = {**counts, **found}
    refuse_keys(owner, "missing", expected.keys() - whole.keys() - set(exempt), remedy)
    refuse_keys(owner, "unexpected", whole.keys() - expected.keys() - set(exempt), remedy)
    for key in sorted(expected.keys() - set(exempt)):
        theirs, ours = tuple(whole[key].shape), tuple(expected[key].shape)
        if theirs != ours:
            raise UserError(f"{owner}: {key} has shape {theirs} in the state dict, {ours} in the model", remedy)
    return whole


def refuse_keys(owner: str, what: str, keys: Collection[str], remedy: str) -> None:
    """Raise an error that says ``what`` the keys are and names them, where there are any.

    Raises:
        UserError: If ``keys`` is not empty.
    """
    if keys:
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise UserError(f"{owner}: {what} in the state dict: {', '.join(sorted(keys)[:5])}{more}", remedy)
