"""One step of the selective scan, the state updated in place: what generation runs."""

from mamba_kernels.selective_state_update.op import selective_state_update

__all__ = ["selective_state_update"]
