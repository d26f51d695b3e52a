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
_TRANSFORMERS_SHARED = {"layer_norm_epsilon": 1e-5, "residual_in_fp32": True, "initializer_range": 0.1}
_TRANSFORMERS_DEFAULTS: dict[str, dict[str, Any]] = {
    "mamba1": {
        **_TRANSFORMERS_SHARED,
        "vocab_size": 50280,
        "hidden_size": 768,
        "num_hidden_layers": 32,
        "tie_word_embeddings": True,
    },
    "mamba2": {
        **_TRANSFORMERS_SHARED,
        "vocab_size": 32768,
        "hidden_size": 4096,
        "num_hidden_layers": 64,
        "tie_word_embeddings": False,
    },
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
# What a mamba-ssm configuration means that leaves these out.
_MAMBA_SSM_DEFAULTS: dict[str, Any] = {
    "d_model": 2560,
    "d_intermediate": 0,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
# Ours alone, which a file does not decide.
_OUR_CHOICE = frozenset({"backend", "device", "dtype"})


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
        UserError: If a size is no whole number of at least 1.
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
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise UserError(f"language model: {name} is {size!r}", "give a whole number of at least 1")

    @property
    def rows(self) -> int:
        """Rows of the embedding: ``vocab_size`` rounded up to a multiple of ``pad_vocab_to``."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to


def config_from_mamba_ssm(config: Mapping[str, Any]) -> MambaLMConfig:
    """Read the contents of a ``config.json`` of mamba-ssm.

    Raises:
        UserError: If it asks for something that is not supported, by name.
    """
    unknown = sorted(set(config) - set(_MAMBA_SSM_DEFAULTS))
    if unknown:
        raise _unsupported("mamba-ssm", unknown[0], config[unknown[0]])
    # What holds others may be null, and is empty then.
    null = {key for key, value in config.items() if value is None and _MAMBA_SSM_DEFAULTS[key] in ({}, [])}
    whole = {**_MAMBA_SSM_DEFAULTS, **{key: value for key, value in config.items() if key not in null}}
    _require_kinds("mamba-ssm", whole, _MAMBA_SSM_DEFAULTS)
    for key in ("d_intermediate", "attn_layer_idx", "attn_cfg"):
        if whole[key] != _MAMBA_SSM_DEFAULTS[key]:
            raise _unsupported("mamba-ssm", key, whole[key])
    options = dict(whole["ssm_cfg"])
    mixer = _mixer_called(_MAMBA_SSM_LAYERS, options.pop("layer", "Mamba1"), "mamba-ssm", "ssm_cfg.layer")
    for name in ("use_fast_path", "use_mem_eff_path"):
        options.pop(name, None)
    for name in options:
        if name not in spec(mixer).options or name in _OUR_CHOICE:
            raise _unsupported("mamba-ssm", f"ssm_cfg.{name}", options[name])
    return MambaLMConfig(
        vocab_size=whole["vocab_size"],
        d_model=whole["d_model"],
        n_layer=whole["n_layer"],
        mixer=mixer,
        mixer_options=options,
        norm="rms" if whole["rms_norm"] else "layer",
        residual_in_fp32=whole["residual_in_fp32"],
        tie_embeddings=whole["tie_embeddings"],
        pad_vocab_to=whole["pad_vocab_size_multiple"],
    )


def config_from_transformers(config: Mapping[str, Any]) -> MambaLMConfig:
    """Read the contents of a ``config.json`` of transformers' Mamba or Mamba-2.

    Raises:
        UserError: If it asks for something that is not supported, by name.
    """
    mixer = _mixer_called(_TRANSFORMERS_TYPES, config.get("model_type", "mamba"), "transformers", "model_type")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _unsupported("transformers", "hidden_act", config["hidden_act"])
    table = _TRANSFORMERS_MIXER[mixer]
    known = {**_TRANSFORMERS_DEFAULTS[mixer], **{theirs: default for theirs, (_, default) in table.items()}}
    whole = {**known, **config}
    _require_kinds("transformers", whole, known)
    options = {ours: whole[theirs] for theirs, (ours, _) in table.items()}
    norm_eps, inner = whole["layer_norm_epsilon"], int(options["expand"] * whole["hidden_size"])
    derived = {"intermediate_size": inner}
    if mixer == "mamba2":
        if options["headdim"] < 1:
            raise _unsupported("transformers", "head_dim", options["headdim"])
        derived["num_heads"] = inner // options["headdim"]
        # Whatever the groups of heads, transformers normalises all channels together.
        options |= {"norm_groups": 1, "norm_eps": norm_eps, "dt_limit": tuple(map(_number, options["dt_limit"]))}
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
        residual_in_fp32=whole["residual_in_fp32"],
        tie_embeddings=whole["tie_word_embeddings"],
        pad_vocab_to=1,
        initializer_range=whole["initializer_range"],
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


def _require_kinds(naming: str, config: Mapping[str, Any], examples: Mapping[str, Any]) -> None:
    """Refuse values of another kind than the examples have, which would be met by an error of Python's later."""
    for key, example in examples.items():
        if not _is_like(config[key], example):
            raise _unsupported(naming, key, config[key])


def _is_like(value: Any, example: Any) -> bool:
    if isinstance(example, tuple):
        return isinstance(value, (list, tuple)) and len(value) == len(example) and all(map(_is_number, value))
    if isinstance(example, (bool, list, Mapping)):
        return isinstance(value, type(example))
    if isinstance(example, (int, float)):
        return _is_number(value) and not isinstance(value, Mapping)
    return True


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, or the object that newer files write where JSON has no number."""
    if isinstance(value, Mapping):
        return value.get("__float__") in ("Infinity", "-Infinity", "NaN")
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value["__float__"] if isinstance(value, Mapping) else value)


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
