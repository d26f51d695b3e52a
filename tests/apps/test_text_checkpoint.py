"""The two checkpoint formats that language models are read from and written in."""

from __future__ import annotations

import json
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.text import (
    MambaLM,
    MambaLMConfig,
    config_from_mamba_ssm,
    config_from_transformers,
    from_mamba_ssm,
    from_transformers,
    to_mamba_ssm,
    to_transformers,
)
from mamba_apps.text.checkpoint import _read_tensors


def small(**options: Any) -> MambaLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"vocab_size": 21, "d_model": 16, "n_layer": 2, "initializer_range": 1.0, **options}
    return MambaLM(MambaLMConfig(**settings))


def ids(*shape: int, vocab: int = 21) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(1))


SSM_CONFIG: dict[str, Any] = {
    "d_model": 16,
    "n_layer": 2,
    "vocab_size": 21,
    "ssm_cfg": {"d_state": 4, "use_fast_path": True},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
HF_CONFIG: dict[str, Any] = {
    "model_type": "mamba",
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "state_size": 4,
    "intermediate_size": 32,
    "time_step_rank": 1,
    "hidden_act": "silu",
    "use_cache": True,
}


def ssm_weights() -> dict[str, Tensor]:
    state_dict = small(mixer_options={"d_state": 4}).state_dict()
    return {**state_dict, "lm_head.weight": state_dict["backbone.embedding.weight"].clone()}


def hf_weights() -> dict[str, Tensor]:
    state_dict = dict(small(mixer_options={"d_state": 4}).state_dict())
    state_dict["backbone.embeddings.weight"] = state_dict.pop("backbone.embedding.weight")
    return state_dict


@pytest.mark.parametrize("head", [True, False])
def test_both_namings_load_the_same_model(head: bool) -> None:
    expected = small(mixer_options={"d_state": 4})(ids(2, 5))
    ssm, hf = ssm_weights(), hf_weights()
    if not head:
        del ssm["lm_head.weight"]
    else:
        hf["lm_head.weight"] = hf["backbone.embeddings.weight"].clone()
    assert torch.equal(from_mamba_ssm(ssm, SSM_CONFIG)(ids(2, 5)), expected)
    assert torch.equal(from_transformers(hf, HF_CONFIG)(ids(2, 5)), expected)
    assert torch.equal(from_transformers(ssm, HF_CONFIG)(ids(2, 5)), expected), "older transformers files"
    assert torch.equal(from_mamba_ssm(ssm, small(mixer_options={"d_state": 4}).config)(ids(2, 5)), expected)


@pytest.mark.parametrize(
    ("load", "weights", "config"),
    [(from_mamba_ssm, ssm_weights, SSM_CONFIG), (from_transformers, hf_weights, HF_CONFIG)],
    ids=["mamba_ssm", "transformers"],
)
def test_loading_is_strict(load: Any, weights: Any, config: dict[str, Any]) -> None:
    name = "backbone.layers.1.mixer.dt_proj.bias"
    missing = weights()
    del missing[name]
    with pytest.raises(UserError, match=f"missing in the state dict: {name}"):
        load(missing, config)
    with pytest.raises(UserError, match=r"unexpected in the state dict: backbone.layers.2.norm.weight"):
        load({**weights(), "backbone.layers.2.norm.weight": torch.ones(16)}, config)
    with pytest.raises(UserError, match=rf"{name} has shape \(5,\) in the state dict, \(32,\) in the model"):
        load({**weights(), name: torch.zeros(5)}, config)
    with pytest.raises(UserError, match=r"lm_head.weight differs from the embedding"):
        load({**weights(), "lm_head.weight": torch.zeros(24, 16)}, config)
    with pytest.raises(UserError, match=r"missing in the state dict: .* and 17 more"):
        load({}, config)


def test_an_untied_head_is_loaded() -> None:
    head = torch.randn(24, 16)
    ssm = from_mamba_ssm({**ssm_weights(), "lm_head.weight": head}, {**SSM_CONFIG, "tie_embeddings": False})
    hf = from_transformers({**hf_weights(), "lm_head.weight": head}, {**HF_CONFIG, "tie_word_embeddings": False})
    for model in (ssm, hf):
        assert model.lm_head is not None
        assert torch.equal(model.lm_head.weight, head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_intermediate": 32}, "d_intermediate = 32"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx = \[1\]"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer = 'Mamba3'"),
        ({"ssm_cfg": {"layer": "Mamba2", "dt_rank": 2}}, "ssm_cfg.dt_rank = 2"),
        ({"ssm_cfg": {"headdim": 64}}, "ssm_cfg.headdim = 64"),
        ({"new_option": 1}, "new_option = 1"),
    ],
)
def test_mamba_ssm_options_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"the mamba-ssm configuration has {message}, which is not supported"):
        config_from_mamba_ssm({**SSM_CONFIG, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba3"}, "model_type = 'mamba3'"),
        ({"model_type": "mamba2", "num_heads": 5}, "num_heads = 5"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"intermediate_size": 33}, "intermediate_size = 33"),
    ],
)
def test_transformers_options_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"the transformers configuration has {message}, which is not supported"):
        config_from_transformers({**HF_CONFIG, **change})


