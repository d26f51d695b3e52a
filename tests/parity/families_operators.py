"""Operators of `mamba_kernels` against what mamba-ssm and causal-conv1d compute.

Each card is run in float32 and, on a CPU, in float64, through the operator that the device chooses and through the
reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from parity_cards import Card, UnsupportedCardError
from parity_compare import Comparison
from parity_families import family
from torch import Tensor

import mamba_kernels

_SCAN_INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
_SSD_INPUTS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")


def _runs(card: Card) -> Iterator[tuple[torch.dtype, str | None, Comparison]]:
    for dtype in card.dtypes:
        for backend in (None, "reference"):
            comparison = Comparison(card, f"in {dtype}, backend={backend!r}")
            yield dtype, backend, comparison
            comparison.finish()


def _inputs(card: Card, dtype: torch.dtype, *known: str) -> dict[str, Tensor]:
    inputs = card.group("in.", dtype)
    unknown = sorted(set(inputs) - set(known))
    if unknown:
        raise UnsupportedCardError(f"{card.name}: unsupported input {', '.join(unknown)}")
    return inputs


def _gradients(card: Card, inputs: dict[str, Tensor], outputs: dict[str, Tensor], comparison: Comparison) -> None:
    """Compare the inputs' gradients for the card's cotangents."""
    cotangents = card.group("cot.")
    if not cotangents:
        return
    wanted = {name: x for name, x in inputs.items() if x.is_floating_point()}
    gradients = torch.autograd.grad(
        [outputs[name] for name in cotangents],
        list(wanted.values()),
        [cotangent.to(outputs[name].dtype) for name, cotangent in cotangents.items()],
    )
    for name, gradient in zip(wanted, gradients, strict=True):
        comparison.core(f"grad.{name}", gradient)


def _track(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.requires_grad_() if x.is_floating_point() else x for name, x in inputs.items()}


@family("ss_*")
def check_selective_scan(card: Card) -> None:
    options = card.options("options", "delta_softplus")
    for dtype, backend, comparison in _runs(card):
        inputs = _track(_inputs(card, dtype, *_SCAN_INPUTS))
        extra = {**options, "return_last_state": True, "backend": backend}
        out, last_state = mamba_kernels.selective_scan(**inputs, **extra)
        comparison.core("out.out", out)
        comparison.core("out.last_state", last_state)
        _gradients(card, inputs, {"out": out, "last_state": last_state}, comparison)
        for split in card.entries.get("splits", ()):
            _check_split(split, inputs, extra, out, comparison, card)


def _check_split(
    split: int, inputs: dict[str, Tensor], extra: dict[str, Any], out: Tensor, comparison: Comparison, card: Card
) -> None:
    """The state after a prefix is the card's, and the suffix run from it gives the rest of the whole run."""
    _, state = mamba_kernels.selective_scan(**{k: _cut(k, x, slice(split)) for k, x in inputs.items()}, **extra)
    comparison.core(f"out.state_at_{split}", state)
    state_at_split = card.tensors[f"out.state_at_{split}"].to(state.dtype)
    rest = {k: _cut(k, x, slice(split, None)) for k, x in inputs.items()}
    suffix, last_state = mamba_kernels.selective_scan(**rest, initial_state=state_at_split, **extra)
    comparison.core("out.out", torch.cat([out[..., :split], suffix], -1))
    comparison.core("out.last_state", last_state)


def _cut(name: str, x: Tensor, along: slice) -> Tensor:
    return x[..., along] if name in ("u", "delta", "z") or (name in ("B", "C") and x.dim() > 2) else x


@family("ssd_*")
def check_ssd(card: Card) -> None:
    options = card.options("options", "dt_softplus", "dt_limit")
    for dtype, backend, comparison in _runs(card):
        inputs = _track(_inputs(card, dtype, *_SSD_INPUTS, "seq_idx", "cu_seqlens"))
        ends = inputs.pop("cu_seqlens", None)
        extra = {**options, "return_final_states": True, "backend": backend}
        out, final_states = mamba_kernels.ssd(**inputs, **extra)
        comparison.core("out.out", out)
        comparison.core("out.final_states", final_states)
        _gradients(card, inputs, {"out": out, "final_states": final_states}, comparison)
        if ends is not None:
            # A sequence's last state is the final state of all that comes up to its end.
            states = [mamba_kernels.ssd(**_head(inputs, end), **extra)[1] for end in ends[1:].tolist()]
            comparison.core("out.varlen_states", torch.cat(states))


