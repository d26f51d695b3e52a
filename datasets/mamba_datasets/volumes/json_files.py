"""JSON files that people read and write: plans, descriptions of data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mamba_datasets.errors import DataError, check_path


def read_any_json(path: str | Path, remedy: str) -> Any:
    """Read a JSON file, or raise a `DataError` with this remedy."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(path, "file", f"cannot be read: {error.strerror}", check_path(path)) from None
    except ValueError as error:
        raise DataError(path, "file", f"is no JSON ({error})", remedy) from None


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object, or raise a `DataError` with this remedy."""
    content = read_any_json(path, remedy)
    if not isinstance(content, dict):
        raise DataError(path, "file", f"expected a JSON object, found a {type(content).__name__}", remedy)
    return content


def indented(value: Any, indent: str = "") -> str:
    """Return JSON with one line an entry, but lists of numbers on one line."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        rows = [f"{inner}{json.dumps(key)}: {indented(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return "[\n" + ",\n".join(inner + indented(entry, inner) for entry in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)
