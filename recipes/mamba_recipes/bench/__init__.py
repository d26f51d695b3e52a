"""`mamba-apps bench`: time the operators, each case in a process of its own, beside what people use today."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mamba_recipes import environment
from mamba_recipes.cli.arguments import Parser


def main(argv: list[str]) -> int:
    """Run `mamba-apps bench` with the given arguments and return the exit code."""
    parser = Parser(
        prog="mamba-apps bench",
        description="Time the operators, forward and backward, with the memory they need. On the CPU each case runs in "
        "a fresh process, and where the PyPI package mambapy is installed it runs beside ours.",
    )
    parser.add_argument("what", choices=["ops"], help="what to time")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=20, help="timed repeats of a case (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")

    if arguments.device == "cpu" and not sys.platform.startswith("linux"):
        parser.error("the memory figures need Linux's /proc; run the benchmark there")

    def talk(line: str) -> None:
        print(line, file=sys.stderr)

    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
        from mamba_recipes.bench import gpu

        rows, render = gpu.run_all(talk), gpu.render
    else:
        from mamba_recipes.bench.ops import run_all
        from mamba_recipes.bench.table import render

        rows = run_all(threads=arguments.threads, repeats=arguments.repeats, talk=talk)
    document = {"bench": "ops", "device": arguments.device, "environment": environment.describe(), "rows": rows}
    text = json.dumps(document, indent=1)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text if arguments.json else render(rows))
    return 0
