"""A training step replayed from one CUDA graph: loss, gradients, their clipping and the optimiser's update.

With the passes alone in graphs, what is left of a small model's step is Python: autograd's walk over the parameters,
two norms of all gradients, the optimiser's lists. All of that always does the same, so that it is captured as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from mamba_apps.errors import UserError
from mamba_apps.training.guard import NonFiniteGuard
from mamba_kernels.graphs import ReplayedCall

if TYPE_CHECKING:
    from lightning.pytorch.loops.optimization.automatic import _OUTPUTS_TYPE

# What Lightning calls between the parts of a step, which a replay does not come back from.
_WITHIN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_OF_THE_TASK = (*_WITHIN, "backward", "configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad")
_FUSED = (torch.optim.AdamW, torch.optim.Adam)
_SETTINGS = ("betas", "eps", "weight_decay", "amsgrad", "maximize")
_SWITCHES = ("lr", "fused", "foreach", "capturable")


class WholeStep:
    """A training step that is captured once and replayed at every batch like the first; without a GPU it simply runs.

    Other batches take the same step as it is written, so that it does not matter to a run where it is resumed.

    Args:
        module: What learns.
        loss_of: The loss of a batch, a scalar. What it decides in Python is decided once for all.
        optimizer: AdamW or Adam over the module's parameters.
        clip: The most that the norm of all gradients may be; None for no limit.
    """

    def __init__(
        self, module: nn.Module, loss_of: Callable[[Any], Tensor], optimizer: Optimizer, clip: float | None
    ) -> None:
        self._module, self._loss_of, self._optimizer, self._clip = module, loss_of, optimizer, clip
        self._rates: list[Tensor] = []
        self._replay: ReplayedCall | None = None
        self._layout: Any = None

    @property
    def captured(self) -> bool:
        """Whether a step was captured."""
        return self._replay is not None

    def __call__(self, batch: Any, *, odd: bool = False) -> Tensor:
        """Take a step.

        Args:
            batch: Tensors, in a structure or not.
            odd: Whether it may be unlike all others, so that nothing is to be captured for it.

        Returns:
            float32 (2,), the loss and the norm of the gradients before they were clipped.

        Raises:
            BackendError: If the step cannot be captured.
        """
        tensors, structure = pytree.tree_flatten(batch)
        layout = self._layout_of(tensors, structure)
        self._set_rates()
        if self._replay is None and layout is not None and not odd:

            def step(*tensors: Tensor) -> Tensor:
                return self._step(pytree.tree_unflatten(tensors, structure))

            self._replay, self._layout = ReplayedCall(step, tensors, self._remember()), layout
        if self._replay is None or layout != self._layout:
            return self._step(batch)
        return self._replay(*tensors)

    def free(self) -> None:
        """Let go of what was captured, and of its memory."""
        self._replay = None

    def _layout_of(self, tensors: Sequence[Any], structure: pytree.TreeSpec) -> Any:
        """Return all that a capture is made for; None where there is more than tensors."""
        if not tensors or not all(isinstance(x, Tensor) for x in tensors):
            return None
        groups = self._optimizer.param_groups
        settings = [group[name] for group in groups for name in _SETTINGS]
        learns = [parameter.requires_grad for group in groups for parameter in group["params"]]
        return structure, [(x.shape, x.stride(), x.dtype, x.device) for x in tensors], settings, learns

    def _set_rates(self) -> None:
        groups = self._optimizer.param_groups
        for group in groups[len(self._rates) :]:
            self._rates.append(torch.zeros((), device=group["params"][0].device))
        for rate, group in zip(self._rates, groups, strict=True):
            rate.fill_(group["lr"])

    def _step(self, batch: Any) -> Tensor:
        self._optimizer.zero_grad()
        loss = self._loss_of(batch)
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()
            learned = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
            norm = nn.utils.get_total_norm([parameter.grad for parameter in learned if parameter.grad is not None])
            if self._clip is not None:
                nn.utils.clip_grads_with_norm_(learned, self._clip, norm)
            self._update()
        # Gradients lie in the capture's memory, which the next replay writes anew.
        self._optimizer.zero_grad()
        return torch.stack([loss.detach().float(), norm.float()])

    def _update(self) -> None:
        """Let the optimiser take its step, with rates and counts that lie on the device."""
        groups = self._optimizer.param_groups
        before = [{name: group[name] for name in _SWITCHES} for group in groups]
        captures = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        _count_on_device(self._optimizer)  # as a checkpoint, or a step that was no whole one, may not have left them
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, fused=True, foreach=False, capturable=captures)
        try:
            self._optimizer.step()
        finally:
            for group, kept in zip(groups, before, strict=True):
                group.update(kept)

    @torch.no_grad()
    def _remember(self) -> Callable[[], None]:
        """Return what puts weights, buffers and the optimiser's state back to what they are now."""
        states = self._optimizer.state
        _count_on_device(self._optimizer)
        known = set(states)
        tensors = [*self._module.parameters(), *self._module.buffers()]
        tensors += [value for state in states.values() for value in state.values() if isinstance(value, Tensor)]
        before = [tensor.detach().clone() for tensor in tensors]

        @torch.no_grad()
        def restore() -> None:
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for parameter, state in states.items():
                if parameter not in known:  # Adam begins with zeros
                    for value in state.values():
                        value.zero_()

        return restore


