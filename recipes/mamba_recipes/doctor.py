"""`mamba-apps doctor`: what this installation can do here, and what to do about what it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast

from mamba_datasets.cores import usable_cores
from mamba_recipes import environment
from mamba_recipes.cli.arguments import Parser

# The extras of pyproject.toml that are for people, and what each installs.
EXTRAS = {"compare": ("sktime",), "scale": ("litdata",), "medical": ("monai", "nibabel", "scipy")}


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, "ok", "note" or "problem", and what was seen or is to be done."""

    subject: str
    state: str
    detail: str


def _packages() -> list[Finding]:
    """Whether what the suite imports does import; torch and torchaudio are the pair that most often do not fit."""
    found = []
    for name in ("torch", "torchvision", "torchaudio", "lightning", "timm", "torchmetrics", "numba", "pandas"):
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            remedy = "install mamba-apps into a new environment, so that torch and its companions are chosen together"
            found.append(Finding(name, "problem", f"does not import ({error}); {remedy}"))
        else:
            found.append(Finding(name, "ok", str(getattr(module, "__version__", "imported"))))
    return found


def _extras() -> list[Finding]:
    """Which extras are here; none of them is needed."""
    found = []
    for name, packages in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            todo = f"without {', '.join(missing)}: pip install 'mamba-apps[{name}]'"
            found.append(Finding(f"[{name}]", "note", todo))
        else:
            versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
            found.append(Finding(f"[{name}]", "ok", ", ".join(versions)))
    return found


def _devices() -> list[Finding]:
    """Which devices there are, and what runs the operators on them."""
    import torch

    found = [
        Finding("cpu", "ok", f"{environment.cpu_name()}, {usable_cores()} cores, numba kernels"),
    ]
    if not torch.cuda.is_available():
        return [*found, Finding("gpu", "note", "no CUDA device is visible to torch: everything runs on the CPU")]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found.append(Finding(f"gpu {index}", "ok", f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"))
    return found


def _scan() -> list[Finding]:
    """Whether the scan's kernels agree with the reference on this machine, forward and backward."""
    import torch

    from mamba_kernels import selective_scan

    torch.manual_seed(0)
    inputs = (
        torch.randn(2, 5, 33),
        torch.rand(2, 5, 33),
        -torch.rand(5, 4) - 0.1,
        torch.randn(2, 4, 33),
        torch.randn(2, 4, 33),
    )

    def results(backend: str, device: str) -> list[torch.Tensor]:
        leaves = [t.to(device, copy=True).requires_grad_() for t in inputs]
        u, delta, A, B, C = leaves
        y = cast(torch.Tensor, selective_scan(u, delta, A, B, C, delta_softplus=True, backend=backend))
        return [x.cpu() for x in (y.detach(), *torch.autograd.grad(y.square().sum(), leaves))]

    wanted, found = results("reference", "cpu"), []
    for backend, device, kernel in (("cpu", "cpu", "CPU kernel"), ("triton", "cuda", "GPU kernels")):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        got = results(backend, device)
        worst = max(float((fast - true).abs().max() / true.abs().max()) for fast, true in zip(got, wanted, strict=True))
        if worst > 1e-4:
            detail = f"{kernel} {worst:.1e} off the reference; please report this"
            found.append(Finding("selective scan", "problem", detail))
        else:
            detail = f"{kernel} within {worst:.1e} of the reference, gradients included"
            found.append(Finding("selective scan", "ok", detail))
    return found


def _sample() -> list[Finding]:
    """Whether the data sample of the main job was installed."""
    from mamba_datasets.samples import metro_traffic_path

    path = metro_traffic_path()
    if not path.is_file():
        return [Finding("traffic sample", "problem", f"{path} is missing; reinstall mamba-apps")]
    return [Finding("traffic sample", "ok", f"{path.stat().st_size // 1024} KiB")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (_packages, _extras, _devices, _scan, _sample)


def run() -> list[Finding]:
    """Run every check; one that fails in an unforeseen way is itself a finding."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check()
        except Exception as error:
            found.append(Finding(check.__name__.strip("_"), "problem", f"{type(error).__name__}: {error}"))
    return found


def main(argv: list[str]) -> int:
    """Run `mamba-apps doctor` with the given arguments; 0 if there is no problem, else 1."""
    parser = Parser(
        prog="mamba-apps doctor", description="Say what this installation can do here, and what to do about the rest."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    arguments = parser.parse_args(argv)
    findings = run()
    if arguments.json:
        about = environment.describe()
        print(json.dumps({"environment": about, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<8}{finding.subject:<{width + 2}}{finding.detail}")
    return 1 if any(finding.state == "problem" for finding in findings) else 0