MAMBA2 = {"d_state": 4, "ngroups": 2, "headdim": 8, "dt_limit": (0.0, 0.5), "norm_eps": 1e-5}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        *((SSM_CONFIG, {key: value}) for key, value in (
            ("n_layer", "2"), ("n_layer", 2.0), ("d_model", [16]), ("ssm_cfg", "Mamba2"), ("rms_norm", "yes"),
            ("ssm_cfg", {"device": "cuda"}), ("ssm_cfg", {"d_state": "4"}), ("ssm_cfg", {"expand": None}),
            ("n_layer", None),
        )),
        *((HF_CONFIG, {key: value}) for key, value in (
            ("vocab_size", None), ("hidden_size", "16"), ("num_hidden_layers", 2.0), ("layer_norm_epsilon", None),
            ("expand", None), ("time_step_floor", True), ("initializer_range", {}), ("tie_word_embeddings", 1),
        )),
        *(({**HF_CONFIG, "model_type": "mamba2"}, {key: value}) for key, value in (
            ("time_step_limit", 3), ("time_step_limit", ["a", 1.0]), ("head_dim", 0), ("head_dim", "8"),
        )),
    ],
    ids=str,
)  # fmt: skip
def test_values_of_another_kind_are_refused_by_name(base: dict[str, Any], change: dict[str, Any]) -> None:
    read = config_from_transformers if base is not SSM_CONFIG else config_from_mamba_ssm
    ((name, value),) = change.items()
    told = [name, *value] if isinstance(value, dict) else [name, "n_layer"]
    with pytest.raises(UserError, match="|".join(told)):
        MambaLM(read({**base, **change}))


@pytest.mark.parametrize("naming", ["mamba_ssm", "transformers"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_a_written_checkpoint_is_read_back(tmp_path: Path, naming: str, tie: bool, mixer: str) -> None:
    options = {"d_state": 4, "dt_rank": 3, "bias": True}
    if mixer == "mamba2":
        options = {**MAMBA2, "norm_groups": 1 if naming == "transformers" else 2}
    model = small(mixer=mixer, mixer_options=options, tie_embeddings=tie)
    model.to_checkpoint(tmp_path / "out", naming)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    keys = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert ("backbone.embeddings.weight" in keys) == (naming == "transformers")
    assert ("lm_head.weight" in keys) == (naming == "mamba_ssm" or not tie)
    again = MambaLM.from_checkpoint(tmp_path / "out", backend="reference")
    torch.testing.assert_close(again(ids(2, 5)), model(ids(2, 5)))


def test_what_a_format_cannot_express_is_refused() -> None:
    twin = small(mixer="attention")
    with pytest.raises(UserError, match="mamba-ssm's format cannot express mixer='attention'"):
        to_mamba_ssm(twin)
    with pytest.raises(UserError, match="transformers's format cannot express norm='layer'"):
        to_transformers(small(norm="layer"))
    with pytest.raises(UserError, match=r"cannot express norm_eps=0.1"):
        to_mamba_ssm(small(norm_eps=0.1))


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (to_mamba_ssm, {"norm_groups": 1}, "norm_groups=1"),
        (to_mamba_ssm, {"norm_eps": 0.1}, "the mixer's norm_eps=0.1"),
        (to_transformers, {}, "norm_groups=None"),
        (to_transformers, {"ngroups": 1, "norm_eps": 0.1}, "the mixer's norm_eps=0.1"),
        (to_transformers, {"D_has_hdim": True}, "D_has_hdim=True"),
        (to_transformers, {"norm_before_gate": True}, "norm_before_gate=True"),
        (to_transformers, {"rmsnorm": False}, "rmsnorm=False"),
        (to_transformers, {"d_ssm": 16}, "d_ssm=16"),
    ],
    ids=str,
)
def test_what_a_format_cannot_express_of_mamba2_is_refused(write: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"format cannot express {message}; save it with"):
        write(small(mixer="mamba2", mixer_options={**MAMBA2, **change}))


