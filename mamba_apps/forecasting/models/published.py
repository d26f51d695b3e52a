"""The published forecasters as they stand in the registry: on windows, with masks, covariates and quantiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.forecasting.models.base import Sizes
from mamba_apps.forecasting.models.dlinear import DLinear
from mamba_apps.forecasting.models.effect import EffectForecaster, outputs
from mamba_apps.forecasting.models.inverted import ITransformer, SMamba
from mamba_apps.forecasting.models.mambasimple import MambaSimple
from mamba_apps.forecasting.models.patchtst import PatchTST
from mamba_apps.forecasting.models.registry import register
from mamba_apps.forecasting.models.timemachine import TimeMachine

_EFFECT_WIDTH = 32


@register("smamba")
class SMambaForecaster(EffectForecaster):
    """S-Mamba: each series is one token, and a Mamba in each direction reads across them.

    The past of every covariate is a token beside the target's; the future of those known ahead comes through the
    covariate effect.

    Args:
        sizes: The shape of the problem.
        d_model: Model channels.
        d_ff: Hidden channels of each layer's transformation; None for ``d_model``.
        d_state: The Mambas' states per channel.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).
        activation: "gelu" or "relu".
        use_norm: Whether each window is normalised by its own mean and deviation.
        quantiles: As in `ForecastModel`.
        effect_width: Hidden channels of the covariate effect.
    """

    covariates = frozenset({"past"})

    def __init__(
        self,
        sizes: Sizes,
        *,
        d_model: int = 128,
        d_ff: int | None = None,
        d_state: int = 16,
        layers: int = 2,
        dropout: float = 0.1,
        activation: str = "gelu",
        use_norm: bool = True,
        quantiles: Sequence[float] | None = None,
        effect_width: int = _EFFECT_WIDTH,
    ) -> None:
        network = SMamba(
            sizes.lookback,
            outputs(sizes, quantiles),
            d_model=d_model,
            d_ff=d_ff,
            d_state=d_state,
            layers=layers,
            dropout=dropout,
            activation=activation,
            use_norm=use_norm,
        )
        super().__init__(sizes, network, quantiles, effect_width)


@register("itransformer")
class ITransformerForecaster(EffectForecaster):
    """iTransformer: each series is one token, and attention reads across them.

    The past of every covariate is a token beside the target's; the future of those known ahead comes through the
    covariate effect.

    Args:
        sizes: The shape of the problem.
        d_model: Model channels.
        d_ff: Hidden channels of each layer's transformation; None for ``d_model``.
        heads: Attention heads, a divisor of ``d_model``.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).
        activation: "gelu" or "relu".
        use_norm: Whether each window is normalised by its own mean and deviation.
        quantiles: As in `ForecastModel`.
        effect_width: Hidden channels of the covariate effect.
    """

    covariates = frozenset({"past"})

    def __init__(
        self,
        sizes: Sizes,
        *,
        d_model: int = 128,
        d_ff: int | None = None,
        heads: int = 8,
        layers: int = 2,
        dropout: float = 0.1,
        activation: str = "gelu",
        use_norm: bool = True,
        quantiles: Sequence[float] | None = None,
        effect_width: int = _EFFECT_WIDTH,
    ) -> None:
        network = ITransformer(
            sizes.lookback,
            outputs(sizes, quantiles),
            d_model=d_model,
            d_ff=d_ff,
            heads=heads,
            layers=layers,
            dropout=dropout,
            activation=activation,
            use_norm=use_norm,
        )
        super().__init__(sizes, network, quantiles, effect_width)


@register("patchtst")
class PatchTSTForecaster(EffectForecaster):
    """PatchTST: overlapping patches of the past are tokens of an attention encoder.

    Covariates known ahead come through the covariate effect; it has no place for past ones.

    Args:
        sizes: The shape of the problem.
        patch: Steps a patch; None for 16, or the whole lookback where that is shorter.
        stride: Steps between patches; None for half a patch.
        d_model: Model channels, an even number.
        d_ff: Hidden channels of each layer's transformation; None for twice ``d_model``.
        heads: Attention heads, a divisor of ``d_model``.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).
        activation: "gelu" or "relu".
        quantiles: As in `ForecastModel`.
        effect_width: Hidden channels of the covariate effect.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        patch: int | None = None,
        stride: int | None = None,
        d_model: int = 64,
        d_ff: int | None = None,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
        activation: str = "gelu",
        quantiles: Sequence[float] | None = None,
        effect_width: int = _EFFECT_WIDTH,
    ) -> None:
        patch = min(16, sizes.lookback) if patch is None else patch
        network = PatchTST(
            sizes.lookback,
            outputs(sizes, quantiles),
            patch=patch,
            stride=max(patch // 2, 1) if stride is None else stride,
            d_model=d_model,
            d_ff=d_ff,
            heads=heads,
            layers=layers,
            dropout=dropout,
            activation=activation,
        )
        super().__init__(sizes, network, quantiles, effect_width)


@register("dlinear")
class DLinearForecaster(EffectForecaster):
    """DLinear: one linear map of the past's trend, one of the rest.

    Covariates known ahead come through the covariate effect; it has no place for past ones.

    Args:
        sizes: The shape of the problem.
        moving_average: Steps of the moving average that is the trend, an odd number.
        quantiles: As in `ForecastModel`.
        effect_width: Hidden channels of the covariate effect.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        moving_average: int = 25,
        quantiles: Sequence[float] | None = None,
        effect_width: int = _EFFECT_WIDTH,
    ) -> None:
        network = DLinear(sizes.lookback, outputs(sizes, quantiles), moving_average=moving_average)
        super().__init__(sizes, network, quantiles, effect_width)


@register("timemachine")
class TimeMachineForecaster(EffectForecaster):
    """TimeMachine: four Mambas on two widths of the embedded past.

    Covariates known ahead come through the covariate effect; it has no place for past ones.

    Args:
        sizes: The shape of the problem.
        n1: Features of the first embedding.
        n2: Features of the second embedding.
        d_state: The Mambas' states per channel.
        dropout: Probability of dropping after each embedding, in [0, 1).
        quantiles: As in `ForecastModel`.
        effect_width: Hidden channels of the covariate effect.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        n1: int = 128,
        n2: int = 32,
        d_state: int = 64,
        dropout: float = 0.1,
        quantiles: Sequence[float] | None = None,
        effect_width: int = _EFFECT_WIDTH,
    ) -> None:
        network = TimeMachine(sizes.lookback, outputs(sizes, quantiles), n1=n1, n2=n2, d_state=d_state, dropout=dropout)
        super().__init__(sizes, network, quantiles, effect_width)


