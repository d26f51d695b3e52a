"""Volumes for segmentation: nnU-Net's raw layout, plans, geometry, preprocessing once, patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_datasets.volumes.cache import CachedCase, Prepared, preprocess
    from mamba_datasets.volumes.fingerprints import Fingerprint, fingerprint
    from mamba_datasets.volumes.patches import sample_patch
    from mamba_datasets.volumes.plan import NetworkPlan, Normalisation, Plan, Resampling
    from mamba_datasets.volumes.planning import make_plan
    from mamba_datasets.volumes.prepare import (
        Geometry,
        PreparedCase,
        prepare_case,
        restore_case,
        restore_probabilities,
    )
    from mamba_datasets.volumes.raw import Case, RawDataset
    from mamba_datasets.volumes.read import read_case, read_label, read_volume, write_mask
    from mamba_datasets.volumes.splits import folds, read_folds
    from mamba_datasets.volumes.synthetic import write_synthetic
    from mamba_datasets.volumes.volume import Volume

# imported when asked for: readers need nibabel and scipy, which are extras
__getattr__, __dir__ = lazily(
    __name__,
    {
        "CachedCase": "cache",
        "Case": "raw",
        "Fingerprint": "fingerprints",
        "Geometry": "prepare",
        "NetworkPlan": "plan",
        "Normalisation": "plan",
        "Plan": "plan",
        "Prepared": "cache",
        "PreparedCase": "prepare",
        "RawDataset": "raw",
        "Resampling": "plan",
        "Volume": "volume",
        "fingerprint": "fingerprints",
        "folds": "splits",
        "read_folds": "splits",
        "make_plan": "planning",
        "prepare_case": "prepare",
        "preprocess": "cache",
        "read_case": "read",
        "read_label": "read",
        "read_volume": "read",
        "restore_case": "prepare",
        "restore_probabilities": "prepare",
        "sample_patch": "patches",
        "write_mask": "read",
        "write_synthetic": "synthetic",
    },
)

__all__ = [
    "RawDataset",
    "Case",
    "Volume",
    "read_volume",
    "read_label",
    "read_case",
    "write_mask",
    "Plan",
    "NetworkPlan",
    "Normalisation",
    "Resampling",
    "fingerprint",
    "Fingerprint",
    "make_plan",
    "prepare_case",
    "PreparedCase",
    "Geometry",
    "restore_case",
    "restore_probabilities",
    "preprocess",
    "Prepared",
    "CachedCase",
    "folds",
    "read_folds",
    "sample_patch",
    "write_synthetic",
]
