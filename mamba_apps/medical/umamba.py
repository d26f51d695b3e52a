"""U-Mamba (Ma, Li and Wang, arXiv 2401.04722): a residual U-Net whose encoder mixes its maps with Mamba layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from mamba_apps.errors import UserError
from mamba_apps.medical.mamba_layer import MambaLayer, Precision, create_mixer
from mamba_apps.medical.residual_unet import ResidualUNet
from mamba_apps.medical.unet import times
from mamba_apps.mixers.routed import Share
from mamba_datasets.volumes import NetworkPlan
from mamba_kernels import Route

Place = Literal["bottleneck", "alternate", "every"]


class UMamba(ResidualUNet):
    """U-Mamba, by default U-Mamba_Enc as published; U-Mamba_Bot has one layer at the bottleneck and no channel tokens.

    Where a map has no more cells than channels, U-Mamba_Enc takes each channel as a token (``channel_tokens``). Such a
    layer is as wide as the plan's patch has cells there, and the network takes images of that size alone.

    The weights of the U-Net are drawn first: with the same seed they are those of `ResidualUNet`, its twin.

    Args:
        plan: The sizes.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        deep_supervision: Whether it returns the logits of every resolution but the bottleneck's, the finest first.
        place: After which stages of the encoder a layer stands: "bottleneck", the last one; "alternate", every second
            one, counted from the last; "every"; or their numbers from 0 on. None is what was published for
            U-Mamba_Enc: "every" in 3-D, "alternate" in 2-D.
        channel_tokens: Whether maps with no more cells than channels have their channels as tokens.
        mixer: The layers' inner operator, a registered mixer.
        mixer_options: Its options.
        route: How a layer reads the cells of its map: "forward", "bidirectional", "axes" (each axis in turn the
            fastest) or another route that the mixer accepts. Channels are read as a line.
        window: The window's size for the route "windowed".
        merge: What becomes of the readings' results: "sum", "mean" or "concat", which a projection follows.
        share: What the readings share: "all", "projections" or "none"; None for "projections" where the mixer can.
        precision: Of the layers under autocast; see `MambaLayer`.

    Raises:
        UserError: If an argument is out of range or the mixer refuses it.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        in_channels: int,
        num_classes: int,
        *,
        deep_supervision: bool = False,
        place: Place | Sequence[int] | None = None,
        channel_tokens: bool = True,
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        route: str = "forward",
        window: int | tuple[int, ...] | None = None,
        merge: str = "sum",
        share: Share | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(plan, in_channels, num_classes, deep_supervision=deep_supervision)
        reading = Route(route, merge, window)
        bound = []
        for stage in layer_stages(place, plan):
            cells, width = map_cells(plan, stage), plan.features[stage]
            as_tokens = channel_tokens and cells <= width
            if as_tokens:
                bound.append(stage)
                if isinstance(reading.window, tuple):
                    raise UserError(
                        f"stage {stage} reads its channels as a line, which the window {reading.window} does not fit",
                        "give the window as one number, or channel_tokens=False",
                    )
            inner = create_mixer(
                mixer, cells if as_tokens else width, mixer_options or {}, reading, share, 1 if as_tokens else plan.dim
            )
            self.encoder.mamba_layers[str(stage)] = MambaLayer(inner, as_tokens, precision)
        self.bound_stages = tuple(bound)
        """The stages whose layers have channels as tokens, and bind the network to the plan's patch."""

    def check_sizes(self, sizes: tuple[int, ...]) -> None:
        """Raise an error that says so if images of these sizes are none that this network can take."""
        super().check_sizes(sizes)
        patch = self.plan.patch_size
        if self.bound_stages and sizes != patch:
            stages = " and ".join(str(stage) for stage in self.bound_stages)
            raise UserError(
                f"U-Mamba got an image of {times(sizes)}, but its layer at stage {stages} takes each channel as a "
                f"token, with weights for patches of {times(patch)}",
                f"cut images into windows of {times(patch)}, or build it with channel_tokens=False",
            )


def map_cells(plan: NetworkPlan, stage: int) -> int:
    """Return the number of cells of a stage's map of the plan's patch."""
    strides = zip(*plan.strides[: stage + 1], strict=True)
    return math.prod(size // math.prod(axis) for size, axis in zip(plan.patch_size, strides, strict=True))


def layer_stages(place: Place | Sequence[int] | None, plan: NetworkPlan) -> tuple[int, ...]:
    """Return the numbers of the stages after which a layer stands, in order; the argument is that of `UMamba`.

    Raises:
        UserError: If it names no place, or a stage that the plan does not have.
    """
    if place is None:
        place = "every" if plan.dim == 3 else "alternate"
    if isinstance(place, str):
        steps = {"bottleneck": plan.stages, "alternate": 2, "every": 1}
        if place not in steps:
            raise UserError(
                f"the place of the Mamba layers is {place!r}", f"choose {', '.join(get_args(Place))}, or stages"
            )
        return tuple(reversed(range(plan.stages - 1, -1, -steps[place])))
    unknown = [stage for stage in place if stage not in range(plan.stages)]
    if unknown or not place:
        raise UserError(
            f"the places of the Mamba layers are the stages {list(place)}",
            f"give stages from 0 to {plan.stages - 1}; residual_unet is the network without such layers",
        )
    return tuple(sorted(set(place)))
