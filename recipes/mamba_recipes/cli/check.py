"""`mamba-apps check PATH`: ask the readers whether a file or folder can be used, and list every problem they find."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_recipes.cli.arguments import Parser
from mamba_recipes.cli.errors import DONE, WRONG_INPUT
from mamba_recipes.cli.remedies import typed
from mamba_recipes.cli.targets import check_target
from mamba_recipes.settings import parse_value


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps check`; problems in the file make the exit code 2."""
    parser = Parser(prog="mamba-apps check", description="Check data and list every problem, with its remedy.")
    parser.add_argument("path", type=Path, metavar="PATH", help="the file or folder")
    parser.add_argument("--as", dest="kind", metavar="KIND", help="what it holds, for example series (by its name)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the reader, for example freq=h or target_col=sales; may be repeated",
    )
    parser.add_argument(
        "--write-broken",
        type=Path,
        metavar="FILE",
        help="write the list of a folder's broken files, which a data set's leave_out reads",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    options = {}
    for word in arguments.set:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"--set {word!r} is not understood", "write it like --set freq=h")
        options[key] = parse_value(value)
    if not arguments.path.exists():
        raise UserError(f"{arguments.path}: there is no such file or folder", "check the path")
    if arguments.write_broken is not None:
        _check_list(arguments.path, arguments.write_broken)

    from mamba_datasets.broken import write_broken
    from mamba_datasets.registry import check

    try:
        report = check(arguments.path, arguments.kind, **options)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in options:
            raise
        raise UserError(
            f"--set {unknown[1]}: its reader has no such option", "correct its name, or leave it out"
        ) from None
    if arguments.json:
        print(json.dumps(asdict(report), indent=1, default=str))
    else:
        findings = (replace(one, remedy=typed(one.remedy, _setting, formats=True)) for one in report.findings)
        for line in (*map(str, findings), *(f"note: {note}" for note in report.notes)):
            # file names may hold line breaks and bytes that are no text
            print(" ".join(line.splitlines()).encode(errors="backslashreplace").decode())
        if report.ok:
            print(f"{report.path}: {report.summary}" if report.summary else f"{report.path}: can be used")
    if arguments.write_broken is not None:
        count = write_broken(report, arguments.write_broken)
        print(f"mamba-apps: {arguments.write_broken}: lists {count} files to leave out", file=sys.stderr)
    if not report.ok:
        count = len(report.findings)
        print(f"mamba-apps: {report.path}: {count} problem{'s' if count != 1 else ''} found", file=sys.stderr)
        return WRONG_INPUT
    return DONE


def _setting(name: str, value: str) -> str:
    return f"--set {shlex.quote(f'{name}={value}')}"


def _check_list(checked: Path, path: Path) -> None:
    """Refuse a list of broken files that could not be written, before a large folder is read."""
    from mamba_datasets.broken import refuse_other

    if not checked.is_dir():
        raise UserError(f"--write-broken lists files of a folder, and {checked} is a file", "check its folder")
    check_target("--write-broken", path)
    refuse_other(path)
