"""The one switch that decides which implementation of an operator runs.

Each operator takes ``backend=``; where it is None the environment variable ``MAMBA_KERNELS_BACKEND`` (read once, at
import) decides, and where that is unset or ``auto`` the device of the tensors does: the CPU path on a CPU, Triton on a
GPU. ``reference`` is the plain PyTorch definition of the operator; it runs on any device, bypasses the registered
operator and is differentiable any number of times. Nothing ever falls back to it silently.

In a process started with ``TRITON_INTERPRET=1`` the GPU kernels stand in for the CPU ones, so that they can be tested
on a machine without a GPU.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch

from mamba_kernels.errors import BackendError

VARIABLE = "MAMBA_KERNELS_BACKEND"
NAMES = ("auto", "reference", "cpu", "triton")

_from_environment = os.environ.get(VARIABLE, "auto")
_interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
_imported: dict[str, ModuleType] = {}


def runs_gpu_kernels(device: torch.device) -> bool:
    """Return whether tensors on ``device`` go to an operator's GPU kernels, where it has some."""
    return device.type == "cuda" or (device.type == "cpu" and _interpreted)


def kernels(package: str, device: torch.device) -> ModuleType:
    """Return the module of an operator's kernels for ``device``: ``cpu`` or ``triton`` of its package.

    Raises:
        BackendError: If Triton is needed and not installed.
    """
    name = f"{package}.triton" if runs_gpu_kernels(device) else f"{package}.cpu"
    found = _imported.get(name)
    if found is not None:
        return found
    try:
        return _imported.setdefault(name, importlib.import_module(name))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise BackendError(
            f"the GPU kernels need Triton, which is not installed ({error})",
            f"pip install triton, or set {VARIABLE}=reference to accept the slow path",
        ) from error


def choose(op: str, device: torch.device, requested: str | None, *, has_triton: bool) -> str:
    """Return the backend that runs ``op`` on ``device``: "reference", "cpu" or "triton".

    Args:
        op: The operator's public name, for the error.
        device: The device of the operator's tensors; "meta" takes the path of a CPU.
        requested: The caller's ``backend`` argument, or None for the environment's choice.
        has_triton: Whether this operator has a Triton kernel.

    Raises:
        BackendError: If the name is unknown, or the backend cannot run ``op`` on ``device``.
    """
    name = _from_environment if requested is None else requested
    if name not in NAMES:
        raise BackendError(f"{op}: unknown backend {name!r}", f"choose one of {', '.join(NAMES)}")
    interpreted = has_triton and device.type == "cpu" and _interpreted
    if name == "auto":
        name = "cpu" if device.type in ("cpu", "meta") and not interpreted else "triton"
    if name == "cpu" and interpreted:
        raise BackendError(
            f"{op}: backend 'cpu' was asked for while GPU kernels are interpreted", "unset TRITON_INTERPRET"
        )
    if name == "cpu" and device.type not in ("cpu", "meta"):
        raise BackendError(f"{op}: backend 'cpu' was asked for tensors on {device}", "move them to the CPU")
    if name == "triton":
        if not has_triton or device.type not in ("cuda", "cpu", "meta"):
            raise BackendError(
                f"{op}: there is no GPU kernel for {device.type} tensors in this version",
                f"pass backend='reference' or set {VARIABLE}=reference to accept the slow path",
            )
        if device.type == "cpu" and not _interpreted:
            raise BackendError(
                f"{op}: backend 'triton' was asked for tensors on the CPU",
                "move them to a GPU, or set TRITON_INTERPRET=1 before the import to interpret the kernel",
            )
    return name
