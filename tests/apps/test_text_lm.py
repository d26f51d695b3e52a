"""The language model: its generation, its start, and the two checkpoint formats it reads and writes."""

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
from mamba_apps.text.generation import Continuation, Sampler
from mamba_kernels.errors import KernelInputError

MIXERS: list[dict[str, Any]] = [
    {"mixer": "mamba1", "mixer_options": {"d_state": 4}},
    {"mixer": "mamba2", "mixer_options": {"d_state": 4, "headdim": 8, "dt_limit": [0.001, 0.3]}},
    {"mixer": "attention", "mixer_options": {"heads": 2, "rotary": True}},
]
over_mixers = pytest.mark.parametrize("options", MIXERS, ids=lambda options: options["mixer"])


def small(**options: Any) -> MambaLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"vocab_size": 21, "d_model": 16, "n_layer": 2, "initializer_range": 1.0, **options}
    return MambaLM(MambaLMConfig(**settings))


def ids(*shape: int, vocab: int = 21) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(1))


@over_mixers
@pytest.mark.parametrize("prompt", [1, 2, 6])
def test_generation_with_the_state_equals_generation_without(options: dict[str, Any], prompt: int) -> None:
    model = small(**options).double()
    text = ids(3, prompt)
    found = model.generate(text, 9)
    assert found.shape == (3, prompt + 9)
    assert torch.equal(found[:, :prompt], text)
    assert torch.equal(found, model.generate(text, 9, cache=False))
    assert len({tuple(row) for row in found[:, prompt:].tolist()}) > 1
    # The margin over the second best token is what makes equality a fair question.
    top = model(found)[:, prompt - 1 : -1, :21].topk(2).values
    assert (top[..., 0] - top[..., 1]).min() > 1e-9


@over_mixers
def test_prefill_and_step_give_the_logits_of_the_whole(options: dict[str, Any]) -> None:
    model = small(**options).double()
    text = ids(2, 7)
    with torch.no_grad():
        whole = model(text)
        logits, states = model.prefill(text[:, :5], model.init_state(2, max_length=7))
        torch.testing.assert_close(logits, whole[:, 4])
        for t in (5, 6):
            logits, states = model.step(text[:, t], states)
            torch.testing.assert_close(logits, whole[:, t])


def on_device(states: list[Any]) -> list[Any]:
    """Return states whose whole numbers are tensors, as a captured graph keeps them."""
    return [type(s)(*(x if isinstance(x, Tensor) else torch.tensor(x) for x in s)) for s in states]


@over_mixers
@pytest.mark.parametrize("backend", [None, "reference"])
def test_steps_decide_nothing_by_numbers_of_the_state(options: dict[str, Any], backend: str | None) -> None:
    torch.manual_seed(0)
    model = MambaLM(MambaLMConfig(21, 16, 2, **options), backend).double()
    text = ids(2, 9)
    with torch.no_grad():
        whole = model(text)
        _, states = model.prefill(text[:, :4], model.init_state(2, max_length=9))
        states = on_device(states)
        for t in range(4, 9):
            logits, states = model.step(text[:, t], states)
            torch.testing.assert_close(logits, whole[:, t])
        if options["mixer"] == "attention":
            with pytest.raises(IndexError):
                model.step(text[:, 0], states)


@over_mixers
def test_drawn_tokens(options: dict[str, Any]) -> None:
    model = small(**options)
    text = ids(3, 4)
    greedy = model.generate(text, 6)
    assert torch.equal(model.generate(text, 6, temperature=1e-6), greedy)
    assert torch.equal(model.generate(text, 6, temperature=5.0, top_k=1), greedy)

    def draw(seed: int, **how: Any) -> Tensor:
        made = torch.Generator().manual_seed(seed)
        return model.generate(text, 6, temperature=2.0, generator=made, **how)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(draw(1, top_k=5), draw(1, top_k=5, cache=False))
    assert torch.equal(draw(1, replay=True), draw(1, replay=False))


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 9.0]).expand(20000, -1)
    for how, kept in (({}, 4), ({"top_k": 2}, 2)):
        sampler = Sampler(4, 1.5, generator=torch.Generator().manual_seed(0), **how)
        found = sampler(logits).bincount(minlength=5) / 20000
        wanted = torch.zeros(5)
        likely = logits[0, :4].topk(kept)
        wanted[likely.indices] = (likely.values / 1.5).softmax(0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.012)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "the temperature is -1.0"),
        ({"temperature": math.nan}, "the temperature is nan"),
        ({"top_k": 0}, "top_k is 0; give 1 to 21"),
        ({"top_k": 22}, "top_k is 22"),
        ({"replay": True, "cache": False}, "only where there is a state"),
    ],
)
def test_ways_to_choose_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(mixer_options={"d_state": 2}).generate(ids(1, 3), 2, **options)


@pytest.mark.parametrize("replay", [False, True])
def test_a_continuation_starts_again(replay: bool) -> None:
    model = small(mixer_options={"d_state": 4}).eval()
    texts = Continuation(model, ids(2, 3), 5, Sampler(21), replay=replay)
    first = torch.stack([texts.next() for _ in range(5)], dim=1)
    other = ids(2, 4)[:, 1:]
    texts.restart(other)
    again = torch.stack([texts.next() for _ in range(5)], dim=1)
    assert torch.equal(first, model.generate(ids(2, 3), 5)[:, 3:])
    assert torch.equal(again, model.generate(other, 5)[:, 3:])
    if replay:
        with pytest.raises(KernelInputError, match="called more than 4 times"):
            texts.next()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@over_mixers
