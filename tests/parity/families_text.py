"""The Mamba-1 and Mamba-2 blocks and language models against mamba-ssm and transformers."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from parity_cards import Card
from parity_compare import Comparison
from parity_families import family

from mamba_apps.mixers import Mixer, create
from mamba_apps.text import MambaLM, from_transformers

# Float32 against float32: a few times the distance between mamba-ssm and transformers on the same weights.
_LM_RTOL = 5e-6


@family("mamba1_block*")
def check_mamba1_block(card: Card) -> None:
    known = ("d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias")
    options = card.options("options", "d_model", *known)
    for dtype in card.dtypes:
        mixer = create("mamba1", **options).to(dtype)
        mixer.load_state_dict(card.group("param.", dtype), strict=True)
        comparison = Comparison(card, f"in {dtype}")
        x_BLD = card.group("in.", dtype)["x"].requires_grad_()
        y_BLD = mixer(x_BLD)
        y_BLD.backward(card.group("cot.", dtype)["y"])
        comparison.core("out.y", y_BLD)
        comparison.core("grad.x", x_BLD.grad)
        for name, parameter in mixer.named_parameters():
            comparison.core(f"grad.p.{name}", parameter.grad)
        _check_decoding(card, mixer, x_BLD.detach(), comparison)
        comparison.finish()


@family("mamba2_block*")
def check_mamba2_block(card: Card) -> None:
    known = ("d_state", "d_conv", "conv_init", "expand", "headdim", "d_ssm", "ngroups", "D_has_hdim", "rmsnorm")
    known += ("norm_before_gate", "dt_limit", "bias", "conv_bias", "chunk_size")
    options = card.options("options", "d_model", "use_mem_eff_path", *known)
    # Which of its kernels the reference ran.
    del options["use_mem_eff_path"]
    for dtype in card.dtypes:
        mixer = create("mamba2", **options).to(dtype)
        mixer.load_state_dict(card.group("param.", dtype), strict=True)
        comparison = Comparison(card, f"in {dtype}")
        inputs = card.group("in.", dtype)
        x_BLD = inputs["x"].requires_grad_()
        y_BLD = mixer(x_BLD, seq_idx_BL=inputs.get("seq_idx"))
        y_BLD.backward(card.group("cot.", dtype)["y"])
        comparison.core("out.y", y_BLD)
        comparison.core("grad.x", x_BLD.grad)
        for name, parameter in mixer.named_parameters():
            comparison.core(f"grad.p.{name}", parameter.grad)
        if "out.decode" in card.tensors:
            stepping = copy.deepcopy(mixer)
            # The reference's steps leave the limit out, as its card says; ours keep to it.
            stepping.dt_limit = (0.0, math.inf)
            _check_decoding(card, mixer, x_BLD.detach(), comparison, stepping)
        comparison.finish()


@torch.no_grad()
def _check_decoding(
    card: Card, mixer: Mixer, x_BLD: torch.Tensor, comparison: Comparison, stepping: Mixer | None = None
) -> None:
    """Prefill all but the tokens that the card decodes one by one; outputs and states agree on the way.

    ``stepping`` decodes in place of ``mixer``, where the reference's decoding is another than its prefill.
    """
    steps = card.tensors["out.decode"].shape[1]
    state = mixer.init_state(x_BLD.shape[0])
    prefilled_BLD, state = mixer.prefill(x_BLD[:, :-steps], state)
    comparison.core("out.prefill", prefilled_BLD)
    comparison.core("out.state0_after_prefill", state.conv_state)
    comparison.core("out.state1_after_prefill", state.ssm_state)
    decoded = []
    for x_BD in x_BLD[:, -steps:].unbind(1):
        y_BD, state = (stepping or mixer).step(x_BD, state)
        decoded.append(y_BD)
    comparison.core("out.decode", torch.stack(decoded, 1))
    comparison.core("out.state0_final", state.conv_state)
    comparison.core("out.state1_final", state.ssm_state)


@family("hf_mamba_lm*", "hf_mamba2_lm*")
def check_language_model(card: Card) -> None:
    model = from_transformers(card.group("param."), card.entries["config"])
    comparison = Comparison(card)

    def near(name: str, got: torch.Tensor) -> None:
        comparison.near(name, got, atol=_LM_RTOL * float(card.tensors[name].abs().max()))

    ids_BL = card.tensors["in.ids"]
    near("out.last_hidden", model.backbone(ids_BL))
    logits_BLV = model(ids_BL)
    near("out.logits", logits_BLV)
    loss = F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())
    near("out.loss", loss)
    loss.backward()
    for name, parameter in _transformers_names(model).items():
        assert parameter.grad is not None, f"{card.name}: no gradient reaches {name}"
        near(f"gradnorm.{name}", parameter.grad.norm().reshape(1))
    prompt_BL, greedy_BL = card.tensors["in.prompt"], card.tensors["out.greedy"]
    for cache in (True, False):
        comparison.same("out.greedy", model.generate(prompt_BL, greedy_BL.shape[1] - prompt_BL.shape[1], cache=cache))
    comparison.finish()


def _transformers_names(model: MambaLM) -> dict[str, torch.nn.Parameter]:
    return {name.replace("embedding.", "embeddings."): parameter for name, parameter in model.named_parameters()}
