"""How the figures of benchmarks look: two pictures side by side, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finish(
    figure: Any,
    axes: Any,
    titles: tuple[str, str],
    label: str,
    path: Path,
    dpi: int,
    ticks: Sequence[float] | None = None,
) -> None:
    """Scale and name two pictures, and write them.

    Args:
        figure: matplotlib's figure.
        axes: Its two axes, with their lines.
        titles: What stands over each.
        label: What lies along their horizontal axes.
        path: The PNG file; its folder is made.
        dpi: Pixels an inch.
        ticks: Where the horizontal axes are marked; None for powers of two.
    """
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        if ticks is not None:
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xticks(ticks)
        axis.set_xlabel(label)
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(visible=True, color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
