"""The configuration of a language model, and how the two common checkpoint formats write theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mamba_apps.errors import UserError
from mamba_apps.mixers import spec

# Their option -> ours, and the value a transformers configuration that leaves it out means.
_TRANSFORMERS_MIXER: dict[str, tuple[str, Any]] = {
    "state_size": ("d_state", 16),
    "conv_kernel": ("d_conv", 4),
    "expand": ("expand", 2),
    "time_step_rank": ("dt_rank", "auto"),
    "time_step_min": ("dt_min", 0.001),
    "time_step_max": ("dt_max", 0.1),
    "time_step_init_scheme": ("dt_init", "random"),
    "time_step_scale": ("dt_scale", 1.0),
    "time_step_floor": ("dt_init_floor", 1e-4),
    "use_conv_bias": ("conv_bias", True),
    "use_bias": ("bias", False),
}
_MAMBA_SSM_KEYS = frozenset(
    "d_model d_intermediate n_layer vocab_size ssm_cfg attn_layer_idx attn_cfg rms_norm residual_in_fp32 "
    "fused_add_norm pad_vocab_size_multiple tie_embeddings".split()
)


@dataclass(frozen=True)
class MambaLMConfig:
    """The shape of a language model.

    Args:
        vocab_size: Number of tokens.
        d_model: Channels of the residual stream.
        n_layer: Number of blocks.
        mixer: The mixer of every block, by its registered name.
        mixer_options: Its options.
        norm: "rms" or "layer".
        norm_eps: The norms' epsilon.
        residual_in_fp32: Whether the residual stream is kept in float32.
        tie_embeddings: Whether the head uses the embedding's weights.
        pad_vocab_to: The embedding has a row count that is a multiple of this.
        initializer_range: Standard deviation of the initial embedding.

    Raises:
        UserError: If a size is below 1.
    """

    vocab_size: int
    d_model: int = 768
    n_layer: int = 24
    mixer: str = "mamba1"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    tie_embeddings: bool = True
    pad_vocab_to: int = 8
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layer", "pad_vocab_to"):
            if getattr(self, name) < 1:
                raise UserError(f"language model: {name} is {getattr(self, name)}", "give at least 1")

    @property
    def rows(self) -> int:
        """Rows of the embedding: ``vocab_size`` rounded up to a multiple of ``pad_vocab_to``."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to


def config_from_mamba_ssm(config: Mapping[str, Any]) -> MambaLMConfig:
    """Read the contents of a ``config.json`` of mamba-ssm.

    Raises:
        UserError: If it asks for something that is not supported, by name.
    """
    unknown = sorted(set(config) - _MAMBA_SSM_KEYS)
    if unknown:
        raise _unsupported("mamba-ssm", unknown[0], config[unknown[0]])
    for key, plain in (("d_intermediate", 0), ("attn_layer_idx", []), ("attn_cfg", {})):
        if config.get(key, plain) != plain:
            raise _unsupported("mamba-ssm", key, config[key])
    options = dict(config.get("ssm_cfg") or {})
    if options.pop("layer", "Mamba1") != "Mamba1":
        raise _unsupported("mamba-ssm", "ssm_cfg.layer", config["ssm_cfg"]["layer"])
    options.pop("use_fast_path", None)
    for name in options:
        if name not in spec("mamba1").options:
            raise _unsupported("mamba-ssm", f"ssm_cfg.{name}", options[name])
    return MambaLMConfig(
        vocab_size=config.get("vocab_size", 50277),
        d_model=config.get("d_model", 2560),
        n_layer=config.get("n_layer", 64),
        mixer_options=options,
        norm="rms" if config.get("rms_norm", True) else "layer",
        residual_in_fp32=config.get("residual_in_fp32", True),
        tie_embeddings=config.get("tie_embeddings", True),
        pad_vocab_to=config.get("pad_vocab_size_multiple", 8),
    )


def config_from_transformers(config: Mapping[str, Any]) -> MambaLMConfig:
    """Read the contents of a ``config.json`` of transformers' Mamba.

    Raises:
        UserError: If it asks for something that is not supported, by name.
    """
    if config.get("model_type", "mamba") != "mamba":
        raise _unsupported("transformers", "model_type", config["model_type"])
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _unsupported("transformers", "hidden_act", config["hidden_act"])
    d_model = config.get("hidden_size", 768)
    options = {ours: config.get(theirs, default) for theirs, (ours, default) in _TRANSFORMERS_MIXER.items()}
    inner = config.get("intermediate_size", int(options["expand"] * d_model))
    if inner != int(options["expand"] * d_model):
        raise _unsupported("transformers", "intermediate_size", inner)
    return MambaLMConfig(
        vocab_size=config.get("vocab_size", 50280),
        d_model=d_model,
        n_layer=config.get("num_hidden_layers", 32),
        mixer_options=options,
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        residual_in_fp32=config.get("residual_in_fp32", True),
        tie_embeddings=config.get("tie_word_embeddings", True),
        pad_vocab_to=1,
        initializer_range=config.get("initializer_range", 0.1),
    )


def config_to_mamba_ssm(config: MambaLMConfig) -> dict[str, Any]:
    """Write a configuration as mamba-ssm does.

    Raises:
        UserError: If mamba-ssm has no way to say it.
    """
    _need(config.mixer == "mamba1", "mamba-ssm", "mixer", config.mixer)
    _need(config.norm_eps == 1e-5, "mamba-ssm", "norm_eps", config.norm_eps)
    options = {name: value for name, value in config.mixer_options.items() if name != "backend"}
    return {
        "d_model": config.d_model,
        "d_intermediate": 0,
        "n_layer": config.n_layer,
        "vocab_size": config.vocab_size,
        "ssm_cfg": {"layer": "Mamba1", **options},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": config.norm == "rms",
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": config.pad_vocab_to,
        "tie_embeddings": config.tie_embeddings,
    }


def config_to_transformers(config: MambaLMConfig) -> dict[str, Any]:
    """Write a configuration as transformers does; the padded rows of the vocabulary become tokens.

    Raises:
        UserError: If transformers has no way to say it.
    """
    _need(config.mixer == "mamba1", "transformers", "mixer", config.mixer)
    _need(config.norm == "rms", "transformers", "norm", config.norm)
    options = {**spec("mamba1").options, **config.mixer_options}
    rank = options["dt_rank"]
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": config.rows,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "intermediate_size": int(options["expand"] * config.d_model),
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        **{theirs: options[ours] for theirs, (ours, _) in _TRANSFORMERS_MIXER.items()},
        "time_step_rank": -(-config.d_model // 16) if rank == "auto" else rank,
    }


def _need(condition: bool, naming: str, name: str, value: Any) -> None:
    if not condition:
        raise UserError(
            f"{naming}'s format cannot express {name}={value!r}", "save it with mamba_apps.training.save_model instead"
        )


def _unsupported(naming: str, key: str, value: Any) -> UserError:
    return UserError(
        f"the {naming} configuration has {key} = {value!r}, which is not supported", "use a plain Mamba-1 checkpoint"
    )
