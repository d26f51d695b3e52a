"""The benchmark's rows as a table for people."""

from __future__ import annotations

from typing import Any


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, each rival's time and memory as a multiple of ours."""
    lines = [
        "| operator | shape | by | median ms | times ours | peak above idle MiB | times ours |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = {(row["op"], tuple(row["shape"])): row for row in rows if row["by"] == "ours"}
    for row in rows:
        base = ours[row["op"], tuple(row["shape"])]
        speed, memory = "", ""
        if row is not base:
            speed = f"{row['median_ms'] / base['median_ms']:.1f}"
            if base["peak_above_idle_mib"] > 0:
                memory = f"{row['peak_above_idle_mib'] / base['peak_above_idle_mib']:.1f}"
        shape = ", ".join(str(size) for size in row["shape"])
        lines.append(
            f"| {row['op']} | {shape} | {row['by']} | {row['median_ms']:.2f} | {speed} "
            f"| {row['peak_above_idle_mib']:.1f} | {memory} |"
        )
    return "\n".join(lines)
