"""A causal model's step captured once in a CUDA graph and replayed: what is left of a step is its kernels.

Decoding runs a few hundred kernels of a few microseconds a token, which Python cannot hand over as fast as a GPU works
them off. A captured step is one hand-over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mamba_kernels.errors import BackendError, KernelInputError
from mamba_kernels.gpu import uncollected

_REHEARSALS = 2


class ReplayedStep:
    """Stands in for a step ``(*inputs, state) -> (output, state)``: captured once, replayed at every call.

    The state lies in memory of the replayed step's own, where each call finds and leaves it; the one given is left as
    it was. Whole numbers in a state, such as a count of tokens, become integer tensors on the GPU, so that the step
    must compute with them and not decide in Python by them. A step may update its state in place or return a new one of
    the same shapes. Parameters must stay where they are in memory; their values may change. Random numbers are drawn
    anew at every replay, the same ones that the step would draw by itself. Without a GPU the step simply runs.

    Args:
        step: The step: a function of its inputs, which are tensors, and of the state, a structure of tensors and whole
            numbers in tuples, lists and dicts.
        inputs: Inputs of the shapes, dtypes and device that every call will have; their numbers don't matter as long as
            the step can run on them.
        state: The state before the first step.
        steps: The most calls that the state has room for; None where there is no such limit. A captured step cannot
            tell by itself that a cache is full.
        generators: Generators on the GPU that the step draws from, besides PyTorch's own.

    Raises:
        BackendError: If the step cannot be captured.
    """

    def __init__(
        self,
        step: Callable[..., tuple[Any, Any]],
        inputs: Sequence[Tensor],
        state: Any,
        *,
        steps: int | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._step = step
        self._steps = steps
        self._taken = 0
        self._layout = _layout(inputs)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._device = _device_of((*inputs, state))
        if self._device.type != "cuda":
            self._state = _copied(state)
            return
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self._device):
            self._state = pytree.tree_map(self._placed, state)
            self._inputs = tuple(x.clone() for x in inputs)
            self._graph = self._captured(list(generators), state)

    @property
    def state(self) -> Any:
        """The state after the last call, in memory that the next one changes."""
        return self._state

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        """Take a step, and return its output.

        Raises:
            KernelInputError: If an input is not like that of the capture, or the state has no room for the step.
        """
        if self._layout != _layout(inputs):
            raise KernelInputError(
                f"a replayed step got inputs {_said(_layout(inputs))}, and was captured with {_said(self._layout)}",
                "give every call inputs of the same shapes, dtypes and device, or capture another step",
            )
        if self._taken == self._steps:
            raise KernelInputError(
                f"a replayed step was called more than {self._steps} times, which is all that its state has room for",
                "start from a state with more room",
            )
        self._taken += 1
        if self._graph is None:
            output, self._state = self._step(*inputs, self._state)
            return output
        for place, x in zip(self._inputs, inputs, strict=True):
            place.copy_(x)
        self._graph.replay()
        return _copied(self._output)

    @torch.no_grad()
    def reset(self, state: Any) -> None:
        """Go on from another state of the same shapes, with room for as many steps again.

        Raises:
            KernelInputError: If the state is not like that of the capture.
        """
        ours, structure = pytree.tree_flatten(self._state)
        theirs, given = pytree.tree_flatten(state)
        if given != structure or any(_shape(x) != _shape(y) for x, y in zip(theirs, ours, strict=True)):
            raise KernelInputError(
                "a replayed step got a state of another structure or other shapes than it was made with",
                "give a state of the same model and batch size, with as much room",
            )
        self._taken = 0
        if self._graph is None:
            self._state = _copied(state)
            return
        self._restore(state)

    def _placed(self, leaf: Any) -> Any:
        """Return a leaf of the state in memory of its own on the GPU."""
        if isinstance(leaf, int) and not isinstance(leaf, bool):
            return torch.tensor(leaf, device=self._device)
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    def _restore(self, state: Any) -> None:
        for place, x in zip(pytree.tree_leaves(self._state), pytree.tree_leaves(state), strict=True):
            if isinstance(place, Tensor):
                place.copy_(x) if isinstance(x, Tensor) else place.fill_(x)

    def _captured(self, generators: list[torch.Generator], state: Any) -> torch.cuda.CUDAGraph:
        default = torch.cuda.default_generators[self._device.index or 0]
        # Rehearsals draw random numbers and advance the state, which must not show.
        random = [(generator, generator.get_state()) for generator in (default, *generators)]
        # Weights cast once and kept would be those of the capture for ever.
        mixed = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False)
        beside = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        try:
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside), mixed:
                for _ in range(_REHEARSALS):
                    self._step(*self._inputs, self._state)
                    self._restore(state)
            torch.cuda.current_stream().wait_stream(beside)
            # A capture that fails leaves its stream the current one; the outer context goes back.
            with uncollected(), torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph), mixed:
                self._output, after = self._step(*self._inputs, self._state)
                self._keep(after)
        except BackendError:
            raise
        except RuntimeError as error:
            raise _refusal(str(error).splitlines()[0]) from error
        finally:
            for generator, before in random:
                generator.set_state(before)
        self._restore(state)
        return graph

    def _keep(self, after: Any) -> None:
        """Put what a step returned as its state where the next one looks for it."""
        places, structure = pytree.tree_flatten(self._state)
        leaves, returned = pytree.tree_flatten(after)
        if structure != returned:
            raise _refusal("its state changes its structure")
        moved = []
        for place, leaf in zip(places, leaves, strict=True):
            if not isinstance(place, Tensor):
                continue
            if not isinstance(leaf, Tensor) or leaf.shape != place.shape:
                what = f"of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
                raise _refusal(f"a part of its state of shape {tuple(place.shape)} becomes {what}")
            if leaf is not place and not _same_memory(leaf, place):
                moved.append((place, leaf))
        # A part may have become another's: all are read before any is written.
        fresh = [leaf.clone() if any(_same_storage(leaf, place) for place in places) else leaf for _, leaf in moved]
        for (place, _), leaf in zip(moved, fresh, strict=True):
            place.copy_(leaf)


def replays_safely(module: nn.Module, device: torch.device) -> bool:
    """Return whether a step of ``module`` on ``device`` is sure to do the same when it is replayed.

    It is where there is a GPU, nobody captures or compiles already, and no hook waits for calls that a replay does not
    make.
    """
    if device.type != "cuda" or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _refusal(why: str) -> BackendError:
    return BackendError(f"the step cannot be captured in a CUDA graph: {why}", "run the steps without a graph")


def _device_of(structure: Any) -> torch.device:
    devices = {x.device for x in pytree.tree_leaves(structure) if isinstance(x, Tensor)}
    if len(devices) != 1:
        raise KernelInputError(
            f"a replayed step's inputs and state lie on {', '.join(sorted(map(str, devices))) or 'no device'}",
            "put them all on one device",
        )
    return devices.pop()


def _copied(structure: Any) -> Any:
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, structure)


def _layout(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else ()


def _said(layout: tuple[Any, ...]) -> str:
    return ", ".join(f"{dtype} {shape} on {device}" for shape, dtype, device in layout) or "none"


def _same_storage(x: Any, y: Any) -> bool:
    tensors = isinstance(x, Tensor) and isinstance(y, Tensor)
    return tensors and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.stride() == y.stride() and x.dtype == y.dtype