class WholeOptimization(_AutomaticOptimization):
    """Lightning's optimisation of a batch, or a whole step in its place.

    Attributes:
        whole: The step; None where Lightning takes it.
        guard: What looks at the loss and the gradients of a whole step.
    """

    whole: WholeStep | None = None
    guard: NonFiniteGuard | None = None

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> _OUTPUTS_TYPE:
        """Train on a batch."""
        # Callbacks may let gradients accumulate from some epoch on.
        if self.whole is None or self.trainer.accumulate_grad_batches != 1:
            return super().run(optimizer, batch_idx, kwargs)
        task = self.trainer.lightning_module
        self.optim_progress.optimizer.step.increment_ready()
        with _stepping(task, partial(self.whole, odd=is_odd(self.trainer, batch_idx))) as taken:
            loss = call._call_strategy_hook(self.trainer, "training_step", *kwargs.values())
        if len(taken) != 1 or loss is not taken[0][0]:
            what = f"{type(task).__name__}.training_step does not return the loss of loss_of"
            raise UserError(what, "leave out trainer.graph")
        if self.guard is not None:
            self.guard.look(self.trainer, taken[0][1])
        cleared = self.optim_progress.optimizer.zero_grad
        cleared.increment_ready()
        cleared.increment_started()
        cleared.increment_completed()
        self.optim_progress.optimizer.step.increment_completed()
        return {"loss": loss}


def fuse(optimizers: Sequence[Optimizer]) -> None:
    """Let Adam and AdamW update all weights by one kernel, where lists of them would take the host long.

    Args:
        optimizers: Optimisers about to train; others than those two stay as they are.
    """
    for optimizer in optimizers:
        if type(optimizer) in _FUSED and not any(group["differentiable"] for group in optimizer.param_groups):
            for group in optimizer.param_groups:
                group.update(fused=True, foreach=False)
            _count_on_device(optimizer)


def _count_on_device(optimizer: Optimizer) -> None:
    """Move the counts of steps, which Adam keeps on the host otherwise, to where its fused kernel looks for them."""
    for parameter, state in optimizer.state.items():
        if "step" in state:
            state["step"] = state["step"].to(parameter.device, torch.float32)


def is_odd(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether a batch may be smaller than the others: an epoch's last one, where a resumed run may begin."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and batch_idx > 0


def whole_step(trainer: pl.Trainer, task: pl.LightningModule, known: Sequence[Callback]) -> WholeStep | None:
    """Return the step of a task, or None where somebody asks for what happens within it.

    Args:
        trainer: The trainer, about to train.
        task: The task. One whose training step does nothing but log ``loss_of(batch)`` and return it says
            ``steps_whole = True``.
        known: Callbacks that need not see what happens within a whole step.
    """
    optimizers = trainer.optimizers
    plugin = trainer.precision_plugin
    clips = trainer.gradient_clip_algorithm in (None, GradClipAlgorithmType.NORM)
    callbacks = cast("list[Callback]", trainer.callbacks)  # type: ignore[attr-defined]
    if (
        not getattr(task, "steps_whole", False)
        or not task.automatic_optimization
        or len(optimizers) != 1
        or type(optimizers[0]) not in _FUSED
        or type(trainer.strategy) is not SingleDeviceStrategy
        or type(plugin) not in (Precision, MixedPrecision)
        or getattr(plugin, "scaler", None) is not None
        or trainer.accumulate_grad_batches != 1
        or not clips
        or _has_own(task, pl.LightningModule, _OF_THE_TASK)
        or any(_has_own(callback, Callback, _WITHIN) for callback in callbacks if callback not in known)
    ):
        return None
    return WholeStep(task, cast(Any, task).loss_of, optimizers[0], trainer.gradient_clip_val or None)


def _has_own(thing: object, kind: type, names: Sequence[str]) -> bool:
    """Return whether a thing has its own way of something that its kind does, by its class or, set on it, by itself."""
    return any(getattr(getattr(thing, name), "__func__", None) is not getattr(kind, name) for name in names)


@contextmanager
def _stepping(task: pl.LightningModule, step: Callable[[Any], Tensor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Let the task's ``loss_of`` take the step, and note the loss that it returned and what came of the step."""
    taken: list[tuple[Tensor, Tensor]] = []

    def loss_of(batch: Any) -> Tensor:
        loss_norm_2 = step(batch)
        taken.append((loss_norm_2[0], loss_norm_2))
        return taken[-1][0]

    object.__setattr__(task, "loss_of", loss_of)
    try:
        yield taken
    finally:
        object.__delattr__(task, "loss_of")
