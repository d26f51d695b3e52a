"""Stop a run at the first loss or gradient that is not finite, and keep the last good weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

from mamba_apps.training.sharding import whole

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch.optim import Optimizer

_REMEDY = "lower the learning rate, clip gradients (gradient_clip_val=1) or train with precision 32-true"
_NAMES = ("the loss", "the norm of the gradients")
# on a GPU a step is looked at this many steps later, when its result has long arrived
_LAG = 8


class NonFiniteLossError(RuntimeError):
    """Training met a loss, gradient, metric or weight that is not finite.

    Args:
        message: What was not finite, and where.
        remedy: What the person can do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


class Place(NamedTuple):
    """One training batch."""

    step: int
    epoch: int
    batch: int

    def __str__(self) -> str:
        return f"at step {self.step} (epoch {self.epoch}, batch {self.batch})"


class NonFiniteGuard(Callback):
    """Raise `NonFiniteLossError` at the first loss or gradient that is not finite.

    On a CPU each batch is checked before its step, so the weights in memory are still good. On a GPU, and with several
    processes, checks are gathered on the device and read a few steps later without waiting for it, and in any case
    before a checkpoint is written.

    Args:
        keep: Called with the trainer and whether the weights in memory are from before the bad batch; keeps the last
            good ones and returns where. None keeps nothing.
    """

    def __init__(self, keep: Callable[[pl.Trainer, bool], Path | None] | None = None) -> None:
        self._keep = keep
        self._watch: _Watch | None = None
        self._place = Place(0, 0, 0)
        self._batch: Any = None
        self._scaled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose between checking at once and checking later."""
        device = trainer.strategy.root_device
        self._watch = _Watch(device) if device.type != "cpu" or trainer.world_size > 1 else None
        # a loss scaler meets infinite gradients on purpose and skips their step
        self._scaled = getattr(trainer.precision_plugin, "scaler", None) is not None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which batch is being trained on."""
        self._place = Place(trainer.global_step, trainer.current_epoch, batch_idx)
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Check the loss."""
        loss = loss.detach()
        if self._watch is not None:
            self._watch.add(0, loss)
        elif not torch.isfinite(loss).all():
            self._stop(trainer, f"the loss is {loss.sum().item()}", self._place, in_memory=True)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the norm of the gradients."""
        if self._scaled:
            return
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if self._watch is not None:
            self._watch.add(1, norm)
        elif not torch.isfinite(norm):
            self._stop(trainer, f"the norm of the gradients is {norm.item()}", self._place, in_memory=True)

    def look(self, trainer: pl.Trainer, loss_norm_2: torch.Tensor) -> None:
        """Check a step that was taken as a whole: the weights are already those after it.

        Args:
            trainer: The trainer.
            loss_norm_2: The loss and the norm of the gradients.
        """
        if self._watch is not None:
            self._watch.add_both(loss_norm_2)
            return
        for name, value in zip(_NAMES, loss_norm_2.tolist(), strict=True):
            if not math.isfinite(value):
                self._stop(trainer, f"{name} is {value}", self._place, in_memory=False)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at what an earlier batch left on the device."""
        self._batch = None
        if self._watch is not None:
            self._watch.record(self._place)
            self._stop_at(trainer, self._watch.poll(lag=_LAG))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the bad batch before a validation with the weights that it spoilt."""
        if trainer.state.fn == "fit":
            self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Wait for all checks; called before anything is saved.

        Raises:
            NonFiniteLossError: A batch since the last check was not finite.
        """
        if self._watch is not None:
            self._stop_at(trainer, self._watch.poll(lag=0))

    def _stop_at(self, trainer: pl.Trainer, found: tuple[str, Place] | None) -> None:
        if found is not None:
            self._stop(trainer, f"{found[0]} is not finite", found[1], in_memory=False)

    def _stop(self, trainer: pl.Trainer, what: str, place: Place, *, in_memory: bool) -> NoReturn:
        message = f"{what} {place}"
        bad_input = next((name for name, tensor in _tensors(self._batch) if not _is_finite(tensor)), None)
        if bad_input is not None:
            message += f", and so is {bad_input} of that batch"
        kept = self._keep(trainer, in_memory) if self._keep is not None else None
        if kept is not None:
            message += f"; the last good weights are in {kept}"
        raise NonFiniteLossError(message, "mend that input" if bad_input is not None else _REMEDY)


def is_clean(state_dict: Mapping[str, Any]) -> bool:
    """Whether no tensor of a state dict is NaN."""
    return _first_nan(state_dict) is None


def refuse_nan(state_dict: Mapping[str, Any], path: Path) -> None:
    """Refuse to save weights that are NaN.

    Args:
        state_dict: The weights and buffers about to be saved.
        path: The checkpoint they would go to, for the message.

    Raises:
        NonFiniteLossError: One is NaN. Infinity is allowed: masks are buffers of -inf.
    """
    name = _first_nan(state_dict)
    if name is not None:
        raise NonFiniteLossError(f"{name} holds NaN: {path} was not written", _REMEDY)


def _first_nan(state_dict: Mapping[str, Any]) -> str | None:
    tensors = dict(_tensors(state_dict))
    names: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.device, []).append(name)
    for on_device in names.values():
        # one transfer for all of a device's tensors
        flags = torch.stack([tensors[name].isnan().any() for name in on_device]).tolist()
        if any(flags):
            return on_device[flags.index(True)]
    return None


class _Watch:
    """Losses and gradient norms, summed on the device; a non-finite one poisons the sum, which is read later."""

    def __init__(self, device: torch.device) -> None:
        self._poison = torch.zeros(2, device=device)
        self._host = torch.zeros(_LAG + 1, 2, pin_memory=device.type == "cuda")
        self._next = 0
        self._pending: deque[tuple[torch.cuda.Event | None, int, Place]] = deque()

    def add(self, index: int, value: torch.Tensor) -> None:
        # 0 * inf and 0 * NaN are NaN, everything else adds nothing
        self._poison[index].add_(value.sum().to(self._poison.device, self._poison.dtype), alpha=0)

    def add_both(self, value_2: torch.Tensor) -> None:
        self._poison.add_(value_2, alpha=0)

    def record(self, place: Place) -> None:
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self._poison)
        slot = self._next
        self._next = (slot + 1) % len(self._host)
        self._host[slot].copy_(self._poison, non_blocking=True)
        event = None
        if self._poison.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._pending.append((event, slot, place))

    def poll(self, *, lag: int) -> tuple[str, Place] | None:
        """Return the first bad batch among all but the last few."""
        while len(self._pending) > lag:
            event, slot, place = self._pending.popleft()
            if event is not None:
                event.synchronize()
            bad = (~torch.isfinite(self._host[slot])).tolist()
            if any(bad):
                return _NAMES[bad.index(True)], place
        return None


def _tensors(value: Any, name: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    """Yield the floating-point tensors of a nested structure with their names."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            yield name or "the input", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}[{index}]" if name else f"input {index}")


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