def _head(inputs: dict[str, Tensor], end: int) -> dict[str, Tensor]:
    """Return SSD's inputs up to a position."""
    along = ("x", "dt", "B", "C", "z", "seq_idx")
    return {name: x[:, :end] if name in along else x for name, x in inputs.items()}


@family("ssu_*")
def check_state_update(card: Card) -> None:
    options = card.options("options", "dt_softplus", "steps")
    steps = options.pop("steps")
    for dtype, backend, comparison in _runs(card):
        inputs = _inputs(card, dtype, "state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias")
        state = inputs.pop("state")
        stepped = {name: inputs.pop(name) for name in ("x", "dt", "B", "C", "z") if name in inputs}
        outs = [
            mamba_kernels.selective_state_update(
                state, **{name: x[t] for name, x in stepped.items()}, **inputs, **options, backend=backend
            )
            for t in range(steps)
        ]
        comparison.core("out.out", torch.stack(outs))
        comparison.core("out.state", state)


@family("conv_*")
def check_causal_conv(card: Card) -> None:
    if card.kind.startswith("causal_conv1d_update"):
        _check_conv_update(card)
    elif card.kind.startswith("causal_conv1d_varlen_states"):
        inputs = _inputs(card, torch.float32, "x", "cu_seqlens")
        comparison = Comparison(card)
        comparison.same(
            "out.states", mamba_kernels.causal_conv1d_varlen_states(**inputs, **card.options("options", "state_len"))
        )
        comparison.finish()
    elif card.kind.startswith("causal_conv1d_fn"):
        _check_conv(card)
    else:
        raise UnsupportedCardError(f"{card.name}: unsupported operator {card.kind!r}")


def _check_conv(card: Card) -> None:
    options = card.options("options", "activation", "rfs")
    final = bool(options.pop("rfs", False))
    for dtype, backend, comparison in _runs(card):
        inputs = _track(_inputs(card, dtype, "x", "weight", "bias", "seq_idx", "initial_states"))
        result = mamba_kernels.causal_conv1d(**inputs, **options, return_final_states=final, backend=backend)
        outputs = dict(zip(("out", "final_states"), result, strict=True)) if final else {"out": result}
        for name, x in outputs.items():
            comparison.core(f"out.{name}", x)
        _gradients(card, inputs, outputs, comparison)


def _check_conv_update(card: Card) -> None:
    options = card.options("options", "activation", "chunks")
    for dtype, backend, comparison in _runs(card):
        inputs = _inputs(card, dtype, "x", "conv_state", "weight", "bias", "cache_seqlens")
        x, state, seqlens = inputs.pop("x"), inputs.pop("conv_state"), inputs.pop("cache_seqlens", None)
        outs, start = [], 0
        for length in options["chunks"]:
            # A single step may be given without its time axis; both forms are used here.
            chunk = x[..., start] if length == 1 else x[..., start : start + length]
            out = mamba_kernels.causal_conv1d_update(
                chunk,
                state,
                **inputs,
                activation=options["activation"],
                cache_seqlens=None if seqlens is None else seqlens + start,
                backend=backend,
            )
            outs.append(out[..., None] if length == 1 else out)
            start += length
        comparison.core("out.out", torch.cat(outs, -1))
        comparison.core("out.conv_state", state)


@family("rmsnorm_*")
def check_gated_norm(card: Card) -> None:
    options = card.options("options", "eps", "group_size", "norm_before_gate")
    for dtype, backend, comparison in _runs(card):
        inputs = _track(_inputs(card, dtype, "x", "weight", "bias", "z"))
        out = mamba_kernels.gated_rms_norm(**inputs, **options, backend=backend)
        comparison.core("out.out", out)
        _gradients(card, inputs, {"out": out}, comparison)
