"""The half-way sums of an epoch's logged means and metrics, which Lightning does not keep in its checkpoints.

The only place that knows how Lightning's logging stores them.
"""

from __future__ import annotations

import builtins
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from torchmetrics import Metric

_FIELDS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
_SHOWN = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


class Results(_ResultCollection):
    """Lightning's results, without its search for something to move in all that a result holds at every logging."""

    def __setitem__(self, key: str, result: _ResultMetric) -> None:
        """Add a result."""
        if type(result) is _ResultMetric and result.is_tensor:
            result.__class__ = _Settled
        super().__setitem__(key, result)


class _Settled(_ResultMetric):
    """A result that moves where it has to."""

    def to(self, *args: Any, **kwargs: Any) -> _Settled:
        if not kwargs and len(args) == 1:
            if all(getattr(self, name).device == args[0] for name in self._defaults):
                return self
        super().to(*args, **kwargs)
        return self


def collect(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the running results of the training epoch.

    Args:
        trainer: A trainer between two batches or two epochs.

    Returns:
        Tensors and plain values, for `restore`.
    """
    modules = dict(trainer.lightning_module.named_modules())
    names = {id(module): name for name, module in modules.items()}
    results = {}
    for key, result in trainer.fit_loop.epoch_loop._results.items():
        # a result of a process group cannot be described in a file; its first batch after a resume starts it anew
        if result.has_reset or result.meta.sync._group is not None:
            continue
        meta = result.meta
        entry = {field: getattr(meta, field) for field in (*_FIELDS, "dataloader_idx", "metric_attribute")}
        entry["reduce"] = [meta.reduce_fx.__name__, meta.reduce_fx is getattr(builtins, meta.reduce_fx.__name__, None)]
        entry["sync"] = [meta.sync.should, meta.sync.rank_zero_only]
        entry["step_value"] = result._forward_cache
        if result.is_tensor:
            entry["state"] = {name: getattr(result, name) for name in result._defaults}
        else:
            entry["module"] = names[id(result.value)]
        results[key] = entry
    metrics = {
        name: {"state": {key: getattr(module, key) for key in module._defaults}, "updates": module._update_count}
        for name, module in modules.items()
        if isinstance(module, Metric)
    }
    connector = trainer._logger_connector
    return {"results": results, "metrics": metrics, "shown": {name: dict(getattr(connector, name)) for name in _SHOWN}}


def restore(trainer: pl.Trainer, state: dict[str, Any]) -> None:
    """Put the running results back before the first batch of a resumed run.

    Args:
        trainer: The trainer, its model on its device.
        state: What `collect` returned, or nothing.
    """
    if not state:  # written inside a bad batch, which had already been logged
        return
    module = trainer.lightning_module
    device = module.device
    modules = dict(module.named_modules())
    for name, saved in state["metrics"].items():
        metric = modules[name]
        for key, value in saved["state"].items():
            setattr(metric, key, _moved(value, device))
        metric._update_count = saved["updates"]
        metric._computed = None
    results = trainer.fit_loop.epoch_loop._results
    for key, entry in state["results"].items():
        result = _ResultMetric(_metadata(trainer, entry), "state" in entry)
        for name, value in entry.get("state", {}).items():
            setattr(result, name, _moved(value, device))
        if "module" in entry:
            result.value = modules[entry["module"]]
        result._forward_cache = _moved(entry["step_value"], device)
        result._update_count = 1
        result.has_reset = False
        results[key] = result
    for name, values in state["shown"].items():
        setattr(trainer._logger_connector, name, _moved(values, device))
    if state["results"]:
        # "the first batch of the epoch was logged": otherwise the next one resets the results
        trainer._logger_connector._first_loop_iter = True


def _metadata(trainer: pl.Trainer, entry: dict[str, Any]) -> _Metadata:
    reduce_name, is_builtin = entry["reduce"]
    should, rank_zero_only = entry["sync"]
    meta = _Metadata(
        **{field: entry[field] for field in (*_FIELDS, "dataloader_idx", "metric_attribute")},
        reduce_fx=getattr(builtins if is_builtin else torch, reduce_name),
    )
    meta.sync = _Sync(_should=should, fn=trainer.strategy.reduce, _group=None, rank_zero_only=rank_zero_only)
    return meta


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value
