"""What `mamba-apps models` lists: each domain's models, their size at a stated shape, and what they take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mamba_apps.errors import UserError
from mamba_datasets.report import nearest
from mamba_recipes import catalog_entries as entries


def listing(wanted: str | None = None) -> list[dict[str, Any]]:
    """Return one entry per model: model, domain, parameters, at, takes, options, summary; domain after domain.

    Args:
        wanted: Only this domain, or only the models of this name; None for all.

    Raises:
        UserError: If there is no such domain or model.
    """
    if wanted in _DOMAINS:
        return _of(wanted)
    found = [entry for domain in _DOMAINS for entry in _of(domain)]
    chosen = [entry for entry in found if wanted in (None, entry["model"])]
    if not chosen:
        known = [*_DOMAINS, *(entry["model"] for entry in found)]
        raise UserError(f"there is no model or domain {wanted!r}", nearest(str(wanted), known))
    return chosen


@functools.cache
def _of(domain: str) -> list[dict[str, Any]]:
    return [{**entry, "domain": domain} for entry in _DOMAINS[domain]()]


_DOMAINS: dict[str, Callable[[], list[entries.Entry]]] = {
    "forecasting": entries.forecasting,
    "ltsf": entries.ltsf,
    "vision": entries.vision,
    "segmentation": entries.segmentation,
    "medical": entries.medical,
    "audio": entries.audio,
    "text": entries.text,
    "mixers": entries.mixing,
}
