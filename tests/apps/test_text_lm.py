"""The language model: the texts that it writes, how it starts and learns, what its state dict names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.text import MambaLM, MambaLMConfig
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