@pytest.mark.parametrize("mixed", [False, True])
def test_a_replayed_step_gives_the_same_tokens(options: dict[str, Any], mixed: bool) -> None:
    model = small(**options).cuda()
    text = ids(3, 7).cuda()
    for how in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 4}):
        found = []
        for replay in (False, True, None):
            torch.manual_seed(5)
            with torch.autocast("cuda", torch.float16, enabled=mixed):
                found.append(model.generate(text, 40, replay=replay, **how))
        # Attention's two ways of rounding in 16 bits may part ways somewhere.
        parts = 12 if mixed and options["mixer"] == "attention" else 47
        assert torch.equal(found[0][:, :parts], found[1][:, :parts])
        assert torch.equal(found[1], found[2])
    generator = torch.Generator("cuda")
    how = {"temperature": 1.0, "generator": generator}
    first, second = (model.generate(text, 20, replay=r, **how) for r in (False, True) if generator.manual_seed(1))
    assert torch.equal(first, second)


def test_a_mixer_that_looks_ahead_generates_without_a_cache_only() -> None:
    model = small(mixer="attention", mixer_options={"causal": False})
    with pytest.raises(UserError, match="needs a causal mixer"):
        model.generate(ids(1, 3), 2)
    assert model.generate(ids(1, 3), 2, cache=False).shape == (1, 5)


def test_generation_never_names_a_padded_row_and_keeps_the_mode() -> None:
    model = small(mixer_options={"d_state": 2})
    with torch.no_grad():
        model.backbone.embedding.weight[21:] = 100 * model.backbone.embedding.weight[:3]
    assert model.training
    text = model.generate(ids(4, 3), 20)
    assert model.training
    assert text.max() < 21


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), 1, r"the prompt has shape \(1, 0\)"),
        (torch.zeros(3, dtype=torch.int64), 1, r"the prompt has shape \(3,\)"),
        (torch.tensor([[1, 21]]), 1, "the prompt has token 21; give ids in"),
        (torch.tensor([[1, -2]]), 1, "the prompt has token -2"),
        (torch.tensor([[1]]), -1, "new_tokens is -1"),
        (torch.tensor([[1]]), 2.5, "new_tokens is 2.5; give a whole number"),
        (torch.tensor([[1.0]]), 1, "the prompt is of torch.float32; give token ids as int64"),
        (torch.tensor([[1]], dtype=torch.uint8), 1, "the prompt is of torch.uint8"),
    ],
)
def test_bad_prompts_are_refused(prompt: Tensor, new: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(mixer_options={"d_state": 2}).generate(prompt, new)


def test_no_new_tokens_is_the_prompt() -> None:
    text = ids(2, 3)
    assert torch.equal(small(mixer_options={"d_state": 2}).generate(text, 0), text)


@over_mixers
def test_packed_texts_equal_separate_ones(options: dict[str, Any]) -> None:
    model = small(**options).double()
    text = ids(1, 9)
    packed = model(text, seq_idx_BL=torch.tensor([[0] * 4 + [1] * 5]))
    torch.testing.assert_close(packed[:, :4], model(text[:, :4]))
    torch.testing.assert_close(packed[:, 4:], model(text[:, 4:]))


@over_mixers
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_every_parameter_learns_and_the_residual_stays_exact(options: dict[str, Any], norm: str) -> None:
    model = small(norm=norm, **options)
    seen = []
    hooks = [
        block.register_forward_hook(lambda m, i, out: seen.append((out[0].dtype, out[1].dtype)))
        for block in model.backbone.layers
    ]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids(2, 6))
    for hook in hooks:
        hook.remove()
    assert seen == [(torch.bfloat16, torch.float32)] * 2
    torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids(2, 6)[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_an_unknown_norm_or_mixer_is_refused() -> None:
    with pytest.raises(UserError, match="unknown norm 'rsm'"):
        small(norm="rsm")
    with pytest.raises(UserError, match="unknown mixer 'mamba'; did you mean 'mamba"):
        small(mixer="mamba")
    with pytest.raises(UserError, match="n_layer is 0"):
        small(n_layer=0)


def test_the_start_is_mamba_ssm_s() -> None:
    model = small(vocab_size=1003, d_model=64, n_layer=9, initializer_range=0.02, mixer_options={"bias": True})
    embedding = model.backbone.embedding.weight
    assert embedding.shape == (1008, 64)
    assert abs(embedding.std() - 0.02) < 0.0005
    for block in model.backbone.layers:
        bound = 1 / math.sqrt(128) / math.sqrt(9)
        assert 0.98 * bound < block.mixer.out_proj.weight.abs().max() <= bound
        assert block.mixer.in_proj.weight.abs().max() > 0.98 / math.sqrt(64)
        assert not block.mixer.in_proj.bias.any()
        assert not block.mixer.out_proj.bias.any()
        assert block.mixer.dt_proj.bias.max() < -2, "the step sizes keep their own start"


def test_a_state_dict_names_each_tensor_once(tmp_path: Path) -> None:
    model = small(mixer_options={"d_state": 4})
    assert "lm_head.weight" not in model.state_dict()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    twin = small(mixer_options={"d_state": 4}, initializer_range=0.5)
    twin.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert torch.equal(twin(ids(1, 4)), model(ids(1, 4)))
    untied = small(mixer_options={"d_state": 4}, tie_embeddings=False)
    assert untied.state_dict()["lm_head.weight"].shape == (24, 16)


def test_the_backend_reaches_every_part() -> None:
    torch.manual_seed(0)
    model = MambaLM(MambaLMConfig(8, 8, 2), backend="reference")
    parts = [module.backend for module in model.modules() if hasattr(module, "backend")]
    assert parts == ["reference"] * 5


# The two checkpoint formats.

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
