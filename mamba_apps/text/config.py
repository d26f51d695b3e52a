"""The configuration of a language model, and how the two common checkpoint formats write theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from mamba_apps.errors import UserError
from mamba_apps.mixers import Mamba2Mixer, create, spec

_MAMBA_SSM_LAYERS = {"mamba1": "Mamba1", "mamba2": "Mamba2"}
_TRANSFORMERS_TYPES = {"mamba1": "mamba", "mamba2": "mamba2"}
# What a transformers configuration means that leaves these out.
_TRANSFORMERS_DEFAULTS: dict[str, dict[str, Any]] = {
    "mamba1": {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 32, "tie_word_embeddings": True},
    "mamba2": {"vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64, "tie_word_embeddings": False},
}
# Their option -> ours, and the value it has where it is left out.
_TRANSFORMERS_COMMON: dict[str, tuple[str, Any]] = {
    "conv_kernel": ("d_conv", 4),
    "expand": ("expand", 2),
    "time_step_min": ("dt_min", 0.001),
    "time_step_max": ("dt_max", 0.1),
    "time_step_floor": ("dt_init_floor", 1e-4),
    "use_conv_bias": ("conv_bias", True),
    "use_bias": ("bias", False),
}
_TRANSFORMERS_MIXER: dict[str, dict[str, tuple[str, Any]]] = {
    "mamba1": {
        **_TRANSFORMERS_COMMON,
        "state_size": ("d_state", 16),
        "time_step_rank": ("dt_rank", "auto"),
        "time_step_init_scheme": ("dt_init", "random"),
        "time_step_scale": ("dt_scale", 1.0),
    },
    "mamba2": {
        **_TRANSFORMERS_COMMON,
        "state_size": ("d_state", 128),
        "head_dim": ("headdim", 64),
        "n_groups": ("ngroups", 8),
        "time_step_limit": ("dt_limit", (0.0, math.inf)),
        "chunk_size": ("chunk_size", 256),
    },
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
    mixer = _mixer_called(_MAMBA_SSM_LAYERS, options.pop("layer", "Mamba1"), "mamba-ssm", "ssm_cfg.layer")
    for name in ("use_fast_path", "use_mem_eff_path"):
        options.pop(name, None)
    for name in options:
        if name not in spec(mixer).options:
            raise _unsupported("mamba-ssm", f"ssm_cfg.{name}", options[name])
    return MambaLMConfig(
        vocab_size=config.get("vocab_size", 50277),
        d_model=config.get("d_model", 2560),
        n_layer=config.get("n_layer", 64),
        mixer=mixer,
        mixer_options=options,
        norm="rms" if config.get("rms_norm", True) else "layer",
        residual_in_fp32=config.get("residual_in_fp32", True),
        tie_embeddings=config.get("tie_embeddings", True),
        pad_vocab_to=config.get("pad_vocab_size_multiple", 8),
    )


def config_from_transformers(config: Mapping[str, Any]) -> MambaLMConfig:
    """Read the contents of a ``config.json`` of transformers' Mamba or Mamba-2.

    Raises:
        UserError: If it asks for something that is not supported, by name.
    """
    mixer = _mixer_called(_TRANSFORMERS_TYPES, config.get("model_type", "mamba"), "transformers", "model_type")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _unsupported("transformers", "hidden_act", config["hidden_act"])
    whole = {**_TRANSFORMERS_DEFAULTS[mixer], **config}
    options = {ours: whole.get(theirs, default) for theirs, (ours, default) in _TRANSFORMERS_MIXER[mixer].items()}
    norm_eps, inner = whole.get("layer_norm_epsilon", 1e-5), int(options["expand"] * whole["hidden_size"])
    derived = {"intermediate_size": inner}
    if mixer == "mamba2":
        derived["num_heads"] = inner // options["headdim"]
        # Whatever the groups of heads, transformers normalises all channels together.
        options |= {"norm_groups": 1, "norm_eps": norm_eps}
        # Newer files write what JSON has no number for as an object.
        bounds = (bound["__float__"] if isinstance(bound, Mapping) else bound for bound in options["dt_limit"])
        options["dt_limit"] = tuple(map(float, bounds))
    for name, size in derived.items():
        if whole.get(name, size) != size:
            raise _unsupported("transformers", name, whole[name])
    return MambaLMConfig(
        vocab_size=whole["vocab_size"],
        d_model=whole["hidden_size"],
        n_layer=whole["num_hidden_layers"],
        mixer=mixer,
        mixer_options=options,
        norm_eps=norm_eps,
        residual_in_fp32=whole.get("residual_in_fp32", True),
        tie_embeddings=whole["tie_word_embeddings"],
        pad_vocab_to=1,
        initializer_range=whole.get("initializer_range", 0.1),
    )


def config_to_mamba_ssm(config: MambaLMConfig) -> dict[str, Any]:
    """Write a configuration as mamba-ssm does.

    Raises:
        UserError: If mamba-ssm has no way to say it.
    """
    _need(config.mixer in _MAMBA_SSM_LAYERS, "mamba-ssm", "mixer", config.mixer)
    _need(config.norm_eps == 1e-5, "mamba-ssm", "norm_eps", config.norm_eps)
    left_out = {"backend"}
    options = dict(config.mixer_options)
    if config.mixer == "mamba2":
        mixer = _built(config)
        options["headdim"] = mixer.headdim
        norm_groups = options.get("norm_groups", mixer.ngroups)
        _need(norm_groups in (None, mixer.ngroups), "mamba-ssm", "norm_groups", norm_groups)
        _need(options.get("norm_eps", 1e-5) == 1e-5, "mamba-ssm", "the mixer's norm_eps", options.get("norm_eps"))
        left_out |= {"norm_groups", "norm_eps", *(["chunk_size"] if mixer.chunk_size is None else [])}
    options = {name: value for name, value in options.items() if name not in left_out}
    return {
        "d_model": config.d_model,
        "d_intermediate": 0,
        "n_layer": config.n_layer,
        "vocab_size": config.vocab_size,
        "ssm_cfg": {"layer": _MAMBA_SSM_LAYERS[config.mixer], **options},
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
    _need(config.mixer in _TRANSFORMERS_TYPES, "transformers", "mixer", config.mixer)
    _need(config.norm == "rms", "transformers", "norm", config.norm)
    options = {**spec(config.mixer).options, **config.mixer_options}
    theirs = {name: options[ours] for name, (ours, _) in _TRANSFORMERS_MIXER[config.mixer].items()}
    inner = int(options["expand"] * config.d_model)
    if config.mixer == "mamba1":
        architecture, rank = "MambaForCausalLM", options["dt_rank"]
        theirs["time_step_rank"] = -(-config.d_model // 16) if rank == "auto" else rank
        theirs["intermediate_size"] = inner
    else:
        architecture, mixer = "Mamba2ForCausalLM", _built(config)
        for name, only in (("D_has_hdim", False), ("rmsnorm", True), ("norm_before_gate", False)):
            _need(options[name] == only, "transformers", name, options[name])
        _need(mixer.d_ssm == inner, "transformers", "d_ssm", mixer.d_ssm)
        _need((options["norm_groups"] or mixer.ngroups) == 1, "transformers", "norm_groups", options["norm_groups"])
        _need(options["norm_eps"] == config.norm_eps, "transformers", "the mixer's norm_eps", options["norm_eps"])
        theirs |= {"head_dim": mixer.headdim, "num_heads": mixer.nheads, "time_step_limit": list(mixer.dt_limit)}
        theirs["chunk_size"] = mixer.chunk_size or 256
    return {
        "architectures": [architecture],
        "model_type": _TRANSFORMERS_TYPES[config.mixer],
        "vocab_size": config.rows,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        **theirs,
    }


def _mixer_called(names: Mapping[str, str], theirs: str, naming: str, key: str) -> str:
    for mixer, name in names.items():
        if name == theirs:
            return mixer
    raise _unsupported(naming, key, theirs)


def _built(config: MambaLMConfig) -> Mamba2Mixer:
    """Return a block's mixer without values, which knows the sizes that follow from the options."""
    return cast(Mamba2Mixer, create(config.mixer, config.d_model, **{**config.mixer_options, "device": "meta"}))


def _need(condition: bool, naming: str, name: str, value: Any) -> None:
    if not condition:
        raise UserError(
            f"{naming}'s format cannot express {name}={value!r}", "save it with mamba_apps.training.save_model instead"
        )


def _unsupported(naming: str, key: str, value: Any) -> UserError:
    return UserError(
        f"the {naming} configuration has {key} = {value!r}, which is not supported",
        "use a plain Mamba-1 or Mamba-2 checkpoint",
    )