@register("mambasimple")
class MambaSimpleForecaster(EffectForecaster):
    """MambaSimple: Mamba over the steps of the past, the last of which are read as the forecast.

    Past covariates are embedded beside the target; the future of those known ahead comes through the covariate effect.
    A lookback shorter than the horizon is continued to the left by its first step.

    Args:
        sizes: The shape of the problem.
        d_model: Model channels, an even number.
        d_state: The Mambas' states per channel.
        layers: Number of layers.
        dropout: Probability of dropping the embedding, in [0, 1).
        quantiles: As in `ForecastModel`.
        effect_width: Hidden channels of the covariate effect.
    """

    covariates = frozenset({"past"})

    def __init__(
        self,
        sizes: Sizes,
        *,
        d_model: int = 128,
        d_state: int = 16,
        layers: int = 2,
        dropout: float = 0.1,
        quantiles: Sequence[float] | None = None,
        effect_width: int = _EFFECT_WIDTH,
    ) -> None:
        values = len(quantiles) if quantiles else 1
        network = MambaSimple(
            max(sizes.lookback, sizes.horizon),
            sizes.horizon,
            channels=values,
            marks=sizes.n_past + sizes.n_future,
            d_model=d_model,
            d_state=d_state,
            layers=layers,
            dropout=dropout,
        )
        missing = max(0, sizes.horizon - sizes.lookback)
        super().__init__(sizes, _StepByStep(network, missing, values), quantiles, effect_width)


class _StepByStep(nn.Module):
    """A network from steps to steps, with its input as long as its output needs, and one variate for each quantile."""

    def __init__(self, network: nn.Module, missing: int, values: int) -> None:
        super().__init__()
        self.network, self.missing, self.values = network, missing, values

    def forward(self, x_BL1: Tensor, x_BLM: Tensor | None = None) -> Tensor:
        x_BLQ = self._longer(x_BL1).expand(-1, -1, self.values)
        y_BHQ = self.network(x_BLQ, None if x_BLM is None else self._longer(x_BLM))
        return y_BHQ.flatten(1)[..., None]

    def _longer(self, x_BLC: Tensor) -> Tensor:
        return F.pad(x_BLC.transpose(1, 2), (self.missing, 0), mode="replicate").transpose(1, 2)
