"""Print the README's code blocks that CI runs: those that follow a line `<!-- ci: NAME -->`, in their order.

Usage: python .ci/readme.py NAME [NAME...]; a name no block carries is an error, so the README cannot lose one silently.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^<!-- ci: (?P<name>[a-z-]+) -->\n```\w+\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def main(names: list[str]) -> int:
    """Print the blocks of every name."""
    readme = Path(__file__).resolve().parent.parent / "README.md"
    blocks = [(match["name"], match["code"]) for match in BLOCK.finditer(readme.read_text(encoding="utf-8"))]
    for name in names:
        code = [text for found, text in blocks if found == name]
        if not code:
            print(f"README.md has no block marked <!-- ci: {name} -->", file=sys.stderr)
            return 1
        print("".join(code), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
