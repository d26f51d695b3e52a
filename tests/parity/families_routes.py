"""Routes of `mamba_kernels` against VMamba's cross scan and cross merge."""

from __future__ import annotations

import torch
from parity_cards import Card
from parity_compare import Comparison
from parity_families import family

from mamba_kernels.routes import Route

# The card's scans, each read four times: by which route, and which of its readings.
_SCANS = {"0": ("cross", [0, 1, 2, 3]), "1": ("forward", [0, 0, 0, 0]), "2": ("bidirectional", [0, 0, 1, 1])}


@family("vmamba_cross_scan_merge")
def check_cross_scan(card: Card) -> None:
    comparison = Comparison(card)
    x_BDHW, y_BKDHW = card.tensors["input.x"], card.tensors["input.y"]
    for scan in card.entries["scans"]:
        name, picks = _SCANS[scan]
        readings = Route(name).readings(tuple(x_BDHW.shape[2:]), device=x_BDHW.device)
        read_BKLD = readings.gather(x_BDHW.movedim(1, -1))[:, picks]
        comparison.same(f"output.scan{scan}", read_BKLD.transpose(2, 3))
        y_BKLD = y_BKDHW.flatten(3).transpose(2, 3)
        of_reading = [[j for j, pick in enumerate(picks) if pick == k] for k in range(readings.K)]
        merged = readings.scatter_merge(torch.stack([y_BKLD[:, js].sum(1) for js in of_reading], 1))
        comparison.near(f"output.merge{scan}", merged.flatten(1, -2).mT, atol=1e-6, rtol=1e-6)
    comparison.finish()
