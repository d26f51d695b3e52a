"""What a measured figure must carry: hardware, versions and commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from mamba_datasets.cores import usable_cores

PACKAGES = (
    "mamba-apps",
    "torch",
    "triton",
    "numba",
    "numpy",
    "pandas",
    "lightning",
    "timm",
    "torchaudio",
    "torchmetrics",
    "einops",
)


def versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed version of each named distribution; those absent are left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Return the processor's marketing name, or what the platform module knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of the checkout this package is imported from, marked when it has changes; None outside one."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    # An installed copy inside somebody else's checkout must not claim that project's commit.
    tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def describe(*, devices: bool = True) -> dict[str, object]:
    """Return hardware, versions and commit as plain JSON values.

    Args:
        devices: Whether to ask torch for the GPUs, which imports it.
    """
    about: dict[str, object] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "versions": versions(),
        "commit": commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    if devices:
        import torch

        about["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return about
