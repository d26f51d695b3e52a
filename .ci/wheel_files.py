"""Check a built wheel: the four packages and their data are in it, and nothing else.

Usage: python .ci/wheel_files.py WHEEL
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOTS = {
    "mamba_kernels": "kernels",
    "mamba_datasets": "datasets",
    "mamba_apps": ".",
    "mamba_recipes": "recipes",
}
SUFFIXES = {".py", ".yaml", ".csv", ".md", ".css", ".js", ".html", ".json", ".typed"}


def expected(root: Path) -> set[str]:
    """Return the files of the four packages in the checkout that belong in a wheel."""
    found = set()
    for package, source in ROOTS.items():
        base = root / source
        for path in (base / package).rglob("*"):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                found.add(path.relative_to(base).as_posix())
    return found


def main(wheel: str) -> int:
    """Compare the wheel's file list with the checkout's and print each difference."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = expected(Path(__file__).resolve().parent.parent)
    for name in sorted(wanted - packed):
        print(f"missing from the wheel: {name}")
    for name in sorted(packed - wanted):
        print(f"should not be in the wheel: {name}")
    print(f"{wheel}: {len(packed)} files")
    return 1 if packed != wanted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
