"""Training passes captured once in CUDA graphs and replayed: Python and the launches then cost next to nothing.

A small model on a fast GPU waits for Python, which hands over some hundred kernels a pass. A captured pass is one
hand-over. Only what always has the same shapes can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mamba_kernels.errors import BackendError
from mamba_kernels.gpu import uncollected


class ReplayedTraining:
    """Stands in for a module's ``forward`` while it trains: captures the first call's passes, and replays them.

    Calls with other shapes or dtypes than the first, in evaluation mode or without gradients run as ever. Parameters
    must stay where they are in memory; optimisers and checkpoints see to that. Dropout draws new numbers at every
    replay, from the generator's state as without graphs. A parameter's ``grad`` may lie in the capture's memory until
    the next backward pass: whoever accumulates gradients must copy it before. What decides in Python, by numbers that
    it reads back or by chance, would be decided once for all: such a model must not be captured.

    Args:
        module: A module on a GPU, whose forward takes tensors and returns tensors, in lists, tuples or dicts or not.
            What it takes in a dict it must find there by the same names each time.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._forward: Callable[..., Any] = module.forward
        self._replay: Callable[..., Any] | None = None
        self._layout: Any = None
        module.forward = self

    def __call__(self, *inputs: Any) -> Any:
        """Run the module's forward pass, or replay it."""
        replays = self._module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        tensors, structure = pytree.tree_flatten(inputs)
        if not (replays and tensors and all(isinstance(x, Tensor) and x.is_cuda for x in tensors)):
            return self._forward(*inputs)
        asked = structure, _layout(tensors)
        if self._replay is None:
            self._replay, self._layout = self._capture(tensors, structure), asked
        if asked != self._layout:
            return self._forward(*inputs)
        return self._replay(*tensors)

    @property
    def captured(self) -> bool:
        """Whether a call was captured."""
        return self._replay is not None

    def remove(self) -> None:
        """Give the module its own forward back, and free what was captured."""
        self._replay = None
        if self._module.__dict__.get("forward") is self:
            del self._module.forward

    def _capture(self, inputs: list[Tensor], structure: pytree.TreeSpec) -> Callable[..., Any]:
        # Rehearsals before the capture draw random numbers and move running averages, which must not show.
        device = inputs[0].device
        random = torch.cuda.get_rng_state(device)
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
        kind, mixed = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        try:
            # Weights cast once and kept would be those of the capture for ever.
            with uncollected(), torch.autocast("cuda", kind, mixed, cache_enabled=False):
                shell = _Shell(self._module, self._forward, structure)
                replay = torch.cuda.make_graphed_callables(shell, samples, allow_unused_input=True)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise BackendError(f"the training pass cannot be captured in a CUDA graph: {why}", _REMEDY) from error
        shell.let_go()
        torch.cuda.set_rng_state(random, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        return replay


class ReplayedCall:
    """A function of tensors that is captured once in a CUDA graph and replayed; without a GPU it simply runs.

    What it changes besides, such as weights and the state of an optimiser, must stay where it is in memory. Random
    numbers are drawn anew at every replay, as the function would draw them. What it decides in Python is decided once.

    Args:
        function: What to do: takes tensors and returns one.
        inputs: Tensors with the shapes, dtypes and device of those in every call.
        restore: Undoes what the rehearsals before the capture changed, also where that fails.

    Raises:
        BackendError: If it cannot be captured.
    """

    def __init__(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], restore: Callable[[], None] = lambda: None
    ) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if inputs[0].is_cuda:
            with torch.cuda.device(inputs[0].device):
                self._inputs = [x.detach().clone() for x in inputs]
                self._graph = self._capture(restore)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the function, or replay it."""
        if self._graph is None:
            return self._function(*inputs)
        with torch.no_grad():
            torch._foreach_copy_(self._inputs, list(inputs))
            self._graph.replay()
            return self._output.clone()

    def _capture(self, restore: Callable[[], None]) -> torch.cuda.CUDAGraph:
        random = torch.cuda.get_rng_state()
        graph, beside, here = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
        kind, mixed = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")

        def go_back() -> None:
            restore()
            torch.cuda.set_rng_state(random)

        try:
            # Weights cast once and kept would be those of the capture for ever.
            with torch.autocast("cuda", kind, mixed, cache_enabled=False):
                beside.wait_stream(here)
                with torch.cuda.stream(beside):
                    for _ in range(_REHEARSALS):
                        self._function(*self._inputs)
                here.wait_stream(beside)
                # A capture that fails leaves its stream the current one; the outer context goes back.
                with uncollected(), torch.cuda.stream(here), torch.cuda.graph(graph, stream=beside):
                    self._output = self._function(*self._inputs)
        except RuntimeError as error:
            with suppress(RuntimeError):  # the GPU may be past computing
                go_back()
            if isinstance(error, BackendError):
                raise
            why = str(error).splitlines()[0]
            raise BackendError(f"the training step cannot be captured in a CUDA graph: {why}", _REMEDY) from error
        go_back()
        return graph


_REMEDY = "train without graphs"
_REHEARSALS = 3


class _Shell(nn.Module):
    """A module under another forward, to be captured without touching the module itself."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any], structure: pytree.TreeSpec) -> None:
        super().__init__()
        self.module = module
        self._run, self._structure = forward, structure
        self._outputs: list[Tensor] = []

    def forward(self, *tensors: Tensor) -> Any:
        self.let_go()  # PyTorch keeps a rehearsal's outputs during the capture
        outputs = pytree.tree_map(_own, self._run(*pytree.tree_unflatten(tensors, self._structure)))
        self._outputs = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.grad_fn is not None]
        return outputs

    def let_go(self) -> None:
        """Free the autograd graph of the last pass, whose outputs are kept.

        It would keep the nodes alive that gather the parameters' gradients, and these belong to the stream of that
        pass: at every later one each of them would make that stream and its own wait for each other.
        """
        for output in self._outputs:
            output.detach_()
        self._outputs = []


def _own(output: Any) -> Any:
    """Return an output that can be detached in place, which a view of another tensor cannot."""
    differentiable = isinstance(output, Tensor) and output.grad_fn is not None
    return output.clone() if differentiable and output._is_view() else output


def _layout(inputs: list[Tensor]) -> tuple[Any, ...]:
    mode = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
    return (*mode, *((x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in inputs))
