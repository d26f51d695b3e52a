"""Cutting a module's parameters into shards, one a process, and putting whole tensors together again.

PyTorch's `fully_shard` (FSDP2) does the work: parameters become DTensors, which their hooks gather around each forward
and backward pass. What is here is what lies around it: which layers are gathered together, how whole tensors get into
and out of shards, and how a module becomes an ordinary one again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

# Where models keep the layers that they repeat, as timm names them; each is called as a module.
_REPEATED = ("blocks", "layers")
# What a trainer calls of a task in place of its forward.
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class Shards:
    """A task whose parameters are sharded in place, until `undo`.

    The layers that models repeat are gathered one by one, the rest of the parameters together.

    Args:
        task: The Lightning module; its steps gather its parameters as its forward does.
        mesh: The processes, in one dimension.
    """

    def __init__(self, task: nn.Module, mesh: DeviceMesh) -> None:
        # in a list, for the hash of a metric changes
        before = [(module, type(module), _hooks(module), set(vars(module))) for module in task.modules()]
        for layer in _repeated_layers(task):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        fully_shard(task, mesh=mesh, reshard_after_forward=True)
        for name in _STEPS:
            if hasattr(task, name):
                register_fsdp_forward_method(task, name)
        self._before = [(module, kind, hooks, set(vars(module)) - names) for module, kind, hooks, names in before]

    def undo(self) -> None:
        """Make it the ordinary module that it was, with whole parameters on the CPU; all processes call it.

        PyTorch has no function for this: what it put into the modules is taken out, and their classes are set back.
        """
        for module, kind, hooks, added in self._before:
            for name, parameter in module._parameters.items():
                if isinstance(parameter, DTensor):
                    module._parameters[name] = nn.Parameter(parameter.full_tensor().cpu(), parameter.requires_grad)
            module.__class__ = kind
            vars(module).update(hooks)
            for name in added:
                del vars(module)[name]
            _module_state_mapping.pop(module, None)


def whole(value: Tensor) -> Tensor:
    """Return a tensor with its shards gathered; all processes call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(state: Any, first: bool) -> Any:
    """Return a state with its shards gathered in the CPU's memory of the first process; all processes call it.

    Only one tensor at a time is whole on the device.

    Args:
        state: A state dict, or a structure of some.
        first: Whether this is the first process; the others get None for what was sharded.
    """
    if isinstance(state, DTensor):
        gathered = state.full_tensor()
        return gathered.cpu() if first else None
    if isinstance(state, Mapping):
        return {key: whole_state(item, first) for key, item in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(item, first) for item in state)
    return state


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a tensor that all processes hold, cut as another is; itself, where that is whole.

    Args:
        value: The whole tensor.
        like: A tensor of its shape.
    """
    if not isinstance(like, DTensor):
        return value
    # every process holds it: nothing has to be sent
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard_like(module: nn.Module, like: nn.Module) -> None:
    """Cut a module's parameters as those of another are cut; nothing gathers them, and its forward cannot run."""
    sharded = dict(like.named_parameters())
    for prefix, part in module.named_modules():
        for name, parameter in part._parameters.items():
            full_name = f"{prefix}.{name}" if prefix else name
            if parameter is not None and isinstance(sharded[full_name], DTensor):
                cut = sharded_like(parameter.detach(), sharded[full_name])
                part._parameters[name] = nn.Parameter(cut, parameter.requires_grad)


def shard_state(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's saved state with the tensors of each parameter sharded as the parameter is.

    Args:
        optimiser: Whose parameters they belong to.
        state: Its `state_dict`, whole.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    entries = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in state["state"]:
            entries[number] = {
                name: sharded_like(value, parameter) if _is_of(value, parameter) else value
                for name, value in state["state"][number].items()
            }
    return {**state, "state": entries}


def _is_of(value: Any, parameter: Tensor) -> bool:
    """Whether a value of an optimiser's state has an entry for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _hooks(module: nn.Module) -> dict[str, Any]:
    """Return copies of a module's tables of hooks, by their names."""
    return {name: copy.copy(table) for name, table in vars(module).items() if "_hooks" in name}


def _repeated_layers(task: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for name, module in task.named_modules():
        if name.rpartition(".")[2] in _REPEATED and isinstance(module, nn.ModuleList | nn.Sequential):
            # a stage has such layers of its own
            found += [layer for layer in module if not _repeats(layer) and any(True for _ in layer.parameters())]
    return found


def _repeats(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in _REPEATED for name, _ in module.named_modules())