def test_mamba2_configurations_are_read() -> None:
    ssm = config_from_mamba_ssm({**SSM_CONFIG, "ssm_cfg": {"layer": "Mamba2", "d_state": 4, "use_mem_eff_path": True}})
    assert (ssm.mixer, ssm.mixer_options) == ("mamba2", {"d_state": 4})
    hf = config_from_transformers({"model_type": "mamba2", "time_step_limit": [0.01, {"__float__": "Infinity"}]})
    assert (hf.mixer, hf.d_model, hf.n_layer, hf.rows, hf.tie_embeddings) == ("mamba2", 4096, 64, 32768, False)
    assert hf.mixer_options["dt_limit"] == (0.01, math.inf)
    assert {name: hf.mixer_options[name] for name in ("headdim", "ngroups", "norm_groups", "chunk_size")} == {
        "headdim": 64,
        "ngroups": 8,
        "norm_groups": 1,
        "chunk_size": 256,
    }


def test_an_unknown_naming_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown naming 'onnx'"):
        small().to_checkpoint(tmp_path, "onnx")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the checkpoint folder .*file"):
        small().to_checkpoint(tmp_path / "file")


def test_shards_are_read(tmp_path: Path) -> None:
    weights = hf_weights()
    names = sorted(weights)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    model = MambaLM.from_checkpoint(tmp_path)
    assert torch.equal(model(ids(1, 4)), small(mixer_options={"d_state": 4})(ids(1, 4)))
    index["weight_map"][names[0]] = "../a.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="must map each tensor to a file beside it"):
        MambaLM.from_checkpoint(tmp_path)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("attacked"),)


@pytest.mark.parametrize("content", [Attack(), {"weight": Attack()}], ids=["alone", "among weights"])
@pytest.mark.parametrize(
    "save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))], ids=["torch", "raw"]
)
def test_what_could_run_code_is_not_opened(
    content: Any, save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SSM_CONFIG))
    save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than tensors, which is not opened") as caught:
        MambaLM.from_checkpoint(tmp_path)
    assert "model.safetensors" in caught.value.remedy
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("shards", [False, True])
def test_pytorchs_files_are_read(shards: bool, tmp_path: Path) -> None:
    weights = ssm_weights()
    (tmp_path / "config.json").write_text(json.dumps(SSM_CONFIG))
    if shards:
        files = {name: f"{i % 2}.bin" for i, name in enumerate(weights)}
        for file in set(files.values()):
            torch.save({name: weights[name] for name in weights if files[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        torch.save(OrderedDict(weights), tmp_path / "pytorch_model.bin")
    model = MambaLM.from_checkpoint(tmp_path)
    assert torch.equal(model(ids(1, 4)), small(mixer_options={"d_state": 4})(ids(1, 4)))


@pytest.mark.parametrize("zipped", [False, True])
def test_bytes_that_changed_are_refused_or_read(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for place in range(0, min(len(whole), 700), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x85]) + whole[place + 1 :])
        try:
            _read_tensors(path)
        except UserError:
            refused += 1
    assert refused > 20


def test_damaged_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json cannot be read: No such file"):
        MambaLM.from_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is no JSON"):
        MambaLM.from_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json holds a list, not an object"):
        MambaLM.from_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SSM_CONFIG))
    with pytest.raises(UserError, match=r"has no model.safetensors and no pytorch_model.bin"):
        MambaLM.from_checkpoint(tmp_path)
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin holds no state dict"):
        MambaLM.from_checkpoint(tmp_path)
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    for part in (len(whole) // 2, 0):
        (tmp_path / "pytorch_model.bin").write_bytes(whole[:part])
        with pytest.raises(UserError, match=r"pytorch_model.bin (cannot be read|is damaged)"):
            MambaLM.from_checkpoint(tmp_path)
    small(mixer_options={"d_state": 4}).to_checkpoint(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        MambaLM.from_checkpoint(tmp_path)
