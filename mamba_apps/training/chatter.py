"""Silence what Lightning says about itself; warnings that help a person stay."""

from __future__ import annotations

import logging
import warnings

# Each is chatter about a choice that `make_trainer` or a recipe made on purpose, matched from its beginning.
_CHATTER = (
    r"The '\w+' does not have many workers which may be a bottleneck",
    r"Consider setting `persistent_workers=True` in",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"GPU available but not used",
    r"This DataLoader will create \d+ worker processes in total",
    r"Total length of `\w+` across ranks is zero",
    r"The `srun` command is available on your system but is not used",
)


def quiet() -> None:
    """Filter Lightning's advertising, status and advice lines; errors and real warnings still come through.

    Called by `make_trainer`; calling it again changes nothing.
    """
    import lightning.pytorch  # its import sets the level that is lowered here

    for name in (lightning.pytorch.__name__, "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message=message)
    # Lightning 2.6 still calls what torch 2.12 deprecates in its pytree
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
