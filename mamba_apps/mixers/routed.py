"""Any mixer along any route: the generic swap of one sequence mixer for another on lines, images and volumes.

Dimensions in names: B batch, L cells of the grid, D channels, K readings.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import Mixer, State
from mamba_kernels import Readings, Route
from mamba_kernels.segments import segment_marks

Share = Literal["all", "projections", "none"]


class RoutedMixer(Mixer):
    """Read a grid along the K readings of a route with one mixer or several, and merge the results.

    The readings may share everything ("all"), nothing ("none": K mixers), or what the mixer declares in
    ``shared_projections`` ("projections": for Mamba-1 one input and output projection and one gate, with the
    convolution, the step sizes and the scan's parameters per reading, in one fused scan).

    The merge "concat" puts the readings side by side; a projection of this module's own (``merge_proj``) brings them
    back to ``d_model`` channels. With ``share="projections"`` it is refused: the mixer's one output projection has no
    place for K readings side by side.

    On the route "forward" this is the mixer itself, and causal where the mixer is.

    Args:
        mixer: A mixer, whose values every parameter set starts from, or a function that makes one, called once for
            each set, so that each starts from its own.
        route: The route, or the name of one that needs no options.
        share: What the readings share.
        rank: Number of the grid's axes. It decides how many parameter sets there are.

    Raises:
        UserError: If the mixer does not accept the route, or the combination of options.
    """

    def __init__(
        self, mixer: Mixer | Callable[[], Mixer], route: Route | str, share: Share = "all", rank: int = 1
    ) -> None:
        first = mixer if isinstance(mixer, Mixer) else mixer()
        super().__init__(first.d_model, first.backend)
        route = Route(route) if isinstance(route, str) else route
        name = type(first).__name__
        if route.name not in first.routes:
            raise UserError(
                f"{name} does not accept the route {route.name!r}", f"choose one of {', '.join(sorted(first.routes))}"
            )
        if share not in ("all", "projections", "none"):
            raise UserError(f"share is {share!r}", 'choose "all", "projections" or "none"')
        if share == "projections" and not first.shared_projections:
            raise UserError(
                f"{name} has no projections that its readings could share", 'use share="all" or share="none"'
            )
        self.route, self.share, self.rank, self.count = route, share, rank, route.count(rank)
        if route.merge == "concat" and share == "projections" and self.count > 1:
            raise UserError(
                f'the merge "concat" does not go with share="projections" of {name}',
                'use merge="sum" or "mean", or share="all" or "none"',
            )
        sets = 1 if share == "all" else self.count
        others = [mixer() if not isinstance(mixer, Mixer) else deepcopy(mixer) for _ in range(sets - 1)]
        if share == "projections":
            for other in others:
                for projection in first.shared_projections:
                    setattr(other, projection, None)
        self.sets = nn.ModuleList([first, *others])
        wide = route.merge == "concat" and self.count > 1
        # The mixer's last parameter tells where and in which precision it lives.
        like = next(first.parameters(), torch.empty(0))
        self.merge_proj = (
            nn.Linear(self.count * self.d_model, self.d_model, bias=False, device=like.device, dtype=like.dtype)
            if wide
            else None
        )
        self.routes = frozenset({"forward"})

    @property
    def causal(self) -> bool:  # type: ignore[override]
        """Whether the mixer is causal and the route is "forward"."""
        return self.route.name == "forward" and self._mixers[0].causal

    @property
    def _mixers(self) -> list[Mixer]:
        return cast(list[Mixer], list(self.sets))

    def reset_parameters(self) -> None:
        """Draw every parameter anew."""
        for mixer in self._mixers:
            mixer.reset_parameters()
        if self.merge_proj is not None:
            self.merge_proj.reset_parameters()

    def forward(self, x: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix a batch of grids.

        Args:
            x: (B, *spatial, D) with ``rank`` axes between.
            seq_idx_BL: As in ``Mixer.forward``, (B, *spatial), for several sequences packed into one grid.

        Returns:
            (B, *spatial, D).

        Raises:
            UserError: If a shape does not fit, or ``seq_idx_BL`` is given with ``share="projections"`` on a route
                other than "forward".
        """
        if x.dim() != self.rank + 2 or x.shape[-1] != self.d_model or 0 in x.shape[1:]:
            raise UserError(
                f"RoutedMixer got an input of shape {tuple(x.shape)}",
                f"give (batch, {self.rank} axes of at least 1, {self.d_model}), or set rank",
            )
        grid = x.shape[1:-1]
        if self.route.name == "forward":
            ids_BL = None if seq_idx_BL is None else seq_idx_BL.flatten(1)
            return self._mixers[0](x.flatten(1, -2), seq_idx_BL=ids_BL).unflatten(1, grid)
        if self.share == "projections":
            if seq_idx_BL is not None:
                raise UserError('packed sequences do not go with share="projections"', 'use share="all" or "none"')
            return self._mixers[0].forward_route(x, self.route, self._mixers)
        if self.share == "all" and seq_idx_BL is None and x.shape[0] > 0:
            y = self._mixers[0].forward_everywhere(x, self.route)
            if y is not None:
                return y
        readings = self.route.readings(grid, x.device)
        x_BKLD = readings.gather(x)
        ids_BKL = _ids(readings, seq_idx_BL, x.shape[0])
        if len(self.sets) == 1:
            ids_BL = None if ids_BKL is None else ids_BKL.flatten(0, 1)
            y_BKLD = self._mixers[0](x_BKLD.flatten(0, 1), seq_idx_BL=ids_BL).unflatten(0, (-1, readings.K))
        else:
            ys = [
                mixer(x_BKLD[:, k], seq_idx_BL=None if ids_BKL is None else ids_BKL[:, k])
                for k, mixer in enumerate(self._mixers)
            ]
            y_BKLD = torch.stack(ys, dim=1)
        y = readings.scatter_merge(y_BKLD)
        return y if self.merge_proj is None else self.merge_proj(y)

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """Return the mixer's state before the first token; see ``Mixer.init_state``."""
        return self._only("init_state").init_state(batch_size, max_length=max_length, dtype=dtype, device=device)

    def prefill(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        """Read several tokens at once; see ``Mixer.prefill``."""
        return self._only("prefill").prefill(x_BLD, state)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token; see ``Mixer.step``."""
        return self._only("step").step(x_BD, state)

    def _only(self, method: str) -> Mixer:
        if not self.causal:
            raise self._not_causal(method)
        return self._mixers[0]


def _ids(readings: Readings, seq_idx: Tensor | None, batch: int) -> Tensor | None:
    """Return what sequence and segment each step of each reading belongs to: (B, K, L) int32, negative for padding."""
    segment_BKL = None if readings.segment is None else readings.segment.expand(batch, -1, -1)
    if seq_idx is None:
        return segment_BKL
    ids_BKL = readings.gather(seq_idx[..., None])[..., 0].int()
    if segment_BKL is None:
        return ids_BKL
    # One number for the pair, which changes where either does; counted, so that it is small whatever the ids are.
    pair_BKL = torch.where(ids_BKL < 0, -1, ids_BKL.long() * readings.L + segment_BKL)
    reset_BL, padding_BL = segment_marks(pair_BKL.flatten(0, 1))
    return reset_BL.cumsum(1).masked_fill(padding_BL, -1).int().unflatten(0, (batch, readings.K))
