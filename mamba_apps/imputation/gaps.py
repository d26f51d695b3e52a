"""Gaps that are drawn into what was observed: training learns to fill them, a score says how well they are filled.

Dimensions in names: B windows, L steps, C variates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_gaps(
    observed_BLC: Tensor, share_B: Tensor, run_B: Tensor, together_B: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return which observed values to hide, bool (B, L, C).

    Runs of steps begin anywhere, also before the window, and may overlap.

    Args:
        observed_BLC: bool, what was observed.
        share_B: Which part of the steps is hidden on average, in (0, 1).
        run_B: Steps of a run, at least 1; 1 hides single steps.
        together_B: bool, whether all variates lose the same steps; else each its own.
        generator: Of the randomness; None for torch's.
    """
    windows, length, variates = observed_BLC.shape
    before = int(run_B.max()) - 1
    # So that a step is left uncovered by each of the `run` places where a run over it may begin.
    begins_B = 1 - (1 - share_B.double()) ** (1 / run_B)
    draw = torch.rand(windows, before + length, variates, generator=generator, dtype=torch.float64)
    draw = torch.where(together_B[:, None, None], draw[..., :1], draw)
    step = torch.arange(before + length)[:, None]
    begun = torch.where(draw < begins_B[:, None, None], step, -before - length).cummax(dim=1).values
    covered = step - begun < run_B[:, None, None]
    return covered[:, before:] & observed_BLC


def any_gaps(observed_BLC: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return gaps of every kind.

    From 5 to 70 % of the steps, single ones or runs of up to half of the window, each variate's own or common to all.
    """
    windows, length, _ = observed_BLC.shape
    share_B, single_B, together_B = torch.rand(3, windows, generator=generator)
    run_B = torch.randint(1, max(2, length // 2), (windows,), generator=generator)
    run_B = torch.where(single_B < 0.5, 1, run_B)
    return draw_gaps(observed_BLC, 0.05 + 0.65 * share_B, run_B, together_B < 0.5, generator)


def fixed_gaps(observed_BLC: Tensor, share: float, run: int, together: bool, seed: int) -> Tensor:
    """Return gaps of one kind that a seed determines; arguments as in `draw_gaps`."""
    every = torch.ones(len(observed_BLC))
    generator = torch.Generator().manual_seed(seed)
    return draw_gaps(
        observed_BLC, share * every, run * every.long(), torch.full_like(every, together).bool(), generator
    )
