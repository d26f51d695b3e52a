"""What a trainer refuses, in one line with its remedy: options that cannot work, and checkpoints of another run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mamba_apps.errors import UserError
from mamba_datasets.cores import usable_cores
from mamba_datasets.report import nearest

FSDP = "fsdp"
_SHOWN_KEYS = 3
# so many processes may train on any CPU, for trying
_FEW_PROCESSES = 4
# Lightning's strategies that cut a model's weights into shards, which they write and read by themselves.
_SHARDED = ("fsdp", "deepspeed", "modelparallel")
_BUDGETS = ("max_epochs", "max_steps", "max_seconds")
# what Lightning raises for options that it does not take, or needs a package for that is not there (a TPU's)
NOT_TAKEN = (MisconfigurationException, TypeError, ValueError, ImportError)


def check_early(options: Mapping[str, Any]) -> None:
    """Refuse what `make_trainer` would, of options that need no run: before data are read, which may take long.

    Args:
        options: Some of its arguments; a budget may come later.

    Raises:
        UserError: One of them is out of range, or nothing that this machine has.
    """
    check_counts(options)
    budgets = {name: options.get(name) for name in _BUDGETS}
    if any(value is not None for value in budgets.values()):
        check_budget(**budgets)
    named = ("accelerator", "devices", "precision", "strategy")
    machine = {"devices": 1, **{name: options[name] for name in named if name in options}}
    graph = bool(options.get("graph"))
    check_strategy(machine.get("strategy"), machine.get("precision", ""), graph)
    if machine.get("strategy") == FSDP:
        del machine["strategy"]  # the trainer is given ours
    try:
        trainer = pl.Trainer(**machine, barebones=True)
    except NOT_TAKEN as error:
        raise not_taken(error) from error
    check_processes(trainer, graph)


def check_counts(options: Mapping[str, Any]) -> None:
    """Refuse numbers of Lightning's options that it takes and then divides by, or turns gradients around with."""
    for name in ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch"):
        value = options.get(name)
        if isinstance(value, int | float) and not value > 0:
            raise UserError(f"{name} is {value}", "give a number above 0, or leave it out")
    clip = options.get("gradient_clip_val")
    if isinstance(clip, int | float) and not clip >= 0:
        raise UserError(f"gradient_clip_val is {clip}", "give at least 0")


def check_budget(**budgets: float | None) -> None:
    """Refuse budgets by name but exactly one, above 0."""
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UserError(f"a run needs exactly one budget, found {found}", f"give one of {', '.join(budgets)}")
    name, value = next(iter(given.items()))
    if isinstance(value, bool) or not value > 0:
        raise UserError(f"{name} is {value}", "give a number above 0")


def check_watching(monitor: str | None, mode: str, patience: int | None, save_every_steps: int | None) -> None:
    """Refuse what a run cannot be watched or saved by; the arguments are those of `make_trainer`."""
    if mode not in ("min", "max"):
        raise UserError(f"mode is {mode!r}", "use min or max")
    if patience is not None and monitor is None:
        raise UserError(f"patience is {patience} but no metric is monitored", "give monitor, e.g. monitor=val_loss")
    for name, count in (("patience", patience), ("save_every_steps", save_every_steps)):
        if count is not None and count < 1:
            raise UserError(f"{name} is {count}", "give at least 1, or leave it out")


def check_processes(trainer: pl.Trainer, graph: bool) -> None:
    """Refuse more processes than graphs or a CPU can serve; of GPUs Lightning knows how many there are."""
    if graph and trainer.world_size > 1:
        raise UserError("graphs are captured on one GPU, and several devices train", "leave out trainer.graph")
    most = max(_FEW_PROCESSES, usable_cores())
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        found = f"{trainer.num_devices} devices were asked of a CPU with {usable_cores()} cores: a process each"
        raise UserError(found, f"give devices at most {most}")


def check_strategy(strategy: Any, precision: str, graph: bool) -> None:
    """Refuse a strategy that is unknown, shards by Lightning's own means, or does not go with precision or graphs."""
    if strategy is None:
        return
    if strategy == FSDP:
        if precision.startswith("16"):
            raise UserError(f"the strategy {FSDP} does not scale losses, as fp16 needs it", "use precision bf16-mixed")
        if graph:
            raise UserError(f"graphs need whole weights, and {FSDP} gathers shards", "leave out trainer.graph")
        return
    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in known:
        raise UserError(f"unknown strategy {strategy!r}", nearest(strategy, known))
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name.lower().startswith(_SHARDED):
        raise UserError(
            f"the strategy {name} shards the model and saves it by its own means; checkpoints here are one whole file",
            f'use strategy "{FSDP}", which shards too, or "ddp"',
        )


def not_taken(error: Exception) -> UserError:
    """Return the refusal of options that Lightning does not take."""
    return UserError(f"these trainer options do not work: {one_line(error)}", "change or drop that option")


def of_another_run(error: Exception, ckpt_path: str | Path) -> UserError | None:
    """Explain an error of continuing from a checkpoint that another model, optimiser or budget wrote; None for others.

    Args:
        error: What Lightning or PyTorch raised.
        ckpt_path: The checkpoint.
    """
    text = str(error.args[0]) if error.args else ""
    remedy = "give the arguments with which the run was started, or start a new run in another folder"
    if "Error(s) in loading state_dict" in text:
        parts = []
        for label, title in (("missing", "Missing key(s)"), ("unexpected", "Unexpected key(s)")):
            found = re.search(re.escape(title) + r" in state_dict: (.*?)\. ?$", text, re.MULTILINE)
            if found:
                parts.append(f"{label} {_some(found.group(1).replace(chr(34), '').split(', '))}")
        sizes = re.findall(r"size mismatch for (\S+): copying a param with shape (.*?) from checkpoint", text)
        if sizes:
            parts.append("other shape " + _some([name for name, _ in sizes]))
        return UserError(f"{ckpt_path} belongs to another model ({'; '.join(parts)})", remedy)
    if "parameter group" in text:
        return UserError(f"{ckpt_path} belongs to another model or optimizer ({one_line(error)})", remedy)
    if restored := re.search(r"checkpoint with current_epoch=(\d+)", text):
        return UserError(
            f"{ckpt_path} has trained {restored[1]} epochs, and max_epochs is less", f"give at least {restored[1]}"
        )
    if "but checkpoint contains only the model" in text:
        return UserError(f"{ckpt_path} holds weights only, no run to continue", "resume from last.ckpt")
    return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return ", ".join(names[:_SHOWN_KEYS]) + more


def one_line(error: Exception) -> str:
    """Return an error's text as one line without a full stop."""
    return " ".join(str(error.args[0] if error.args else error).split()).rstrip(".")
