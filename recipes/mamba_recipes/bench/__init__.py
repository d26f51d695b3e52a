"""`mamba-apps bench`: time the operators beside what people use today, and stacks of them at the shapes of models."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from mamba_datasets.files import write_whole
from mamba_recipes import environment
from mamba_recipes.bench import against
from mamba_recipes.cli.arguments import Parser
from mamba_recipes.cli.targets import check_target


def main(argv: list[str]) -> int:
    """Run `mamba-apps bench` with the given arguments and return the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _refuse_what_cannot_run(parser, arguments)
    document: dict[str, Any] = {
        "bench": arguments.what,
        "device": arguments.device,
        "environment": environment.describe(devices=arguments.device == "cuda"),
    }
    for option, path in (("--out", arguments.out), ("--figure", arguments.figure)):
        if path is not None:
            check_target(option, path)
    saved = against.read_saved(arguments.against, document) if arguments.against else []
    table, failures = _run(arguments, document)
    text = json.dumps(document, indent=1)
    if arguments.out:
        write_whole(arguments.out, lambda file: file.write(f"{text}\n".encode()))
    print(text if arguments.json else table)
    for line in failures:
        print(f"mamba-apps: wrong result: {line}", file=sys.stderr)
    worse = against.regressions(document["rows"], saved, arguments.tolerance) if arguments.against else []
    for line in worse:
        print(f"mamba-apps: worse than {arguments.against}: {line}", file=sys.stderr)
    return 1 if failures else against.REGRESSION if worse else 0


def _parser() -> Parser:
    parser = Parser(
        prog="mamba-apps bench",
        description="Time the operators, forward and backward, with the memory they need. On the CPU each case runs in "
        "a fresh process, and where the PyPI package mambapy is installed it runs beside ours. On a GPU every result "
        "is compared with the float64 reference, and every time with what the card's memory and arithmetic allow; "
        "mamba-ssm, causal-conv1d and fla run beside ours where they are installed.",
        epilog=f"Exit codes: 0 done, 1 a result was wrong, 2 wrong input, {against.REGRESSION} worse than --against.",
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="ops",
        choices=["ops", "stack", "models", "volumes", "audio", "decode", "scaling"],
        help="operators (default); and on a GPU: layers of a model made of them; whole image models beside timm's; "
        "networks for medical volumes; Audio Mamba beside AST over clip lengths; steps of decoding, tokens a second; "
        "time and memory against length",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)")
    parser.add_argument(
        "--repeats", type=int, default=20, metavar="N", help="timed repeats of a case on the CPU (default: 20)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORDS",
        help="on a GPU, run the cases whose row has all these words, such as 'selective_scan vim' or '128,768,197'; "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument("--figure", type=Path, metavar="PNG", help="also draw the figures of scaling or audio here")
    parser.add_argument("--against", type=Path, metavar="FILE", help="a document of --out to be no worse than")
    parser.add_argument(
        "--tolerance", type=against.fraction, default=0.1, metavar="PART",
        help="how much worse than --against a figure may be, such as 0.1 or 10%% (default)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON document to this file")
    return parser


def _refuse_what_cannot_run(parser: Parser, arguments: argparse.Namespace) -> None:
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    if arguments.figure and arguments.what not in ("scaling", "audio"):
        parser.error("--figure belongs to scaling and audio")
    if arguments.device == "cpu":
        if arguments.what != "ops" or arguments.only:
            parser.error("everything but ops, and --only, needs --device cuda")
        if not sys.platform.startswith("linux"):
            parser.error("the memory figures need Linux's /proc; run the benchmark there")
        return
    import torch

    if not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")


def _run(arguments: argparse.Namespace, document: dict[str, Any]) -> tuple[str, list[str]]:
    """Run the benchmark, put its figures into the document, and return its table and the lines of wrong results."""
    if arguments.device == "cpu":
        from mamba_recipes.bench.ops import run_all
        from mamba_recipes.bench.table import render

        document["rows"] = run_all(threads=arguments.threads, repeats=arguments.repeats, talk=_talk)
        return render(document["rows"]), []
    if arguments.what != "ops":
        module = importlib.import_module(f"mamba_recipes.bench.gpu.{arguments.what}")
        document["rows"] = module.run(_talk, arguments.only)
        if arguments.figure:
            module.draw(document["rows"], arguments.figure)
        wrong = getattr(module, "wrong", None)  # Stacks and models stop at what is wrong.
        return module.render(document["rows"]), wrong(document["rows"]) if wrong else []
    from mamba_recipes.bench import gpu

    document["rows"], ceilings = gpu.run(_talk, arguments.only)
    document["ceilings"] = ceilings._asdict()
    rates = (
        f"copy {ceilings.bytes_per_second / 1e12:.2f} TB/s, "
        f"exponentials {ceilings.exponentials_per_second / 1e12:.2f}e12 a second"
    )
    return f"{gpu.render(document['rows'])}\n\n{rates}", gpu.wrong(document["rows"])


def _talk(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
